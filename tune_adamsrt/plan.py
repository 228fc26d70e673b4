"""What a command line comes to: one Plan per setting and optimizer, checked before any Ray process starts."""

import argparse
import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamsrt.dataloaders import DATASETS
from adamsrt.optimizers import OPTIMIZERS
from tune_adamsrt.arguments import DEFAULT_EXPORT, DEFAULT_OUTPUT
from tune_adamsrt.candidates import is_confirmation
from tune_adamsrt.records import HyperParameters
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.rungs import choose_rungs
from tune_adamsrt.samplers import SAMPLERS, check_sampler_suits_scheduler, grid_size
from tune_adamsrt.settings import Setting, load_setting, override
from tune_adamsrt.space import SearchSpace, build_search_space
from tune_adamsrt.uris import below, check_holds_no_credentials

CONFIRM_SEEDS, CONFIRM_SEEDS_OF_A_CAMPAIGN = 3, 5
STUDY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # it names files and folders as well


@dataclass(frozen=True)
class Plan:
    """One search: an optimizer on a setting, with everything decided that needs no cluster.

    Attributes:
        output: folder, or URI of a bucket, for studies and checkpoints.
        export: the module that the best configuration is merged into.
        may_replace: False where a quick look must not replace an entry that a whole search, or the paper, has made.
        is_reduced: fewer epochs than the setting's, or fewer training examples.
        confirm_seeds, confirm_candidates: how often how many of the best are trained again; 0 seeds for not at all.
        keeps_weights: trials leave their best weights in `weights_folder`.
        max_total_epochs: the most that all trials of the search together may spend; None for no limit.
        first_points: the paper's best values, which are tried before the sampler's own.
        campaign: the name of the comparison that the search is part of; None for a search by itself. The searches of a
            campaign reserve what their trials need, see `Budget`.
    """

    setting: Setting
    typed_setting: str  # its name, or the path of a YAML file
    optimizer: str
    space: SearchSpace
    trials: int
    sampler: str
    scheduler: str
    seed: int
    data_root: str  # a folder, or the URI of a bucket
    limit_train_examples: int | None
    study_name: str
    output: str
    export: Path
    may_replace: bool
    is_reduced: bool = False
    confirm_seeds: int = 0
    confirm_candidates: int = 0
    keeps_weights: bool = False
    max_total_epochs: int | None = None
    precision: str = "fp32"
    first_points: tuple[HyperParameters, ...] = ()
    campaign: str | None = None
    cuda_graph: bool = True  # on a GPU
    engine_slots: int | None = None  # how many trials share one process, and with it a GPU; None: a process for each

    @property
    def name(self) -> str:
        return f"{self.setting.name}/{self.optimizer}"

    @property
    def local_output(self) -> Path:
        """Where the driver keeps its own files."""
        return local_folder(self.output)

    @property
    def weights_folder(self) -> str:
        """Path or URI of the folder that trials leave their weights in."""
        return below(self.output, f"weights/{self.study_name}")

    def place(self, resources: TrialResources) -> dict[str, Any]:
        """Where trials run, as plain values for the workers; it may differ after a restart."""
        place = {
            "data_root": self.data_root,
            "device": resources.device,
            "cpus_per_trial": resources.cpus,
            "num_workers": int(resources.cpus),  # ImageNet's loader only; the other sets are in memory
            "checkpoint_epochs": self.rungs if self.scheduler == "promotion" else (),
            "cuda_graph": self.cuda_graph,
        }
        if self.engine_slots is not None:
            place["engine_slots"] = self.engine_slots
        return place | ({"keep_weights": self.weights_folder} if self.keeps_weights else {})

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are compared; none with fifo."""
        if self.scheduler == "fifo":
            return ()
        setting = self.setting
        return choose_rungs(setting.epochs, min_epochs=setting.min_epochs, reduction_factor=setting.reduction_factor)

    @property
    def max_epochs_spent(self) -> int:
        """The most that the search can spend: no trial stopped, none failed."""
        most = self.trials * self.setting.epochs
        return most if self.max_total_epochs is None else min(most, self.max_total_epochs)

    @property
    def max_epochs_to_confirm(self) -> int:
        """The most that confirmation adds, where every one of its runs trains in full."""
        return self.confirm_seeds * min(self.confirm_candidates, self.trials) * self.setting.epochs

    @property
    def protocol(self) -> dict[str, Any]:
        """What all trials have in common and what decides their results, as plain values; kept with the study."""
        setting = self.setting
        return {
            "dataset": setting.dataset,
            "model": setting.model,
            "optimizer": self.optimizer,
            "epochs": setting.epochs,
            "batch_size": setting.batch_size,
            "valid_split": setting.valid_split,
            "split_seed": setting.split_seed,
            "limit_train_examples": self.limit_train_examples,
            "selection": setting.selection,
        } | ({} if self.precision == "fp32" else {"precision": self.precision})  # as in studies older than the option


def make_plans(arguments: argparse.Namespace) -> list[Plan]:
    """Read and check the settings. Raises ValueError with one line for whatever a user got wrong."""
    SAMPLERS[arguments.sampler]
    check_sampler_suits_scheduler(arguments.sampler, arguments.scheduler)
    settings = {name: load_setting(name) for name in _without_repeats(arguments.setting)}
    optimizers = _optimizers(arguments.optimizer or ["adamsrt"])
    if arguments.warm_start_from and arguments.sampler == "grid":
        raise ValueError("--warm-start-from must go with a sampler that takes first points, got grid; leave one out")
    if arguments.study and not STUDY_NAME.fullmatch(arguments.study):
        raise ValueError(f"--study must be letters, digits, '.', '_' and '-', got {arguments.study!r}; choose another")
    if arguments.study and is_confirmation(arguments.study):
        raise ValueError(
            f"--study must name a search, got {arguments.study}, which confirms one; name the search itself"
        )
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    campaign = arguments.campaign or (stamp if len(settings) * len(optimizers) > 1 else None)
    first_points = arguments.first_points or ("published" if campaign is None else "none")
    confirm_seeds = arguments.confirm_seeds
    if confirm_seeds is None:
        confirm_seeds = CONFIRM_SEEDS if campaign is None else CONFIRM_SEEDS_OF_A_CAMPAIGN
    output = arguments.output if "://" in arguments.output else str(local_folder(arguments.output))
    plans = []
    for typed_setting, loaded in settings.items():
        setting = override(loaded, epochs=arguments.epochs, trials=arguments.trials)
        for optimizer in optimizers:
            space = build_search_space(setting, optimizer, grid=arguments.sampler == "grid")
            trials = setting.trials
            if arguments.sampler == "grid":
                trials = min(trials, grid_size(space)) if arguments.trials else grid_size(space)
            plans.append(
                Plan(
                    setting=setting,
                    typed_setting=typed_setting,
                    optimizer=optimizer,
                    space=space,
                    trials=trials,
                    sampler=arguments.sampler,
                    scheduler=arguments.scheduler,
                    seed=arguments.seed,
                    data_root=_data_root(arguments.data_root),
                    limit_train_examples=arguments.limit_train_examples,
                    study_name=arguments.study or search_study_name(setting.name, optimizer, campaign or stamp),
                    output=output,
                    export=Path(arguments.export or DEFAULT_EXPORT).expanduser().resolve(),
                    may_replace=arguments.export is not None or not _is_reduced(loaded, arguments),
                    is_reduced=_is_reduced(loaded, arguments),
                    confirm_seeds=confirm_seeds,
                    confirm_candidates=arguments.confirm_candidates,
                    max_total_epochs=arguments.max_total_epochs,
                    precision=arguments.precision,
                    cuda_graph=arguments.cuda_graph,
                    first_points=tuple(space.first_points()) if first_points == "published" else (),
                    campaign=campaign,
                )
            )
    return plans


def search_study_name(setting: str, optimizer: str, stamp: str) -> str:
    """Name the study of a search by what it searches, and when or for which campaign."""
    return f"{setting}-{optimizer}-{stamp}"


def local_folder(output: str) -> Path:
    """The driver's own folder for an --output: the folder itself, or `runs` where it is a bucket."""
    return Path(DEFAULT_OUTPUT if "://" in output else output).expanduser().resolve()


