"""What a trial of a whole search costs beyond its epochs: one worker that is reused, with Ray, Optuna and MLflow.

    .venv/bin/python -m benchmarks.trial_start                      # about 4 minutes
    .venv/bin/python -m benchmarks.trial_start --data-root DIR      # and VGG16 on the CIFAR-10 there

From the start of a trial to the start of the next one in the study, less the seconds of training and validation. A
search has trials of one epoch, another of three: what the latter take more goes with each epoch (the norms of weights
and gradients, the best weights kept, the report), and the rest with each trial. Median [quartiles]; the first trial, in
which the worker starts, is left out.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TRIALS = 14
EPOCHS = (1, 3)  # of the trials of each search
# Few examples and epochs: the next trial begins the same after many.
SETTINGS = {
    "resnet20-digits": "model: resnet20\ndataset: digits\nbatch_size: 32\nmin_epochs: 1\n",
    "resnet18-digits": "model: resnet18\ndataset: digits\nbatch_size: 32\nmin_epochs: 1\n",
    "vgg16-cifar10": "model: vgg16\ndataset: cifar10\nvalid_split: 0.002\nmin_epochs: 1\n",
}
OPTIONS = ["--trials", f"{TRIALS}", "--limit-train-examples", "128", "--first-points", "none"]
OPTIONS += ["--scheduler", "fifo", "--sampler", "random", "--confirm-seeds", "0", "--no-report"]
OPTIONS += ["--max-concurrent", "1", "--cpus-per-trial", "1", "--gpus-per-trial", "0", "--address", "local"]


def search(setting: str, epochs: int, folder: Path, places: Sequence[str]) -> None:
    """Run a search, of trials of so many epochs, that leaves its study in a folder."""
    file = folder / f"{setting}.yaml"
    file.write_text(SETTINGS[setting])
    places = [*places, "--epochs", str(epochs), "--output", str(folder), "--export", str(folder / "best.py")]
    command = [sys.executable, "-m", "tune_adamsrt.search", "--setting", str(file), *OPTIONS, *places]
    command += ["--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        sys.exit(status)  # it has said why


def seconds_beyond_training(journal: Path) -> list[float]:
    """Read what every trial but the first and the last took beside training and validation."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    [name] = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    starts = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start is not None]
    epochs = [
        sum(value["seconds"] for key, value in trial.user_attrs.items() if key.startswith("epoch:")) for trial in trials
    ]
    between = [later - earlier for earlier, later in itertools.pairwise(starts)]
    return [took - spent for took, spent in zip(between[1:], epochs[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", type=Path, help="where CIFAR-10 is")
    data_root = parser.parse_args().data_root
    for setting in SETTINGS:
        if setting.endswith("cifar10") and data_root is None:
            continue
        beyond = []
        for epochs in EPOCHS:
            with tempfile.TemporaryDirectory() as folder:
                search(setting, epochs, Path(folder), ["--data-root", str(data_root or folder)])
                beyond.append([1e3 * each for each in seconds_beyond_training(Path(folder) / "optuna.journal")])
        print(f"{setting}: {render(*beyond)}", flush=True)


def render(few: Sequence[float], many: Sequence[float]) -> str:
    """Say what goes with a trial and what with an epoch, of the milliseconds of trials of few epochs and of many."""
    an_epoch = (statistics.median(many) - statistics.median(few)) / (EPOCHS[1] - EPOCHS[0])
    low, middle, high = statistics.quantiles((each - EPOCHS[0] * an_epoch for each in few), n=4, method="inclusive")
    return (
        f"{middle:.0f} [{low:.0f}, {high:.0f}] ms a trial, {an_epoch:.0f} ms an epoch beside training and validation, "
        f"n = {len(few)} trials of {EPOCHS[0]} epoch and {len(many)} of {EPOCHS[1]}"
    )


if __name__ == "__main__":
    main()
