"""The models have the published architectures, take small images, and sort their parameters for the optimizers."""

import pytest
import torch
from torch import nn

from adamsrt.models import MODELS, build_model, resnet18, resnet20, vgg16


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (resnet18(10), 11_173_962),
        (resnet18(100), 11_220_132),
        (resnet18(1000, stem="imagenet"), 11_689_512),
        (resnet20(10), 272_474),
        (vgg16(10), 14_724_042),
        (vgg16(100), 14_770_212),
    ],
    ids=["resnet18-10", "resnet18-100", "resnet18-imagenet", "resnet20-10", "vgg16-10", "vgg16-100"],
)
def test_parameter_counts_are_the_published_ones(model, count):
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", list(MODELS))
def test_conv_and_other_params_partition_the_parameters(name):
    model = MODELS[name].build(10)
    conv, other = model.conv_params(), model.other_params()
    assert {id(p) for p in conv}.isdisjoint(id(p) for p in other)
    assert sorted(map(id, [*conv, *other])) == sorted(map(id, model.parameters()))
    assert {p.dim() for p in conv} == {4}
    assert max(p.dim() for p in other) == 2  # the classifier is the only matrix among the others


@pytest.mark.parametrize("name", list(MODELS))
def test_every_conv_weight_is_scale_invariant_per_output_channel(name):
    """The definition of a group: scaling it leaves the output unchanged in train mode."""
    torch.manual_seed(0)
    size = MODELS[name].min_image_size
    model = MODELS[name].build(10, in_channels=3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # eps is what breaks the invariance; torch wants it positive
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        for weight in model.conv_params():
            weight.mul_(torch.rand(weight.shape[0], 1, 1, 1, dtype=torch.float64) + 0.5)
        torch.testing.assert_close(model(images), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "in_channels", "size"),
    [
        ("resnet18", 1, 8),
        ("resnet20", 1, 8),
        ("resnet18", 3, 32),
        ("resnet20", 3, 32),
        ("vgg16", 3, 32),
        ("vgg16", 3, 64),
    ],
)
def test_logits_of_small_images(name, in_channels, size):
    model = build_model(name, num_classes=7, in_channels=in_channels, image_size=size)
    assert model(torch.randn(2, in_channels, size, size)).shape == (2, 7)


def test_small_images_keep_their_size_through_the_cifar_stem():
    assert resnet18().stem(torch.randn(1, 3, 32, 32)).shape == (1, 64, 32, 32)


def test_large_images_get_the_imagenet_stem_of_resnet18():
    model = build_model("resnet18", num_classes=1000, in_channels=3, image_size=224)
    images = torch.randn(2, 3, 224, 224)
    assert model.stem(images).shape == (2, 64, 56, 56)
    assert model(images).shape == (2, 1000)


def test_a_model_too_large_for_the_images_is_refused_by_name():
    with pytest.raises(ValueError, match="vgg16 needs images of at least 32x32, got 8x8; choose resnet18 or resnet20"):
        build_model("vgg16", num_classes=10, in_channels=1, image_size=8)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        build_model("resnet1", num_classes=10, in_channels=3, image_size=32)
    with pytest.raises(ValueError, match="stem must be 'cifar' or 'imagenet', got 'svhn'"):
        resnet18(stem="svhn")


def test_the_global_seed_gives_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(resnet20().parameters())

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", list(MODELS))
def test_redrawn_weights_are_those_of_a_new_model_in_the_memory_of_the_old(name, memory_format):
    model = MODELS[name].build(3).to(memory_format=memory_format)
    before = {key: (value.data_ptr(), value.stride()) for key, value in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32))  # moves BatchNorm's statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(5)
    fresh = MODELS[name].build(3).state_dict()
    generator = torch.get_rng_state()
    torch.manual_seed(5)
    model.redraw()
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert before == {key: (value.data_ptr(), value.stride()) for key, value in model.state_dict().items()}