def _data_root(typed: str) -> str:
    check_holds_no_credentials("--data-root", typed)
    return typed if "://" in typed else str(Path(typed).expanduser().resolve())


def _is_reduced(setting: Setting, arguments: argparse.Namespace) -> bool:
    return arguments.limit_train_examples is not None or (arguments.epochs or setting.epochs) < setting.epochs


def prepare_data(plans: Iterable[Plan]) -> None:
    """Make every dataset ready on this machine. Raises DataNotFoundError or DataCorruptError."""
    for dataset, data_root in dict.fromkeys((plan.setting.dataset, plan.data_root) for plan in plans):
        DATASETS[dataset].prepare(data_root)


def render_plan(plan: Plan, *, resources: str) -> str:
    """Render what would run, for --dry-run.

    Args:
        resources: what a trial takes.
    """
    setting = plan.setting
    data = (
        f"{plan.data_root}"
        if plan.limit_train_examples is None
        else (f"{plan.data_root}, {plan.limit_train_examples} training examples only")
    )
    rows = [
        ("model", setting.model),
        ("dataset", f"{setting.dataset} from {data}"),
        (
            "training",
            f"{setting.epochs} epochs, batch size {setting.batch_size}, "
            f"{100 * setting.valid_split:g} % of the training set held out for validation",
        ),
        ("trials", f"{_describe_trials(plan)}, sampled by {plan.sampler} with seed {plan.seed}"),
        ("early stopping", _describe_rungs(plan)),
        ("resources", resources),
        ("at most", _describe_epochs(plan)),
    ]
    if plan.confirm_seeds:
        candidates = min(plan.confirm_candidates, plan.trials)
        again = f"the best {candidates} again" if candidates > 1 else "the best again"
        seeds = f"{plan.confirm_seeds} fresh seeds" if plan.confirm_seeds > 1 else "1 fresh seed"
        rows.append(("confirmation", f"{again} on {seeds}, {plan.max_epochs_to_confirm} epochs more; then one test"))
    if plan.first_points:
        rows.append(("first points", f"{len(plan.first_points)} published configurations"))
    lines = [plan.name, *(f"  {label:<16}{value}" for label, value in rows), "  space"]
    lines += [f"    {label:<14}{value}" for label, value in plan.space.describe()]
    return "\n".join(lines)


def _describe_trials(plan: Plan) -> str:
    return str(plan.trials) if plan.campaign is None else "as many as the epochs allow"


def _describe_epochs(plan: Plan) -> str:
    spent = plan.max_epochs_spent
    if plan.campaign is not None:
        in_full = f"{spent / plan.setting.epochs:.3g} trials in full"
        return f"{spent} epochs in total, as every search of the campaign ({in_full})"
    if spent < plan.trials * plan.setting.epochs:
        return f"{spent} epochs in total"
    return f"{spent} epochs in total ({plan.trials} trials x {plan.setting.epochs} epochs)"


def _describe_rungs(plan: Plan) -> str:
    if not plan.rungs:
        return "none, every trial trains in full"
    epochs = ", ".join(str(epoch) for epoch in plan.rungs)
    others = "pause until they are among them" if plan.scheduler == "promotion" else "stop"
    return f"after epoch {epochs} the best 1/{plan.setting.reduction_factor} go on, the others {others}"


def _optimizers(names: list[str]) -> list[str]:
    if "all" in names:
        return list(OPTIMIZERS)
    for name in names:
        OPTIMIZERS[name]  # an unknown name raises here
    return _without_repeats(names)


def _without_repeats(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))
