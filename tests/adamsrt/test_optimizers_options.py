"""The options of the optimizers with groups, and the optimizers by name."""

import math
import tomllib
from pathlib import Path

import pytest
import torch
from optimizer_steps import GROUPED, random_tensor
from torch import nn

import adamsrt
from adamsrt.optimizers import OPTIMIZERS, AdamS, AdamSRT, build_optimizer

BAD_OPTIONS = [
    ({"lr": -1}, "lr must be finite and >= 0, got -1"),
    ({"lr": math.nan}, "lr must be finite and >= 0, got nan"),
    ({"lr": math.inf}, "lr must be finite and >= 0, got inf"),
    ({"lr": None}, "lr must be a number finite and >= 0, got None"),
    ({"lr": torch.tensor([0.1, 0.1])}, "lr must have one element, got a tensor of shape (2,)"),
    ({"weight_decay": -0.1}, "weight_decay must be finite and >= 0, got -0.1"),
    ({"channel_dims": [4]}, "channel_dims must be dims of every parameter of the group, got [4] for one with 4 dims"),
    ({"channel_dims": [0, -4]}, "channel_dims must not repeat a dim, got [0, -4] for a parameter with 4 dims"),
    ({"channel_dims": 0}, "channel_dims must be None or a list of integers, got 0"),
    ({"channel_wise": 1}, "channel_wise must be True or False, got 1"),
    ({"foreach": "yes"}, "foreach must be None, True or False, got 'yes'"),
    ({"fused": 2}, "fused must be None, True or False, got 2"),
    ({"foreach": True, "fused": True}, "foreach and fused must not both be True; leave one of them out"),
    ({"capturable": None}, "capturable must be True or False, got None"),
]
BAD_ADAM_OPTIONS = [
    ({"betas": (1.0, 0.999)}, "betas[0] must be in [0, 1), got 1.0"),
    ({"betas": (0.9, -0.1)}, "betas[1] must be in [0, 1), got -0.1"),
    ({"betas": (0.9, "x")}, "betas[1] must be a number in [0, 1), got 'x'"),
    ({"betas": (0.9,)}, "betas must be a pair of numbers in [0, 1), got (0.9,)"),
    ({"betas": 0.9}, "betas must be a pair of numbers in [0, 1), got 0.9"),
    ({"eps": -1e-8}, "eps must be finite and >= 0, got -1e-08"),
]
BAD_SGD_OPTIONS = [
    ({"momentum": -0.1}, "momentum must be in [0, 1), got -0.1"),
    ({"momentum": 1.5}, "momentum must be in [0, 1), got 1.5"),
    ({"dampening": 2}, "dampening must be in [0, 1], got 2"),
]
BAD_CASES = [
    (name, options, message)
    for name in GROUPED
    for options, message in BAD_OPTIONS + (BAD_SGD_OPTIONS if name == "sgdmrt" else BAD_ADAM_OPTIONS)
]


@pytest.mark.parametrize(("name", "options", "message"), BAD_CASES, ids=lambda value: str(value))
def test_a_bad_option_is_refused_at_every_door(name, options, message):
    x, y = random_tensor(1).requires_grad_(), random_tensor(2).requires_grad_()
    optimizer = GROUPED[name]([x])
    doors = [
        lambda: GROUPED[name]([x], **options),
        lambda: GROUPED[name]([{"params": [x], **options}]),
        lambda: optimizer.add_param_group({"params": [y], **options}),
    ]
    for door in doors:
        with pytest.raises(ValueError) as caught:
            door()
        assert str(caught.value) == message
    assert len(optimizer.param_groups) == 1  # the refused group is not left behind


@pytest.mark.parametrize("name", GROUPED)
def test_complex_parameters_are_refused(name):
    with pytest.raises(ValueError, match="real floating-point tensors, got "):
        GROUPED[name]([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])


class ModelWithGroups(nn.Module):
    """A model that names its own groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def conv_params(self) -> list[nn.Parameter]:
        return [self.conv.weight]

    def other_params(self) -> list[nn.Parameter]:
        return list(self.norm.parameters())


def test_the_registered_names():
    assert set(OPTIMIZERS) == {"adams", "adamsrt", "adamw", "adam", "adamg", "sgd", "sgdmrt"}
    assert set(GROUPED) == {"adams", "adamsrt", "adamg", "sgdmrt"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_build_optimizer(name):
    entry = OPTIMIZERS[name]
    values = {"lr": 0.05, "betas": [0.8, 0.9], "momentum": 0.7, "weight_decay": 0.01}
    hyper_parameters = {key: values[key] for key in entry.hyper_parameters}
    optimizer = build_optimizer(name, ModelWithGroups(), **hyper_parameters)
    assert type(optimizer) is entry.build
    for group in optimizer.param_groups:
        for key, value in hyper_parameters.items():
            assert group[key] == (tuple(value) if key == "betas" else value)
    if entry.uses_groups:
        assert [group["channel_wise"] for group in optimizer.param_groups] == [True, False]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


def test_build_optimizer_finds_the_groups_of_a_model_that_names_none():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.BatchNorm2d(3))
    optimizer = build_optimizer("adamsrt", model, lr=0.1)
    assert [group["channel_dims"] for group in optimizer.param_groups] == [[1], None]


@pytest.mark.parametrize(("name", "option"), [("adamsrt", "momentum"), ("sgd", "betas"), ("adam", "learning_rate")])
def test_build_optimizer_names_the_valid_hyper_parameters(name, option):
    with pytest.raises(
        ValueError, match=f"hyper-parameters of {name} must be among lr, .*, weight_decay, got {option}"
    ):
        build_optimizer(name, ModelWithGroups(), **{option: 0.5})


def test_build_optimizer_with_an_unknown_name():
    with pytest.raises(ValueError, match="unknown optimizer 'adamrst'; did you mean 'adamsrt'"):
        build_optimizer("adamrst", ModelWithGroups())


def test_the_package_exports_the_optimizers_and_its_version():
    assert adamsrt.AdamSRT is AdamSRT and adamsrt.AdamS is AdamS
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert adamsrt.__version__ == project["version"]
