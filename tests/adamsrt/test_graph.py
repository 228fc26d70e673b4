"""When a step is captured and when it is replayed; that a GPU then gives the same numbers, benchmarks/gpu.py checks."""

import contextlib
import importlib
import operator
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from adamsrt import capture
from adamsrt import training as training_module
from adamsrt.dataloaders import images as images_module
from adamsrt.dataloaders.images import ImageLoader, ImageSet, look_up, normalization_table
from adamsrt.epoch import TrainStep, train_epoch
from adamsrt.graph import WARM_UP_STEPS, GraphedStep, lr_on_device, make_capturable
from adamsrt.optimizers import SGDMRT, AdamG, AdamS, AdamSRT
from adamsrt.optimizers.base import GroupedOptimizer
from adamsrt.training import Training, TrainingSpec

BATCH_SIZE = 4
OURS = {
    "adamsrt": lambda model, lr=0.1, **options: AdamSRT(model.parameters(), lr=lr, **options),
    "adams": lambda model, lr=0.1, **options: AdamS(model.parameters(), lr=lr, **options),
    "adamg": lambda model, lr=0.1, **options: AdamG(model.parameters(), lr=lr, **options),
    "sgdmrt": lambda model, lr=0.1, **options: SGDMRT(model.parameters(), lr=lr, **{"momentum": 0.9, **options}),
}
OPTIMIZERS = OURS | {
    # as they are made for a capture, since torch rounds in other ways without
    "adam": lambda model, lr=0.1: Adam(model.parameters(), lr=lr, capturable=True, fused=True),
    "adamw": lambda model, lr=0.1: AdamW(model.parameters(), lr=lr, weight_decay=0.1, capturable=True, fused=True),
    "sgd": lambda model, lr=0.1: SGD(model.parameters(), lr=lr, momentum=0.9),  # its graph would hold the learning rate
}


@pytest.fixture(autouse=True)
def torch_takes_a_cpu_for_a_gpu(monkeypatch):
    """Torch's own capturable steps refuse a CPU, where they would do the same."""
    module = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda supports_xla=True: ["cpu"])


class Recorded:
    """A graph as a function that does what was captured, which costs Python one launch whatever it is."""

    def __init__(self, replay) -> None:
        self._replay = replay

    def replay(self) -> None:
        with _disable_current_modes():
            self._replay()


class WithoutGPU(GraphedStep):
    """Captures by keeping what would be captured. A replay sees what a graph sees: its own tensors only."""

    passes_work = update_works = options_are_read = True

    def __init__(self, step: TrainStep, batch_size: int = BATCH_SIZE) -> None:
        self.log: list[str] = []
        super().__init__(step, batch_size)

    def _warm_up(self, device, take):
        self.log.append("aside")
        return take()

    def _capture(self, device, take, *, make_room):
        optimizer = self._step.optimizer
        is_update = take == optimizer.step
        self.log.append("capture update" if is_update else "capture passes")
        if not (self.update_works if is_update else self.passes_work):
            return None
        with self._nothing_runs():
            given = take()
        gradients = [parameter.grad for parameter in self._parameters]
        held = [options_of(group) for group in optimizer.param_groups]  # numbers in the graph, or memory that it reads
        if is_update and isinstance(optimizer, GroupedOptimizer):
            optimizer.write_options = lambda: self._write(held)

        def replay():
            self.log.append("update" if is_update else "passes")
            before = [parameter.grad for parameter in self._parameters]
            same = all(map(operator.is_, before, gradients))
            assert same or not is_update, "what reads the gradients later reads those of the last step"
            with options_set(optimizer, held):
                results = take()
            for mine, result in zip(given or (), results or (), strict=True):
                mine.copy_(result)
            for parameter, mine, its in zip(self._parameters, gradients, before, strict=True):
                if parameter.grad is not mine:
                    mine.copy_(parameter.grad)
                parameter.grad = its  # a graph changes no attribute

        return Recorded(replay), given

    @contextlib.contextmanager
    def _nothing_runs(self):
        """Put back all values at the end: a capture makes tensors and computes nothing."""
        state = self._step.optimizer.state.values()
        tensors = [*self._step.model.state_dict().values(), self.totals._sums]
        tensors += [value for each in state for value in each.values() if isinstance(value, torch.Tensor)]
        tensors += [gradient for passes in self._passes.values() for gradient in passes.gradients]
        before = [tensor.clone() for tensor in tensors]
        yield
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)

    def _write(self, held) -> bool:
        self.log.append("write")
        if self.options_are_read:
            held[:] = [options_of(group) for group in self._step.optimizer.param_groups]
        return self.options_are_read


