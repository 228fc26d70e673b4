"""A sampled point <-> hyper-parameters, with Optuna's own trials, studies and samplers."""

import inspect
import itertools
import json
import pickle

import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState

from tune_adamsrt.settings import known_settings, load_setting
from tune_adamsrt.space import OPTIMIZER_DEFAULTS, SearchSpace, build_search_space

OPTIMIZERS = ["adam", "adamg", "adams", "adamsrt", "adamw", "sgd", "sgdmrt"]
EVERYWHERE = list(itertools.product(known_settings(), OPTIMIZERS))


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def own_space(tmp_path, space: str, optimizer: str = "adam") -> SearchSpace:
    path = tmp_path / "resnet20-digits.yaml"
    path.write_text(f"model: resnet20\ndataset: digits\noptimizers: {{{optimizer}: {{space: {{{space}}}}}}}")
    return build_search_space(load_setting(str(path)), optimizer)


@pytest.mark.parametrize(("name", "optimizer"), EVERYWHERE)
def test_every_published_point_lies_in_every_space_and_comes_back_exactly(name, optimizer):
    space = build_search_space(load_setting(name), optimizer)
    for other in known_settings():
        if (point := load_setting(other).published.get(optimizer)) is not None:
            point = {**OPTIMIZER_DEFAULTS.get(optimizer, {}), **point}
            assert space.suggest(FixedTrial(space.encode(point))) == point  # FixedTrial warns outside of a range


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_study_tries_the_first_points_and_then_samples_inside_the_space(optimizer):
    space = build_search_space(load_setting("resnet18-cifar100"), optimizer)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    first = space.first_points()
    for point in first:
        study.enqueue_trial(space.encode(point))
    asked = []
    # 20 random draws of zero or not: all equal with a chance of 2e-6, and the seed is fixed.
    for number in range(len(first) + 20):
        trial = study.ask()
        asked.append(space.suggest(trial))
        study.tell(trial, number / 100)
    assert asked[: len(first)] == first
    assert {point["weight_decay"] == 0 for point in asked[len(first) :]} == {True, False}
    for point, trial in zip(asked, study.trials, strict=True):
        assert trial.params == pytest.approx(space.encode(point), rel=1e-8)
        assert space.suggest(FixedTrial(trial.params)) == point
        assert space.suggest(FixedTrial(space.encode(point))) == point
        assert ("weight_decay" in trial.params) == (not trial.params["weight_decay_zero"])


def test_the_order_and_form_of_a_point():
    space = build_search_space(load_setting("resnet18-cifar100"), "adamsrt")
    point = space.suggest(FixedTrial({"lr": 0.01, "beta1": 0.9, "one_minus_beta2": 0.001, "weight_decay_zero": True}))
    assert point == {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.0}
    assert list(point) == ["lr", "betas", "weight_decay"]
    sgd = build_search_space(load_setting("resnet18-cifar100"), "sgd")
    params = {"lr": 0.1, "one_minus_momentum": 0.1, "weight_decay_zero": False, "weight_decay": 1e-4}
    assert sgd.suggest(FixedTrial(params)) == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def test_the_published_best_of_the_setting_comes_first_without_repeats():
    points = build_search_space(load_setting("resnet18-cifar100"), "adamsrt").first_points()
    assert points[0] == {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.0}
    assert len(points) == len({str(point) for point in points})
    published = [load_setting(name).published.get("adamsrt") for name in known_settings()]
    assert all(point in points for point in published if point is not None)
    # vgg16-svhn shares neither model nor dataset, so its point comes last
    assert points[-1] == load_setting("vgg16-svhn").published["adamsrt"]
    assert len(build_search_space(load_setting("resnet20-digits"), "adamsrt").first_points()) == len(points)


