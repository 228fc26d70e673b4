"""All that the step of one parameter needs, kept from step to step for as long as it holds."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from adamsrt.geometry import group_size
from adamsrt.optimizers.options import dims_of
from adamsrt.optimizers.rows import gradient_rows, rows_of
from adamsrt.optimizers.ways import way_asked_for, way_to_take

NO_GRADIENT = torch.empty(0)


class Update:
    """One parameter, how its step is computed and what on.

    Attributes:
        x, state, group: the parameter, its state, the options of its parameter group.
        grad: its gradient during a step, in any memory format; empty between steps, so that its memory is free as soon
            as the user drops it.
        step: 1 at the first; a 0-dim tensor in capturable mode.
        dims: the dims that sums run over. size: the number of elements in a group.
        way: how the step is computed. rows: the groups as rows, None where they do not lie in one piece.
    """

    def __init__(
        self,
        x: Tensor,
        grad: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        names: tuple[str, str | None],
        kernels: tuple[str, str],
    ) -> None:
        """Args: names: those of momentum and second moment in the state. kernels: of rows and of elements."""
        self.x, self.grad, self.state, self.group = x, NO_GRADIENT, state, group
        self.step: float | Tensor = 0.0
        self.dims = dims_of(x, group)
        self.size = group_size(x, self.dims)
        self.rows = rows_of(x, grad, state, self.dims, *names)
        self.way = way_to_take(
            way_asked_for(x, group, kernels[self.size == 1]),
            x.dtype,
            self.size,
            has_rows=self.rows is not None,
        )

    @property
    def counts_on_device(self) -> bool:
        """Whether its step counter must lie on the device of x, for a graph."""
        return bool(self.group["capturable"])

    def grad_rows(self, grad: Tensor) -> Tensor:
        """View a gradient in the shape of the rows; a copy where its memory format is not that of x."""
        assert self.rows is not None
        return gradient_rows(grad, self.x, self.rows.m)


def options_of(group: dict[str, Any]) -> Hashable:
    """Give the options that an `Update` depends on, and which parameters are in the group."""
    return (
        id(group),
        len(group["params"]),
        group["channel_wise"],
        str(group["channel_dims"]),
        group["foreach"],
        group["fused"],
        group["capturable"],
    )
