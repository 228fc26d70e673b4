"""The parameter groups and the state of an optimizer: checked options, state dicts, and beginning anew."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from adamsrt.geometry import group_dtype
from adamsrt.optimizers.options import (
    check_options,
    check_parameter,
    hyper_parameters_of,
    own_options,
    restart_group,
)
from adamsrt.optimizers.ways import partition


class RestartableOptimizer(Optimizer):
    """A torch optimizer that checks its options at every door and can begin anew in the memory that it has."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._forget()
        self._own_options: list[dict[str, Any]] = []  # of each parameter group, as they were given
        check_options(defaults)
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Drop what can be made again; it is in no state dict, pickle or copy."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add and check a parameter group. The given dict stays as it is, so that it can serve another optimizer."""
        super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
        try:
            check_options(self.param_groups[-1])
            for x in self.param_groups[-1]["params"]:
                check_parameter(x, self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        self._own_options.append(own_options(param_group))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_own_options": self._own_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        if "_own_options" not in self.__dict__:  # pickled before this existed
            self._own_options = [{} for _ in self.param_groups]
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)  # a state dict saved before this option existed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, from any device and any way to compute the step."""
        super().load_state_dict(state_dict)
        # torch has cast all state to the dtype of the parameter, but values per group are float32 at least.
        saved_ids = (saved_id for group in state_dict["param_groups"] for saved_id in group["params"])
        params = (x for group in self.param_groups for x in group["params"])
        for saved_id, x in zip(saved_ids, params, strict=True):
            for name, value in state_dict["state"].get(saved_id, {}).items():
                if name != "step" and isinstance(value, Tensor) and value.shape != x.shape:
                    self.state[x][name] = value.to(dtype=group_dtype(x), device=x.device)

    def restart(self, **hyper_parameters: Any) -> None:
        """Begin anew, as an optimizer of the same parameter groups that was just built with these hyper-parameters.

        All state is zero again, in the memory where it was, so that a step that was captured in a CUDA graph may serve
        on: call `write_options` before its next replay. How a step is computed (channel_wise, channel_dims, foreach,
        fused, capturable) stays, and so do the options that a parameter group was given of its own. What a scheduler
        left in the groups is gone; a learning rate that is a tensor stays that tensor.

        Args:
            hyper_parameters: such as lr; those not given take the defaults of the constructor.
        Errors:
            ValueError as in the constructor, and for a name that is no hyper-parameter; then nothing has changed.
        """
        fresh = hyper_parameters_of(type(self), hyper_parameters)
        check_options(self.defaults | fresh)
        self.defaults.update(fresh)
        for group, own in zip(self.param_groups, self._own_options, strict=True):
            restart_group(group, fresh, own, self.defaults)
        tensors = [value for state in self.state.values() for value in state.values() if isinstance(value, Tensor)]
        for members in partition(tensors, lambda value: (value.device, value.dtype)).values():
            torch._foreach_zero_(members)