def test_first_points_fill_in_the_default_of_adamw():
    signature = inspect.signature(torch.optim.AdamW)
    assert {"weight_decay": signature.parameters["weight_decay"].default} == OPTIMIZER_DEFAULTS["adamw"]
    points = build_search_space(load_setting("resnet20-cifar10"), "adamw").first_points()
    assert points[0] == {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.01}


def test_first_points_outside_the_space_are_left_out(tmp_path):
    space = own_space(tmp_path, "weight_decay: {fixed: 0.0}")
    assert [point["weight_decay"] for point in space.first_points()] == [0.0, 0.0]


def test_choices_and_fixed_values(tmp_path):
    space = own_space(
        tmp_path, "lr: {fixed: 0.01}, beta1: {choice: [0.8, 0.9]}, one_minus_beta2: {choice: [0.1, 0.003]}"
    )
    point = {"lr": 0.01, "betas": (0.9, 0.997), "weight_decay": 0.0}
    assert space.encode(point) == {"beta1": 0.9, "one_minus_beta2": 0.003, "weight_decay_zero": True}
    assert space.suggest(FixedTrial(space.encode(point))) == point
    with pytest.raises(ValueError, match=r"^lr must be 0.01, got 0.1; widen optimizers.adam.space.lr or leave"):
        space.encode({**point, "lr": 0.1})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"lr": 1.0},
            r"^lr must be in \[0.0001, 0.03\], got 1.0; widen optimizers.adam.space.lr or leave this point out",
        ),
        ({"betas": (0.5, 0.99)}, r"^beta1 must be in \[0.8, 0.98\], got 0.5"),
        ({"betas": (0.9, 0.99999)}, r"^one_minus_beta2 must be in \[0.0005, 0.1\], got 1e-05"),
        ({"weight_decay": 1e-9}, r"^weight_decay must be 0 or in \[1e-06, 0.005\], got 1e-09"),
        ({"momentum": 0.9}, r"^unknown hyper-parameter 'momentum'; known: lr, beta1, beta2, weight_decay"),
    ],
)
def test_a_point_outside_the_space_is_refused(change, expected):
    space = build_search_space(load_setting("resnet18-svhn"), "adam")
    point = {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.0}
    with pytest.raises(ValueError, match=expected):
        space.encode({**point, **change})


def test_a_point_that_lacks_a_value_is_refused():
    space = build_search_space(load_setting("resnet18-svhn"), "sgd")
    with pytest.raises(ValueError, match="momentum must be given to place a point in the space of sgd, got nothing"):
        space.encode({"lr": 0.1, "weight_decay": 0.0})


def test_one_minus_x_is_free_of_rounding_noise():
    space = build_search_space(load_setting("resnet18-svhn"), "adam")
    for beta2, distance in ((0.999, 0.001), (0.99, 0.01), (0.9993, 0.0007)):  # 1 - 0.999 is 0.0010000000000000009
        params = space.encode({"lr": 0.001, "betas": (0.9, beta2), "weight_decay": 0.0})
        assert params["one_minus_beta2"] == distance
        assert space.suggest(FixedTrial(params))["betas"] == (0.9, beta2)


def test_the_rounding_of_one_minus_x_does_not_leave_the_space(tmp_path):
    low = 0.00123456789012345
    space = own_space(tmp_path, f"one_minus_beta2: {{log_uniform: [{low}, 0.1]}}")
    params = {"lr": 0.001, "beta1": 0.9, "one_minus_beta2": low, "weight_decay_zero": True}
    point = space.suggest(FixedTrial(params))
    assert space.encode(point) == params


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_grid_sampler_visits_every_point_of_the_papers_grid_once(optimizer):
    setting = load_setting("resnet18-cifar10")
    space = build_search_space(setting, optimizer, grid=True)
    decays = [0.0, *(5e-4 * 2**-k for k in range(7))]
    if optimizer in ("sgd", "sgdmrt"):
        expected = {(0.1, 0.9, decay) for decay in decays}
    else:
        lr = 0.01 if optimizer == "adamg" else 0.001
        expected = {(lr, (0.9, beta2), decay) for beta2 in (0.99, 0.999) for decay in decays}
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(space.grid(), seed=0))
    visited = []
    for number in range(len(expected)):
        trial = study.ask()
        visited.append(tuple(space.suggest(trial).values()))
        try:
            study.tell(trial, 0.5)
        except RuntimeError:  # Optuna: GridSampler calls study.stop() after the last point, see its docstring
            assert number == len(expected) - 1
    assert len(visited) == len(expected) and set(visited) == expected
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert space.first_points() == []
    assert setting.published[optimizer] == space.suggest(FixedTrial(space.encode(setting.published[optimizer])))


