"""What is wrong with Ray Tune + OptunaSearch + ASHAScheduler (ray 2.60), beside ours in the same scenario.

Each test first asserts the defect of Ray's own classes, so that it fails, and tells us, when Ray has mended it; then
that ours does it right. Most play a scenario to the stand-in for Tune's controller; where the controller itself is at
fault, real Ray Tune runs.
"""

import dataclasses
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator

import mlflow
import optuna
import pytest
import ray
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.error import TuneError
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from search_records import make_info, make_report
from tune_controller import Tune

from adamsrt.training import EpochResult
from tune_adamsrt import running, trainable
from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.budget import Budget
from tune_adamsrt.mlflow import writer as mlflow_writer
from tune_adamsrt.plan import make_plans
from tune_adamsrt.records import TrialState
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.scheduler import SuccessiveHalving
from tune_adamsrt.searcher import StudySearcher
from tune_adamsrt.settings import SettingError, load_setting, override
from tune_adamsrt.storage import open_storage
from tune_adamsrt.study import Study
from tune_adamsrt.terminal import TerminalView
from tune_adamsrt.tracking import Tracking

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
EPOCHS = 4
ONE_CPU = TrialResources(cpus=1, gpus=0)


@pytest.fixture
def own_mlflow() -> Iterator[None]:
    """The stock callback leaves MLflow's global tracking URI set, which other tests must not see."""
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def plan(tmp_path):
    return our_plan(tmp_path)


def our_plan(folder):
    """Two trials of four epochs; from the first epoch on the best half goes on."""
    options = ["--setting", "resnet20-digits", "--study", "ours", "--sampler", "random", "--trials", "2"]
    [plan] = make_plans(parse_arguments([*options, "--output", str(folder)]))
    return dataclasses.replace(plan, setting=override(plan.setting, epochs=EPOCHS, min_epochs=1, reduction_factor=2))


@pytest.fixture
def journal(tmp_path):
    return str(tmp_path / "optuna.journal")


def result(number, epoch, value):
    """One epoch's result, with what stock (training_iteration) and ours (the others) look for."""
    keys = {"trial_number": number, "training_iteration": epoch, "done": epoch == EPOCHS}
    return dataclasses.asdict(make_report(epoch, value)) | keys


# ---- both sides, played to ------------------------------------------------------------------------------------------


def stock_search(journal):
    """OptunaSearch that hands out `number` 0 and 1 first, so that runs can tell their trials apart."""
    return OptunaSearch(
        space={"number": IntDistribution(0, 9), "lr": FloatDistribution(0.0, 1.0)},
        metric="value",
        mode="max",
        points_to_evaluate=[{"number": number, "lr": 0.5} for number in range(2)],
        sampler=optuna.samplers.RandomSampler(seed=0),
        storage=journal and open_storage(journal),
        study_name="stock",
    )


def stock_scheduler(min_epochs=1):
    return ASHAScheduler(
        metric="value", mode="max", max_t=EPOCHS, grace_period=min_epochs, reduction_factor=2
    )  # stop_last_trials=True, the default


def stock_tune(journal, *, min_epochs=1, callbacks=()):
    return Tune(stock_search(journal), stock_scheduler(min_epochs), callbacks)


def our_study(plan, journal, observers=()):
    return Study(
        "ours",
        storage=open_storage(journal),
        space=plan.space,
        sampler=plan.sampler,
        seed=plan.seed,
        protocol=plan.protocol,
        observers=observers,
    )


def our_tune(plan, study, *, rungs=(1,), callbacks=(), storage=None):
    budget = Budget(study, trials=10)
    at_rungs = Rungs(rungs, reduction_factor=2)
    searcher = StudySearcher(study, budget, at_rungs)
    return Tune(searcher, SuccessiveHalving(study, at_rungs, budget), callbacks, storage)


def play(controller, number, epochs):
    """Start a trial and report its values, a dict by epoch, as long as it goes on. Returns the last decision."""
    controller.start(str(number))
    for epoch, value in epochs.items():
        decision = controller.result(str(number), result(number, epoch, value))
        if decision == STOP:
            break
    return decision


