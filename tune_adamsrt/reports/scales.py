"""A hyper-parameter's range as a scale from 0 to 1, for axes that several hyper-parameters share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tune_adamsrt.ranges import ONE_MINUS, Range
from tune_adamsrt.space import SearchSpace

READING_ORDER = ("lr", "beta1", "beta2", "momentum", "weight_decay")

ZERO_POSITION = -0.14
"""Where a weight decay of exactly 0 stands, apart from the log scale of the others."""


@dataclass(frozen=True)
class Scale:
    """Where the values of one hyper-parameter stand, the range's low end at 0 and its high end at 1.

    Attributes:
        name: the hyper-parameter (beta2, also where its distance from 1 is searched).
        position: value -> its place; values outside the range lie outside [0, 1].
        ticks: (place, label), ascending.
    """

    name: str
    position: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


def stored_space(space: Mapping[str, Any]) -> SearchSpace:
    """Rebuild the space that a study keeps (`SearchSpace.to_json`)."""
    ranges = {name: Range.model_validate(kept) for name, kept in space["space"].items()}
    return SearchSpace(space["setting"], space["optimizer"], {name: ranges[name] for name in in_reading_order(ranges)})


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Sort hyper-parameters (or their one_minus_ forms) as people list them; others follow by name."""

    def place(name: str) -> tuple[int, str]:
        part = name.removeprefix(ONE_MINUS)
        return (READING_ORDER.index(part) if part in READING_ORDER else len(READING_ORDER)), part

    return sorted(names, key=place)


def build_scale(name: str, allowed: Range) -> Scale:
    """Build the scale of one entry of a space; `name` may be a one_minus_ form."""
    part = name.removeprefix(ONE_MINUS)
    if allowed.kind in ("choice", "fixed"):
        return _choices(part, name, allowed)
    is_log = "log" in allowed.kind
    low, high = (math.log(allowed.low), math.log(allowed.high)) if is_log else (allowed.low, allowed.high)

    def place(value: float) -> float:  # of the value that is searched: 1 - beta2 for one_minus_beta2
        if is_log:
            return (math.log(value) - low) / (high - low) if value > 0 else ZERO_POSITION
        return (value - low) / (high - low)

    marks = _decades(allowed.low, allowed.high) if is_log else [allowed.low, (allowed.low + allowed.high) / 2]
    ends = [mark for mark in (allowed.low, allowed.high) if all(abs(place(mark) - place(m)) > 0.1 for m in marks)]
    ticks = [(place(mark), mark) for mark in [*marks, *ends]]
    if allowed.kind == "zero_or_log_uniform":
        ticks.append((ZERO_POSITION, 0.0))
    if name == part:
        return Scale(part, place, tuple(sorted((at, _label(mark)) for at, mark in ticks)))
    # Searched as the distance from 1: the scale is turned over, so that larger betas stand higher.
    turned = sorted((1 - at, f"{1 - mark:.6g}") for at, mark in ticks)
    return Scale(part, lambda value: 1 - place(1 - value), tuple(turned))


def _choices(part: str, name: str, allowed: Range) -> Scale:
    values = sorted(1 - value if name != part else value for value in allowed.values)
    steps = max(1, len(values) - 1)

    def place(value: float) -> float:
        nearest = min(range(len(values)), key=lambda index: abs(values[index] - value))
        return nearest / steps if len(values) > 1 else 0.5

    return Scale(part, place, tuple((place(value), _label(value)) for value in values))


def _label(value: float) -> str:
    """1e-5 rather than Python's 1e-05."""
    return f"{value:.4g}".replace("e-0", "e-")


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**exponent for exponent in exponents]
