"""What a block is made of: rows of one parameter where they lie, or rows of many small ones copied together."""

from collections.abc import Hashable

import torch
from torch import Tensor

from adamsrt.optimizers.neighbours import joined
from adamsrt.optimizers.update import Update
from adamsrt.optimizers.ways import partition


class Part:
    """Rows `first` to `end` of one parameter.

    Attributes:
        x, m, v: views of weights (r, d), momentum (r, d) and second moment (r, 1), if any.
        parts: itself, as a `Pack` has several.
    """

    def __init__(self, update: Update, first: int, end: int) -> None:
        assert update.rows is not None
        self.update, self._first, self._end = update, first, end
        self.parts = [self]
        self.is_whole = end - first == len(update.rows.x)
        self._stride, self._shape, self._row_stride = update.x.stride(), update.rows.x.shape, update.rows.x.stride()
        self.x, self.m = update.rows.x[first:end], update.rows.m[first:end]
        self.v = None if update.rows.v is None else update.rows.v[first:end]

    def grad(self) -> Tensor:
        """Give the gradient (r, d), to be read only."""
        grad = self.update.grad
        if grad.stride() == self._stride:  # as nearly always
            rows = grad.as_strided(self._shape, self._row_stride)
        else:
            rows = self.update.grad_rows(grad)
        return rows if self.is_whole else rows[self._first : self._end]


class Pack:
    """Rows of one length from several parameters as one matrix: fewer, larger operations.

    Weights and gradients are copied; momenta and second moments where they do not lie side by side.

    Args:
        with_v: whether the second moments are copied as well.
    Attributes:
        parts: the rows in their order in the matrix.
        x, m, v: as those of a `Part`.
        originals, copies: what a step has to copy back, and from where.
    """

    def __init__(self, parts: list[Part], *, with_v: bool) -> None:
        runs = list(partition(sorted(parts, key=lambda part: part.m.data_ptr()), _kind_of_run).values())
        self.parts = [part for run in runs for part in run]
        xs, ms = [part.x for part in self.parts], [part.m for part in self.parts]
        vs = [part.v for part in self.parts if part.v is not None] if with_v else []
        self._copied: list[tuple[list[Tensor], Tensor]] = []
        self.originals: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.x, self.m = self._matrix_of(xs, copy=True), self._matrix_of(ms)
        self.v = self._matrix_of(vs) if with_v else None
        self._grad = torch.empty_like(self.x)
        counts = [sum(len(part.x) for part in run) for run in runs]
        self._runs = [
            (run, _place_of(run, rows)) for run, rows in zip(runs, self._grad.split_with_sizes(counts), strict=True)
        ]

    def gather(self) -> None:
        """Copy what there is now."""
        for originals, copy in self._copied:
            torch.cat(originals, out=copy)
        for run, place in self._runs:
            if len(run) > 1:
                torch.cat([part.update.grad for part in run], out=place)
            else:
                place.copy_(run[0].update.grad if run[0].is_whole else run[0].grad())

    def grad(self) -> Tensor:
        return self._grad

    def _matrix_of(self, rows: list[Tensor], *, copy: bool = False) -> Tensor:
        """Give the rows as one matrix: where they lie if they lie together, otherwise a copy to gather and scatter."""
        # flat: tensors of one dim are copied in less time than rows
        originals = [each.as_strided((each.numel(),), (1,)) for each in rows]
        matrix = None if copy else joined(originals)
        if matrix is None:
            matrix = torch.cat(originals)
            self._copied.append((originals, matrix))
            self.originals += originals
            self.copies += matrix.split_with_sizes([len(each) for each in originals])
        return matrix.view(-1, rows[0].shape[1])


def _kind_of_run(part: Part) -> Hashable:
    """Give what parameters share whose gradients `torch.cat` can put into one place: all but the size of dim 0."""
    x = part.update.x
    joins = part.is_whole and x.ndim > 0 and x.stride(0) * len(x) == x.numel()
    return (x.shape[1:], x.stride()) if joins else id(part)


def _place_of(run: list[Part], rows: Tensor) -> Tensor:
    """View rows in the memory format of their parameters: a copy brings a gradient of any format into it."""
    x = run[0].update.x
    if not run[0].is_whole:
        return rows
    shape = x.shape if len(run) == 1 else (sum(len(part.update.x) for part in run), *x.shape[1:])
    return rows.as_strided(shape, x.stride())