def test_only_a_grid_has_a_grid():
    with pytest.raises(ValueError, match="grid=True"):
        build_search_space(load_setting("resnet18-cifar10"), "adam").grid()


def test_describe_is_for_people():
    assert build_search_space(load_setting("resnet18-cifar10"), "adamsrt").describe() == [
        ("lr", "log-uniform in [0.0001, 0.03]"),
        ("beta1", "uniform in [0.8, 0.98]"),
        ("beta2", "1 - beta2 log-uniform in [0.0005, 0.1]"),
        ("weight_decay", "0 or log-uniform in [1e-06, 0.005]"),
    ]
    grid = build_search_space(load_setting("resnet18-cifar10"), "sgd", grid=True).describe()
    assert grid[:2] == [("lr", "one of 0.1"), ("momentum", "one of 0.9")]


@pytest.mark.parametrize(("name", "optimizer"), EVERYWHERE[:7])
def test_to_json_is_plain_and_tells_spaces_apart(name, optimizer):
    space = build_search_space(load_setting(name), optimizer)
    assert json.loads(json.dumps(space.to_json())) == space.to_json()
    assert space.to_json()["space"]["lr"]["log_uniform"][0] in (1e-4, 1e-3)
    others = [build_search_space(load_setting(name), other) for other in OPTIMIZERS if other != optimizer]
    others += [build_search_space(load_setting("vgg16-svhn"), optimizer)]
    others += [build_search_space(load_setting(name), optimizer, grid=True)]
    assert all(other.to_json() != space.to_json() for other in others)
    assert pickle.loads(pickle.dumps(space)) == space


def test_edges_name_the_wider_range():
    space = build_search_space(load_setting("resnet18-cifar10"), "adam")
    middle = {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.0}
    assert space.edges(middle) == []
    assert space.edges({**middle, "lr": 0.029}) == [
        "lr = 0.029 lies within 2% of the upper edge of [0.0001, 0.03]; try log_uniform: [0.0001, 0.3]"
    ]
    assert space.edges({**middle, "betas": (0.977, 0.9995), "weight_decay": 1.01e-6}) == [
        "beta1 = 0.977 lies within 2% of the upper edge of [0.8, 0.98]; try uniform: [0.8, 0.99]",
        "one_minus_beta2 = 0.0005 lies within 2% of the lower edge of [0.0005, 0.1]; try log_uniform: [5e-05, 0.1]",
        "weight_decay = 1.01e-06 lies within 2% of the lower edge of [1e-06, 0.005]; "
        "try zero_or_log_uniform: [1e-07, 0.005]",
    ]
    # 2 % of the log width of [1e-4, 3e-2] is a factor of 1.121
    assert space.edges({**middle, "lr": 1.11e-4}) and not space.edges({**middle, "lr": 1.13e-4})


def test_no_edge_where_the_range_reaches_as_far_as_it_can(tmp_path):
    space = own_space(tmp_path, "one_minus_beta2: {log_uniform: [0.001, 1.0]}, weight_decay: {uniform: [0, 0.1]}")
    assert space.edges({"lr": 0.001, "betas": (0.9, 0.0), "weight_decay": 0.0}) == []


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'adamrst'; did you mean 'adamsrt'"):
        build_search_space(load_setting("resnet18-cifar10"), "adamrst")
