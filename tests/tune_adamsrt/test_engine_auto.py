"""How many trials share a GPU: the rule, what it measures, what it remembers, and the option's mistakes."""

import os
import threading
import time

import pytest
import torch

from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.cluster.nodes import Cluster, Node
from tune_adamsrt.engine import plan as engine_plan
from tune_adamsrt.engine.auto import (
    Measurement,
    MemoryFullError,
    choose_slots,
    epochs_per_second,
    have_queues_for_all_slots,
    is_out_of_memory,
    recall,
    remember,
)
from tune_adamsrt.engine.plan import MAX_TRIALS_PER_GPU, check_trials_per_gpu, engine_resources, with_slots
from tune_adamsrt.plan import make_plans
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.search import main
from tune_adamsrt.trainable import training_spec

FULL = "the memory is full"


def rates(*values):
    """What 1, 2, 4, ... slots bring."""
    asked = []

    def rate(slots):
        asked.append(slots)
        value = values[len(asked) - 1]
        if value == FULL:
            raise MemoryFullError(value)
        return value

    return rate, asked


@pytest.mark.parametrize(
    ("measured", "slots", "asked"),
    [
        ((1.0, 1.9, 3.5, 3.6, 9.0), 4, [1, 2, 4, 8]),  # 8 bring 3 % more: not worth it, and nobody looks further
        ((1.0, 1.04), 1, [1, 2]),
        ((1.0, 1.05, 1.0), 2, [1, 2, 4]),
        ((1.0, 0.6), 1, [1, 2]),
        ((1.0, 2.0, FULL), 2, [1, 2, 4]),
        ((1.0, 2.0, 4.0, 8.0, 16.0), 16, [1, 2, 4, 8, 16]),
    ],
)
def test_slots_are_doubled_for_as_long_as_it_pays(measured, slots, asked):
    rate, calls = rates(*measured)
    measurement = choose_slots(rate, MAX_TRIALS_PER_GPU)
    assert (measurement.slots, calls) == (slots, asked)
    assert measurement.epochs_per_second == {n: v for n, v in zip(asked, measured, strict=False) if v != FULL}


def test_one_that_does_not_fit_is_an_error():
    with pytest.raises(MemoryFullError):
        choose_slots(rates(FULL)[0], 8)


class Slots:
    """An engine on a clock of its own, where an epoch takes a second of its owner's time, the first one longer."""

    def __init__(self, fails_at=None):
        self.now, self.begun, self.ended, self.fails_at = threading.local(), [], [], fails_at
        self.seconds_of_epoch, self.counted = {}, {}

    def clock(self):
        return self.now.seconds

    def begin(self, owner, config):
        if owner == self.fails_at:
            time.sleep(0.05)  # the others wait for it by then
            raise MemoryFullError(FULL)
        self.now.seconds, self.now.epochs = 0.0, 0
        self.begun.append((owner, config["seed"]))

    def run_epoch(self, owner):
        self.now.seconds += self.seconds_of_epoch.get(owner, 1.0) if self.now.epochs else 60.0
        self.now.epochs += 1
        self.counted[owner] = self.now.epochs

    def end(self, owner):
        self.ended.append(owner)


def test_the_rate_is_that_of_all_slots_without_their_first_epochs():
    slots = Slots()
    assert epochs_per_second(slots, {}, 4, seconds=2.5, clock=slots.clock) == pytest.approx(4.0)
    assert sorted(slots.begun) == [(owner, owner) for owner in range(4)]  # each with a seed of its own
    assert sorted(slots.ended) == [0, 1, 2, 3]


def test_all_train_as_many_epochs_so_that_none_runs_alone_at_the_end():
    """The slowest says how many, and how long it took."""
    slots, epochs = Slots(), {}
    slots.seconds_of_epoch = {0: 1.0, 1: 1.5, 2: 2.0, 3: 0.5}
    slots.counted = epochs
    assert epochs_per_second(slots, {}, 4, seconds=6.0, clock=slots.clock) == pytest.approx(4 * 3 / (3 * 2.0))
    assert epochs == dict.fromkeys(range(4), 2 + 3)


def test_one_that_fails_later_ends_the_measurement_too():
    slots = Slots()
    slots.seconds_of_epoch = {1: None}
    with pytest.raises(TypeError):
        epochs_per_second(slots, {}, 2, seconds=2.0, clock=slots.clock)
    assert sorted(slots.ended) == [0, 1]


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("a model that is wrong"), False),
    ],
)
def test_a_full_memory_is_told_from_other_errors(error, is_full):
    assert is_out_of_memory(error) == is_full


def test_a_process_for_many_streams_has_queues_for_them_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    have_queues_for_all_slots()
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    have_queues_for_all_slots()
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


def test_a_full_memory_ends_the_measurement_of_all():
    slots = Slots(fails_at=2)
    with pytest.raises(MemoryFullError):
        epochs_per_second(slots, {}, 4, seconds=2.5, clock=slots.clock)
    assert sorted(slots.ended) == [0, 1, 2, 3]


