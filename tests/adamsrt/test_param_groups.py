"""The weights that `param_groups` finds, by the definition: scaling their groups leaves the output unchanged."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from adamsrt.optimizers import AdamSRT
from adamsrt.optimizers.param_groups import NORMS, find_scale_invariant_weights, param_groups


def as_double(model: nn.Module) -> nn.Module:
    """Put the model into float64 and train mode, with norms that scale exactly and no parameter at a special value."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, (*NORMS, torchvision.models.convnext.LayerNorm2d)):
            module.eps = 1e-40  # positive, since a channel that an activation has silenced has no variance
    model.double().train()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute the output in train mode, dropout and the like drawn alike every time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        result = model(x)
    return torch.cat([part.flatten() for part in result]) if isinstance(result, tuple) else result


def relative_change(model: nn.Module, x: torch.Tensor, factors: dict[nn.Parameter, torch.Tensor]) -> float:
    """Scale the parameters by the factors and give the change of the output, relative to its own size."""
    saved = {parameter: parameter.detach().clone() for parameter in factors}
    before = output(model, x)
    for parameter, factor in factors.items():
        parameter.data *= factor
    after = output(model, x)
    for parameter, value in saved.items():
        parameter.data.copy_(value)
    assert before.isfinite().all()
    return float((after - before).norm() / before.norm())


def random_factors(weight: torch.Tensor, channel_dims: list[int]) -> torch.Tensor:
    """Draw a factor in [1/e, e] for each group."""
    shape = [size if dim in channel_dims else 1 for dim, size in enumerate(weight.shape)]
    return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=torch.Generator().manual_seed(5)).exp()


def check_by_definition(model: nn.Module, x: torch.Tensor) -> dict[str, list[int]]:
    """Assert that the groups are a partition and invariant; give the channel_dims found, by name."""
    model = as_double(model)
    groups = param_groups(model)
    params = [parameter for group in groups for parameter in group["params"]]
    assert len(params) == len(set(params))
    assert set(params) == set(model.parameters())
    AdamSRT(groups)  # the optimizer takes them as they are
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {p: group["channel_dims"] for group in groups if group["channel_dims"] is not None for p in group["params"]}
    factors = {weight: random_factors(weight, channel_dims) for weight, channel_dims in found.items()}
    assert relative_change(model, x, factors) < 1e-7
    return {names[weight]: channel_dims for weight, channel_dims in found.items()}


