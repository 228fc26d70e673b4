"""A search's --precision: part of what its trials have in common, unless it is the default."""

import pytest

from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.plan import make_plans
from tune_adamsrt.trainable import training_spec

SEARCH = ["--setting", "resnet20-digits"]


def spec_of(*options: str):
    [plan] = make_plans(parse_arguments([*SEARCH, *options]))
    own = {"hyper_parameters": {"lr": 1e-3}, "seed": 0}
    return plan.protocol, training_spec({"protocol": plan.protocol, "place": {"device": "cpu"}, **own})


def test_the_default_leaves_the_protocol_as_older_studies_have_it():
    protocol, spec = spec_of()
    assert "precision" not in protocol and spec.precision == "fp32"
    assert spec_of("--precision", "fp32")[0] == protocol


def test_another_precision_is_part_of_the_protocol_and_reaches_the_trials():
    protocol, spec = spec_of("--precision", "bf16")
    assert protocol == {**spec_of()[0], "precision": "bf16"} and spec.precision == "bf16"


def test_an_unknown_precision_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments([*SEARCH, "--precision", "fp8"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1
    assert "invalid choice: 'fp8'" in error and "bf16" in error
