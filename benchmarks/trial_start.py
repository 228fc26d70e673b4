"""What a trial of a whole search costs beyond its epochs: one worker that is reused, with Ray, Optuna and MLflow.

    .venv/bin/python -m benchmarks.trial_start                      # about 2 minutes
    .venv/bin/python -m benchmarks.trial_start --data-root DIR      # and VGG16 on the CIFAR-10 there

From the start of a trial to the start of the next one in the study, less the seconds of its epochs; median
[quartiles]. The first trial, in which the worker starts, is left out.
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
# Few examples and epochs: the next trial begins the same after many.
SETTINGS = {
    "resnet20-digits": "model: resnet20\ndataset: digits\nbatch_size: 32\nmin_epochs: 1\n",
    "resnet18-digits": "model: resnet18\ndataset: digits\nbatch_size: 32\nmin_epochs: 1\n",
    "vgg16-cifar10": "model: vgg16\ndataset: cifar10\nvalid_split: 0.002\nmin_epochs: 1\n",
}
OPTIONS = ["--trials", f"{TRIALS}", "--epochs", "1", "--limit-train-examples", "128", "--first-points", "none"]
OPTIONS += ["--scheduler", "fifo", "--sampler", "random", "--confirm-seeds", "0", "--no-report"]
OPTIONS += ["--max-concurrent", "1", "--cpus-per-trial", "1", "--gpus-per-trial", "0", "--address", "local"]


def search(setting: str, folder: Path, places: Sequence[str]) -> None:
    """Run a search that leaves its study in a folder."""
    file = folder / f"{setting}.yaml"
    file.write_text(SETTINGS[setting])
    places = [*places, "--output", str(folder), "--export", str(folder / "best.py")]
    command = [sys.executable, "-m", "tune_adamsrt.search", "--setting", str(file), *OPTIONS, *places]
    command += ["--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        sys.exit(status)  # it has said why


def seconds_beyond_epochs(journal: Path) -> list[float]:
    """Read what every trial but the first and the last took beside its epochs."""
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
        with tempfile.TemporaryDirectory() as folder:
            search(setting, Path(folder), ["--data-root", str(data_root or folder)])
            seconds = seconds_beyond_epochs(Path(folder) / "optuna.journal")
        low, middle, high = (1e3 * each for each in statistics.quantiles(seconds, n=4, method="inclusive"))
        print(
            f"{setting}: {middle:.0f} [{low:.0f}, {high:.0f}] ms beyond its epochs, n = {len(seconds)} trials",
            flush=True,
        )


if __name__ == "__main__":
    main()
