"""Blocks of rows that stay in the cache while a step works on them, and the operations on a block.

An operation of torch on a whole tensor reads it from memory and writes it back. A step of a dozen operations on a few
megabytes at a time does that once.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adamsrt.optimizers.neighbours import shared_memory
from adamsrt.optimizers.packs import Pack, Part
from adamsrt.optimizers.update import Update
from adamsrt.optimizers.ways import partition

# Elements per block. Four arrays of this size are in use at a time: weights, gradient, momentum and scratch; in float32
# 8 MiB on one thread, more on several so that each has enough to do.
BLOCK, LARGEST_BLOCK, BLOCK_ON_GPU = 1 << 19, 1 << 20, 1 << 24
# vector_norm adds up in the lanes of one register; above this many elements its rounding would show.
LONGEST_NORM = 1 << 14
# Elements of a tensor that is copied together with others, since calling operations on it takes longer than they do.
SMALL = 1 << 15


class Block:
    """Rows of one or several parameters; small ones are copied together for the time of a step.

    Attributes:
        xs, ms: tensors of weights (r, d) and momenta (r, d).
        v: the second moments of all rows (all rows, 1), where rows have one. vs: those of single elements, like xs.
        scratch: tensors of the shapes of xs, to be overwritten at will.
        counts: the number of rows in each. root_sizes: sqrt(d) of every row, a number where they agree, otherwise (all
            rows, 1).
    """

    def __init__(self, parts: list[Part], scratch: Tensor) -> None:
        packs = sorted(partition(parts, _pack_of).values(), key=lambda pack: pack[0].x.shape[1])
        has_v, is_elements = parts[0].v is not None, parts[0].x.shape[1] == 1
        self._pieces = [Pack(pack, with_v=has_v and is_elements) if len(pack) > 1 else pack[0] for pack in packs]
        parts = [part for piece in self._pieces for part in piece.parts]
        self._packs = [piece for piece in self._pieces if isinstance(piece, Pack)]
        self._grads: list[Tensor] = []
        self._to = [tensor for pack in self._packs for tensor in pack.originals]
        self._from = [tensor for pack in self._packs for tensor in pack.copies]
        self.xs = [piece.x for piece in self._pieces]
        self.ms = [piece.m for piece in self._pieces]
        self.vs = [piece.v for piece in self._pieces if piece.v is not None] if is_elements else []
        self._vs = [part.v for part in parts if part.v is not None] if not is_elements else []
        if self._vs:
            self.v = torch.cat(self._vs)
            self._to += self._vs
            self._from += self.v.split_with_sizes([len(v) for v in self._vs])
        self.counts = [len(x) for x in self.xs]
        self.scratch = _cut(scratch, [x.shape for x in self.xs])
        by_length = partition(self.xs, lambda x: x.shape[1])
        self._scratch_by_length = _cut(scratch, [(sum(map(len, xs)), d) for d, xs in by_length.items()])
        self.root_sizes = _root_sizes(self.xs)

    def gather(self) -> None:
        """Make ready for a step on the gradients that there are now."""
        for pack in self._packs:
            pack.gather()
        if self._vs:
            torch.cat(self._vs, out=self.v)
        self._grads = [piece.grad() for piece in self._pieces]

    def scatter(self) -> None:
        """Bring the results of the step to the parameters and their state, and forget the gradients."""
        if self._to:
            torch._foreach_copy_(self._to, self._from)
        self._grads = []

    def decayed_grads(self, weight_decay: float) -> list[Tensor]:
        """Give grad + weight_decay x, written into the scratch; the gradients themselves without weight decay."""
        if weight_decay == 0:
            return self._grads
        for grad, x, s in zip(self._grads, self.xs, self.scratch, strict=True):
            torch.add(grad, x, alpha=weight_decay, out=s)
        return self.scratch

    def grads(self) -> list[Tensor]:
        """Give the gradients (r, d). They are read only."""
        return self._grads

    def squares(self, rows: list[Tensor]) -> Tensor:
        """Compute <x, x> of every row of tensors with the shapes of xs: (all rows, 1). Overwrites the scratch."""
        return self.norms(rows).square_()

    def norms(self, rows: list[Tensor]) -> Tensor:
        """Compute the norm of every row of tensors with the shapes of xs: (all rows, 1). Overwrites the scratch."""
        scratch = self.scratch
        if rows is scratch:
            rows = scratch = self._scratch_by_length
        norms = [
            torch.linalg.vector_norm(x, 2, 1, True)
            if x.shape[1] <= LONGEST_NORM
            else torch.mul(x, x, out=s).sum(1, keepdim=True).sqrt_()
            for x, s in zip(rows, scratch, strict=True)
        ]
        return torch.cat(norms)

    def products(self, rows: list[Tensor], others: list[Tensor]) -> Tensor:
        """Compute <x, y> of every row of two lists of tensors: (all rows, 1). Overwrites the scratch."""
        for x, y, s in zip(rows, others, self.scratch, strict=True):
            torch.mul(x, y, out=s)
        return torch.cat([s.sum(1, keepdim=True) for s in self._scratch_by_length])

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut values per row (all rows, 1) into one piece per tensor."""
        return list(values.split_with_sizes(self.counts))

    def transport(self, M: Tensor, N: Tensor, denominator: Tensor) -> None:
        """Transport the momenta to the weights, which are the new ones, as `geometry.transport_` does.

        Args:
            M, N: one value per row (all rows, 1). denominator: N + eps, or N itself where eps is 0.
        """
        if denominator is N:
            denominator = N.clamp_min(torch.finfo(N.dtype).tiny)
        # N / denominator is 1 unless the squared norm is within rounding of eps: a pass over m saved, where looking
        # waits for no GPU
        if not N.is_cpu or not torch.equal(N, denominator):
            torch._foreach_mul_(self.ms, self.split(N / denominator))
        torch._foreach_addcmul_(self.ms, self.xs, self.split(M / denominator), value=-1)


