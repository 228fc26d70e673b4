"""What is to be reached on a GPU and what must hold there, and the lines that say how that stands.

Aims are figures: missing one is no error. Checks are about right and wrong: one that fails makes the command fail.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MODELS = {"resnet18": "ResNet18", "vgg16": "VGG16", "resnet20": "ResNet20"}
GROUPED = {"adamsrt": "AdamSRT", "adams": "AdamS", "sgdmrt": "SGDMRT", "adamg": "AdamG"}
OPTIMIZERS = (*GROUPED, "adam", "adamw", "sgd")
EPOCH_AIMS_S = {"resnet18": 0.7, "vgg16": 0.4, "resnet20": 0.25}
# Channels and width of the images in ResNet18 and ResNet20.
NORM_SIZES = ("64x32", "128x16", "256x8", "512x4", "16x32", "32x16", "64x8")
SLOT_AIMS = {"resnet20": 3.0, "resnet18": 1.3}


@dataclass(frozen=True)
class Aim:
    """A bound for the median of the values that a section gives under `key`.

    Args:
        at_most: the bound is an upper one; False for a lower one.
    """

    key: str
    text: str
    bound: float
    unit: str = ""
    at_most: bool = True

    def is_met(self, values: Sequence[float]) -> bool:
        middle = statistics.median(values)
        return middle <= self.bound if self.at_most else middle >= self.bound


@dataclass(frozen=True)
class Check:
    """Something that must hold."""

    key: str
    text: str


AIMS = (
    *(
        Aim(f"error/{key}", f"{name}: error of 50 fused steps against float64", 1e-6, "of the largest value")
        for key, name in GROUPED.items()
    ),
    *(
        Aim(f"norm/{size}", f"BatchNorm, addition and ReLU in bf16 on {size}", 1.0, "of torch's own, replayed")
        for size in NORM_SIZES
    ),
    *(Aim(f"epoch/{key}", f"epoch of {MODELS[key]}", bound, "s") for key, bound in EPOCH_AIMS_S.items()),
    *(Aim(f"step/{key}", f"AdamSRT on {name}: time of a step", 1.0, "of fused Adam's") for key, name in MODELS.items()),
    *(
        Aim(f"step as a graph/{key}", f"AdamSRT on {name}: time of a step replayed", 1.0, "of fused Adam's, replayed")
        for key, name in MODELS.items()
    ),
    *(
        Aim(f"{kind}/{key}", f"trials of {MODELS[key]} side by side", bound, f"of one at a time{how}", at_most=False)
        for kind, how in (("slots", " with a graph"), ("slots against no graph", " without a graph"))
        for key, bound in SLOT_AIMS.items()
    ),
    *(Aim(f"start/{key}", f"start of a further trial of {name}", 0.1, "s") for key, name in MODELS.items()),
    Aim("data/rate", "images per second and core", 30.0, "of the published pipeline's", at_most=False),
    *(
        Aim(f"memory/{key}", f"state of AdamSRT on {name}, allocated", 0.55, "of Adam's")
        for key, name in MODELS.items()
    ),
)

CHECKS = (
    *(Check(f"formulas/{key}", f"{name}: every way to take a step follows float64") for key, name in GROUPED.items()),
    Check("formulas/norm", "BatchNorm's kernels follow float64, with the same bits each time"),
    *(Check(f"graph/{key}", f"{key}: an epoch of replays is the epoch without a graph") for key in OPTIMIZERS),
    Check("graph/resumed", "a resumed training with a graph goes on as without"),
    Check("epoch/waits", "nothing waits for the GPU inside an epoch"),
    Check("epoch/last batch", "the last partial batch is trained on"),
    Check("epoch/bf16", "training loss of an epoch in bf16 within 5 % of fp32"),
    Check("data/bits", "batches have the same bits on CPU and GPU"),
    Check("start/bits", "a training in the memory of another is a fresh one, bit for bit"),
    Check("slots/bits", "a trial beside others is that trial alone, bit for bit"),
)


def render_aims(figures: Mapping[str, Sequence[float]]) -> list[str]:
    """Render a line per aim: met, missed or not measured, with median, extremes and n."""
    lines = []
    for aim in AIMS:
        values = figures.get(aim.key)
        bound = f"{'at most' if aim.at_most else 'at least'} {aim.bound:g} {aim.unit}".rstrip()
        if not values:
            lines.append(f"not measured  {aim.text}: {bound}")
            continue
        verdict = "met" if aim.is_met(values) else "missed"
        middle, spread = statistics.median(values), f"[{min(values):.3g}, {max(values):.3g}]"
        lines.append(f"{verdict:12}  {aim.text}: {middle:.3g} {spread}, n = {len(values)}; aim {bound}")
    return lines


def render_checks(results: Mapping[str, Sequence[tuple[bool, str]]]) -> list[str]:
    """Render a line per check: holds, FAILED or not measured, with what was seen where, or where it failed."""
    lines = []
    for check in CHECKS:
        results_here = results.get(check.key)
        if not results_here:
            lines.append(f"not measured  {check.text}")
            continue
        holds = all(holds for holds, _ in results_here)
        seen = "; ".join(seen for each, seen in results_here if each == holds)
        lines.append(f"{'holds' if holds else 'FAILED':12}  {check.text}: {seen}")
    return lines
