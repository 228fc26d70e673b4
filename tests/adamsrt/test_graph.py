"""When a step is captured and when it is replayed; that a GPU then gives the same numbers, benchmarks/gpu.py checks."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from adamsrt.epoch import TrainStep
from adamsrt.graph import WARM_UP_STEPS, GraphedStep, Passes, lr_on_device
from adamsrt.optimizers import SGDMRT, AdamSRT

BATCH_SIZE = 4
OPTIMIZERS = {
    "adamsrt": lambda model, lr=0.1: AdamSRT(model.parameters(), lr=lr),
    "sgdmrt": lambda model, lr=0.1: SGDMRT(model.parameters(), lr=lr, momentum=0.9),
    "sgd": lambda model, lr=0.1: SGD(model.parameters(), lr=lr, momentum=0.9),  # its graph would hold the learning rate
}


class Recorded:
    """A graph as a function that does what was captured."""

    def __init__(self, replay) -> None:
        self.replay = replay


class WithoutGPU(GraphedStep):
    """Captures by keeping what would be captured. A replay sees what a graph sees: its own tensors only."""

    passes_work = update_works = True

    def __init__(self, step: TrainStep) -> None:
        self.log: list[str] = []
        super().__init__(step, BATCH_SIZE)

    def _aside(self, device, take):
        self.log.append("aside")
        return take()

    def _capture_passes(self, images, labels):
        self.log.append("capture passes")
        if not self.passes_work:
            return None
        gradients = [torch.empty_like(parameter) for parameter in self._parameters]
        passes = Passes(None, images.clone(), labels.clone(), torch.zeros(()), torch.zeros(len(labels), 3), gradients)

        def replay():
            self.log.append("passes")
            held = [parameter.grad for parameter in self._parameters]
            loss, logits = self._step.gradients(passes.images, passes.labels)
            passes.loss.copy_(loss)
            passes.logits.copy_(logits)
            for parameter, mine, before in zip(self._parameters, gradients, held, strict=True):
                mine.copy_(parameter.grad)
                parameter.grad = before  # a graph changes no attribute

        object.__setattr__(passes, "graph", Recorded(replay))
        return passes

    def _capture_update(self, device):
        self.log.append("capture update")
        if not self.update_works:
            return None
        optimizer, lrs = self._step.optimizer, [group["lr"] for group in self._step.optimizer.param_groups]
        if self._lrs_on_device[0] is not None:
            lrs = self._lrs_on_device

        def replay():
            self.log.append("update")
            for parameter, mine in zip(self._parameters, self._passes.gradients, strict=True):
                assert parameter.grad is mine, "what reads the gradients later reads those of the last step"
            before = [group["lr"] for group in optimizer.param_groups]
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr
            optimizer.step()
            for group, lr in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = lr

        return Recorded(replay)


def build(optimizer="adamsrt") -> TrainStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    return TrainStep(model, OPTIMIZERS[optimizer](model))


def batch(index: int, size: int = BATCH_SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(size, 2, 2, 2, generator=generator), torch.randint(3, (size,), generator=generator)


def drop_lr(step: TrainStep) -> None:
    for group in step.optimizer.param_groups:
        group["lr"] *= 0.1


def assert_same_steps(graphed, plain, steps=16) -> None:
    """Take steps with both, a smaller batch now and then, the learning rate dropping half way."""
    for index in range(steps):
        size = 3 if index % 5 == 4 else BATCH_SIZE
        loss, logits = graphed(*batch(index, size))
        expected_loss, expected_logits = plain(*batch(index, size))
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(logits, expected_logits)
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
    graphed.go_on_with(OPTIMIZERS[optimizer](graphed._step.model))
    assert_same_steps(graphed, fresh)
    assert "capture passes" not in graphed.log
    # a drop of the learning rate is written to the device, where the optimizer can read it there
    assert graphed.log.count("capture update") == (2 if optimizer == "sgd" else 1)


def test_a_step_is_captured_after_the_warm_up():
    graphed = WithoutGPU(build())
    for index in range(WARM_UP_STEPS + 2):
        graphed(*batch(index))
    captured = ["capture passes", "passes", "capture update", "update"]
    assert graphed.log == [*["aside"] * WARM_UP_STEPS, *captured, "passes", "update"]
    graphed.log.clear()
    graphed(*batch(9, 3))
    assert graphed.log == [], "a batch of another size is no reason for a graph"
    graphed.forget()
    for index in range(WARM_UP_STEPS + 1):
        graphed(*batch(index))
    assert graphed.log == [*["passes", "aside"] * WARM_UP_STEPS, "passes", "capture update", "update"]


def test_what_cannot_be_captured_is_tried_once(monkeypatch):
    monkeypatch.setattr(WithoutGPU, "passes_work", False)
    graphed = WithoutGPU(build())
    for index in range(WARM_UP_STEPS + 4):
        graphed(*batch(index))
    assert graphed.log == [*["aside"] * WARM_UP_STEPS, "capture passes"]


@pytest.mark.parametrize(
    ("optimizer", "dtype"), [(AdamSRT, torch.float64), (SGDMRT, torch.float64), (Adam, torch.float32), (SGD, None)]
)
def test_the_learning_rate_lies_on_the_device_in_what_the_optimizer_reads(optimizer, dtype):
    """Torch's fused kernels take float32 only; ours compute with float64, as they do with a number."""
    made = optimizer([torch.zeros(2, requires_grad=True)], lr=0.1)
    on_device = lr_on_device(made, made.param_groups[0], torch.device("cpu"))
    assert (None if on_device is None else on_device.dtype) == dtype
