"""A fused step: the table of where its tensors lie, its numbers on the device, and its launches.

Needs Triton: imported only where a fused step is to be taken.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adamsrt.optimizers import launch
from adamsrt.optimizers.kernels import common
from adamsrt.optimizers.plan import Plan
from adamsrt.optimizers.update import Update
from adamsrt.optimizers.ways import is_captured

NUMBERS = common.NUMBERS.value
GRAD, IS_ALIGNED, STEP, LR = (column.value for column in (common.GRAD, common.IS_ALIGNED, common.STEP, common.LR))

# Memory that a captured graph reads whenever it is replayed: it may outlive its optimizer.
_read_by_graphs: list[Tensor] = []


@dataclass
class _Table:
    """A table on the device, and what it is for.

    Args:
        addresses: of the gradients. stream: that of its copy.
        counters: the numbers of the steps to take next, or the addresses of the counters that the device counts in.
    """

    table: Tensor
    addresses: list[int]
    counters: list[Any]
    stream: Any


class FusedStep:
    """The step of updates of one device, dtype and mode: steps are counted, then one launch for rows, one for elements.

    The table stays on the device, where steps are counted in it, and is made anew where gradients lie elsewhere.

    The numbers, one line per parameter group, have memory of their own on the device. They are copied there when they
    have changed, but never inside a capture, whose copy would bring the old numbers back at each replay. So a captured
    step reads what was written last; a learning rate that is a tensor on the device is copied at each replay.

    Args:
        updates: those of `plan` to take, in any order.
        plan: whose gradients and numbers of steps each step is given.
        kernels: the names of those for rows and for elements.
        counts: whether the formulas know the number of the step.
        numbers_of: gives the numbers of a parameter group in the order of the kernels, without the learning rate.
    """

    def __init__(
        self,
        updates: list[Update],
        plan: Plan,
        kernels: tuple[str, str],
        *,
        counts: bool,
        numbers_of: Callable[[dict[str, Any]], list[float]],
    ) -> None:
        rows, elements = ([each for each in updates if (each.size == 1) == is_one] for is_one in (False, True))
        self._updates = rows + elements
        self._places = _places_in(plan.updates, self._updates)
        self._counts, self._numbers_of = counts, numbers_of
        self._dtype, self._device = updates[0].x.dtype, updates[0].x.device
        self._counts_on_device = updates[0].counts_on_device
        self._places_of_steps = [] if self._counts_on_device else _places_in(plan.on_cpu, self._updates)
        groups = {id(update.group): update.group for update in updates}
        self._groups = list(groups.values())
        lines = {key: line for line, key in enumerate(groups)}
        self._fixed = torch.tensor(
            [
                _line_of(update, first, lines[id(update.group)])
                for members in (rows, elements)
                for update, first in zip(members, _firsts(members), strict=True)
            ]
        )
        are_short = bool(rows) and max(update.size for update in rows) <= launch.SHORT
        self._launches = [
            (kernel, _tensor_of_program(members, first).to(self._device), is_short)
            for kernel, members, first, is_short in (
                (kernels[0], rows, 0, are_short),
                (kernels[1], elements, len(rows), False),
            )
            if members
        ]
        self._numbers = torch.zeros(len(groups), NUMBERS, dtype=torch.float64, device=self._device)
        self._written: list[list[float]] = []
        self._strides = [update.x.stride() for update in self._updates]
        self._last: _Table | None = None
        self._for_capture: Tensor | None = None

    def __call__(self, grads: list[Tensor], steps: list[float]) -> None:
        """Take the step, given gradients and numbers of steps of the plan."""
        self.write()
        grads = [grads[place] for place in self._places]
        if list(map(Tensor.stride, grads)) != self._strides:
            # copies have to last until the launch
            grads = [update.grad_rows(grad) for update, grad in zip(self._updates, grads, strict=True)]
        table = self._table_for(grads, steps)
        if is_captured():
            _read_by_graphs.extend((table, self._numbers, *(each[1] for each in self._launches)))
        try:
            self._launch(table)
        except BaseException:  # an interrupt as well: how far the table's steps are counted is not known
            self._last = None
            raise

    def prepare(self) -> None:
        """Do all that a capture of the step on the present gradients need not do, so that a graph has launches only.

        Errors:
            RuntimeError as `write`.
        """
        self.write()
        if not self._counts_on_device:
            return
        grads = [update.x.grad for update in self._updates]
        rows = [update.grad_rows(grad) for update, grad in zip(self._updates, grads, strict=True) if grad is not None]
        if list(map(Tensor.data_ptr, rows)) == [None if grad is None else grad.data_ptr() for grad in grads]:
            self._table_for(rows, [])  # a copy would be another one in the capture

    def _launch(self, table: Tensor) -> None:
        """Do what a graph replays, but for the copies."""
        with launch.on_device_of(table):
            if self._counts:
                launch.count(table, self._numbers, on_device=self._counts_on_device)
            for kernel, tensor_of_program, is_short in self._launches:
                launch.update(kernel, table, self._numbers, tensor_of_program, self._dtype, is_short=is_short)

    def write(self) -> None:
        """Copy the numbers to the device where they have changed, after all that this stream does until here.

        Errors:
            RuntimeError for numbers that have changed inside a capture.
        """
        lrs = [self._lr_on_device(group) for group in self._groups]
        lines = [
            [0.0 if lr is not None else float(group["lr"]), *self._numbers_of(group)]
            for group, lr in zip(self._groups, lrs, strict=True)
        ]
        if not self._written or any(
            new[LR + 1 :] != old[LR + 1 :] or (lr is None and new[LR] != old[LR])
            for new, old, lr in zip(lines, self._written, lrs, strict=True)
        ):
            if is_captured():
                raise RuntimeError("a capture needs options that are on the device; call write_options() before it")
            host = torch.zeros(self._numbers.shape, dtype=torch.float64, pin_memory=self._device.type == "cuda")
            host[:, : len(lines[0])] = torch.tensor(lines, dtype=torch.float64)
            self._numbers.copy_(host, non_blocking=True)  # torch keeps pinned memory until it is read
            self._written = lines
        for line, lr in enumerate(lrs):
            if lr is not None:
                self._numbers[line, LR].copy_(lr.reshape(()))
                self._written[line][LR] = math.nan  # a number later on is news

    def _lr_on_device(self, group: dict[str, Any]) -> Tensor | None:
        """Give a learning rate that a graph can read, where it is one."""
        lr = group["lr"]
        return lr if group["capturable"] and isinstance(lr, Tensor) and lr.device == self._device else None

    def _table_for(self, grads: list[Tensor], steps: list[float]) -> Tensor:
        """Give the table on the device: the one of the last step if it holds, else a new one; waits for nothing."""
        addresses, counters = list(map(Tensor.data_ptr, grads)), self._counters(steps)
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        if self._last is not None:
            # Its memory is freed for the stream that it was made on; a graph keeps it for ever.
            holds = addresses == self._last.addresses and (stream == self._last.stream or is_captured())
            if holds and counters == self._last.counters:
                self._last.counters = self._next(counters)
                return self._last.table
        self._last = None
        table = self._send(self._table_of(addresses, counters))
        if not is_captured():
            self._last = _Table(table, addresses, self._next(counters), stream)
        return table

    def _counters(self, steps: list[float]) -> list[Any]:
        """Give what the kernel counts with: the addresses of the counters, or the numbers of the steps to take."""
        if not self._counts:
            return []
        if self._counts_on_device:
            return [update.state["step"].data_ptr() for update in self._updates]
        return [steps[place] for place in self._places_of_steps]

    def _next(self, counters: list[Any]) -> list[Any]:
        """Give the counters of the step that follows."""
        return counters if self._counts_on_device else [step + 1 for step in counters]

    def _table_of(self, addresses: list[int], counters: list[Any]) -> Tensor:
        """Make the table (tensors, columns) on the host."""
        table = self._fixed.clone()
        table[:, GRAD] = torch.tensor(addresses)
        table[:, IS_ALIGNED] *= table[:, GRAD] % 16 == 0
        if self._counts:  # the device raises the number of steps that were taken
            table[:, STEP] = torch.tensor(list(map(int, counters))) - int(not self._counts_on_device)
        return table

    def _send(self, host: Tensor) -> Tensor:
        """Copy a table to the device."""
        if self._device.type == "cpu":
            return host
        if self._for_capture is None and not is_captured():
            self._for_capture = torch.empty_like(host, pin_memory=True)
        table = torch.empty_like(host, device=self._device)
        if is_captured():
            pinned, self._for_capture = self._for_capture, None
            if pinned is None:
                raise RuntimeError("a step must be taken before it is captured in a graph; warm up, then capture")
            _read_by_graphs.append(pinned.copy_(host))
            return table.copy_(pinned, non_blocking=True)
        return table.copy_(host.pin_memory(), non_blocking=True)


def _places_in(updates: list[Update], members: list[Update]) -> list[int]:
    places = {id(update): place for place, update in enumerate(updates)}
    return [places[id(member)] for member in members]


def _programs_of(update: Update) -> int:
    """Count the programs for a tensor: one per row, or one for every SHORT elements."""
    n = update.x.numel()
    return n // update.size if update.size > 1 else -(-n // launch.SHORT)


def _firsts(updates: list[Update]) -> list[int]:
    """Give the first program of each tensor in a launch."""
    return [0, *itertools.accumulate(map(_programs_of, updates))][: len(updates)]


def _tensor_of_program(updates: list[Update], first: int) -> Tensor:
    """Say for every program of a launch which tensor it is for, `first` or a later one."""
    tensors = torch.arange(first, first + len(updates), dtype=torch.int32)
    return tensors.repeat_interleave(torch.tensor(list(map(_programs_of, updates))))


def _line_of(update: Update, first: int, line: int) -> list[int]:
    """Make the line of a tensor in the table, without what may change from step to step."""
    rows = update.rows
    assert rows is not None
    d = update.size if update.size > 1 else update.x.numel()
    x, m = rows.x.data_ptr(), rows.m.data_ptr()
    is_aligned = d % 4 == 0 and d * rows.x.itemsize % 16 == 0 and x % 16 == 0 and m % 16 == 0
    return [x, 0, m, 0 if rows.v is None else rows.v.data_ptr(), d, first, int(is_aligned), line, 0, 0, 0]
