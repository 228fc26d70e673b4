"""Numbers, durations and hyper-parameters as text."""

import ast
import re
from typing import Any

import pytest

from tune_adamsrt.formats import format_duration, format_estimate, format_hyper_parameters, format_percent, one_line


@pytest.mark.parametrize(
    ("hyper_parameters", "short"),
    [
        ({"lr": 0.00123456, "betas": (0.9, 0.99), "weight_decay": 0}, "lr=0.00123 betas=(0.9, 0.99) weight_decay=0"),
        ({"lr": 3e-05, "momentum": 0.95}, "lr=3e-05 momentum=0.95"),
        ({"betas": [0.85321, 0.999873]}, "betas=(0.853, 0.99987)"),  # 3 digits would show beta2 as 1
        ({"weight_decay": 0.0}, "weight_decay=0"),
    ],
)
def test_hyper_parameters_are_short(hyper_parameters: dict[str, Any], short: str) -> None:
    assert format_hyper_parameters(hyper_parameters) == short


def test_exact_hyper_parameters_read_back_as_the_same_numbers() -> None:
    values = {"lr": 0.1 + 0.2, "betas": (0.9, 0.99987654321), "weight_decay": 1e-05}
    text = format_hyper_parameters(values, exact=True)
    assert text == "lr=0.30000000000000004 betas=(0.9, 0.99987654321) weight_decay=1e-05"
    assert {name: ast.literal_eval(value) for name, value in re.findall(r"(\w+)=(\(.*?\)|\S+)", text)} == values


def test_percent_duration_and_estimate() -> None:
    assert [format_percent(value) for value in (0.98611, 1.0, None)] == ["98.61 %", "100.00 %", "-"]
    assert [format_duration(seconds) for seconds in (45, 59.6, 200, 7500)] == [
        "45 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [format_estimate(seconds) for seconds in (0, 38, 57, 170, 7500)] == [
        "5 s",
        "40 s",
        "1 min",
        "3 min",
        "2 h 05 min",
    ]


def test_one_line_drops_line_breaks_and_control_characters() -> None:
    assert one_line("loss is\n  \x1b[31mnan\x1b[0m\x07 [/bold]") == "loss is nan [/bold]"
