"""The step counters of many parameters, side by side in memory, so that one operation counts for all."""

import operator
from typing import Any

import torch
from torch import Tensor

_counter_of = operator.methodcaller("get", "step")


class Counters:
    """Step counters on the CPU, where reading them waits for no device.

    Under state["step"] each stays what it is in torch.optim, a 0-dim float32 tensor: here a view of one tensor.

    Args:
        states: of the parameters to count for. Their counters are replaced by views of the same value, which share
            memory with nothing from before.
    """

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = states
        self._all = torch.tensor([float(state["step"]) for state in states], dtype=torch.float32)
        self._views = list(self._all.unbind())
        for state, view in zip(states, self._views, strict=True):
            state["step"] = view

    def hold(self) -> bool:
        """Tell whether the states still have these counters."""
        return all(map(operator.is_, map(_counter_of, self.states), self._views))

    def cover(self, states: list[dict[str, Any]]) -> bool:
        """Tell whether these states are all counted here."""
        counted = set(map(id, self.states))
        return self.hold() and all(id(state) in counted for state in states)

    def add(self, numbers: Tensor) -> list[float]:
        """Add a number to each, and give all."""
        return self._all.add_(numbers).tolist()


class Share:
    """The counters of some of the states."""

    def __init__(self, counters: Counters, states: list[dict[str, Any]]) -> None:
        places = {id(state): place for place, state in enumerate(counters.states)}
        self._counters = counters
        self._places = [places[id(state)] for state in states]
        self._are_all = self._places == list(range(len(places)))
        self._ones = torch.zeros(len(places))
        self._ones[self._places] = 1

    def holds(self) -> bool:
        return self._counters.hold()

    def count(self) -> list[float]:
        """Add a step, and give the numbers of steps, 1 at the first."""
        steps = self._counters.add(self._ones)
        return steps if self._are_all else [steps[place] for place in self._places]