def images(channels: int = 4, dims: int = 2) -> torch.Tensor:
    shape = (5, channels, *(7, 6, 5)[:dims])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Then(nn.Module):
    """A layer, a function, a normalization layer, and a nonlinearity, so that nothing cancels by chance."""

    def __init__(self, layer: nn.Module, between: Callable[[torch.Tensor], torch.Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.between, self.norm = layer, between, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.norm(self.between(self.layer(x))))


# layer, norm, input, and the channel_dims of the layer's weight (None: not scale invariant)
PAIRS = {
    **{f"conv{n}d-batch": (CONV[n](4, 6, 3), BATCH_NORM[n](6), images(4, n), [0]) for n in (1, 2, 3)},
    **{f"conv{n}d-instance": (CONV[n](4, 6, 3), INSTANCE_NORM[n](6), images(4, n), [0]) for n in (1, 2, 3)},
    **{f"transposed{n}d-batch": (TRANSPOSED[n](4, 6, 3), BATCH_NORM[n](6), images(4, n), [1]) for n in (1, 2, 3)},
    **{f"transposed{n}d-instance": (TRANSPOSED[n](4, 6, 3), INSTANCE_NORM[n](6), images(4, n), [1]) for n in (1, 2, 3)},
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), images(), [0]),
    "no affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), images(), [0]),
    "no running statistics": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), images(), [0]),
    "instance, running": (nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True), images(), [0]),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), images(), [0]),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), images(), [0]),
    "circular padding": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6), images(), [0]),
    "grouped transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), images(), [1]),
    "depthwise transposed": (nn.ConvTranspose2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), images(), [0, 1]),
    "one input channel, transposed": (nn.ConvTranspose2d(1, 6, 3), nn.BatchNorm2d(6), images(1), [1]),
    "linear-batch": (nn.Linear(4, 6), nn.BatchNorm1d(6), features(5, 4), [0]),
    "linear-layer": (nn.Linear(4, 6, bias=False), nn.LayerNorm(6), features(5, 4), []),
    "linear-layer, bias": (nn.Linear(4, 6), nn.LayerNorm(6), features(5, 4), None),
    "linear-rms": (nn.Linear(4, 6, bias=False), nn.RMSNorm(6), features(5, 4), []),
    "linear-group": (nn.Linear(4, 6, bias=False), nn.GroupNorm(2, 6), features(5, 4), []),
    "linear-instance": (nn.Linear(4, 6, bias=False), nn.InstanceNorm1d(3), features(5, 3, 4), []),
    "linear-batch over tokens": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(3), features(5, 3, 4), []),
    "linear-batch over tokens, bias": (nn.Linear(4, 6), nn.BatchNorm1d(3), features(5, 3, 4), None),
    "linear-batch2d": (nn.Linear(4, 6, bias=False), nn.BatchNorm2d(6), features(5, 6, 3, 4), []),
    "conv-layer": (nn.Conv2d(4, 6, 3, bias=False), nn.LayerNorm([6, 5, 4]), images(), []),
    "conv-layer, bias": (nn.Conv2d(4, 6, 3), nn.LayerNorm([6, 5, 4]), images(), None),
    "conv-group, one": (nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(1, 6), images(), []),
    "conv-group, between": (nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(3, 6), images(), []),
    "conv-group, between, bias": (nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), images(), None),
    "conv-group, each": (nn.Conv2d(4, 6, 3), nn.GroupNorm(6, 6), images(), [0]),
    "transposed-group": (nn.ConvTranspose2d(4, 6, 3, bias=False), nn.GroupNorm(3, 6), images(), []),
    "conv-rms": (nn.Conv2d(4, 6, 3, bias=False), nn.RMSNorm([6, 5, 4]), images(), []),
    "no norm": (nn.Conv2d(4, 6, 3), nn.Identity(), images(), None),
    "another norm": (nn.Conv2d(4, 6, 3), nn.LocalResponseNorm(3, k=1.0, alpha=1.0), images(), None),
}


@pytest.mark.parametrize(("layer", "norm", "x", "expected"), PAIRS.values(), ids=PAIRS)
def test_a_layer_and_its_norm(layer, norm, x, expected):
    model = Then(copy.deepcopy(layer), nn.Identity(), copy.deepcopy(norm))
    found = check_by_definition(model, x)
    assert found == ({} if expected is None else {"layer.weight": expected})
    weight = model.layer.weight
    every_dim = list(range(weight.ndim))
    if expected is None:
        assert relative_change(model, x, {weight: torch.tensor(2.0, dtype=torch.float64)}) > 1e-4
    # Finer groups than those found would change the output (a linear layer has nothing finer that torch could name).
    for dim in sorted(set(every_dim) - set(expected or [])):
        if weight.shape[dim] > 1:
            factors = random_factors(weight, [*(expected or []), dim])
            assert relative_change(model, x, {weight: factors}) > 1e-4


def test_sync_batch_norm():
    # It runs on GPUs only, so that the definition is tested on the BatchNorm it replaces.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    assert type(model[1]) is nn.SyncBatchNorm
    assert find_scale_invariant_weights(model) == {model[0].weight: (0,)}


BETWEEN = {
    "identity": (nn.Identity(), nn.BatchNorm2d(6), True, [0]),
    "permute": (lambda y: y.permute(0, 2, 3, 1), nn.LayerNorm(6), False, []),
    "permute, bias": (lambda y: y.permute(0, 2, 3, 1), nn.LayerNorm(6), True, None),
    "tokens": (lambda y: y.flatten(2).transpose(1, 2), nn.LayerNorm(6), False, []),
    "view by shape": (lambda y: y.view(y.size(0), y.shape[1], -1), nn.BatchNorm1d(6), False, []),
    "flatten module": (nn.Flatten(), nn.LayerNorm(6 * 5 * 4), False, []),
    "relu": (nn.ReLU(), nn.BatchNorm2d(6), True, None),
    "square": (lambda y: y * y + y, nn.BatchNorm2d(6), False, None),
    "residual": (lambda y: y + 1, nn.LayerNorm([6, 5, 4]), False, None),
    "in place": (lambda y: y.sigmoid_(), nn.BatchNorm2d(6), True, None),
    "dropout": (nn.Dropout(0.5), nn.BatchNorm2d(6), True, None),
}


