"""Blocks of rows that stay in the cache while a step works on them, and the operations on a block.

An operation of torch on a whole tensor reads it from memory and writes it back. A step of a dozen operations on a few
megabytes at a time does that once.
"""

import torch
from torch import Tensor

from adamsrt.optimizers.rows import Rows
from adamsrt.optimizers.ways import partition

# Elements per block. Four arrays of this size are in use at a time: weights, gradient, momentum and scratch; in float32
# 8 MiB on one thread, more on several so that each has enough to do.
BLOCK, LARGEST_BLOCK, BLOCK_ON_GPU = 1 << 19, 1 << 20, 1 << 24
# vector_norm adds up in the lanes of one register; above this many elements its rounding would show.
LONGEST_NORM = 1 << 14
# Elements of a tensor that is copied together with others, since calling operations on it takes longer than they do.
SMALL = 1 << 15

Part = tuple[Rows, int, int]  # rows, the first of them, the end


class Block:
    """Rows of one or several parameters.

    Attributes:
        xs, ms, vs: views of weights (r, d), momenta (r, d) and second moments (r, 1), if any.
        scratch: tensors of the shapes of xs, to be overwritten at will.
        counts: the number of rows in each. sizes: d of every row, a number where they agree, otherwise (all rows, 1).
    """

    def __init__(self, parts: list[Part], scratch: Tensor) -> None:
        self._parts = parts
        self.xs = [rows.x[first:end] for rows, first, end in parts]
        self.ms = [rows.m[first:end] for rows, first, end in parts]
        self.vs = [rows.v[first:end] for rows, first, end in parts if rows.v is not None]
        self.counts = [len(x) for x in self.xs]
        self.num_elements = sum(x.numel() for x in self.xs)
        pieces = scratch[: self.num_elements].split_with_sizes([x.numel() for x in self.xs])
        self.scratch = [piece.view(x.shape) for piece, x in zip(pieces, self.xs, strict=True)]
        self.sizes = _sizes(self.xs)

    def gather(self) -> None:
        """Make ready for a step on the gradients that there are now."""

    def scatter(self) -> None:
        """Bring the results of the step to the parameters and their state."""

    def grads(self) -> list[Tensor]:
        """Give the gradients (r, d). They are read only."""
        return [rows.grad if end - first == len(rows.x) else rows.grad[first:end] for rows, first, end in self._parts]

    def decayed_grads(self, weight_decay: float) -> list[Tensor]:
        """Give grad + weight_decay x, written into the scratch; the gradients themselves without weight decay."""
        grads = self.grads()
        if weight_decay == 0:
            return grads
        return [
            torch.add(grad, x, alpha=weight_decay, out=s)
            for grad, x, s in zip(grads, self.xs, self.scratch, strict=True)
        ]

    def squares(self, rows: list[Tensor]) -> Tensor:
        """Compute <x, x> of every row of tensors with the shapes of xs: (all rows, 1). Overwrites the scratch."""
        norms = [
            torch.linalg.vector_norm(x, 2, 1, True)
            if x.shape[1] <= LONGEST_NORM
            else torch.mul(x, x, out=s).sum(1, keepdim=True).sqrt_()
            for x, s in zip(rows, self.scratch, strict=True)
        ]
        return torch.cat(norms).square_()

    def products(self, rows: list[Tensor], others: list[Tensor]) -> Tensor:
        """Compute <x, y> of every row of two lists of tensors: (all rows, 1). Overwrites the scratch."""
        return torch.cat(
            [torch.mul(x, y, out=s).sum(1, keepdim=True) for x, y, s in zip(rows, others, self.scratch, strict=True)]
        )

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut values per row (all rows, 1) into one piece per tensor."""
        return list(values.split_with_sizes(self.counts))

    def transport(self, M: Tensor, N: Tensor, eps: float = 0.0) -> None:
        """Transport the momenta to the weights, which are the new ones, as `geometry.transport_` does."""
        denominator = (N + eps).clamp_min_(torch.finfo(N.dtype).tiny)
        shrink = N / denominator
        # 1 unless the squared norm is within rounding of eps: a pass over m saved, where looking waits for no GPU
        if N.device.type != "cpu" or not bool((shrink == 1).all()):
            torch._foreach_mul_(self.ms, self.split(shrink))
        torch._foreach_addcmul_(self.ms, self.xs, self.split(M / denominator), value=-1)


class PackedBlock(Block):
    """Rows of many small tensors, copied into one matrix for every length of rows: fewer, larger operations."""

    def __init__(self, parts: list[Part], scratch: Tensor) -> None:
        packs = partition(parts, lambda part: _pack_of(part[0]))
        self._packed: list[tuple[Rows, Block]] = []
        packed_parts = []
        for members in packs.values():
            if len(members) == 1:
                packed_parts += members
                continue
            tensors = Block(members, scratch)
            x, v = (torch.cat(each) if each else None for each in (tensors.xs, tensors.vs))
            assert x is not None
            packed = Rows(x, torch.empty_like(x), torch.empty_like(x), v)
            self._packed.append((packed, tensors))
            packed_parts.append((packed, 0, len(x)))
        super().__init__(packed_parts, scratch)
        self._results, self._copies = [], []
        for packed, tensors in self._packed:
            self._results += tensors.xs + tensors.ms + tensors.vs
            for each in (packed.x, packed.m, packed.v):
                self._copies += [] if each is None else tensors.split(each)

    def gather(self) -> None:
        for packed, tensors in self._packed:
            torch.cat(tensors.xs, out=packed.x)
            torch.cat(tensors.ms, out=packed.m)
            torch.cat(tensors.grads(), out=packed.grad)
            if packed.v is not None:
                torch.cat(tensors.vs, out=packed.v)

    def scatter(self) -> None:
        if self._results:
            torch._foreach_copy_(self._results, self._copies)


def _pack_of(rows: Rows) -> tuple[int, int]:
    """Give what the tensors of a matrix share: the length of a row; a tensor that is not small is alone."""
    return rows.x.shape[1], 0 if rows.x.numel() <= SMALL else id(rows)


def _sizes(xs: list[Tensor]) -> Tensor | int:
    sizes = [x.shape[1] for x in xs]
    if len(set(sizes)) == 1:
        return sizes[0]
    counts = torch.tensor([len(x) for x in xs])
    return torch.tensor(sizes, dtype=xs[0].dtype).repeat_interleave(counts)[:, None].to(xs[0].device)


def block_limit(device: torch.device) -> int:
    """Give the elements that a block may hold."""
    return min(BLOCK * torch.get_num_threads(), LARGEST_BLOCK) if device.type == "cpu" else BLOCK_ON_GPU


def scratch_size(rows: list[Rows], limit: int) -> int:
    """Give the elements of the largest block that these rows can need."""
    return max(min(limit, sum(each.x.numel() for each in rows)), max(each.x.shape[1] for each in rows))


def blocks_of(rows: list[Rows], limit: int, scratch: Tensor) -> list[Block]:
    """Cut and pack rows into blocks of at most `limit` elements; a block holds at least one row.

    Args:
        scratch: flat, of the `scratch_size` or larger; the blocks share it.
    """
    blocks: list[Block] = []
    parts: list[tuple[Rows, int, int]] = []
    room = limit
    for each in rows:
        r, d = each.x.shape
        first = 0
        while first < r:
            end = min(r, first + max(room // d, 0 if parts else 1))
            if end > first:
                parts.append((each, first, end))
                room -= (end - first) * d
                first = end
            if first < r:
                blocks.append(PackedBlock(parts, scratch))
                parts, room = [], limit
    if parts:
        blocks.append(PackedBlock(parts, scratch))
    return blocks
