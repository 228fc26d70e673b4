"""A search whose trials share a process: the numbers of one whose trials do not, also where that process is killed."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError

from benchmarks.ray_nodes import kill_process, wait_until
from tune_adamsrt import running
from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.budget import Budget
from tune_adamsrt.checkpoints import Checkpoints
from tune_adamsrt.engine.actor import EngineActor, Proxy
from tune_adamsrt.plan import Plan, make_plans
from tune_adamsrt.records import TrialState
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.storage import open_storage
from tune_adamsrt.study import Study
from tune_adamsrt.trainable import TrainingTrainable, TrialError, epoch_report

REPOSITORY = Path(__file__).parents[2]
SETTING = "{model: resnet20, dataset: digits, epochs: 4, min_epochs: 2, trials: 3, cpus_per_trial: 1}"
TRIALS, EPOCHS, KEPT_EPOCH = 3, 4, 2
CLOCK = {"seconds", "train_images_per_second", "reported_at"}


class PlanWithCheckpoints(Plan):
    def place(self, resources: TrialResources) -> dict[str, Any]:
        return super().place(resources) | {"checkpoint_epochs": (KEPT_EPOCH,)}


class Script(Checkpoints):
    """Looks at the processes in step with the search, and kills the one that trains once, after an epoch 3."""

    def on_trial_result(self, *arguments: Any, **named: Any) -> None:
        super().on_trial_result(*arguments, **named)
        result = named["result"]
        seen.has_torch.append(has_torch(result["pid"]))
        engine = engine_pid()
        if engine is not None:
            seen.engines.add(engine)
            if result["epoch"] == KEPT_EPOCH + 1 and seen.killed is None:
                assert has_torch(engine)
                seen.killed = engine
                kill_process(engine)

    def __reduce__(self) -> Any:  # Tune pickles its callbacks
        return tune.Callback, ()


seen = SimpleNamespace()


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def engine_pid() -> int | None:
    """The process that trains, of a name that the proxies found it by."""
    names = [name for name in ray.util.list_named_actors() if name.startswith("engine of GPU")]
    try:
        return ray.get(ray.get_actor(names[0]).ready.remote()) if names else None
    except (RayActorError, ValueError):
        return None  # it has just been killed


def make_plan(folder: Path, name: str, engine_slots: int | None) -> Plan:
    (folder / "resnet20-digits.yaml").write_text(SETTING)
    options = ["--setting", str(folder / "resnet20-digits.yaml"), "--scheduler", "fifo", "--sampler", "random"]
    options += ["--trials", str(TRIALS), "--limit-train-examples", "64", "--study", name, "--output", str(folder)]
    [made] = make_plans(parse_arguments(options))
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return PlanWithCheckpoints(**fields | {"engine_slots": engine_slots})


def search(folder: Path) -> dict[int, Any]:
    """Run a search whose trials all train in full, in two slots; give its records."""
    plan = make_plan(folder, "together", 2)
    study = Study(
        plan.study_name,
        storage=open_storage(str(folder / "optuna.journal")),
        space=plan.space,
        sampler=plan.sampler,
        seed=0,
        protocol=plan.protocol,
    )
    vars(seen).update(engines=set(), has_torch=[], killed=None)
    broken_off = running.run_trials(
        plan,
        study,
        Budget(study, trials=TRIALS),
        resources=TrialResources(cpus=1.0, gpus=0.0),
        max_concurrent=2,
        note=print,
    )
    assert broken_off is None
    return dict(study.trials)


def timeless(report: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(report).items() if name not in CLOCK}


@pytest.fixture
def local_ray(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
            patch.delenv(name, raising=False)
        patch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        yield
        ray.shutdown()


def alone(folder: Path, record: Any) -> list[dict[str, Any]]:
    """What a trial reports that trains in a process of its own: this one."""
    plan = make_plan(folder, "alone", None)
    place = plan.place(TrialResources(cpus=1.0, gpus=0.0))
    trainable = TrainingTrainable.__new__(TrainingTrainable)
    own = {"trial_number": record.number, "hyper_parameters": record.hyper_parameters, "seed": record.seed}
    trainable.setup({"protocol": plan.protocol, "place": place, **own})
    return [timeless(epoch_report(trainable.step())) for _ in range(EPOCHS)]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_trials_that_share_a_process_give_the_numbers_of_trials_alone_also_where_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "Checkpoints", Script)
    records = search(tmp_path)
    assert len(seen.engines) == 2 and seen.killed in seen.engines
    assert not any(seen.has_torch), "a proxy needs no torch"
    assert records.keys() == set(range(TRIALS))
    for record in records.values():
        assert record.state is TrialState.COMPLETE
        assert [report.epoch for report in record.epochs] == list(range(1, EPOCHS + 1))
        assert [timeless(report) for report in record.epochs] == alone(tmp_path, record)
    repeated = [record.epochs_repeated for record in records.values()]
    assert max(repeated) >= 1 and sum(repeated) <= 2 * (KEPT_EPOCH + 1)


def configuration(model: str = "resnet20") -> dict[str, Any]:
    protocol = {"dataset": "digits", "model": model, "optimizer": "adamsrt", "epochs": 1}
    return {"protocol": protocol, "place": {"device": "cpu"}, "hyper_parameters": {"lr": 1e-3}, "seed": 0}


def test_a_proxy_that_is_killed_leaves_its_slot_to_the_next():
    actor = EngineActor(1, 1, None, idle_s=math.inf)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    other, here = Proxy.of(process.pid), Proxy.of(os.getpid())
    actor.begin(other, configuration())
    with pytest.raises(TrialError, match="NoFreeSlotError: a trial must have a slot, and all 1 are taken"):
        actor.begin(here, configuration())
    process.kill()
    process.wait()
    wait_until(lambda: not actor._engine.owners)  # it sees that by itself
    actor.begin(here, configuration())
    with pytest.raises(TrialError, match=r"^UnknownNameError: unknown model 'resnet1'; did you mean 'resnet18'"):
        actor.begin(here, configuration("resnet1"))


def test_an_engine_without_proxies_ends():
    code = (
        "import time; from tune_adamsrt.engine.actor import EngineActor;"
        "EngineActor(1, 1, None, idle_s=0.1); time.sleep(60); raise SystemExit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=50).returncode == 0


def test_a_process_is_told_from_another_of_its_number():
    here = Proxy.of(os.getpid())
    assert here.is_alive and not Proxy(here.pid, "1").is_alive


def test_a_proxy_imports_neither_torch_nor_optuna():
    code = "import sys, tune_adamsrt.engine.trainable; print({'torch', 'optuna', 'mlflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "set()"
