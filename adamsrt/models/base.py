"""What the models share: convolutions followed by BatchNorm, and the two parameter lists the optimizers ask for."""

import itertools

import torch
from torch import Tensor, nn

from adamsrt.fused_norm import norm_and_what_follows


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

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw the initial weights anew into the memory that they have, and reset BatchNorm and its statistics.

        From one state of torch's global CPU generator the weights are those of a newly built model, bit for bit, on any
        device and in any memory format. Building one takes longer: memory that a process has not touched before costs
        as much as the random numbers.
        """
        drawn = [module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        scratch = torch.empty(max(sum(p.numel() for p in module.parameters()) for module in drawn))
        for module in self.modules():  # in the order in which they were built, and drew their weights
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                own = list(module.parameters())
                places = [parameter.data for parameter in own]
                # On the CPU and contiguous: torch draws in the order of memory, and elsewhere other numbers.
                sizes = [parameter.numel() for parameter in own]
                for parameter, piece in zip(own, scratch[: sum(sizes)].split_with_sizes(sizes), strict=True):
                    parameter.data = piece.view(parameter.shape)
                module.reset_parameters()
                for parameter, place in zip(own, places, strict=True):
                    parameter.data = place.copy_(parameter.data)


class Layers(nn.Sequential):
    """Layers one after the other; ReLU, and what is added before it, go together with the BatchNorm before them."""

    def forward(self, x: Tensor, relu: nn.Module | None = None, other: Tensor | None = None) -> Tensor:
        """Map x through all layers; then add `other` and take `relu`, where they are given.

        ValueError where they are, and the last layer is no BatchNorm.
        """
        if (relu is not None or other is not None) and not isinstance(self[-1], Layers | nn.BatchNorm2d):
            raise ValueError(f"what follows must follow a BatchNorm, got a last layer {type(self[-1]).__name__}")
        done: nn.Module | None = None
        for layer, following in itertools.pairwise((*self, relu)):
            if layer is done:
                continue
            done = following if isinstance(following, nn.ReLU) else None
            added = other if layer is self[-1] else None
            if isinstance(layer, Layers):
                x = layer(x, done, added)
            elif isinstance(layer, nn.BatchNorm2d):
                x = norm_and_what_follows(layer, x, added, done)
            else:
                x, done = layer(x), None
        return x


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> Layers:
    """Build a convolution without bias and its BatchNorm; with stride 1 the image keeps its size (odd kernels)."""
    return Layers(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )
