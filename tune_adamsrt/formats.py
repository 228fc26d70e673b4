"""Numbers, durations and hyper-parameters as short ASCII text, wherever a search is shown to a person."""

import math
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from tune_adamsrt.records import Spread


def format_percent(fraction: float | None) -> str:
    """A fraction as "98.61 %"; "-" where there is none."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def format_spread(spread: Spread) -> str:
    """Mean and standard deviation as "98.61 % +- 0.20"; the mean alone where there is one value."""
    return format_percent(spread.mean) + (f" +- {100 * spread.std:.2f}" if spread.n > 1 else "")


def format_seeds(count: int) -> str:
    """ "3 fresh seeds"."""
    return f"{count} fresh seed" + ("" if count == 1 else "s")


def format_duration(seconds: float) -> str:
    """Seconds as "45 s", "3 min 20 s" or "2 h 05 min"."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def format_estimate(seconds: float) -> str:
    """Seconds that are only known roughly, as "40 s" (in steps of 5), "3 min" or "2 h 05 min"."""
    if seconds <= 55:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_value(value: Any, *, exact: bool = False) -> str:
    """One hyper-parameter. Short for display, or `exact`: what Python reads back as the same value."""
    if isinstance(value, (tuple, list)):
        inner = ", ".join(format_value(part, exact=exact) for part in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float):
        value = float(value)  # a NumPy float64 is a float too, but its repr says more than the number
        if exact:
            return repr(value)
        if 0.9 < value < 1:  # a beta: what counts is its distance from 1, and 0.99987 must not become 1
            value = 1 - float(f"{1 - value:.2g}")
            return f"{value:.10g}"
        return f"{value:.3g}"
    return repr(value) if exact else str(value)


def format_hyper_parameters(hyper_parameters: Mapping[str, Any], *, exact: bool = False) -> str:
    """Hyper-parameters in one line: "lr=0.00123 betas=(0.9, 0.99) weight_decay=0"."""
    return " ".join(f"{name}={format_value(value, exact=exact)}" for name, value in hyper_parameters.items())


def one_line(text: str) -> str:
    """The text without line breaks, colour codes and other control characters; errors of workers may hold them all."""
    plain = " ".join(Text.from_ansi(text).plain.split())
    return "".join(char for char in plain if char.isprintable())