def optuna_trials(journal, name):
    """Give the trials asked for so far; points that were not reached wait behind them."""
    trials = optuna.load_study(study_name=name, storage=open_storage(journal)).get_trials()
    return [trial for trial in trials if trial.state is not OptunaState.WAITING]


# ---- without Ray running --------------------------------------------------------------------------------------------


def test_fact_1_a_stopped_trial_is_pruned_with_all_its_epochs(plan, journal):
    def scenario(controller):
        assert play(controller, 0, {1: 0.5, 2: 0.9}) == CONTINUE
        assert play(controller, 1, {1: 0.8, 2: 0.3}) == STOP

    scenario(stock_tune(journal, min_epochs=2))
    stopped = optuna_trials(journal, "stock")[1]
    assert (stopped.state, stopped.value) == (OptunaState.COMPLETE, 0.3)
    assert stopped.intermediate_values == {1: 0.8}, "the epoch that stopped it is missing"

    scenario(our_tune(plan, our_study(plan, journal), rungs=(2,)))
    stopped = optuna_trials(journal, "ours")[1]
    assert stopped.state is OptunaState.PRUNED
    assert stopped.intermediate_values == {1: 0.8, 2: 0.3}


def test_fact_1_a_trial_stopped_at_its_first_epoch_leaves_that_epoch(plan, journal):
    def scenario(controller):
        play(controller, 0, {1: 0.9})
        assert play(controller, 1, {1: 0.3}) == STOP

    scenario(stock_tune(journal))
    assert optuna_trials(journal, "stock")[1].intermediate_values == {}

    scenario(our_tune(plan, our_study(plan, journal)))
    assert optuna_trials(journal, "ours")[1].intermediate_values == {1: 0.3}


class Diverging:
    """A training whose loss and accuracy are NaN from the first epoch."""

    def __init__(self, spec, predecessor):
        self.spec = spec
        self.best_valid_accuracy = 0.0

    def run_epoch(self):
        nan = math.nan
        return EpochResult(1, nan, nan, nan, nan, 0.1, 1.0, 1.0, nan, nan, nan)


def test_fact_3_a_trial_that_diverges_ends_at_once_and_fails(plan, journal, monkeypatch):
    stock = stock_tune(journal)
    play(stock, 0, {1: 0.9})
    stock.start("1")
    decisions = [stock.result("1", result(1, epoch, math.nan)) for epoch in range(1, EPOCHS + 1)]
    assert decisions == [CONTINUE, CONTINUE, CONTINUE, STOP], "NaN < cutoff is False: it is trained to the end"
    assert optuna_trials(journal, "stock")[1].state is OptunaState.RUNNING, "the error of tell(nan) is swallowed"

    study = our_study(plan, journal)
    ours = our_tune(plan, study)
    play(ours, 0, {1: 0.9})
    suggested = ours.start("1")
    monkeypatch.setattr(trainable, "Training", Diverging)
    worker = trainable.TrainingTrainable.__new__(trainable.TrainingTrainable)
    worker.setup({"protocol": plan.protocol, "place": plan.place(ONE_CPU), **suggested})
    assert ours.result("1", worker.step()) == STOP
    failed = optuna_trials(journal, "ours")[1]
    assert (failed.state, failed.intermediate_values) == (OptunaState.FAIL, {})
    assert study.trials[1].reason == "diverged: train_loss is nan at epoch 1"


def test_fact_3_a_metric_that_is_none_breaks_ashas_comparison(journal):
    """Ours has no such case: the worker's reports are numbers."""
    stock = stock_tune(journal)
    stock.start("0")
    with pytest.raises(TypeError, match="NoneType"):
        stock.result("0", result(0, 1, 0.5) | {"value": None})


def test_fact_4_a_rung_holds_values_of_its_own_epoch_only(plan, journal):
    """The first trial reports from epoch 2 on: nothing is known of it at epoch 1."""

    def scenario(controller):
        play(controller, 0, {2: 0.8, 3: 0.9})
        return play(controller, 1, {1: 0.6})

    stock = stock_tune(journal)
    assert scenario(stock) == STOP, "judged at epoch 1 against the other's epoch 3"
    assert dict(stock.scheduler._brackets[0]._rungs)[1]["0"] == 0.9

    ours = our_tune(plan, our_study(plan, journal), rungs=(1, 2))
    assert scenario(ours) == CONTINUE
    assert ours.scheduler._rungs.values == {1: {1: 0.6}, 2: {0: 0.8}}


