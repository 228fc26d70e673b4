"""BatchNorm's kernels by Triton's interpreter against float64, and what of a model they take over."""

import re

import pytest
import torch
from torch import nn
from triton_process import run

from adamsrt import fused_norm
from adamsrt.epoch import TrainStep
from adamsrt.fused_norm import fuse_norms, why_not_fused
from adamsrt.models import MODELS, build_model

pytest.importorskip("triton")
ALLOWED = {
    "torch.float32": 5e-6,
    "torch.bfloat16": 1e-2,
}  # a rounding to bfloat16 is up to 4e-3; the interpreter cuts off


def lines_of(what: str) -> list[list[str]]:
    return [line.split(" / ") for line in run("interpreted_norms.py", what, interpreted=True).splitlines()]


def test_values_gradients_and_statistics_follow_float64():
    *cases, far, single = lines_of("values")
    assert len(cases) == 5 * 2 * 3
    for name, adds, relu, dtype, error in cases:
        assert 0 < float(error) < ALLOWED[dtype], (name, adds, relu, dtype)
    assert float(far[1]) < 1e-3  # a sum of squares less the square of the sum has no digit left there
    assert single[1].startswith("Expected more than 1 value per channel when training")


def test_a_whole_model_has_the_gradients_and_statistics_of_torch():
    lines = lines_of("model")
    assert [(name, int(count)) for name, count, _ in lines] == [("grad", 65), ("running_mean", 21), ("running_var", 21)]
    assert all(float(error) < 5e-5 for *_, error in lines)


def test_a_step_in_bf16_is_as_near_to_float32_as_with_torch_and_counts_its_batch():
    (is_fused, counts, error), (was_fused, counts_of_torch, error_of_torch) = lines_of("step")
    assert (is_fused, was_fused) == ("True", "False")
    assert counts == counts_of_torch == "{1}"
    assert 0 < float(error) < 1.5 * float(error_of_torch)  # 1.2 with the interpreter, which cuts off


def test_the_kernels_compile_for_a_gpu_with_wide_loads_and_without_a_stack():
    lines = [line.split() for line in run("compiled_norms.py", interpreted=False).splitlines()]
    assert len(lines) == 2 * (1 + 3 * 3)
    for name, narrow_loads, registers, stack_bytes in lines:
        assert int(narrow_loads) <= 1, name  # the running statistics of a few channels
        programs = 1 if name == "moments" else 2  # at a time on a multiprocessor, of 8 warps
        assert int(registers) * 32 * 8 * programs <= 65536, name
        assert int(stack_bytes) == 0, name


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=10, in_channels=3, **{"image_size": 32, **options})


def calls(module: nn.Module) -> list[tuple[bool, bool]]:
    """Give of every fused norm whether something is added and whether ReLU is taken."""
    nodes = [node for node in module.graph.nodes if node.target is fused_norm.norm]
    return [(node.args[1] is not None, node.args[-1]) for node in nodes]


@pytest.mark.parametrize(
    ("name", "options", "plain", "with_relu", "with_addition"),
    [
        ("resnet18", {}, 3, 1 + 8, 8),
        ("resnet18", {"image_size": 224}, 3, 1 + 8, 8),
        ("resnet20", {}, 2, 1 + 9, 9),
        ("vgg16", {}, 0, 13, 0),
    ],
)
def test_every_norm_of_our_models_is_fused_with_what_follows_it(name, options, plain, with_relu, with_addition):
    model = build(name, **options)
    fused = fuse_norms(model)
    found = calls(fused)
    counts = [found.count(kind) for kind in ((False, False), (False, True), (True, True))]
    assert counts == [plain, with_relu, with_addition]
    left = {type(model.get_submodule(node.target)) for node in fused.graph.nodes if node.op == "call_module"}
    assert not left & {nn.BatchNorm2d, nn.ReLU}
    assert not any(node.target in fused_norm.ADDITIONS for node in fused.graph.nodes)
    own = dict(model.named_parameters())
    assert {key: id(each) for key, each in fused.named_parameters()} == {key: id(each) for key, each in own.items()}
    buffers = dict(model.named_buffers())
    assert all(each is buffers[key] for key, each in fused.named_buffers())


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_model_computes_what_the_model_does(name, monkeypatch):
    """With torch's operations in place of the kernels: the rewritten graph is right."""
    monkeypatch.setattr(fused_norm._Norm, "apply", fused_norm.norm_as_torch)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    states = []
    for fuse in (fuse_norms, lambda model: model):
        model = build(name)
        fuse(model)(images).square().sum().backward()
        grads = {f"{key}.grad": each.grad for key, each in model.named_parameters()}
        statistics = {key: each for key, each in model.named_buffers() if not key.endswith("num_batches_tracked")}
        states.append(grads | statistics)
    fused, plain = states
    assert fused.keys() == plain.keys()
    for key, expected in plain.items():
        torch.testing.assert_close(fused[key], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=key)


class Unusual(nn.Module):
    """What no kernel is to take over, or not all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.doubled, self.scaled, self.frozen, self.averaging, self.hooked, self.shifted = (
            nn.BatchNorm2d(3) for _ in range(7)
        )
        self.averaging.momentum = None
        self.frozen.eval()
        self.hooked.register_forward_hook(lambda module, inputs, output: None)
        self.plain = nn.BatchNorm2d(3, affine=False)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.read_twice(x)
        x = self.relu(y) + y  # the ReLU is not the only reader
        y = self.doubled(x)
        x = self.relu(y + y)
        x = self.relu(torch.add(self.scaled(x), x, alpha=2))
        x = self.relu(self.averaging(self.hooked(self.plain(self.frozen(x)))))
        return self.relu(self.shifted(x) + 1)


def test_what_else_reads_a_norm_or_is_not_the_usual_one_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(fused_norm._Norm, "apply", fused_norm.norm_as_torch)
    model = Unusual()
    fused = fuse_norms(model)
    assert calls(fused) == [(False, False)] * 4  # read_twice, doubled, scaled, shifted: themselves alone
    called = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    assert [name for name in called if name != "relu"] == ["frozen", "plain", "hooked", "averaging"]
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(fused(x), model(x))


def test_other_spellings_of_addition_and_relu_are_found():
    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.BatchNorm2d(3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(x + self.a(x))
            x = nn.functional.relu(self.b(x), inplace=True)
            y = self.c(x)
            y += x
            return torch.relu_(y)

    assert calls(fuse_norms(Spelled())) == [(True, True), (False, True), (True, True)]


def test_without_a_gpu_or_bf16_or_being_asked_a_step_takes_the_model_itself():
    assert why_not_fused(torch.device("cpu")) == "images on cpu"
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    for options in ({"fused_norms": True, "precision": "bf16"}, {"fused_norms": True, "precision": "fp32"}, {}):
        model = build("resnet20")
        step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
        step(images, labels)
        assert step._as_trained is model


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (0.1, r"off by 1.0e-01 of the largest value\)"),
        (RuntimeError("no compiler\nat all"), r"RuntimeError from Triton: no compiler\)"),
    ],
)
def test_kernels_that_do_not_work_are_not_taken_and_the_reason_is_said(error, message, monkeypatch):
    def trial(device: torch.device) -> float:
        if isinstance(error, Exception):
            raise error
        return error

    monkeypatch.setattr(fused_norm, "_error_of_a_trial", trial)
    why_not_fused.cache_clear()
    with pytest.warns(UserWarning, match=f"takes torch's kernels instead of fused ones on cuda:7 .*{message}"):
        assert re.search(message.removesuffix(r"\)"), why_not_fused(torch.device("cuda", 7)))
    why_not_fused.cache_clear()