@contextlib.contextmanager
def options_set(optimizer, options):
    before = [options_of(group) for group in optimizer.param_groups]
    for each in (options, before):
        for group, values in zip(optimizer.param_groups, each, strict=True):
            group.update(values)
        if each is options:
            yield


def options_of(group):
    return {name: value for name, value in group.items() if name != "params"}


def build(optimizer="adamsrt", **options) -> TrainStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    return TrainStep(model, OPTIMIZERS[optimizer](model, **options))


def batch(index: int, size: int = BATCH_SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(size, 2, 2, 2, generator=generator), torch.randint(3, (size,), generator=generator)


def drop_lr(step: TrainStep) -> None:
    for group in step.optimizer.param_groups:
        group["lr"] *= 0.1


def assert_same_steps(graphed, plain, steps=25) -> None:
    """Take steps with both, a smaller batch now and then and at the end, the learning rate dropping half way."""
    examples = 0
    for each in (graphed, plain):
        each.totals.reset()
    for index in range(steps):
        size = 3 if index % 5 == 4 else BATCH_SIZE
        examples += size
        loss, logits = graphed(*batch(index, size))
        expected_loss, expected_logits = plain(*batch(index, size))
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(logits, expected_logits)
        assert graphed.totals.averages(examples) == pytest.approx(plain.totals.averages(examples), rel=1e-5)
        if index == steps // 2:
            drop_lr(graphed._step)
            drop_lr(plain)
    for ours, theirs in zip(graphed._step.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("works", [(True, True), (True, False), (False, True)])
def test_the_numbers_are_those_of_steps_without_a_graph(works, optimizer, monkeypatch):
    monkeypatch.setattr(WithoutGPU, "passes_work", works[0])
    monkeypatch.setattr(WithoutGPU, "update_works", works[1])
    graphed = WithoutGPU(build(optimizer))
    assert all(group.get("capturable", True) for group in graphed._step.optimizer.param_groups)
    assert_same_steps(graphed, build(optimizer))
    assert {type(group["lr"]) for group in graphed._step.optimizer.param_groups} == {float}
    assert ("update" in graphed.log) == (works == (True, True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_next_training_of_a_model_keeps_the_passes_and_gives_the_numbers_of_a_fresh_one(optimizer):
    graphed = WithoutGPU(build("adamsrt"))
    for index in range(WARM_UP_STEPS + 2):
        graphed(*batch(index))
    fresh = build(optimizer)
    graphed._step.model.load_state_dict(fresh.model.state_dict())
    graphed._step.model.zero_grad(set_to_none=True)
    graphed.log.clear()
    passes = graphed._passes[BATCH_SIZE]
    graphed.go_on_with(OPTIMIZERS[optimizer](graphed._step.model))
    assert_same_steps(graphed, fresh)
    assert graphed.log.count("capture passes") == 1 and graphed._passes[BATCH_SIZE] is passes, "but for small batches"
    # a drop of the learning rate is written to the device, where the optimizer can read it there
    assert graphed.log.count("capture update") == (2 if optimizer == "sgd" else 1)


@pytest.mark.parametrize("options_are_read", [True, False])
@pytest.mark.parametrize("optimizer", OURS)
@pytest.mark.parametrize("first_steps", [1, WARM_UP_STEPS, WARM_UP_STEPS + 2])
def test_a_restarted_optimizer_keeps_its_graph_and_gives_the_numbers_of_a_fresh_one(
    first_steps, optimizer, options_are_read, monkeypatch
):
    monkeypatch.setattr(WithoutGPU, "options_are_read", options_are_read)
    graphed = WithoutGPU(build(optimizer))
    for index in range(first_steps):
        graphed(*batch(index))
    drop_lr(graphed._step)
    options = {"lr": 0.1, "weight_decay": 0.2}  # the learning rate that was captured: the others are news too
    options |= {"momentum": 0.5} if optimizer == "sgdmrt" else {"betas": (0.5, 0.7)}
    fresh = build(optimizer, **options)
    graphed._step.model.load_state_dict(fresh.model.state_dict())
    graphed._step.model.zero_grad(set_to_none=True)
    graphed.log.clear()
    graphed._step.optimizer.restart(**options)
    graphed.go_on_with(graphed._step.optimizer)
    assert_same_steps(graphed, fresh)
    if first_steps > WARM_UP_STEPS:
        # written once for the restart and once for the drop; only the first small batches are taken without a graph,
        # and one step before each capture
        captures = 0 if options_are_read else 2
        assert graphed.log.count("aside") == WARM_UP_STEPS + captures and graphed.log.count("capture passes") == 1
        assert graphed.log.count("write") == 2
        assert graphed.log.count("capture update") == captures
        assert graphed.log.count("update") == graphed.log.count("passes") - captures


def test_a_step_is_captured_after_the_warm_up():
    graphed = WithoutGPU(build())
    for index in range(WARM_UP_STEPS + 2):
        graphed(*batch(index))
    captured = ["capture passes", "passes", "capture update", "update"]
    assert graphed.log == [*["aside"] * WARM_UP_STEPS, *captured, "passes", "update"]
    graphed.log.clear()
    graphed(*batch(9, 3))
    assert graphed.log == ["aside"], "a batch of another size is no reason for a graph"
    graphed.log.clear()
    graphed.forget()
    for index in range(WARM_UP_STEPS + 1):
        graphed(*batch(index))
    update = [entry for entry in graphed.log if entry != "write"]
    assert update == [*["passes", "aside"] * WARM_UP_STEPS, "passes", "capture update", "update"]


def test_one_other_size_that_comes_again_gets_a_graph_too():
    """That of the last batch of an epoch, which otherwise costs as many launches as hundreds of steps."""
    graphed, plain = WithoutGPU(build()), build()
    for _ in range(WARM_UP_STEPS + 1):
        for size in (3, 2, BATCH_SIZE, 1):
            for step in (graphed, plain):
                step(*batch(size, size))
    # 3 came before 4 had its graph, and found it missing; 2 has taken the place beside it by now
    assert graphed.replayed_sizes == [BATCH_SIZE, 1]
    graphed.log.clear()
    for step in (graphed, plain):
        step(*batch(7, 1))
    assert graphed.log == ["passes", "update"]
    for ours, theirs in zip(graphed._step.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(ours.grad, theirs.grad)
    graphed(*batch(7, 3))
    assert graphed.log[2:] == ["aside"]


def test_options_are_written_before_a_capture(monkeypatch):
    """A captured step may only read what is on the device already, and the learning rate has just dropped."""
    graphed = WithoutGPU(build())
    monkeypatch.setattr(graphed._step.optimizer, "write_options", lambda: graphed.log.append("write") or False)
    for index in range(WARM_UP_STEPS):
        graphed(*batch(index))
    drop_lr(graphed._step)
    graphed.log.clear()
    graphed(*batch(WARM_UP_STEPS))
    assert graphed.log == ["capture passes", "passes", "write", "capture update", "update"]


def test_what_cannot_be_captured_is_tried_once_per_training(monkeypatch):
    monkeypatch.setattr(WithoutGPU, "passes_work", False)
    graphed = WithoutGPU(build())
    for index in range(WARM_UP_STEPS + 4):
        graphed(*batch(index))
    assert graphed.log == [*["aside"] * WARM_UP_STEPS, "capture passes"]
    monkeypatch.setattr(WithoutGPU, "passes_work", True)
    graphed.log.clear()
    graphed._step.optimizer.restart(lr=0.1)
    graphed.go_on_with(graphed._step.optimizer)
    graphed(*batch(0))
    assert graphed.log == ["capture passes", "passes", "capture update", "update"]


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [(AdamSRT, None), (SGDMRT, None), (Adam, torch.float32), (AdamW, torch.float32), (SGD, None)],
)
def test_the_learning_rate_lies_on_the_device_for_those_of_torch_that_read_it_there(optimizer, dtype):
    """Torch's kernels take float32 only; ours keep all options on the device themselves."""
    made = optimizer([torch.zeros(2, requires_grad=True)], lr=0.1)
    on_device = lr_on_device(made, made.param_groups[0], torch.device("cpu"))
    assert (None if on_device is None else on_device.dtype) == dtype


class Operations(TorchDispatchMode):
    """Counts the operations that Python asks torch for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def loader_of_a_gpu(monkeypatch):
    """Build loaders that prepare an epoch as on a GPU: augmented and normalized many batches at once, by look-up."""
    monkeypatch.setattr(images_module, "normalize", lambda images, table: look_up(images, table.entries))
    for name in ("_images_at_once", "_normalized_at_once"):
        monkeypatch.setattr(ImageLoader, name, lambda loader: 10**6)

    def new_loader(examples: int) -> ImageLoader:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (examples, 2, 2, 2), generator=generator, dtype=torch.uint8)
        labels = torch.randint(3, (len(images),), generator=generator)
        table = normalization_table((0.5,) * 2, (0.25,) * 2)
        return ImageLoader(ImageSet(images, labels), table, batch_size=BATCH_SIZE, shuffle=True, padding=1, flip=True)

    return new_loader


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_an_epoch_costs_two_copies_and_two_launches(optimizer, loader_of_a_gpu):
    """Trials that share a GPU wait for each other while Python asks torch for something: it is to ask for little."""
    plain = build(optimizer)
    graphed = WithoutGPU(plain)
    for _ in range(WARM_UP_STEPS + 1):
        train_epoch(plain.model, plain.optimizer, loader_of_a_gpu(examples=BATCH_SIZE + 1), step=graphed)
    counts = []
    for batches in (10, 30):
        graphed.log.clear()
        with Operations() as operations:
            loader = loader_of_a_gpu(examples=(batches - 1) * BATCH_SIZE + 1)  # the last batch costs no more
            train_epoch(plain.model, plain.optimizer, loader, step=graphed)
        counts.append(operations.counts + Counter(graphed.log))
    assert counts[1] - counts[0] == {"aten.copy_.default": 2 * 20, "passes": 20, "update": 20}
    assert counts[0] - counts[1] == {}
    assert (counts[0]["passes"], counts[0]["update"], counts[0]["aten.copy_.default"]) == (10, 10, 2 * 10 + 3)


@pytest.mark.parametrize(
    ("optimizer", "options", "fused"),
    [
        (Adam, {}, True),
        (AdamW, {}, True),
        (SGD, {}, True),
        (Adam, {"foreach": True}, None),
        (Adam, {"foreach": False}, None),
        (Adam, {"fused": False}, False),
        (AdamSRT, {}, None),
    ],
)
def test_the_optimizer_is_made_capturable_and_fused_where_the_user_has_not_chosen(optimizer, options, fused):
    model = nn.Linear(2, 2)
    step = TrainStep(model, optimizer(model.parameters(), lr=0.1, **options))
    WithoutGPU(step)
    (group,) = step.optimizer.param_groups
    assert group.get("capturable", True) is True
    assert group["fused"] is fused


@pytest.mark.parametrize("optimizer", ["adamsrt", "sgdmrt", "adam", "sgd"])
def test_trainings_one_after_the_other_are_those_without_a_graph(optimizer, monkeypatch):
    """Through `Training`: three epochs, the rate dropping after each; then the next on the same model, and a resume."""
    betas = {"momentum": 0.9} if optimizer.startswith("sgd") else {"betas": (0.8, 0.95)}
    protocol = {"epochs": 3, "limit_train_examples": 100, "batch_size": 16}  # the last batch has 4
    specs = [
        TrainingSpec("digits", "resnet20", optimizer, {"lr": lr, "weight_decay": 1e-3, **betas}, seed=seed, **protocol)
        for seed, lr in enumerate((2**-10, 2**-13))  # whole in float32, in which torch's own steps read them
    ]
    expected = [results_of(capturable(Training(spec))) for spec in specs]

    monkeypatch.setattr(training_module, "_takes_graph", lambda spec: True)
    monkeypatch.setattr(training_module, "GraphedStep", WithoutGPU)
    first = Training(specs[0])
    assert results_of(first) == [pytest.approx(result, rel=1e-5) for result in expected[0]]
    assert first._step.replayed_sizes == [16]
    log = first._step.log
    log.clear()
    second = Training(specs[1], predecessor=first)
    assert second._step is first._step
    assert results_of(second) == [pytest.approx(result, rel=1e-5) for result in expected[1]]
    is_ours = optimizer.endswith("rt")
    assert log.count("capture update") == (0 if is_ours else 1 if optimizer == "adam" else 3)
    assert log.count("capture passes") == 1, "of the last batches"

    third = Training(specs[0], predecessor=second)
    earlier = capturable(Training(specs[0]))
    earlier.run_epoch()
    third.load_state_dict(earlier.state_dict())
    log.clear()
    assert results_of(third, 2) == [pytest.approx(result, rel=1e-5) for result in expected[0][1:]]
    assert log.count("capture update") == (2 if optimizer == "sgd" else 1), "for its state lies elsewhere"


def capturable(training: Training) -> Training:
    """Steps round in other ways where they are not, and a training is chaotic."""
    make_capturable(training.optimizer)
    return training


def results_of(training: Training, epochs: int = 3) -> list[tuple[float, ...]]:
    results = [training.run_epoch() for _ in range(epochs)]
    return [(each.train_loss, each.train_accuracy, each.valid_loss, each.grad_norm, each.lr) for each in results]


def test_nothing_is_said_where_all_is_captured():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphed = WithoutGPU(build("adam"))
        for index in range(WARM_UP_STEPS + 3):
            graphed(*batch(index))


def test_no_other_thread_captures_during_the_first_step_in_which_libraries_set_themselves_up(monkeypatch):
    held = []
    warm_up = WithoutGPU._warm_up
    monkeypatch.setattr(
        WithoutGPU, "_warm_up", lambda *args: held.append(capture._one_at_a_time.locked()) or warm_up(*args)
    )
    model = nn.Linear(2, 2)
    step = WithoutGPU(TrainStep(model, Adam(model.parameters(), lr=0.1)), batch_size=4)
    for _ in range(2):
        step(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    assert held == [True, False]
