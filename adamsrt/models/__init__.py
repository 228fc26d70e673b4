"""The models of the paper; each gives `conv_params()` (scale invariant) and `other_params()` (the rest)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adamsrt.models.base import ConvNet
from adamsrt.models.resnet import resnet18, resnet20
from adamsrt.models.vgg import vgg16
from adamsrt.registry import Registry

__all__ = ["MODELS", "ConvNet", "ModelEntry", "build_model", "resnet18", "resnet20", "vgg16"]

IMAGENET_STEM_FROM = 224  # image height and width from which a model takes its ImageNet stem where it has one


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Args:
        build: makes it from (num_classes, in_channels=...).
        min_image_size: the smallest height and width of its images.
        has_imagenet_stem: whether `build` also takes stem="imagenet".
    """

    build: Callable[..., ConvNet]
    min_image_size: int
    has_imagenet_stem: bool = False


MODELS: Registry[ModelEntry] = Registry("model")
MODELS.add("resnet18", ModelEntry(resnet18, min_image_size=8, has_imagenet_stem=True))
MODELS.add("resnet20", ModelEntry(resnet20, min_image_size=8))
MODELS.add("vgg16", ModelEntry(vgg16, min_image_size=32))


def build_model(name: str, *, num_classes: int, in_channels: int, image_size: int) -> ConvNet:
    """Build a model for square images of `image_size`; ResNet18 gets its ImageNet stem from 224x224 on.

    The initial weights are drawn from torch's global CPU generator, as in any torch module.
    Raises UnknownNameError (a ValueError) for an unknown name, ValueError where the images are too small for the model.
    """
    entry = MODELS[name]
    if image_size < entry.min_image_size:
        fitting = [other for other, e in MODELS.items() if image_size >= e.min_image_size]
        remedy = f"; choose {' or '.join(fitting)}" if fitting else ""
        raise ValueError(
            f"{name} needs images of at least {entry.min_image_size}x{entry.min_image_size}, "
            f"got {image_size}x{image_size}{remedy}"
        )
    options: dict[str, Any] = {"in_channels": in_channels}
    if entry.has_imagenet_stem and image_size >= IMAGENET_STEM_FROM:
        options["stem"] = "imagenet"
    return entry.build(num_classes, **options)