def test_fact_8_a_trial_asked_but_not_told_is_continued(plan, journal, tmp_path):
    """The driver is lost while trial 0 runs, after its last snapshot; the next one completes a trial."""
    whole = dict.fromkeys(range(1, EPOCHS + 1), 0.5)

    lost = stock_tune(journal)
    lost.searcher.save(str(tmp_path / "snapshot"))
    play(lost, 0, {1: 0.5})
    again = stock_tune(None)
    again.searcher.restore(str(tmp_path / "snapshot"))
    play(again, 1, whole)
    assert [trial.state for trial in optuna_trials(journal, "stock")] == [OptunaState.RUNNING, OptunaState.COMPLETE]

    lost = our_tune(plan, our_study(plan, journal))
    configuration = lost.start("0")
    lost.result("0", result(0, 1, 0.5))
    again = our_tune(plan, our_study(plan, journal))
    assert again.start("0") == configuration
    for epoch, value in whole.items():
        again.result("0", result(0, epoch, value))
    assert [trial.state for trial in optuna_trials(journal, "ours")] == [OptunaState.COMPLETE]


class LostStorage:
    """A trial's folder on a share that is gone."""

    def __getattr__(self, name):
        raise OSError("Stale file handle")


def test_fact_9_our_callback_survives_a_lost_folder(plan, journal):
    study = our_study(plan, journal)
    callback = running.Checkpoints(study, plan.output, note=print)
    ours = our_tune(plan, study, callbacks=[callback], storage=LostStorage())
    assert play(ours, 0, dict.fromkeys(range(1, EPOCHS + 1), 0.5)) == STOP
    assert study.trials[0].state is TrialState.COMPLETE


def test_fact_12_a_checkpoint_does_not_wait_for_a_snapshot_of_tune(plan, journal):
    """Tune forces a snapshot, and waits for it, whenever a trial has kept so many checkpoints since the last one."""

    def forced_by_one_checkpoint(kept):
        snapshots = _ExperimentCheckpointManager(
            storage=None, checkpoint_period="auto", sync_every_n_trial_checkpoints=kept
        )
        snapshots.on_trial_checkpoint("trial")
        return snapshots._should_force_sync_up, snapshots._checkpoint_period

    assert forced_by_one_checkpoint(1) == (True, 10.0)

    study = our_study(plan, journal)
    tuner = running.build_tuner(plan, study, Budget(study, trials=2), resources=ONE_CPU, max_concurrent=1, note=print)
    kept = tuner._local_tuner._run_config.checkpoint_config.num_to_keep
    assert forced_by_one_checkpoint(kept) == (False, 10.0)
    # and so many come no sooner than Tune's own snapshot would: none is taken to cost less than 0.1 s
    assert kept * running.CheckpointedTrainable.TRAINING_PER_CHECKPOINT * 0.1 >= 10.0


def test_fact_13_unknown_settings_are_refused(tmp_path, capsys):
    assert tune.create_scheduler("async_hyperband", grace_perod=15)._brackets[0]._rungs[-1][0] == 1, (
        "the slip means the default"
    )
    assert tune.create_searcher("optuna", seeed=1)._seed is None

    setting = tmp_path / "mine.yaml"
    setting.write_text("model: resnet20\ndataset: digits\nmin_epoch: 15\n")
    with pytest.raises(SettingError, match="unknown key 'min_epoch'; did you mean 'min_epochs'"):
        load_setting(str(setting))
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--setting", "resnet20-digits", "--sed", "1"])
    assert "--sed" in capsys.readouterr().err


# ---- with Ray running -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 1024**2,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def quiet_tune(monkeypatch):
    for name in ("ray.tune", "ray.train"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)


def curves(*values_of_trials, seconds_of_trial_1=0.0, started=os.devnull):
    """A trainable that reports the n-th of these lists of values as trial n.

    Args:
        started: gets a line per process that is started.
    """
    results = [
        {epoch: result(number, epoch, value) for epoch, value in enumerate(values, start=1)}
        for number, values in enumerate(values_of_trials)
    ]

    class Curve(tune.Trainable):  # in here, because workers cannot import this module
        def setup(self, config):
            with open(started, "a") as file:  # noqa: PTH123
                file.write("started\n")
            self.reset_config(config)

        def reset_config(self, config):
            self._number = config.get("trial_number", config.get("number"))
            self._epoch = 0
            return True

        def step(self):
            self._epoch += 1
            if self._number == 1:
                time.sleep(seconds_of_trial_1)
            return dict(results[self._number][self._epoch])

        def save_checkpoint(self, checkpoint_dir):  # Tune asks for one at a trial's end
            return {"epoch": self._epoch}

        def load_checkpoint(self, checkpoint):
            self._epoch = checkpoint["epoch"]

    return Curve


class DriverLostError(Exception):
    """Stands for kill -9: nothing is told or saved after it."""


class LoseDriver(tune.Callback):
    """Ends the driver some time after trial 0 has ended, before trial 1 has."""

    def __init__(self, after_s):
        self._after_s = after_s
        self._ended_at = None

    def on_step_end(self, iteration, trials, **info):
        if trials[0].status != "TERMINATED":
            return
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        if time.monotonic() - self._ended_at >= self._after_s:
            raise DriverLostError

    def __reduce__(self):
        return tune.Callback, ()  # a restored search has a driver that is not lost


def stock_tuner(tmp_path, curve, searcher, callbacks=()):
    return tune.Tuner(
        curve,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=stock_scheduler(),
            num_samples=2,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="stock", storage_path=str(tmp_path), callbacks=list(callbacks), verbose=0),
    )


def run_ours(plan, study, curve, monkeypatch):
    """Run the study as the command does. Returns why it broke off."""
    monkeypatch.setattr(running, "CheckpointedTrainable", curve)
    budget = Budget(study, trials=plan.trials)
    return running.run_trials(plan, study, budget, resources=ONE_CPU, max_concurrent=1, note=print)


GOOD, BAD = [0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]


class LosesDriverAtTrial1:
    """An observer: trial 1 has been asked, and Tune has not heard of it yet."""

    def __getattr__(self, name):
        return lambda *args: None

    def trial_started(self, trial):
        if trial.number == 1:
            raise DriverLostError


