"""What the tests of the optimizers share: names, options, tensors, and steps with known gradients."""

import numpy as np
import reference
import torch

from adamsrt.optimizers import OPTIMIZERS

GROUPED = {name: entry.build for name, entry in OPTIMIZERS.items() if entry.uses_groups}
# For every optimizer with groups: the NumPy step, and options that exercise all of its terms.
REFERENCES = {
    "adams": (
        lambda *args, **options: reference.adam_srt(*args, rt=False, **options),
        {"lr": 3e-3, "betas": (0.8, 0.99)},
    ),
    "adamsrt": (reference.adam_srt, {"lr": 3e-3, "betas": (0.8, 0.99)}),
    "adamg": (reference.adam_g, {"lr": 3e-3, "betas": (0.8, 0.99)}),
    "sgdmrt": (reference.sgd_mrt, {"lr": 3e-2, "momentum": 0.9, "dampening": 0.3}),
}
# Largest error of 50 steps relative to the largest value.
TOLERANCES = {torch.float64: dict.fromkeys(REFERENCES, 1e-10), torch.float32: dict.fromkeys(REFERENCES, 1e-6)}
STATE_NAMES = {"m": "exp_avg", "v": "exp_avg_sq", "b": "momentum_buffer"}
GROUPS = {
    "per element": {},
    "channel-wise": {"channel_wise": True},
    "whole tensor": {"channel_dims": []},
    "two dims": {"channel_dims": [0, 1]},
    "last dim": {"channel_dims": [-1], "channel_wise": True},
}
SHAPE = (6, 4, 3, 3)


def random_tensor(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def walk(optimizer: torch.optim.Optimizer, x: torch.Tensor, *, steps: int, first: int = 0) -> None:
    """Take steps with gradients that depend on the step and on x, so that every error grows visible."""
    for k in range(first, first + steps):
        x.grad = random_tensor(100 + k, tuple(x.shape), x.dtype) + 0.5 * x.detach()
        optimizer.step()


def assert_close(result: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max())
