"""What the optimizers with groups share: the walk over the parameters and the choice of how to compute a step."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from adamsrt.optimizers.blocks import Block, block_limit, blocks_of, scratch_size
from adamsrt.optimizers.counters import Counters, Share
from adamsrt.optimizers.neighbours import Neighbours
from adamsrt.optimizers.options import dims_of, lr_of
from adamsrt.optimizers.plan import Plan
from adamsrt.optimizers.restartable import RestartableOptimizer
from adamsrt.optimizers.update import Update, options_of
from adamsrt.optimizers.ways import Way, is_captured, partition

if TYPE_CHECKING:
    from adamsrt.optimizers.fused import FusedStep

MAX_KEPT = 16
Number = float | Tensor


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer that can be chosen by name.

    Args:
        build: makes the optimizer: build(params, **hyper_parameters).
        hyper_parameters: the names that may be tuned, as in best_hyper_parameters.py.
        uses_groups: True where it takes channel_wise and channel_dims.
    """

    build: Callable[..., Optimizer]
    hyper_parameters: tuple[str, ...]
    uses_groups: bool


class GroupedOptimizer(RestartableOptimizer):
    """A torch optimizer whose parameters are split into groups of weights; a subclass gives the formulas of one step.

    A step is computed in one of three ways that agree to rounding, named as in torch.optim:

    - fused: one launch of a Triton kernel for all weights with groups, one for all others. For GPUs.
    - foreach: blocks of rows that stay in the cache, small tensors together. Takes float32 and float64.
    - for-loop: one parameter after another, operation by operation. Takes everything.

    Args:
        foreach, fused: True asks for that way, False alone for the for-loop. Both None, the default: fused on a GPU
            where Triton works, otherwise foreach. A parameter that a way cannot take (by its dtype, or as its groups
            do not lie in one piece in memory) takes the next one of the list.
        capturable: True makes the step fit for a CUDA graph: the step counters lie on the device, and lr may.
    Errors:
        ValueError for an option out of range, TypeError as torch raises it.
    """

    MOMENTUM: str  # the name of the momentum in the state
    SECOND_MOMENT: str | None = None  # the name of v
    KERNEL: str  # the name of its function in `kernels`, and of the one for groups of a single element
    KERNEL_OF_ELEMENTS: str
    DECAYS_ROWS = True  # False where weight_decay does nothing for groups of several elements

    def _forget(self) -> None:
        self._options: list[Hashable] = []
        self._plans: dict[tuple[bool, ...] | None, Plan] = {}  # by which parameters have a gradient; None: all
        self._counters = Counters([])
        self._neighbours = Neighbours()
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step and give the closure's loss. Parameters without a gradient are skipped.

        Errors:
            RuntimeError for a sparse gradient, fused=True where it cannot be had, or a CUDA graph without capturable.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if is_captured() and not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError("a step in a CUDA graph must be capturable; build the optimizer with capturable=True")
        xs = [x for group in self.param_groups for x in group["params"]]
        plan = self._plan_of(xs, [x.grad for x in xs])
        self._count_steps(plan)
        for update in plan.for_loop:
            self._step_one(update)
        for update, blocks in self._blocks_of(plan):
            self._step_blocks(update, blocks)
        for fused_step in self._fused_steps_of(plan):
            fused_step(plan.grads, plan.steps)
        plan.let_go()
        return loss

    def write_options(self) -> bool:
        """Have captured steps read the options as they are now, from their next replay on this stream on.

        To be called outside a capture, after a change of options (lr, betas, weight_decay, ...), or before a capture.
        Waits for nothing, and copies what has changed only. What it copies, the present gradients' addresses among it,
        a capture that follows need not.

        Returns:
            False where a captured step would hold options that it was captured with, as a part of it is not fused, and
            has to be captured anew. True where all is read, or no step has been taken.
        """
        for plan in self._plans.values():
            for fused_step in plan.fused_steps or ():
                fused_step.prepare()
        updates = [update for plan in self._plans.values() for update in plan.updates]
        return all(update.way is Way.FUSED for update in updates if update.group["capturable"])

    def _plan_of(self, xs: list[Tensor], grads: list[Tensor | None]) -> Plan:
        """Give the plan of a step, with its gradients: that of an earlier step where it holds."""
        options = [options_of(group) for group in self.param_groups]
        if options != self._options:
            self._forget()
            self._options = options
        gradients = [grad for grad in grads if grad is not None]
        key, params = None, xs
        if len(gradients) < len(grads):
            key = tuple([grad is not None for grad in grads])
            params = list(compress(xs, key))
        plan = self._plans.get(key)
        if plan is None or not plan.holds(params, gradients, self.state):
            if plan is not None or len(self._plans) >= MAX_KEPT:  # other parameters have gradients at every step
                self._plans.clear()
            groups = [group for group in self.param_groups for _ in group["params"]]
            groups = groups if key is None else list(compress(groups, key))
            updates = [self._new_update(*each) for each in zip(params, gradients, groups, strict=True)]
            plan = self._plans[key] = Plan(updates, gradients, self.state, (self.MOMENTUM, self.SECOND_MOMENT))
        plan.take(gradients)
        return plan

    def _new_update(self, x: Tensor, grad: Tensor, group: dict[str, Any]) -> Update:
        """Give what the step of one parameter needs; make its state at the first step."""
        if grad.layout is not torch.strided:
            name = type(self).__name__
            raise RuntimeError(f"{name} needs dense gradients, got a sparse one; use torch.optim.SparseAdam")
        state = self.state[x]
        if not state:
            self.init_state(x, dims_of(x, group), state)
        names, kernels = (self.MOMENTUM, self.SECOND_MOMENT), (self.KERNEL, self.KERNEL_OF_ELEMENTS)
        return Update(x, grad, state, group, names, kernels)

    def _count_steps(self, plan: Plan) -> None:
        """Count a step of every parameter, on the CPU, where reading waits for no device, or where it is needed."""
        if self.SECOND_MOMENT is None:
            return  # its formulas know no step
        for members in partition(plan.on_device, lambda update: update.x.device).values():
            for update in members:
                update.step = update.state["step"] = update.state["step"].to(update.x.device, torch.float32)
            # A fused step counts itself.
            if steps := [update.state["step"] for update in members if update.way is not Way.FUSED]:
                one = torch.ones((), device=steps[0].device)  # 1 alone becomes many tensors
                torch._foreach_add_(steps, one, alpha=1)
        if plan.on_cpu:
            if plan.share is None or not plan.share.holds():
                plan.share = self._share_of([update.state for update in plan.on_cpu])
            plan.set_steps(plan.share.count())

    def _share_of(self, states: list[dict[str, Any]]) -> Share:
        """Give what counts the steps of these states, beside all others that are counted together already."""
        if not self._counters.cover(states):
            live = {id(state): state for state in self.state.values()}
            together = {id(state): state for state in (*self._counters.states, *states) if id(state) in live}
            self._counters = Counters(list(together.values()))
        return Share(self._counters, states)

    def _step_one(self, update: Update) -> None:
        x, grad, weight_decay = update.x, update.grad, update.group["weight_decay"]
        if weight_decay != 0 and (update.size == 1 or self.DECAYS_ROWS):
            grad = grad.add(x, alpha=weight_decay)
        take = self.update_element if update.size == 1 else self.update_rows
        take(update, grad, _in_float64(update.step), lr_of(update.group))

    def _step_blocks(self, update: Update, blocks: list[Block]) -> None:
        """Take a step on blocks whose rows share all options and the step of this update."""
        group, step, lr = update.group, _in_float64(update.step), lr_of(update.group)
        take = self.update_elements if update.size == 1 else self.update_block
        for block in blocks:
            block.gather()
            take(block, group, step, lr)
            block.scatter()

    def _blocks_of(self, plan: Plan) -> list[tuple[Update, list[Block]]]:
        """Give the blocks of a plan, each list with an update that says what its rows share."""
        if plan.blocks is None:
            kinds = partition(plan.foreach, _kind_of_block).values()
            plan.blocks = [(members[0], self._new_blocks(members)) for members in kinds]
        return plan.blocks

    def _new_blocks(self, updates: list[Update]) -> list[Block]:
        x = updates[0].x
        limit = block_limit(x.device)
        size = scratch_size(updates, limit)
        scratch = self._scratch.get((x.device, x.dtype))
        if scratch is None or len(scratch) < size:  # all blocks share it
            scratch = self._scratch[x.device, x.dtype] = torch.empty(size, device=x.device, dtype=x.dtype)
        return blocks_of(updates, limit, scratch)

    def _fused_steps_of(self, plan: Plan) -> "list[FusedStep]":
        """Give the fused steps of a plan; each takes all parameters of a device, dtype and mode, of all groups."""
        if plan.fused_steps is None:
            if plan.fused and is_captured():
                raise RuntimeError("a step must be taken before it is captured in a graph; warm up, then capture")
            plan.fused_steps = [self._new_fused_step(updates, plan) for updates in plan.fused]
        return plan.fused_steps

    def _new_fused_step(self, updates: list[Update], plan: Plan) -> "FusedStep":
        from adamsrt.optimizers.fused import FusedStep  # needs Triton

        kernels, counts = (self.KERNEL, self.KERNEL_OF_ELEMENTS), self.SECOND_MOMENT is not None
        return FusedStep(updates, plan, kernels, counts=counts, numbers_of=self.numbers_of)

    # What a subclass defines. `rows` are groups of several elements, `elements` are groups of one; every function
    # changes weights and state in place and leaves the gradient. step: 1 at the first. step, lr: 0-dim tensors in
    # capturable mode.

    def init_state(self, x: Tensor, dims: tuple[int, ...], state: dict[str, Any]) -> None:
        """Make the state of one parameter before its first step."""
        raise NotImplementedError

    def update_rows(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        """Update one parameter; grad has the weight decay in it."""
        raise NotImplementedError

    def update_element(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        """Update one parameter, each element for itself; grad has the weight decay in it."""
        raise NotImplementedError

    def update_block(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        """Update a block of rows (r, d)."""
        raise NotImplementedError

    def update_elements(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        """Update a block of elements (n, 1)."""
        raise NotImplementedError

    @staticmethod
    def numbers_of(group: dict[str, Any]) -> list[float]:
        """Give the numbers that the kernels take from a parameter group, in their order, without lr."""
        raise NotImplementedError


def _kind_of_block(update: Update) -> Hashable:
    """Give what the members of a block share: options, device, dtype and step."""
    step = id(update) if update.group["capturable"] else update.step
    return id(update.group), update.x.device, update.x.dtype, update.size == 1, step


def _in_float64(step: Number) -> Number:
    return step.double() if isinstance(step, Tensor) else step  # 1 - 0.999 has lost half of its digits in float32
