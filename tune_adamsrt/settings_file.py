"""Files of settings: where the shipped ones are, how YAML is read and laid over the defaults.

Checks that a file is UTF-8, valid YAML and a mapping that says no key twice; what it must hold is settings.py's.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tune_adamsrt.ranges import ONE_MINUS


class SettingError(ValueError):
    """A setting that does not exist or whose file is wrong; the message is one line."""


def shipped_folder() -> Path:
    """Where the shipped files are: in the package when it was installed from a wheel, else beside the package."""
    installed = Path(__file__).with_name("search_spaces")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "search_spaces"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does (YAML 1.1: a string, for want of a dot)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """What the file holds, unchecked. Raises SettingError, whose message is one line."""
    shown = shown_path(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _refuse_repeated_keys(node, set())
        data = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise SettingError(f"{shown} must be a readable file, got: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{shown} must be UTF-8 text, got a wrong byte at {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise SettingError(f"{shown}{line} must be valid YAML, got: {problem}; correct the line") from None
    if not isinstance(data, dict):
        raise SettingError(f"{shown} must hold `key: value` lines, got {type(data).__name__}; see _defaults.yaml")
    return data


def _refuse_repeated_keys(node: yaml.Node | None, seen: set[int]) -> None:
    """PyYAML keeps the last of two equal keys and says nothing."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    names: set[str] = set()
    for item in node.value:
        key, child = item if isinstance(node, yaml.MappingNode) else (None, item)
        if key is not None and isinstance(key, yaml.ScalarNode):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
            names.add(key.value)
        _refuse_repeated_keys(child, seen)


def merge(base: Mapping[str, Any], own: Mapping[str, Any], place: tuple[str, ...] = ()) -> dict[str, Any]:
    """Merge mappings, replace the rest. Below optimizers.<name>.space a parameter also replaces its one_minus_ form."""
    merged = dict(base)
    is_space = len(place) == 3 and place[0] == "optimizers" and place[2] == "space"
    for key, value in own.items():
        if is_space:
            other_form = key.removeprefix(ONE_MINUS) if str(key).startswith(ONE_MINUS) else f"{ONE_MINUS}{key}"
            if other_form not in own:
                merged.pop(other_form, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = merge(merged[key], value, (*place, key))
        merged[key] = value
    return merged


def holds(data: Any, place: tuple[str, ...]) -> bool:
    """Whether the file itself, not the defaults, holds the key."""
    for key in place:
        if not isinstance(data, Mapping):
            return True
        if key not in data:
            return False
        data = data[key]
    return True


def shown_path(path: Path) -> str:
    """The path as a person would type it: relative where it lies below the working directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