@pytest.mark.parametrize(("between", "norm", "bias", "expected"), BETWEEN.values(), ids=BETWEEN)
def test_what_may_stand_between_a_layer_and_its_norm(between, norm, bias, expected):
    model = Then(nn.Conv2d(4, 6, 3, bias=bias), between, copy.deepcopy(norm))
    found = check_by_definition(model, images())
    assert found == ({} if expected is None else {"layer.weight": expected})
    if expected is None:
        factors = random_factors(model.layer.weight, [0])
        assert relative_change(model, images(), {model.layer.weight: factors}) > 1e-4


class Uses(nn.Module):
    """Two convolutions and two norms for models that use a weight more than once."""

    def __init__(self, *, share: bool = False, second_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.second_norm = nn.BatchNorm2d(4), second_norm or nn.BatchNorm2d(4)
        if share:
            self.other.weight = self.conv.weight


class Residual(Uses):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class TwoNorms(Uses):
    def forward(self, x):
        y = self.conv(x)
        return torch.sigmoid(self.norm(y)) + self.second_norm(y)


class Recurrent(Uses):
    def forward(self, x):
        return torch.sigmoid(self.norm(self.conv(torch.relu(self.norm(self.conv(x))))))


class Tied(Uses):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.second_norm(self.other(x.relu()))


class TiedOnceFree(Uses):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.other(x.relu())


class Penalized(Uses):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.sum()


class OutputToo(Uses):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y), y


class OptionalMask(Uses):
    def forward(self, x, mask=None):
        y = self.conv(x)
        if mask is not None:
            y = y + mask
        return self.norm(y)


USES = {
    "residual": (Residual(), {}),
    "two norms": (TwoNorms(), {"conv.weight": [0]}),
    "two norms, one whole": (TwoNorms(second_norm=nn.GroupNorm(2, 4)), {"conv.weight": []}),
    "recurrent": (Recurrent(), {"conv.weight": [0]}),
    "tied": (Tied(share=True), {"conv.weight": [0]}),
    "tied, one whole": (Tied(share=True, second_norm=nn.GroupNorm(1, 4)), {"conv.weight": []}),
    "tied, once without norm": (TiedOnceFree(share=True), {}),
    "penalized": (Penalized(), {}),
    "output too": (OutputToo(), {}),
    "optional argument": (OptionalMask(), {"conv.weight": [0]}),
}


@pytest.mark.parametrize(("model", "expected"), USES.values(), ids=USES)
def test_every_use_of_a_weight_counts(model, expected):
    model = copy.deepcopy(model)
    assert check_by_definition(model, images()) == expected
    if not expected:
        factors = random_factors(model.conv.weight, [])
        assert relative_change(model, images(), {model.conv.weight: factors}) > 1e-4


def test_a_weight_shared_with_an_opaque_module_is_not_reported():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.linear, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)
            self.linear.weight = self.attention.out_proj.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.linear(x)) + self.attention(x, x, x)[0]

    assert check_by_definition(Shared(), features(5, 3, 4)) == {}


def test_a_norm_that_stays_in_eval_mode_makes_nothing_invariant():
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid())
    assert check_by_definition(model, images()) == {"2.weight": [0]}
    instance = Frozen(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True), nn.Sigmoid())
    assert check_by_definition(instance, images()) == {}


def test_hooks_and_parametrizations_are_left_out():
    def sequential() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Sigmoid())

    hooked = sequential()
    hooked[0].register_forward_hook(lambda module, inputs, output: output.sin())
    assert check_by_definition(hooked, images()) == {}
    hooked = sequential()
    hooked[1].register_forward_pre_hook(lambda module, inputs: inputs[0].sin())
    assert check_by_definition(hooked, images()) == {}
    parametrized = sequential()
    nn.utils.parametrizations.weight_norm(parametrized[0])
    assert find_scale_invariant_weights(parametrized) == {}


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_its_parent():
    class OffsetConv(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.linspace(0, 1, 4, dtype=x.dtype)

    OffsetConv.__module__ = "torch.nn.offset"  # so that the tracer takes it for a layer of torch's
    assert check_by_definition(nn.Sequential(OffsetConv(4, 6, 3, bias=False), nn.BatchNorm2d(6)), images()) == {}


def test_groups_are_one_per_channel_dims_then_the_rest():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 2, 3),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(60, 3),
    )
    model[0].weight.requires_grad_(False)  # frozen parameters stay, as with model.parameters()
    groups = param_groups(model)
    assert [group["channel_dims"] for group in groups] == [[0], [1], None]
    assert groups[0]["params"] == [model[0].weight, model[2].weight]
    assert groups[1]["params"] == [model[4].weight]
    assert groups[2]["channel_wise"] is False
    optimizer = AdamSRT(groups, channel_wise=True)
    assert optimizer.param_groups[2]["channel_wise"] is False  # the rest is not drawn in by the top level


