"""What a searched parameter may be called and which values it may take: names, limits and ranges."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from adamsrt.registry import unknown_name_message

ONE_MINUS = "one_minus_"
"""Prefix of a parameter that is searched as its distance from 1: one_minus_beta2 = 1 - beta2."""

_RANGE_FORMS = {
    "uniform": "{uniform: [low, high]}",
    "log_uniform": "{log_uniform: [low, high]}",
    "zero_or_log_uniform": "{zero_or_log_uniform: [low, high]}",
    "choice": "{choice: [a, b, ...]}",
    "fixed": "{fixed: a}",
}


def refuse(message: str, *at: str) -> NoReturn:
    """Raise what pydantic collects; `at` names the key below the one that is being validated."""
    raise PydanticCustomError("setting", "{message}", {"message": message, "at": at})


def parts_of(hyper_parameters: tuple[str, ...]) -> list[str]:
    """Split betas: ("lr", "betas", "weight_decay") -> ["lr", "beta1", "beta2", "weight_decay"]."""
    return [part for name in hyper_parameters for part in (("beta1", "beta2") if name == "betas" else (name,))]


def one_minus_forms(parts: list[str]) -> list[str]:
    """The names under which the parts below 1 may be searched instead: one_minus_beta2 for beta2."""
    return [ONE_MINUS + part for part in parts if part not in ("lr", "weight_decay")]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_limits(name: str, values: tuple[float, ...], *at: str) -> None:
    """Refuse values that the hyper-parameter (or its one_minus_ form) cannot take."""
    allowed: Callable[[float], bool]
    if name == "lr":
        allowed, rule = (lambda value: value > 0), "must be > 0"
    elif name == "weight_decay":
        allowed, rule = (lambda value: value >= 0), "must be >= 0"
    elif name.startswith(ONE_MINUS):
        # suggest() rounds 1 - value to 12 decimals: closer to zero it would become exactly 1.
        allowed, rule = (lambda value: 1e-9 <= value <= 1), "must be in [1e-9, 1]"
    else:
        allowed, rule = (lambda value: 0 <= value < 1), "must be in [0, 1)"
    for value in values:
        if not allowed(value):
            refuse(f"{rule}, got {value!r}", *at)


class Range(BaseModel):
    """The values one parameter may take; in YAML a mapping with one key, its kind: `{log_uniform: [1e-4, 3e-2]}`.

    `values` is (low, high) for the ranges, the choices for `choice`, one value for `fixed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uniform", "log_uniform", "zero_or_log_uniform", "choice", "fixed"]
    values: tuple[float, ...]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if isinstance(data, Range):
            return data
        if not isinstance(data, Mapping) or len(data) != 1:
            refuse(f"must be one of {', '.join(_RANGE_FORMS.values())}, got {data!r}")
        [(kind, given)] = data.items()
        if kind not in _RANGE_FORMS:
            refuse(unknown_name_message("kind of range", str(kind), list(_RANGE_FORMS)))
        values = [given] if kind == "fixed" else given
        if not isinstance(values, list | tuple) or not all(map(is_number, values)):
            refuse(f"must be {_RANGE_FORMS[kind]} with finite numbers, got {given!r}")
        if kind == "choice":
            if not values or len(set(values)) < len(values):
                refuse(f"must be a choice of one or more different numbers, got {given!r}")
        elif kind != "fixed":
            if len(values) != 2 or values[0] >= values[1]:
                refuse(f"must be {_RANGE_FORMS[kind]} with low < high, got {given!r}")
            if "log" in kind and values[0] <= 0:
                refuse(f"must have low > 0 on a log scale, got {given!r}")
        return {"kind": kind, "values": tuple(float(value) for value in values)}

    @model_serializer
    def as_yaml(self) -> dict[str, Any]:
        """The YAML form again."""
        return {self.kind: self.values[0] if self.kind == "fixed" else list(self.values)}

    @property
    def low(self) -> float:
        """The smallest value, zero apart."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)
