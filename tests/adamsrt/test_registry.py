"""The registry: names are unique, unknown names get a helpful line."""

import pytest

from adamsrt.registry import Registry, UnknownNameError, unknown_name_message


@pytest.fixture
def registry() -> Registry[int]:
    registry: Registry[int] = Registry("fruit")
    registry.add("apple", 1)
    registry.add("pear", 2)
    return registry


def test_it_is_a_mapping_in_order_of_registration(registry):
    assert dict(registry) == {"apple": 1, "pear": 2}
    assert list(registry) == ["apple", "pear"]
    assert len(registry) == 2
    assert "apple" in registry and "plum" not in registry
    assert registry.get("plum") is None


def test_register_decorates_and_gives_the_function_back():
    registry: Registry[object] = Registry("function")

    @registry.register("one")
    def one() -> int:
        return 1

    assert one() == 1
    assert registry["one"] is one


def test_a_taken_name_is_refused_and_the_first_entry_stays(registry):
    with pytest.raises(ValueError, match="the fruit name must be new, got 'apple'"):
        registry.add("apple", 3)
    assert registry["apple"] == 1


@pytest.mark.parametrize("error_class", [KeyError, ValueError, UnknownNameError])
def test_an_unknown_name_lists_the_closest_and_the_known(registry, error_class):
    with pytest.raises(error_class) as caught:
        registry["aple"]
    assert str(caught.value) == "unknown fruit 'aple'; did you mean 'apple'? known: apple, pear"


def test_a_name_close_to_none_gets_no_suggestion():
    assert unknown_name_message("fruit", "zzz", ["apple"]) == "unknown fruit 'zzz'; known: apple"