def test_the_model_and_the_random_state_stay_as_they_were():
    class Noisy(Uses):
        def forward(self, x):
            return self.norm(self.conv(x)) + torch.randn(1)

    model = Noisy()
    model.norm.eval()
    before = torch.random.get_rng_state()
    assert find_scale_invariant_weights(model) == {model.conv.weight: (0,)}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training and not model.norm.training and model.second_norm.training
    assert int(model.norm.num_batches_tracked) == 0


def test_wrappers_are_looked_through():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert find_scale_invariant_weights(wrapped) == {model[0].weight: (0,)}
        assert param_groups(wrapped)[0]["params"] == [model[0].weight]


def test_a_model_that_cannot_be_traced_is_refused_in_one_line():
    class DataDependent(Uses):
        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    with pytest.raises(ValueError) as caught:
        param_groups(DataDependent())
    assert "torch.fx can trace, got DataDependent (" in str(caught.value)
    assert "give channel_dims by hand" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_parameters_has_no_groups():
    assert param_groups(nn.ReLU()) == []


def all_convolutions(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def small_resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10)


def small_vgg() -> nn.Module:
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M", 32, 32, "M"], batch_norm=True)
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(32 * 64, 10))


def small_mobilenet() -> nn.Module:
    # expansion, channels, blocks, stride of every stage
    stages = [[1, 8, 1, 1], [6, 8, 2, 2]]
    return torchvision.models.MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=stages)


@pytest.mark.parametrize("build", [small_resnet, small_vgg, small_mobilenet])
def test_all_convolutions_of_plain_batch_norm_models_are_invariant(build):
    model = build()
    found = check_by_definition(model, features(3, 3, 64, 64))
    assert found == {name: [0] for name in all_convolutions(model)}


def found_by_name(name: str, *, device: str = "meta") -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """Build a torchvision model, by default without any memory, and give the channel_dims found by name."""
    with torch.device(device):
        model = getattr(torchvision.models, name)(weights=None)
    found = find_scale_invariant_weights(model)
    return model, {name: found[weight] for name, weight in model.named_parameters() if weight in found}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2"])
def test_all_convolutions_of_plain_batch_norm_models_are_found(name):
    model, found = found_by_name(name)
    assert found == dict.fromkeys(all_convolutions(model), (0,))


def test_densenet_finds_the_convolutions_before_a_norm_of_their_own():
    model = torchvision.models.DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=8, num_classes=10)
    found = check_by_definition(model, features(3, 3, 64, 64))
    # conv2 and the transitions go into concatenations, which the next norms see together with other features
    dense = {name for name in all_convolutions(model) if name.endswith("conv1.weight")}
    assert found.keys() == dense | {"features.conv0.weight"}


def without_squeeze(model: nn.Module) -> set[str]:
    squeeze = {weight for weight in all_convolutions(model) if ".fc1." in weight or ".fc2." in weight}
    assert squeeze
    return all_convolutions(model) - squeeze


def test_squeeze_and_excitation_is_left_out():
    model = torchvision.models.mobilenet_v3_small(weights=None, width_mult=0.5, num_classes=10)
    assert check_by_definition(model, features(3, 3, 48, 48)).keys() == without_squeeze(model)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "efficientnet_b0"])
def test_squeeze_and_excitation_is_left_out_of_larger_models(name):
    model, found = found_by_name(name, device="cpu" if name == "regnet_y_400mf" else "meta")
    assert found.keys() == without_squeeze(model)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "vit_b_32"])
def test_biased_layers_before_layer_norm_are_left_out(name):
    # With a bias, and through residual connections, LayerNorm makes no weight of these invariant.
    assert found_by_name(name)[1] == {}
