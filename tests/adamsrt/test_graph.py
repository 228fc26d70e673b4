"""When a step is captured and when it is replayed; that a GPU then gives the same numbers, benchmarks/gpu.py checks."""

import pytest
import torch
from torch import nn

from adamsrt.epoch import TrainStep
from adamsrt.graph import WARM_UP_STEPS, GraphedStep
from adamsrt.optimizers import AdamSRT

BATCH_SIZE = 4


class WithoutGPU(GraphedStep):
    """Captures a step as a function that takes it on the captured tensors."""

    works = True

    def __init__(self, step: TrainStep) -> None:
        self.log: list[str] = []
        super().__init__(step, BATCH_SIZE)

    def _step_aside(self, images, labels):
        self.log.append("aside")
        return self._step(images, labels)

    def _capture(self, images, labels):
        self.log.append("capture")
        if not self.works:
            self._works = False
            return None
        self._images, self._labels = images.clone(), labels.clone()
        self._loss, self._logits = torch.zeros(()), torch.zeros(len(labels), 3)
        return self

    def replay(self):
        self.log.append("replay")
        loss, logits = self._step(self._images, self._labels)
        self._loss.copy_(loss)
        self._logits.copy_(logits)


def build() -> TrainStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    return TrainStep(model, AdamSRT(model.parameters(), lr=0.1))


def batch(index: int, size: int = BATCH_SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(size, 2, 2, 2, generator=generator), torch.randint(3, (size,), generator=generator)


def drop_lr(step: TrainStep) -> None:
    for group in step.optimizer.param_groups:
        group["lr"] *= 0.1


@pytest.mark.parametrize("works", [True, False])
def test_the_numbers_are_those_of_steps_without_a_graph(works, monkeypatch):
    monkeypatch.setattr(WithoutGPU, "works", works)
    graphed, plain = WithoutGPU(build()), build()
    assert all(group["capturable"] for group in graphed._step.optimizer.param_groups)
    for index in range(16):
        size = 3 if index % 5 == 4 else BATCH_SIZE
        loss, logits = graphed(*batch(index, size))
        expected_loss, expected_logits = plain(*batch(index, size))
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(logits, expected_logits)
        if index == 8:
            drop_lr(graphed._step)
            drop_lr(plain)
    for ours, theirs in zip(graphed._step.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_is_captured_after_the_warm_up_and_again_for_another_learning_rate():
    graphed = WithoutGPU(build())
    for index in range(WARM_UP_STEPS + 2):
        graphed(*batch(index))
    once = ["aside"] * WARM_UP_STEPS + ["capture", "replay", "replay"]
    assert graphed.log == once
    graphed(*batch(9, 3))
    assert graphed.log == once, "a batch of another size is no reason for a graph"
    drop_lr(graphed._step)
    for index in range(WARM_UP_STEPS + 2):
        graphed(*batch(index))
    assert graphed.log == once * 2
    graphed.forget()
    graphed(*batch(0))
    assert graphed.log == [*once, *once, "aside"]


def test_what_cannot_be_captured_is_tried_once(monkeypatch):
    monkeypatch.setattr(WithoutGPU, "works", False)
    graphed = WithoutGPU(build())
    for index in range(WARM_UP_STEPS + 4):
        graphed(*batch(index))
    assert graphed.log == ["aside"] * WARM_UP_STEPS + ["capture"]
