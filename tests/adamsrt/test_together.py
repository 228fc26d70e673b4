"""What is done for all tensors at once gives the bits of torch's own way, in fewer operations."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from adamsrt.epoch import TrainStep
from adamsrt.models import MODELS, build_model
from adamsrt.optimizers import build_optimizer
from adamsrt.precision import PRECISIONS
from adamsrt.together import counted_together, norms_to_count


class Operations(TorchDispatchMode):
    """Counts what is launched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def image_size(name: str) -> int:
    return 32 if name == "vgg16" else 8  # the smallest that they take


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, in_channels=3, image_size=image_size(name))
    return model.to(memory_format=torch.channels_last)


def batch(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator, size = torch.Generator().manual_seed(1), image_size(name)
    images = torch.randn(4, 3, size, size, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.tensor([0, 3, 5, 9])


def build_step(name: str, precision: str) -> TrainStep:
    model = build(name)
    return TrainStep(
        model, build_optimizer("adamsrt", model, lr=1e-3), precision=precision, memory_format=torch.channels_last
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_those_of_torch_bit_for_bit(name, precision):
    step, plain, (images, labels) = build_step(name, precision), build(name), batch(name)
    for _ in range(2):
        step.gradients(images, labels)
        plain.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = plain(images)
        functional.cross_entropy(logits.float(), labels).backward()
    expected, given = plain.state_dict(), step.model.state_dict()
    assert expected.keys() == given.keys()
    assert [key for key in expected if not torch.equal(expected[key], given[key])] == []
    assert {int(value) for key, value in given.items() if key.endswith("num_batches_tracked")} == {2}
    for one, other in zip(step.model.parameters(), plain.parameters(), strict=True):
        assert one.grad.dtype == torch.float32 and one.grad.stride() == one.stride()
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_cast_or_counted_for_each_tensor(name):
    step, (images, labels) = build_step(name, "bf16"), batch(name)
    step.gradients(images, labels)
    with Operations() as operations:
        step.gradients(images, labels)
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in step.model.modules())
    assert operations.counts["native_batch_norm"] == layers  # what there is one of for each layer is seen
    assert operations.counts["_to_copy"] <= 3  # images, logits, and the logits' gradient
    assert operations.counts["_foreach_copy_"] == 2 and operations.counts["_foreach_add_"] == 1
    residuals = operations.counts["relu_"]  # at most one added in place for each
    assert operations.counts["add_"] <= (2 if name == "vgg16" else 2 + residuals // 2)


def test_weights_that_are_not_trained_are_left_to_autocast():
    step, plain = build_step("resnet20", "bf16"), build("resnet20")
    for model in (step.model, plain):
        model.stem.requires_grad_(False)
    step = TrainStep(step.model, step.optimizer, precision="bf16", memory_format=torch.channels_last)
    images, labels = batch("resnet20")
    step.gradients(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = plain(images)
    functional.cross_entropy(logits.float(), labels).backward()
    for one, other in zip(step.model.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    assert any(parameter.grad is None for parameter in plain.parameters())


class Shared(nn.Module):
    """Not one of ours: a layer that takes part twice, one that does not, and a weight that others read too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.unused, self.linear = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.norm(images)).mean((2, 3))
        return self.linear(features) + self.linear.weight.sum()


def test_a_model_that_is_not_ours_is_computed_as_torch_does():
    torch.manual_seed(0)
    model, (images, labels) = Shared(), batch("resnet20")
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.0), precision="bf16")
    loss, _ = step(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        expected = functional.cross_entropy(model(images).float(), labels)
    assert torch.equal(loss, expected.detach())
    assert (int(model.norm.num_batches_tracked), int(model.unused.num_batches_tracked)) == (4, 0)


def test_layers_in_eval_mode_and_those_that_average_over_all_batches_count_by_themselves():
    model, (images, _) = build("resnet20"), batch("resnet20")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()
    averaging = norms[1]
    averaging.momentum = None  # its first batch counts as much as all others
    with counted_together(norms_to_count(model)):
        model(images)
    assert [int(norm.num_batches_tracked) for norm in norms] == [0] + [1] * (len(norms) - 1)
    assert not torch.equal(averaging.running_mean, torch.zeros_like(averaging.running_mean))


def test_counters_are_where_they_were_after_a_failed_pass():
    model = build("resnet20")
    counters = [module.num_batches_tracked for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with pytest.raises(RuntimeError), counted_together(norms_to_count(model)):
        model(torch.zeros(2, 7, 32, 32))
    after = [module.num_batches_tracked for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(one is other and int(one) == 0 for one, other in zip(counters, after, strict=True))
