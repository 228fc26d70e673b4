"""Runs the trials of a study with Ray Tune, until the budget is spent, something breaks, or someone says stop."""

import contextlib
import os
import signal
import traceback
import uuid
from collections.abc import Callable, Iterator
from types import FrameType

from pyarrow import ArrowInvalid
from pyarrow.fs import FileSystem
from ray import tune

from tune_adamsrt.budget import Budget
from tune_adamsrt.checkpoints import CheckpointedTrainable, Checkpoints
from tune_adamsrt.cluster.lost_workers import MAX_LOST_WORKERS, LostWorkers
from tune_adamsrt.cluster.versions import installed
from tune_adamsrt.engine.trainable import EngineTrainable
from tune_adamsrt.plan import Plan
from tune_adamsrt.records import TrialState
from tune_adamsrt.recovery import RecoveringSearcher
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.scheduler import Promotion, SuccessiveHalving
from tune_adamsrt.slots import WithinSlots
from tune_adamsrt.storage import StorageLostError
from tune_adamsrt.study import Study
from tune_adamsrt.uris import below, check_holds_no_credentials

EXIT_AT_ONCE = 130


def run_trials(
    plan: Plan,
    study: Study,
    budget: Budget,
    *,
    resources: TrialResources,
    max_concurrent: int,
    slots: Callable[[], int] | None = None,
    note: Callable[[str], None],
) -> str | None:
    """Run until the budget is spent.

    Args:
        slots: how many trials fit now, where max_concurrent follows it; None where it stays.
        note: tells the user one line.
    Returns:
        None where the search came to its end; "interrupted"; or the error that broke it off, in one line. Whatever was
        recorded until then is in the study.
    """
    if plan.scheduler == "promotion":
        study.pause_interrupted(plan.rungs)
    with stopped_by_signals(note) as received:
        try:
            while True:
                tuner = build_tuner(
                    plan, study, budget, resources=resources, max_concurrent=max_concurrent, slots=slots, note=note
                )
                tuner.fit()
                if received or not study.interrupted:
                    break  # else the last trials lost their workers when Tune had stopped asking for more
        except StorageLostError as error:
            if received:
                return "interrupted"
            return f"broken off, since the study storage does not take the results: {error}"
        except Exception as error:
            if received:
                return "interrupted"
            if budget.reason_not_to_start() and not (study.in_state(TrialState.RUNNING) or study.paused):
                return None  # all is told; only Tune's own last look at its folder failed
            plan.local_output.mkdir(parents=True, exist_ok=True)
            log = plan.local_output / f"{study.name}.error.log"
            with contextlib.suppress(OSError):
                log.write_text(traceback.format_exc())
            reason = str(error).strip().splitlines()
            return f"broken off by {type(error).__name__}: {reason[-1] if reason else ''} (details in {log})"
    if received:
        return "interrupted"
    # The study and MLflow hold what is worth keeping; Tune's folder is a cache and checkpoints of ended trials.
    with contextlib.suppress(OSError):
        filesystem, folder = FileSystem.from_uri(tune_folder(plan))
        filesystem.delete_dir(f"{folder}/{study.name}")
    return None


def tune_folder(plan: Plan) -> str:
    """Where Tune keeps its files and checkpoints, a folder per study: a place where nobody else keeps anything."""
    return below(plan.output, "tune-cache")


def build_tuner(
    plan: Plan,
    study: Study,
    budget: Budget,
    *,
    resources: TrialResources,
    max_concurrent: int,
    slots: Callable[[], int] | None = None,
    note: Callable[[str], None],
) -> tune.Tuner:
    """Build Tune's side of a search. Raises OSError where its storage cannot be written."""
    rungs = Rungs(plan.rungs, reduction_factor=plan.setting.reduction_factor)
    lost_workers = LostWorkers()
    return tune.Tuner(
        tune.with_resources(EngineTrainable if plan.engine_slots else CheckpointedTrainable, resources.for_tune()),
        param_space={"protocol": plan.protocol, "place": plan.place(resources) | {"versions": installed()}},
        tune_config=tune.TuneConfig(
            search_alg=WithinSlots(RecoveringSearcher(study, budget, rungs, lost_workers), max_concurrent, slots),
            scheduler=(Promotion if plan.scheduler == "promotion" else SuccessiveHalving)(study, rungs, budget),
            num_samples=-1,  # the searcher knows when to end
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['trial_number']:05d}",
            # A trial that goes on must not write into the folder of the checkpoint it starts from.
            trial_dirname_creator=lambda trial: f"trial-{trial.config['trial_number']:05d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=tune_folder(plan),
            failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=False),
            callbacks=[Checkpoints(study, tune_folder(plan), note, lost_workers)],
            verbose=0,
        ),
    )


@contextlib.contextmanager
def stopped_by_signals(note: Callable[[str], None]) -> Iterator[list[int]]:
    """End Tune's loop cleanly at the first SIGINT or SIGTERM; a second one ends the process at once.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            os._exit(EXIT_AT_ONCE)
        note("stopping; what is recorded is kept (once more: stop at once)")
        signal.raise_signal(signal.SIGUSR1)  # Tune's own way to be told, beside SIGINT

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would take SIGINT for itself
    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def check_output(output: str) -> None:
    """Check that checkpoints can be kept there: a folder, or the URI of a bucket. Raises ValueError."""
    check_holds_no_credentials("--output", output)
    try:
        filesystem, folder = FileSystem.from_uri(output)
        filesystem.create_dir(folder, recursive=True)
        marker = f"{folder}/.writable-{uuid.uuid4().hex}"
        with filesystem.open_output_stream(marker) as stream:
            stream.write(b"1")
        filesystem.delete_file(marker)
    except (OSError, ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--output must be a folder or bucket that can be written, got {output} ({reason})") from None
