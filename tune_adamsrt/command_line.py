"""Command lines as lists of words."""

from collections.abc import Sequence


def without_options(words: Sequence[str], *names: str) -> list[str]:
    """Leave these options out, with their values, as `--name value` or `--name=value`."""
    left: list[str] = []
    is_value = False
    for word in words:
        if not is_value and word not in names and not word.startswith(tuple(f"{name}=" for name in names)):
            left.append(word)
        is_value = not is_value and word in names
    return left
