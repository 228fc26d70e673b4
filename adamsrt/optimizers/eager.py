"""Optimizers that nobody compiles need no TorchDynamo, which takes a process seconds to import.

torch's own Adam, AdamW and SGD import it at their first step all the same.
"""

import sys

from torch.optim import Optimizer

# What torch keeps out of compiled code; the first call of any of them imports TorchDynamo (torch 2.11 to 2.15).
_KEPT_OUT = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def leave_dynamo_out() -> None:
    """Let torch call these methods as they are, where TorchDynamo is not imported yet.

    A later torch.compile works as ever, but would look into these methods; no optimizer calls them in a step. Where
    torch has changed how it keeps them out, nothing happens.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in _KEPT_OUT:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            method.__dynamo_disable = method
