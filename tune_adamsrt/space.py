"""Setting + optimizer -> Optuna distributions; a sampled point <-> hyper-parameters.

Optuna's parameters are the names of the YAML's `space` (lr, beta1, one_minus_beta2, ...). A range that may be zero is
two of them: the categorical `weight_decay_zero`, then `weight_decay` only where that is False (a conditional space).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import BaseTrial

from adamsrt.optimizers import OPTIMIZERS
from adamsrt.registry import unknown_name_message
from tune_adamsrt.ranges import ONE_MINUS, Range, parts_of
from tune_adamsrt.records import HyperParameters
from tune_adamsrt.settings import Setting, known_settings, load_setting

# What an optimizer uses where a published point leaves a hyper-parameter out (torch.optim.AdamW decays by default).
OPTIMIZER_DEFAULTS: Mapping[str, HyperParameters] = {"adamw": {"weight_decay": 1e-2}}

# Decimals of 1 - x. 1 - 0.001 is 0.999 exactly after it, so that a published beta2 survives suggest(encode(point)).
DECIMALS = 12

EDGE_FRACTION = 0.02


@dataclass(frozen=True)
class SearchSpace:
    """Where one optimizer is searched on one setting.

    Args:
        setting: the setting's name.
        ranges: Optuna's parameter names and their ranges, in the order in which they are asked for.
        candidates: points to try first, the best guess first; `first_points` leaves out what lies outside the space.
        is_grid: the space is the paper's grid: only choices, for Optuna's GridSampler.
    """

    setting: str
    optimizer: str
    ranges: Mapping[str, Range]
    candidates: tuple[HyperParameters, ...] = ()
    is_grid: bool = False

    def suggest(self, trial: BaseTrial) -> HyperParameters:
        """Ask the trial for one point: lr, betas (a tuple) or momentum, weight_decay, ready for build_optimizer."""
        values = {}
        for name, allowed in self.ranges.items():
            value = _suggest_value(trial, name, allowed)
            values[name.removeprefix(ONE_MINUS)] = _one_minus(value) if name.startswith(ONE_MINUS) else value
        return _joined(values, OPTIMIZERS[self.optimizer].hyper_parameters)

    def encode(self, hyper_parameters: HyperParameters) -> dict[str, Any]:
        """Give the Optuna parameters under which `suggest` returns this point (for study.enqueue_trial).

        Raises ValueError where the point is outside the space, or lacks a hyper-parameter, or has one too many.
        """
        values = _split(hyper_parameters)
        names = [name.removeprefix(ONE_MINUS) for name in self.ranges]
        for name in values:
            if name not in names:
                raise ValueError(unknown_name_message("hyper-parameter", name, names))
        params: dict[str, Any] = {}
        for name, allowed in self.ranges.items():
            part = name.removeprefix(ONE_MINUS)
            if part not in values:
                raise ValueError(f"{part} must be given to place a point in the space of {self.optimizer}, got nothing")
            value = _one_minus(values[part]) if name.startswith(ONE_MINUS) else values[part]
            params |= self._encode_value(name, allowed, value)
        return params

    def grid(self) -> dict[str, list[float]]:
        """Give the values per Optuna parameter, for GridSampler. ValueError where the space is no grid."""
        if not self.is_grid:
            raise ValueError("grid() needs a space of choices only, got ranges; use build_search_space(..., grid=True)")
        return {name: list(allowed.values) for name, allowed in self.ranges.items()}

    def first_points(self) -> list[HyperParameters]:
        """Give the points to try first, without repeats, those inside the space.

        The published best of this setting comes first, then those of the optimizer's other settings, the related ones
        (same model or dataset) before the rest. None for a grid, which visits all of its points anyway.
        """
        points: list[HyperParameters] = []
        for point in self.candidates if not self.is_grid else ():
            if self.contains(point) and point not in points:
                points.append(dict(point))
        return points

    def contains(self, hyper_parameters: HyperParameters) -> bool:
        """Tell whether a point lies inside the space."""
        try:
            self.encode(hyper_parameters)
        except ValueError:
            return False
        return True

    def edges(self, hyper_parameters: HyperParameters) -> list[str]:
        """Say which values of a point lie within 2 % of the (log) width of a range's edge, and what to try."""
        lines = []
        params = self.encode(hyper_parameters)
        for name, allowed in self.ranges.items():
            if "uniform" in allowed.kind and name in params:
                lines += _edge_lines(name, allowed, params[name])
        return lines

    def describe(self) -> list[tuple[str, str]]:
        """Give (hyper-parameter, its range in words) for a person to read."""
        return [
            (part, f"1 - {part} {_words(allowed)}" if part != name else _words(allowed))
            for name, allowed in self.ranges.items()
            for part in [name.removeprefix(ONE_MINUS)]
        ]

    def to_json(self) -> dict[str, Any]:
        """Give the space as plain JSON values: equal exactly when a study of one can go on with the other."""
        ranges = {name: self.ranges[name].as_yaml() for name in sorted(self.ranges)}
        return {"optimizer": self.optimizer, "setting": self.setting, "space": ranges}

    def _encode_value(self, name: str, allowed: Range, value: float) -> dict[str, Any]:
        if allowed.kind in ("choice", "fixed"):
            # Compared after 1 - x has been rounded, as `value` is; the choice itself is what Optuna knows.
            shown = [_one_minus(_one_minus(c)) if name.startswith(ONE_MINUS) else c for c in allowed.values]
            if value in shown:
                return {} if allowed.kind == "fixed" else {name: allowed.values[shown.index(value)]}
        elif allowed.kind == "zero_or_log_uniform" and value == 0:
            return {f"{name}_zero": True}
        else:
            inside = min(max(value, allowed.low), allowed.high)
            rounding = 10**-DECIMALS if name.startswith(ONE_MINUS) else 0.0
            if abs(inside - value) <= rounding:
                gate = {f"{name}_zero": False} if allowed.kind == "zero_or_log_uniform" else {}
                return {**gate, name: inside}
        rule = _words(allowed).replace("log-uniform ", "").replace("uniform ", "")
        place = f"optimizers.{self.optimizer}.space.{name}"
        raise ValueError(f"{name} must be {rule}, got {value!r}; widen {place} or leave this point out")