def _pack_of(part: Part) -> tuple[int, int, int]:
    """Give what the tensors of a matrix share: the length of a row, and a memory or none; one not small is alone."""
    x = part.update.x
    return part.x.shape[1], 0 if x.numel() <= SMALL else id(x), shared_memory(part.m)


def _cut(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Cut the front of a flat tensor into tensors of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    pieces = flat[: sum(sizes)].split_with_sizes(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _root_sizes(xs: list[Tensor]) -> Tensor | float:
    sizes = [x.shape[1] for x in xs]
    if len(set(sizes)) == 1:
        return math.sqrt(sizes[0])
    counts = torch.tensor([len(x) for x in xs])
    return torch.tensor(sizes, dtype=xs[0].dtype).sqrt_().repeat_interleave(counts)[:, None].to(xs[0].device)


def block_limit(device: torch.device) -> int:
    """Give the elements that a block may hold."""
    return min(BLOCK * torch.get_num_threads(), LARGEST_BLOCK) if device.type == "cpu" else BLOCK_ON_GPU


def scratch_size(updates: list[Update], limit: int) -> int:
    """Give the elements of the largest block that the rows of these updates can need."""
    sizes = [update.x.numel() for update in updates]
    return max(min(limit, sum(sizes)), max(update.size for update in updates))


def blocks_of(updates: list[Update], limit: int, scratch: Tensor) -> list[Block]:
    """Cut and pack the rows of updates into blocks of at most `limit` elements; a block holds at least one row.

    Args:
        scratch: flat, of the `scratch_size` or larger; the blocks share it.
    """
    blocks: list[Block] = []
    parts: list[Part] = []
    room = limit
    for update in updates:
        d = update.size
        r = update.x.numel() // d
        first = 0
        while first < r:
            end = min(r, first + max(room // d, 0 if parts else 1))
            if end > first:
                parts.append(Part(update, first, end))
                room -= (end - first) * d
                first = end
            if first < r:
                blocks.append(Block(parts, scratch))
                parts, room = [], limit
    if parts:
        blocks.append(Block(parts, scratch))
    return blocks
