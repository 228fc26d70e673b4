"""The plan of a step: which parameters it updates and how, kept from step to step for as long as nothing changes."""

import operator
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adamsrt.optimizers.blocks import Block
from adamsrt.optimizers.counters import Share
from adamsrt.optimizers.update import NO_GRADIENT, Update
from adamsrt.optimizers.ways import Way, partition

if TYPE_CHECKING:
    from adamsrt.optimizers.fused import FusedStep


class Plan:
    """What a step does for one set of parameters, those that have gradients.

    Args:
        updates: one per parameter.
        state: the state of the optimizer, of these and other parameters.
        grads: the gradients of its first step.
        names: those of momentum and second moment in the state.
    Attributes:
        for_loop, foreach, fused: the updates by how they are computed; a list in `fused` is launched together.
        on_cpu: those whose steps are counted on the CPU, by `share`. on_device: the others.
        blocks: what foreach works on, and an update of each list; None until the steps are known.
        fused_steps: one for each list in `fused`; None before the first step.
        grads, steps: during a step, the gradients of `updates` and the numbers of steps of `on_cpu`, 1 at the first.
    """

    def __init__(
        self,
        updates: list[Update],
        grads: list[Tensor],
        state: Mapping[Tensor, dict[str, Any]],
        names: tuple[str, str | None],
    ) -> None:
        by_way = partition(updates, lambda update: update.way)
        self.updates = updates
        self.for_loop, self.foreach = by_way[Way.FOR_LOOP], by_way[Way.FOREACH]
        self.fused = list(partition(by_way[Way.FUSED], _kind_of_launch).values())
        self.on_device = [update for update in updates if update.counts_on_device]
        self.on_cpu = [update for update in updates if not update.counts_on_device]
        self._not_fused = [(place, update) for place, update in enumerate(updates) if update.way is not Way.FUSED]
        self._not_fused_on_cpu = [
            (place, update) for place, update in enumerate(self.on_cpu) if update.way is not Way.FUSED
        ]
        self.share: Share | None = None
        self.grads: list[Tensor] = []
        self.steps: list[float] = []
        self.blocks: list[tuple[Update, list[Block]]] | None = None
        self.fused_steps: list[FusedStep] | None = None

        self._names = [name for name in names if name is not None]
        self._xs = [update.x for update in updates]
        self._states = list(state.values())
        with_rows = [update for update in updates if update.rows is not None]
        self._weights_in_rows = [update.x for update in with_rows]
        self._states_in_rows = [update.state for update in with_rows]
        self._made_for = self._what_it_depends_on(grads)

    def holds(self, xs: list[Tensor], grads: list[Tensor], state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Tell whether a step on these gradients may follow the plan.

        The options of the parameter groups are the caller's to watch. Weights of another shape or dtype have such
        gradients, or lie elsewhere.
        """
        return (
            _are_the_same(xs, self._xs)
            and _are_the_same(list(state.values()), self._states)
            and self._what_it_depends_on(grads) == self._made_for
        )

    def _what_it_depends_on(self, grads: list[Tensor]) -> list[list[Any]]:
        return [
            list(map(type, grads)),
            [grad.dtype for grad in grads],
            [grad.layout for grad in grads],
            [grad.shape for grad in grads],
            list(map(Tensor.stride, self._xs)),
            list(map(Tensor.data_ptr, self._weights_in_rows)),
            *(
                list(map(Tensor.data_ptr, [state.get(name, NO_GRADIENT) for state in self._states_in_rows]))
                for name in self._names
            ),
        ]

    def set_steps(self, steps: list[float]) -> None:
        """Set the numbers of steps on the CPU, 1 at the first."""
        if self._not_fused_on_cpu and len(set(map(operator.sub, steps, self.steps))) > 1:
            self.blocks = None  # the members of a block share their step
        self.steps = steps
        for place, update in self._not_fused_on_cpu:
            update.step = steps[place]

    def take(self, grads: list[Tensor]) -> None:
        """Take the gradients of a step."""
        self.grads = grads
        for place, update in self._not_fused:
            update.grad = grads[place]

    def let_go(self) -> None:
        """Drop the gradients, so that their memory is free as soon as the user drops them."""
        self.grads = []
        for _, update in self._not_fused:
            update.grad = NO_GRADIENT


def _are_the_same(items: list[Any], others: list[Any]) -> bool:
    return len(items) == len(others) and all(map(operator.is_, items, others))


def _kind_of_launch(update: Update) -> Hashable:
    return update.x.device, update.x.dtype, update.group["capturable"]
