"""VGG16 with BatchNorm as in the published protocol (arXiv:2006.13382), with torch's default initialization as there.

Architecture: configuration D of arXiv:1409.1556, with BatchNorm after each convolution and one linear layer instead of
the three of the original.
"""

from torch import Tensor, nn

from adamsrt.models.base import ConvNet, Layers, conv_bn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(ConvNet):
    """Five stages of 3x3 convolutions, each halving the image at its end; average pooling, one linear layer."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in STAGES:
            for width in stage:
                layers += [conv_bn(channels, width, 3), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = Layers(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W), H and W at least 32, to logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def vgg16(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """Build VGG16 with BatchNorm and one linear classifier; 14,724,042 parameters for ten classes."""
    return VGG(num_classes=num_classes, in_channels=in_channels)
