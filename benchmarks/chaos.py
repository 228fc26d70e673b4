"""What does a search lose while machines die? A real search on a local cluster, with something killed every 20 s.

    python -m benchmarks.chaos --seeds 1 2 3            50 trials each
    python -m benchmarks.chaos --seeds 1 --trials 12    a look

Killed at random, with SIGKILL: a worker process in the middle of its trial; a node with all that runs on it (another
joins); the driver (it is started again with --resume). See README.md for the method and the results.
"""

import argparse
import ast
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ray_nodes import Nodes, kill_process

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "chaos.json"
SETTING = "resnet20-digits"
KINDS = ("worker", "node", "driver")
WORKERS = 3  # and the head, which trains as well
GIVE_UP_AFTER_S = 3600.0


class Chaos:
    """One search, and what happens to it.

    Args:
        folder: where all that the search writes is kept.
        options: of the search.
    """

    def __init__(self, folder: Path, seed: int, options: Sequence[str]) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._options = [*options, "--study", "chaos", "--seed", str(seed), "--export", "best.py"]
        self._nodes = Nodes(workers=WORKERS)
        self.kills: Counter[str] = Counter()
        self.broke_off: list[str] = []

    def run(self, every_s: float) -> float:
        """Run the search to its end, killing something every so often. Returns the seconds it took."""
        started = time.monotonic()
        driver, due = self._start_driver(), started + every_s
        try:
            while time.monotonic() - started < GIVE_UP_AFTER_S:
                if driver.poll() == 0:
                    return time.monotonic() - started
                if driver.poll() is not None:
                    self.broke_off.append(f"exit code {driver.returncode}")
                    driver = self._start_driver()
                if time.monotonic() >= due:
                    due += every_s
                    driver = self._kill(driver)
                time.sleep(0.2)
            raise TimeoutError(f"the search did not end within {GIVE_UP_AFTER_S:g} s")
        finally:
            driver.kill()
            driver.wait()
            self._nodes.shut_down()

    def _start_driver(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tune_adamsrt.search", "--setting", SETTING, *self._options]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
        with (self._folder / "driver.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--address", self._nodes.address],
                cwd=self._folder,
                env=inherited | {"PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )

    def _kill(self, driver: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        kind = self._chance.choice(KINDS)
        if kind == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            driver = self._start_driver()
        elif kind == "node":
            self._nodes.kill(self._nodes.at_random(self._chance))
            with contextlib.suppress(Exception):  # on a busy machine Ray may give up starting one, till the next time
                while self._nodes.workers < WORKERS:
                    self._nodes.add()
        else:
            training = self._nodes.trial_processes()
            if not training:
                return driver  # none has started yet
            kill_process(self._chance.choice(training))
        self.kills[kind] += 1
        print(f"  killed a {kind}", flush=True)
        return driver


def examine(folder: Path, trials: int) -> dict[str, Any]:
    """Read from Optuna, MLflow and the exported module what became of a search, without the search's own code."""
    import optuna
    from mlflow import MlflowClient
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "runs" / "optuna.journal")))
    study = optuna.load_study(study_name="chaos", storage=storage)
    protocol = json.loads(study.user_attrs["description"])["protocol"]
    found = [trial for trial in study.get_trials() if trial.state.name != "WAITING"]  # points that nobody asked for
    states = Counter(trial.state.name for trial in found)
    ended = [trial for trial in found if trial.state.is_finished()]
    lost = [t.number for t in ended if t.state.name == "FAIL" and "diverged" not in t.user_attrs["end"]["reason"]]
    epochs = sum(len(trial.intermediate_values) for trial in found)
    repeated = sum(trial.user_attrs.get("epochs_repeated", 0) for trial in found)
    # The rule: highest value at the full budget; then the lower validation loss there, then the lower number.
    complete = [trial for trial in ended if trial.state.name == "COMPLETE"]
    last = max((max(trial.intermediate_values) for trial in complete), default=0)
    best = max(complete, key=lambda t: (t.value, -t.user_attrs[f"epoch:{last}"]["valid_loss"], -t.number))
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=10 * trials)
    return {
        "trials asked for": trials,
        "trials ended": len(ended),
        "trials lost": trials - len(ended) + len(lost),
        "states": dict(states),
        "epochs": epochs,
        "epochs repeated": repeated,
        "Optuna states left open": len(found) - len(ended),
        "MLflow runs": len(runs),
        "MLflow states left open": sum(run.info.status in ("RUNNING", "SCHEDULED") for run in runs),
        "best trial": best.number,
        "exported is the best": exported(folder / "best.py") == best.user_attrs["trial"]["hyper_parameters"],
        "best trained as if undisturbed": is_as_if_undisturbed(protocol, best),
    }


def exported(module: Path) -> dict[str, Any]:
    """Read the one configuration in an exported module."""
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            values = ast.literal_eval(node.value)["digits"]["resnet20"]["adamsrt"]
            return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    raise ValueError(f"nothing is exported in {module}")


def is_as_if_undisturbed(protocol: dict[str, Any], trial: Any) -> bool:
    """Train a trial's configuration again, in one go, and compare every epoch's losses and accuracies."""
    import torch

    from adamsrt.training import Training, TrainingSpec

    torch.set_num_threads(1)
    fields = {"dataset", "model", "optimizer", "epochs", "batch_size", "valid_split", "split_seed"}
    shared = {name: protocol[name] for name in fields | {"limit_train_examples"}}
    kept = trial.user_attrs["trial"]
    training = Training(TrainingSpec(**shared, hyper_parameters=kept["hyper_parameters"], seed=kept["seed"]))
    for epoch in sorted(trial.intermediate_values):
        result, recorded = training.run_epoch(), trial.user_attrs[f"epoch:{epoch}"]
        if any(getattr(result, name) != recorded[name] for name in ("train_loss", "valid_loss", "valid_accuracy")):
            return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search per seed, and print and write what became of each. Returns 0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--trials", type=int, default=50, metavar="N")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="full budget of a trial (default: 10)")
    parser.add_argument("--limit-train-examples", type=int, default=256, metavar="N", help="default: 256 of 1,150")
    parser.add_argument("--scheduler", default="asha", choices=["asha", "promotion", "fifo"])
    parser.add_argument("--every", type=float, default=20.0, metavar="SECONDS", help="between two kills (default: 20)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for what the searches write (default: deleted)")
    arguments = parser.parse_args(argv)
    options = ["--trials", str(arguments.trials), "--epochs", str(arguments.epochs)]
    options += ["--limit-train-examples", str(arguments.limit_train_examples), "--scheduler", arguments.scheduler]
    options += ["--confirm-seeds", "0", "--no-report"]
    results = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if arguments.keep is None else arguments.keep / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            print(f"seed {seed}", flush=True)
            chaos = Chaos(folder, seed, options)
            seconds = chaos.run(arguments.every)
            about = {"seed": seed, "options": " ".join(options), "seconds": round(seconds), "killed": dict(chaos.kills)}
            results.append(about | {"broke off": chaos.broke_off} | examine(folder, arguments.trials))
        for name, value in results[-1].items():
            print(f"  {name:<32}{value}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    open_states = sum(result["Optuna states left open"] + result["MLflow states left open"] for result in results)
    return int(bool(open_states or sum(result["trials lost"] for result in results)))


if __name__ == "__main__":
    sys.exit(main())
