"""ResNet18 and ResNet20 as in the published protocol (arXiv:2006.13382), with torch's default initialization as there.

Architecture: arXiv:1512.03385 with projection shortcuts (1x1 convolution + BatchNorm) wherever the shape changes.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from adamsrt.models.base import ConvNet, Layers, conv_bn

Stem = Literal["cifar", "imagenet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input (or its projection) is added."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.residual = Layers(
            conv_bn(in_channels, out_channels, 3, stride=stride),
            nn.ReLU(inplace=True),
            conv_bn(out_channels, out_channels, 3),
        )
        keeps_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if keeps_shape else conv_bn(in_channels, out_channels, 1, stride=stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x, self.relu, self.shortcut(x))
        return out


class ResNet(ConvNet):
    """A stem, stages of basic blocks (each stage after the first halves the image), average pooling, one linear layer.

    Args:
        widths: channels of each stage; the stem has the first stage's.
        blocks_per_stage: basic blocks in each stage.
        stem: "cifar" = 3x3 convolution, stride 1; "imagenet" = 7x7, stride 2, then 3x3 max-pooling, stride 2.
    """

    def __init__(
        self, widths: Sequence[int], blocks_per_stage: int, *, num_classes: int, in_channels: int, stem: Stem = "cifar"
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        if stem == "imagenet":
            self.stem = Layers(
                conv_bn(in_channels, widths[0], 7, stride=2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        else:
            self.stem = Layers(conv_bn(in_channels, widths[0], 3), nn.ReLU(inplace=True))

        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks_per_stage):
                blocks.append(BasicBlock(channels, width, stride=2 if stage > 0 and block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return logits


def resnet18(num_classes: int = 10, *, in_channels: int = 3, stem: Stem = "cifar") -> ResNet:
    """Build ResNet18: widths 64 to 512, two blocks each; 11,173,962 parameters for ten classes.

    Args:
        stem: "cifar" for small images (8x8 and up), "imagenet" for 224x224. Raises ValueError for another.
    """
    return ResNet((64, 128, 256, 512), 2, num_classes=num_classes, in_channels=in_channels, stem=stem)


def resnet20(num_classes: int = 10, *, in_channels: int = 3) -> ResNet:
    """Build ResNet20 for small images: widths 16, 32, 64, three blocks each; 272,474 parameters for ten classes."""
    return ResNet((16, 32, 64), 3, num_classes=num_classes, in_channels=in_channels)