def test_measurements_are_remembered_beside_others_and_a_damaged_file_is_no_trouble(tmp_path):
    file = tmp_path / "cache" / "trials-per-gpu.json"
    assert recall(file) == {}
    remember(file, "a", Measurement(4, {1: 1.0, 2: 2.0, 4: 3.0}))
    remember(file, "b", Measurement(1, {1: 1.0}))
    assert {key: value["slots"] for key, value in recall(file).items()} == {"a": 4, "b": 1}
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    file.write_text("{")
    assert recall(file) == {}


def planned(*options, setting="resnet18-cifar100"):
    arguments = parse_arguments(["--setting", setting, *options])
    return make_plans(arguments), arguments


def cluster_with(monkeypatch, **resources):
    cluster = Cluster((Node("a", "10.0.0.1", resources),))
    for module in ("engine.plan", "resources"):
        monkeypatch.setattr(f"tune_adamsrt.{module}.look_at_cluster", lambda: cluster)


@pytest.mark.parametrize("slots", range(1, MAX_TRIALS_PER_GPU + 1))
def test_so_many_proxies_fit_on_a_gpu_and_on_the_cpus_of_one_trial(slots, monkeypatch):
    cluster_with(monkeypatch, CPU=2, GPU=1)
    plans, arguments = planned("--trials-per-gpu", str(slots))
    check_trials_per_gpu(plans, arguments)
    [plan] = with_slots(plans, arguments.trials_per_gpu)
    resources = engine_resources(plan, None)
    assert resources.per_node({"CPU": 2, "GPU": 1}) == slots
    # Ray counts in ten-thousandths
    assert all(
        round(10_000 * part) * slots <= 10_000 * whole for part, whole in ((resources.gpus, 1), (resources.cpus, 2))
    )
    assert plan.place(resources)["engine_slots"] == slots and plan.place(resources)["device"] == "cuda"


@pytest.mark.parametrize(
    ("options", "expected"), [([], True), (["--no-cuda-graph"], False), (["--trials-per-gpu", "2"], True)]
)
def test_steps_are_cuda_graphs_unless_that_is_turned_off(options, expected):
    plans, _ = planned(*options)
    for plan in plans:
        place = plan.place(TrialResources(1, 1))
        trial = {"protocol": plan.protocol, "place": place, "hyper_parameters": {"lr": 0.1}, "seed": 0}
        assert training_spec(trial).cuda_graph is expected
        assert "cuda_graph" not in plan.protocol, "with and without a graph is one study"


def test_auto_measures_once_per_setting(monkeypatch):
    cluster_with(monkeypatch, CPU=8, GPU=1)
    measured = []
    monkeypatch.setattr(engine_plan, "_measure", lambda plan: measured.append(plan.name) or 8)
    plans, arguments = planned("--optimizer", "all", "--setting", "resnet20-cifar10", "--trials-per-gpu", "auto")
    assert {plan.engine_slots for plan in with_slots(plans, arguments.trials_per_gpu)} == {8}
    assert [name.partition("/")[0] for name in measured] == ["resnet18-cifar100", "resnet20-cifar10"]


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ([], "2 CPU, 1 GPU where there are GPUs per trial"),
        (["--trials-per-gpu", "8"], "0.25 CPU, 0.125 GPU per trial, 8 in one process"),
        (
            ["--trials-per-gpu", "auto"],
            "2 CPU, 1 GPU for as many trials as train fastest on it, measured when the search starts",
        ),
        (["--trials-per-gpu", "auto", "--cpus-per-trial", "1"], "1 CPU per trial, 1 GPU for as many trials as"),
        (["--gpus-per-trial", "0.5"], "2 CPU, 0.5 GPU per trial\n"),
    ],
)
def test_a_dry_run_shows_a_trials_part(option, shown, capsys):
    assert main(["--setting", "resnet18-cifar100", "--dry-run", *option]) == 0
    assert shown in capsys.readouterr().out


def test_without_the_option_nothing_changes():
    plans, arguments = planned()
    check_trials_per_gpu(plans, arguments)
    assert with_slots(plans, arguments.trials_per_gpu) == plans
    assert "engine_slots" not in plans[0].place(TrialResources(1, 1)) and plans[0].engine_slots is None


@pytest.mark.parametrize(
    ("setting", "options", "message"),
    [
        ("resnet18-cifar100", ["4", "--gpus-per-trial", "0.5"], "must go without --gpus-per-trial, got 0.5"),
        ("resnet18-cifar100", ["25"], "must be at most 24, got 25"),
        ("resnet18-imagenet", ["2"], "data that fits into memory, got resnet18-imagenet"),
    ],
)
def test_a_mistake_is_told_before_ray_starts(setting, options, message):
    plans, arguments = planned("--trials-per-gpu", *options, setting=setting)
    with pytest.raises(ValueError, match=message):
        check_trials_per_gpu(plans, arguments)


def test_a_cluster_without_a_gpu_is_told(monkeypatch):
    cluster_with(monkeypatch, CPU=2)
    plans, arguments = planned("--trials-per-gpu", "auto")
    with pytest.raises(ValueError, match="must have a GPU in the cluster, got auto and none; leave it out"):
        with_slots(plans, arguments.trials_per_gpu)
