"""Learning curves with a known answer: validation accuracy of a training run as a formula of its hyper-parameters.

Written from published shapes, and fixed before any search was compared on them; what was looked at while choosing the
constants is only how rare good configurations are (2 to 8 % of the space lie within one accuracy point of the optimum).

    error(t) = final(h) + start(t; lr) + plateau(t; lr, weight decay)

- start: error falls as a power law or a stretched exponential, the families that fit learning curves best (Domhan et
  al., IJCAI 2015; Klein et al., LCNet, ICLR 2017; Viering & Loog, arXiv:2103.10948). A small learning rate is slower.
- plateau: a constant learning rate stops at a level that grows with it, and each tenfold drop lets the error fall to
  the next level. Large learning rates and weight decays look worse before the drops and end better (Li, Wei & Ma,
  arXiv:1907.04595): curves cross, the more the larger `crossing` is.
- final: a bowl in log lr, beta1, log(1 - beta2) and log weight decay, steeper towards large lr; lr and weight decay
  share one valley, since their product acts (van Laarhoven, arXiv:1706.05350). No weight decay acts as a tiny one.
- noise: of a run (its seed) and of an epoch, less after each drop; 2,500 validation images alone give 0.4 points.
- divergence: above a learning rate that momentum lowers, training may end in NaN within the first phase.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import differential_evolution

from adamsrt.training import lr_drop_epochs

Array = NDArray[np.float64]

EPOCHS = 405
CHANCE = 0.1  # ten classes
SPREAD = 0.30  # between the best and the worst final error
# How far from the optimum, in decades (beta1: plain), the bowl has risen by 63 % of SPREAD.
LR_WIDTH, BETA1_WIDTH, BETA2_WIDTH, DECAY_WIDTH = 2.0, 0.8, 8.0, 5.5
VALLEY = 0.5  # how strongly lr and weight decay share a valley; 1: only their product acts
TINY_DECAY = 3e-6
RELAXATION_EPOCHS = 3.0  # after a drop
PHASE_NOISE = (1.0, 0.5, 0.4, 0.35)

# The ranges of search_spaces/_defaults.yaml for adamsrt, to find the optimum in: log10 lr, beta1, log10(1 - beta2),
# log10 weight decay.
BOUNDS = ((-4.0, math.log10(3e-2)), (0.8, 0.98), (math.log10(5e-4), -1.0), (-6.0, math.log10(5e-3)))


@dataclass(frozen=True)
class Problem:
    """One family of curves.

    Attributes:
        lr, beta1, one_minus_beta2, weight_decay: where the bowl has its bottom.
        best_error: at that bottom.
        crossing: the plateau before the first drop at the bottom, in units of 10 accuracy points.
        run_noise, epoch_noise: standard deviations in accuracy.
        slowness: exponent with which a small learning rate starts slower.
        stable_lr: half of the runs with this learning rate and beta1 = 0.9 diverge.
    """

    name: str
    lr: float
    beta1: float
    one_minus_beta2: float
    weight_decay: float
    best_error: float
    crossing: float
    run_noise: float
    epoch_noise: float
    start: Literal["power", "exponential"]
    slowness: float
    stable_lr: float

    def accuracies(self, hyper_parameters: Mapping[str, Any]) -> Array:
        """Give the noise-free accuracy after each epoch, (EPOCHS,), of a run that does not diverge."""
        beta1, beta2 = hyper_parameters["betas"]
        return self._accuracies(hyper_parameters["lr"], beta1, 1 - beta2, hyper_parameters["weight_decay"])

    def final_accuracy(self, hyper_parameters: Mapping[str, Any]) -> float:
        return float(self.accuracies(hyper_parameters)[-1])

    @cached_property
    def optimum(self) -> float:
        """The highest noise-free accuracy at the full budget; found numerically, to about 1e-6."""

        def negative(point: Array) -> float:
            lr, one_minus_beta2, decay = (10 ** point[i] for i in (0, 2, 3))
            return -float(self._accuracies(lr, point[1], one_minus_beta2, decay, epochs=np.array([EPOCHS]))[-1])

        without = differential_evolution(lambda p: negative(np.append(p, -np.inf)), BOUNDS[:3], rng=0, tol=1e-8)
        return -min(differential_evolution(negative, BOUNDS, rng=0, tol=1e-8).fun, without.fun)

    def regret(self, hyper_parameters: Mapping[str, Any]) -> float:
        """How much final accuracy, free of noise, this point gives away."""
        return self.optimum - self.final_accuracy(hyper_parameters)

    def run(self, hyper_parameters: Mapping[str, Any], rng: np.random.Generator) -> "Run":
        """Draw one run: its own noise, and whether and when it diverges."""
        drops = lr_drop_epochs(EPOCHS)
        phase = np.searchsorted(drops, np.arange(EPOCHS), side="right")
        noise = rng.normal(0, self.run_noise) + rng.normal(0, self.epoch_noise, EPOCHS) * np.array(PHASE_NOISE)[phase]
        accuracies = np.clip(self.accuracies(hyper_parameters) + noise, 0.0, 1.0)
        momentum = (1 - hyper_parameters["betas"][0]) / 0.1
        steps = (math.log10(hyper_parameters["lr"] / self.stable_lr) - 0.3 * math.log10(momentum)) / 0.08
        diverges = rng.random() < 1 / (1 + math.exp(-min(max(steps, -50.0), 50.0)))
        after = int(min(rng.exponential(10.0), drops[0] - 2)) + 1
        return Run(accuracies, diverges_at=after if diverges else None)

    def _accuracies(
        self, lr: float, beta1: float, one_minus_beta2: float, decay: float, epochs: Array | None = None
    ) -> Array:
        t = np.arange(1.0, EPOCHS + 1) if epochs is None else epochs
        final = self.best_error + SPREAD * (1 - math.exp(-self._distance(lr, beta1, one_minus_beta2, decay)))
        scaled = t / (2.0 * (self.lr / lr) ** self.slowness)
        rest = (1 + scaled) ** -1.2 if self.start == "power" else np.exp(-(scaled**0.5))
        error = final + (1 - CHANCE - final) * rest + self._plateau(t, lr, decay)
        return np.asarray(1 - np.minimum(error, 1 - CHANCE))

    def _distance(self, lr: float, beta1: float, one_minus_beta2: float, decay: float) -> float:
        """Squared distance from the bottom, in widths."""
        a = math.log10(lr / self.lr) / LR_WIDTH
        a *= 1.5 if a > 0 else 1.0
        d = math.log10((decay + TINY_DECAY) / (self.weight_decay + TINY_DECAY)) / DECAY_WIDTH
        b1 = (beta1 - self.beta1) / BETA1_WIDTH
        b2 = math.log10(one_minus_beta2 / self.one_minus_beta2) / BETA2_WIDTH
        return a * a + d * d + 2 * VALLEY * a * d + b1 * b1 + b2 * b2

    def _plateau(self, t: Array, lr: float, decay: float) -> Array:
        """Give the error that the learning rate of the moment leaves, relaxing after each drop."""
        decays = (decay + TINY_DECAY) / (self.weight_decay + TINY_DECAY)
        level = np.zeros_like(t)
        before = 0.0
        starts = (0, *lr_drop_epochs(EPOCHS))
        for phase, (start, end) in enumerate(zip(starts, (*starts[1:], EPOCHS), strict=True)):
            raw = 0.1 * self.crossing * (lr / self.lr * 10.0**-phase) ** 0.5 * decays**0.25
            target = raw / (1 + raw / 0.4)
            before = target if phase == 0 else before
            inside = (t > start) & (t <= end)
            level[inside] = target + (before - target) * np.exp(-(t[inside] - start) / RELAXATION_EPOCHS)
            before = target + (before - target) * math.exp(-(end - start) / RELAXATION_EPOCHS)
        return level


@dataclass(frozen=True)
class Run:
    """One noisy run. `diverges_at`: the first epoch with a loss of NaN; accuracy is at chance from there on."""

    accuracies: Array
    diverges_at: int | None

    def has_diverged(self, epoch: int) -> bool:
        return self.diverges_at is not None and epoch >= self.diverges_at

    def result(self, epoch: int) -> tuple[float, float]:
        """Give (accuracy, loss) after an epoch, 1 for the first."""
        if self.has_diverged(epoch):
            return CHANCE, math.nan
        accuracy = float(self.accuracies[epoch - 1])
        return accuracy, 1.5 * (1 - accuracy)


PROBLEMS = (
    #       name         lr    beta1 1-beta2 decay  error cross run    epoch  start          slow  stable lr
    Problem("plain", 1e-3, 0.90, 1e-2, 1e-4, 0.05, 0.4, 0.001, 0.002, "power", 0.7, 1.5e-2),
    Problem("crossing", 3e-3, 0.92, 2e-2, 4e-4, 0.06, 1.2, 0.001, 0.003, "exponential", 0.5, 2e-2),
    Problem("noisy", 1.5e-3, 0.88, 5e-3, 3e-5, 0.25, 0.6, 0.004, 0.006, "power", 0.7, 1.5e-2),
    Problem("slow", 4e-4, 0.93, 3e-3, 1e-3, 0.08, 0.8, 0.002, 0.003, "power", 1.2, 1e-2),
    Problem("unstable", 6e-3, 0.86, 3e-2, 5e-5, 0.05, 0.8, 0.002, 0.003, "exponential", 0.7, 9e-3),
    Problem("no decay", 8e-4, 0.95, 2e-3, 0.0, 0.04, 0.3, 0.002, 0.004, "exponential", 1.0, 6e-3),
)
