"""The optimizers to compare with: torch's own, under the names that a search uses."""

from torch.optim import SGD, Adam, AdamW

from adamsrt.optimizers.base import OptimizerEntry

ADAM = OptimizerEntry(Adam, ("lr", "betas", "weight_decay"), uses_groups=False)
ADAMW = OptimizerEntry(AdamW, ("lr", "betas", "weight_decay"), uses_groups=False)
SGD_WITH_MOMENTUM = OptimizerEntry(SGD, ("lr", "momentum", "weight_decay"), uses_groups=False)
