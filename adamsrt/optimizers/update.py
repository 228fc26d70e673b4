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
        x, grad, state, group: the parameter, its gradient, its state, the options of its parameter group.
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
        kernel: str,
    ) -> None:
        """Args: names: those of momentum and second moment in the state. kernel: of the fused step."""
        self.x, self.grad, self.state, self.group = x, grad, state, group
        self.step: float | Tensor = 0.0
        self.dims = dims_of(x, group)
        self.size = group_size(x, self.dims)
        self.rows = rows_of(x, grad, state, self.dims, *names)
        self.way = way_to_take(
            way_asked_for(x, group, kernel),
            x.dtype,
            self.size,
            has_rows=self.rows is not None,
            fuses_elements=names[1] is not None,
        )
        self._names = [name for name in names if name is not None]
        self._made_for = self._what_rows_depend_on(grad) if self.rows is not None else None

    def renew(self, grad: Tensor) -> bool:
        """Take the gradient of the next step; False where something else has changed, so that this no longer holds.

        The options of the group are the caller's to watch.
        """
        if self.rows is None or self._made_for != self._what_rows_depend_on(grad):
            return False
        self.grad = grad
        self.rows.grad = gradient_rows(grad, self.x, self.rows.m)
        return True

    def let_go(self) -> None:
        """Drop the gradient, so that its memory is free as soon as the user drops it."""
        self.grad = NO_GRADIENT
        if self.rows is not None:
            self.rows.grad = NO_GRADIENT

    def _what_rows_depend_on(self, grad: Tensor) -> tuple[Any, ...]:
        x, state = self.x, self.state
        pointers = [state[name].data_ptr() for name in self._names]
        return x.data_ptr(), x.dtype, x.shape, x.stride(), grad.dtype, grad.layout, type(grad), *pointers


def options_of(group: dict[str, Any]) -> Hashable:
    """Give the options that an `Update` depends on."""
    return group["channel_wise"], str(group["channel_dims"]), group["foreach"], group["fused"]
