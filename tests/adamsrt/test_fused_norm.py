"""BatchNorm's kernels by Triton's interpreter against float64, and what of a model they take over."""

import contextlib
import copy
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from triton_process import run

from adamsrt import epoch, fused_norm
from adamsrt.epoch import TrainStep
from adamsrt.fused_norm import norm_and_what_follows, norms_fused, why_not_fused
from adamsrt.models import MODELS, build_model
from adamsrt.models.base import Layers, conv_bn

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
    (fused, counts, error), (fused_of_torch, counts_of_torch, error_of_torch) = lines_of("step")
    assert (fused, fused_of_torch) == ("21", "0")
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


@pytest.fixture
def fused(monkeypatch) -> list[tuple[bool, bool]]:
    """Torch's operations stand in for the kernels; of every call: whether something is added, and ReLU taken."""
    calls: list[tuple[bool, bool]] = []

    def norm(x, other, *rest):
        calls.append((other is not None, rest[-1]))
        return fused_norm.norm_as_torch(x, other, *rest)

    monkeypatch.setattr(fused_norm, "norm", norm)
    return calls


@pytest.mark.parametrize(
    ("name", "options", "plain", "with_relu", "with_addition"),
    [
        ("resnet18", {}, 3, 1 + 8, 8),
        ("resnet18", {"image_size": 224}, 3, 1 + 8, 8),
        ("resnet20", {}, 2, 1 + 9, 9),
        ("vgg16", {}, 0, 13, 0),
    ],
)
def test_every_norm_of_our_models_is_fused_with_what_follows_it(
    name, options, plain, with_relu, with_addition, fused, monkeypatch
):
    model = build(name, **options)
    for layer in (nn.BatchNorm2d, nn.ReLU):
        monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("a layer was called"))
    with norms_fused():
        model(torch.randn(2, 3, *[options.get("image_size", 32)] * 2))
    counts = [fused.count(kind) for kind in ((False, False), (False, True), (True, True))]
    assert counts == [plain, with_relu, with_addition]


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_model_computes_what_the_model_does(name, fused):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    states = []
    for as_wanted in (norms_fused, contextlib.nullcontext):
        model = build(name)
        with as_wanted():
            model(images).square().sum().backward()
        grads = {f"{key}.grad": each.grad for key, each in model.named_parameters()}
        statistics = {key: each for key, each in model.named_buffers() if not key.endswith("num_batches_tracked")}
        states.append(grads | statistics)
    fused_state, plain = states
    assert fused
    assert fused_state.keys() == plain.keys()
    for key, expected in plain.items():
        allowed = {"rtol": 1e-4, "atol": 1e-5 * float(expected.abs().max())}
        torch.testing.assert_close(fused_state[key], expected, **allowed, msg=key)


class Subclass(nn.BatchNorm2d):
    """May do anything."""


def test_a_norm_that_is_not_the_usual_one_is_left_to_torch(fused):
    frozen, averaging, hooked, usual = (nn.BatchNorm2d(3) for _ in range(4))
    frozen.eval()
    averaging.momentum = None
    hooked.register_forward_hook(lambda module, inputs, output: None)
    hooked_relu = nn.ReLU()
    hooked_relu.register_forward_pre_hook(lambda module, inputs: None)
    plain, x = nn.BatchNorm2d(3, affine=False), torch.randn(4, 3, 5, 5)
    with norms_fused():
        for layer in (frozen, averaging, hooked, plain, Subclass(3)):
            torch.testing.assert_close(norm_and_what_follows(layer, x, None, None), copy.deepcopy(layer)(x))
        assert not fused
        norm_and_what_follows(usual, x, x, hooked_relu)
        assert not fused
        norm_and_what_follows(usual, x, None, None)
    assert fused == [(False, False)]


def test_what_one_thread_fuses_another_does_not(fused):
    """Slots of one process train side by side."""
    layer, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    with norms_fused(), ThreadPoolExecutor(1) as pool:
        pool.submit(norm_and_what_follows, layer, x, None, None).result()
        assert not fused
    norm_and_what_follows(layer, x, None, None)
    assert not fused


def test_layers_take_a_relu_without_a_norm_before_it_and_add_after_the_last_norm():
    convolution, norm = conv_bn(3, 3, 1)
    layers = Layers(nn.ReLU(), Layers(convolution, norm), nn.ReLU(), convolution, nn.ReLU(), norm)
    x, other = torch.randn(2, 4, 3, 5, 5)
    y = convolution(norm(convolution(x.relu())).relu()).relu()
    torch.testing.assert_close(layers(x, nn.ReLU(), other), (norm(y) + other).relu())
    with pytest.raises(ValueError, match="must follow a BatchNorm, got a last layer ReLU"):
        Layers(norm, nn.ReLU())(x, None, other)


def test_without_a_gpu_or_bf16_or_being_asked_a_step_takes_the_models_own_norms(fused):
    assert why_not_fused(torch.device("cpu")) == "images on cpu"
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    for options in ({"fused_norms": True, "precision": "bf16"}, {"fused_norms": True, "precision": "fp32"}, {}):
        model = build("resnet20")
        step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
        step(images, labels)
        assert not fused


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "fp32", "fused_norms": True}])
def test_on_a_gpu_only_bf16_and_being_asked_fuses_them(options, fused, monkeypatch):
    monkeypatch.setattr(epoch, "why_not_fused", lambda device: None)
    model, images = build("resnet20"), torch.randn(2, 3, 32, 32)
    TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)(images, torch.tensor([1, 2]))
    assert not fused
    both = {"precision": "bf16", "fused_norms": True}
    TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), **both)(images, torch.tensor([1, 2]))
    assert len(fused) == 21


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
