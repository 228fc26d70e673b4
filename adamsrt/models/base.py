"""What the models share: convolutions followed by BatchNorm, and the two parameter lists the optimizers ask for."""

from torch import nn


class ConvNet(nn.Module):
    """A network whose convolutions are each followed by BatchNorm, which makes their weights scale invariant.

    Not for a network with a convolution that nothing normalizes; `adamsrt.optimizers.param_groups` sorts such weights.
    """

    def conv_params(self) -> list[nn.Parameter]:
        """List all convolution weights, (C_out, C_in, kH, kW) each: the group to give `channel_wise=True`."""
        return [weight for conv in self.modules() if isinstance(conv, nn.Conv2d) for weight in conv.parameters()]

    def other_params(self) -> list[nn.Parameter]:
        """List all other parameters: BatchNorm's and the classifier's."""
        conv_ids = {id(parameter) for parameter in self.conv_params()}
        return [parameter for parameter in self.parameters() if id(parameter) not in conv_ids]


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Sequential:
    """Build a convolution without bias and its BatchNorm; with stride 1 the image keeps its size (odd kernels)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )
