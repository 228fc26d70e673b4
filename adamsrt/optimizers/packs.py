"""What a block is made of: rows of one parameter where they lie, or rows of many small ones copied together."""

import torch
from torch import Tensor

from adamsrt.optimizers.update import Update


class Part:
    """Rows `first` to `end` of one parameter.

    Attributes:
        x, m, v: views of weights (r, d), momentum (r, d) and second moment (r, 1), if any.
    """

    def __init__(self, update: Update, first: int, end: int) -> None:
        assert update.rows is not None
        self.update, self._first, self._end = update, first, end
        self.is_whole = end - first == len(update.rows.x)
        self.x, self.m = update.rows.x[first:end], update.rows.m[first:end]
        self.v = None if update.rows.v is None else update.rows.v[first:end]

    def grad(self) -> Tensor:
        """Give the gradient (r, d), to be read only."""
        rows = self.update.grad_rows()
        return rows if self.is_whole else rows[self._first : self._end]


class Pack:
    """Rows of one length from several parameters, copied into one matrix: fewer, larger operations.

    Args:
        with_v: whether the second moments are copied as well.
    Attributes:
        x, m, v: the copies, as those of a `Part`.
        originals, copies: what a step has to copy back, and from where.
    """

    def __init__(self, parts: list[Part], *, with_v: bool) -> None:
        self._parts = parts
        self._xs, self._ms = [part.x for part in parts], [part.m for part in parts]
        self._vs = [part.v for part in parts if part.v is not None] if with_v else []
        self.x, self.m, self._grad = (torch.cat(self._xs) for _ in range(3))
        self.v = torch.cat(self._vs) if with_v else None
        counts = [len(x) for x in self._xs]
        self.originals = self._xs + self._ms + self._vs
        self.copies = [
            piece for each in (self.x, self.m, self.v) if each is not None for piece in each.split_with_sizes(counts)
        ]
        # In the memory format of the parameter: a copy brings a gradient of any format into it.
        self._grads = [
            rows.as_strided(part.update.x.shape, part.update.x.stride()) if part.is_whole else rows
            for part, rows in zip(parts, self._grad.split_with_sizes(counts), strict=True)
        ]

    def gather(self) -> None:
        """Copy what there is now."""
        torch.cat(self._xs, out=self.x)
        torch.cat(self._ms, out=self.m)
        if self.v is not None:
            torch.cat(self._vs, out=self.v)
        torch._foreach_copy_(self._grads, [part.update.grad if part.is_whole else part.grad() for part in self._parts])

    def grad(self) -> Tensor:
        return self._grad