@pytest.fixture(scope="module")
def ours_resumed(cluster, tmp_path_factory):
    """Ours, whose driver is lost after trial 0, gone on with by another: the study of each, Optuna's trials."""
    folder = tmp_path_factory.mktemp("resumed")
    plan, journal, curve = our_plan(folder), str(folder / "optuna.journal"), curves(GOOD, BAD)
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = our_study(plan, journal, observers=[LosesDriverAtTrial1()])
        broken_off = run_ours(plan, first, curve, monkeypatch)
        assert broken_off is not None and "DriverLostError" in broken_off
        assert [trial.state for trial in optuna_trials(journal, "ours")] == [OptunaState.COMPLETE, OptunaState.RUNNING]
        second = our_study(plan, journal)
        assert run_ours(plan, second, curve, monkeypatch) is None
    return first, second, optuna_trials(journal, "ours")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestWithRay:
    def test_fact_2_the_best_has_trained_to_the_full_budget(self, plan, journal, tmp_path, monkeypatch):
        """Trial 1 is stopped with a value that trial 0 had, too, at that epoch, before it fell to its true level."""
        started = tmp_path / "started"
        curve = curves([0.97, 0.9, 0.8, 0.8], [0.95], started=str(started))

        results = stock_tuner(tmp_path, curve, stock_search(None)).fit()
        started.write_text("")
        best = results.get_best_result("value", "max")
        assert (best.config["number"], best.metrics["epoch"], best.metrics["value"]) == (1, 1, 0.95)

        study = our_study(plan, journal)
        assert run_ours(plan, study, curve, monkeypatch) is None
        assert [trial.state for trial in study.trials.values()] == [TrialState.COMPLETE, TrialState.STOPPED]
        assert (study.best.number, study.best.epoch, study.best.value) == (0, EPOCHS, 0.8)
        assert not tune.TuneConfig().reuse_actors, "fact 11: a process per trial, which costs seconds"
        assert started.read_text() == "started\n", "ours hands both trials to one"

    def test_fact_6_a_storage_ahead_of_tunes_snapshot_does_not_break_a_resumed_search(
        self, ours_resumed, journal, tmp_path, monkeypatch
    ):
        """The driver is lost after trial 0 has ended and before the next snapshot: they are 10 s apart or more."""
        monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "3600")
        curve = curves(GOOD, BAD)

        with pytest.raises(DriverLostError):
            stock_tuner(tmp_path, curve, stock_search(journal), [LoseDriver(after_s=0.0)]).fit()
        assert optuna_trials(journal, "stock")[0].state is OptunaState.COMPLETE
        with pytest.raises(TuneError, match="UpdateFinishedTrialError"):
            tune.Tuner.restore(str(tmp_path / "stock"), curve).fit()

        first, second, told = ours_resumed
        assert second.best == first.trials[0], "it was not trained again"
        assert [trial.state for trial in told] == [OptunaState.COMPLETE, OptunaState.PRUNED]
        assert second.epochs_spent == EPOCHS + 1

    def test_fact_7_rungs_outlive_the_driver(self, ours_resumed, tmp_path, monkeypatch):
        """Trial 0 has passed all rungs with 0.9 when the driver is lost, just after a snapshot; trial 1 has 0.1."""
        curve = curves(GOOD, BAD)

        monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
        slow = curves(GOOD, BAD, seconds_of_trial_1=1.5)
        with pytest.raises(DriverLostError):
            stock_tuner(tmp_path, slow, stock_search(None), [LoseDriver(after_s=0.7)]).fit()
        results = tune.Tuner.restore(str(tmp_path / "stock"), curve).fit()
        epochs = {one.config["number"]: one.metrics["epoch"] for one in results}
        assert epochs == {0: EPOCHS, 1: EPOCHS}, "trial 1 had nobody to be compared with"

        _, study, _ = ours_resumed
        assert (study.trials[1].state, study.trials[1].epoch) == (TrialState.STOPPED, 1)
        assert study.trials[1].reason == "rung 1 (epoch 1): rank 2 of 2, the best 1 went on"

    @pytest.mark.usefixtures("own_environment", "own_mlflow")
    def test_fact_9_the_search_goes_on_without_mlflow(self, plan, journal, uri, tmp_path, monkeypatch):
        """MLflow answers while the search starts, and not when the first values are logged."""
        curve = curves(GOOD, GOOD)

        def refuse(*args, **kwargs):
            raise MlflowException("API request failed: connection refused")

        monkeypatch.setattr(MlflowClient, "log_metric", refuse)  # what Ray's callback logs with
        monkeypatch.setattr(MlflowClient, "log_batch", refuse)  # and what ours does
        monkeypatch.setattr(mlflow_writer, "BACKOFF_S", 0.01)

        search = stock_search(journal)
        callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name="stock")
        with pytest.raises(TuneError, match="connection refused"):
            stock_tuner(tmp_path, curve, search, [callback]).fit()
        assert [trial.state for trial in optuna_trials(journal, "stock")] == [OptunaState.RUNNING]

        told = []
        tracking, view = Tracking(uri, on_warning=told.append, flush_interval_s=0.01), TerminalView()
        study = our_study(plan, journal, observers=[tracking, view])
        for observer in (tracking, view):
            observer.search_started(make_info(trials=2, epochs=EPOCHS, key=study.key))
        try:
            assert run_ours(plan, study, curve, monkeypatch) is None
        finally:
            everything_delivered = tracking.close(5.0)
            view.close()
        assert [trial.state for trial in study.trials.values()] == [TrialState.COMPLETE] * 2
        assert not everything_delivered
        assert any("connection refused" in line for line in told), told