def build_search_space(setting: Setting, optimizer: str, *, grid: bool = False) -> SearchSpace:
    """Build the space of one optimizer on a setting, or (grid=True) the paper's grid. Unknown optimizer: ValueError."""
    if optimizer not in setting.optimizers:
        raise ValueError(unknown_name_message("optimizer", optimizer, setting.optimizers))
    section = setting.optimizers[optimizer]
    ranges: dict[str, Range] = {}
    for part in parts_of(OPTIMIZERS[optimizer].hyper_parameters):
        if grid:
            ranges[part] = Range.model_validate({"choice": section.grid[part]})
        else:
            name = part if part in section.space else ONE_MINUS + part
            ranges[name] = section.space[name]
    candidates = tuple(_published_points(setting, optimizer))
    return SearchSpace(setting.name, optimizer, ranges, candidates=candidates, is_grid=grid)


def _published_points(setting: Setting, optimizer: str) -> Iterator[HyperParameters]:
    shipped = [load_setting(name) for name in known_settings()]

    def distance(other: Setting) -> tuple[int, str]:
        return (other.model != setting.model) + (other.dataset != setting.dataset), other.name

    for source in [setting, *sorted(shipped, key=distance)]:
        if optimizer in source.published:
            yield {**OPTIMIZER_DEFAULTS.get(optimizer, {}), **source.published[optimizer]}


def _suggest_value(trial: BaseTrial, name: str, allowed: Range) -> float:
    if allowed.kind == "fixed":
        return allowed.values[0]
    if allowed.kind == "choice":
        return float(trial.suggest_categorical(name, allowed.values))
    if allowed.kind == "zero_or_log_uniform" and trial.suggest_categorical(f"{name}_zero", (False, True)):
        return 0.0
    return trial.suggest_float(name, allowed.low, allowed.high, log=allowed.kind != "uniform")


def _one_minus(value: float) -> float:
    return round(1.0 - value, DECIMALS)


def _joined(values: Mapping[str, float], hyper_parameters: tuple[str, ...]) -> HyperParameters:
    """beta1 and beta2 become betas; the order is that of `hyper_parameters`."""
    return {name: (values["beta1"], values["beta2"]) if name == "betas" else values[name] for name in hyper_parameters}


def _split(hyper_parameters: HyperParameters) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in hyper_parameters.items():
        if name == "betas":
            values["beta1"], values["beta2"] = value
        else:
            values[name] = value
    return values


def _words(allowed: Range) -> str:
    numbers = [f"{value:g}" for value in allowed.values]
    if allowed.kind == "fixed":
        return numbers[0]
    if allowed.kind == "choice":
        return f"one of {', '.join(numbers)}"
    return f"{allowed.kind.replace('_', ' ').replace('log ', 'log-').replace('zero', '0')} in [{', '.join(numbers)}]"


def _edge_lines(name: str, allowed: Range, value: float) -> list[str]:
    """Give the line for a value near an edge; none where the range reaches as far as the hyper-parameter can go."""
    low, high = allowed.low, allowed.high
    scale = float if allowed.kind == "uniform" else math.log
    fraction = (scale(value) - scale(low)) / (scale(high) - scale(low))
    if EDGE_FRACTION < fraction < 1 - EDGE_FRACTION:
        return []
    is_upper = fraction > 0.5
    if is_upper:
        wider = high + (high - low) / 2 if allowed.kind == "uniform" else high * 10
        if name.startswith(ONE_MINUS):
            wider = min(wider, 1.0)
        elif name not in ("lr", "weight_decay"):
            wider = min(wider, (high + 1) / 2)
        tried = [low, float(f"{wider:.4g}")]
    else:
        wider = max(low - (high - low) / 2, low / 2) if allowed.kind == "uniform" else low / 10
        tried = [float(f"{wider:.4g}"), high]
    if tried == [low, high]:
        return []
    edge = "upper" if is_upper else "lower"
    found = f"{name} = {value:.4g} lies within {EDGE_FRACTION:.0%} of the {edge} edge of [{low:g}, {high:g}]"
    return [f"{found}; try {allowed.kind}: [{tried[0]:g}, {tried[1]:g}]"]
