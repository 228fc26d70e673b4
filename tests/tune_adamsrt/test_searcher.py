"""The searcher and the scheduler as Ray Tune calls them, without Ray running."""

import math

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune_adamsrt.budget import Budget
from tune_adamsrt.records import TrialState
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.scheduler import SuccessiveHalving
from tune_adamsrt.searcher import StudySearcher, hopeless_reason
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.study import Study, open_storage

EPOCHS = 3


class Tune:
    """The calls that Tune's controller makes for each result, in its order (execution/tune_controller.py)."""

    def __init__(self, searcher, scheduler):
        self.searcher, self.scheduler = searcher, scheduler

    def start(self, trial_id):
        return self.searcher.suggest(trial_id)

    def result(self, trial_id, result):
        """Give the scheduler's decision, or STOP where the trainable is done."""
        if result.get("done"):
            decision = TrialScheduler.STOP
        else:
            decision = self.scheduler.on_trial_result(None, None, result)
        if decision == TrialScheduler.STOP:  # such a result never reaches searcher.on_trial_result
            self.searcher.on_trial_complete(trial_id, result=result)
        else:
            self.searcher.on_trial_result(trial_id, result)
        return decision


def result(number, epoch, value, **more):
    values = {
        "trial_number": number,
        "epoch": epoch,
        "value": value,
        "train_loss": 1.0,
        "train_accuracy": value,
        "valid_loss": 1.0,
        "valid_accuracy": value,
        "lr": 0.1,
        "seconds": 1.0,
        "train_images_per_second": 1.0,
        "hostname": "node-1",
        "done": epoch == EPOCHS,
    }
    return values | more


@pytest.fixture
def study(tmp_path):
    return Study(
        "s",
        storage=open_storage(str(tmp_path / "optuna.journal")),
        space=build_search_space(load_setting("resnet20-digits"), "adamsrt"),
        sampler="random",
        seed=0,
        protocol={"epochs": EPOCHS},
    )


def tune(study, *, trials=10, rungs=(1,), **limits):
    budget = Budget(study, trials=trials, **limits)
    return Tune(
        StudySearcher(study, budget),
        SuccessiveHalving(study, Rungs(rungs, reduction_factor=2), budget),
    )


def test_a_stopped_trial_keeps_the_epoch_that_stopped_it(study):
    controller = tune(study)
    for number, (trial_id, value) in enumerate([("a", 0.9), ("b", 0.1)]):
        controller.start(trial_id)
        decision = controller.result(trial_id, result(number, 1, value))
    assert decision == TrialScheduler.STOP
    stopped = study.trials[1]
    assert (stopped.state, stopped.epoch, stopped.value) == (TrialState.STOPPED, 1, 0.1)
    assert stopped.reason == "rung 1 (epoch 1): rank 2 of 2, the best 1 went on"
    assert stopped.host == "node-1"


def test_a_trial_that_reaches_the_full_budget_is_complete(study):
    controller = tune(study)
    controller.start("a")
    for epoch in range(1, EPOCHS + 1):
        controller.result("a", result(0, epoch, 0.1 * epoch))
    assert study.trials[0].state is TrialState.COMPLETE
    assert [report.epoch for report in study.trials[0].epochs] == [1, 2, 3]
    assert study.trials[0].epochs_repeated == 0


def test_a_diverged_trial_fails_with_its_reason(study):
    controller = tune(study)
    controller.start("a")
    controller.result("a", result(0, 1, 0.1))
    reason = "diverged: train_loss is nan at epoch 2"
    controller.result("a", result(0, 2, 0.1, train_loss=math.nan, failure=reason, done=True))
    assert (study.trials[0].state, study.trials[0].reason) == (TrialState.FAILED, reason)
    assert study.epochs_spent == 2


def test_a_trial_that_raised_before_its_first_epoch_fails_with_its_reason(study):
    controller = tune(study)
    controller.start("a")
    failed = {"trial_number": 0, "epoch": 0, "value": math.nan, "failure": "ValueError: no", "done": True}
    controller.result("a", failed)
    assert (study.trials[0].state, study.trials[0].reason, study.epochs_spent) == (
        TrialState.FAILED,
        "ValueError: no",
        0,
    )


def test_a_trial_that_tune_gives_up_fails(study):
    controller = tune(study)
    controller.start("a")
    controller.searcher.on_trial_complete("a", error=True)
    assert study.trials[0].state is TrialState.FAILED


def test_no_more_than_the_trials_asked_for(study):
    controller = tune(study, trials=2)
    assert isinstance(controller.start("a"), dict)
    assert isinstance(controller.start("b"), dict)
    assert controller.start("c") == Searcher.FINISHED


def test_the_epoch_budget_stops_what_runs_and_starts_nothing(study):
    controller = tune(study, max_total_epochs=3)
    controller.start("a")
    controller.start("b")
    assert controller.result("a", result(0, 1, 0.9)) == TrialScheduler.CONTINUE
    assert controller.result("b", result(1, 1, 0.9)) == TrialScheduler.CONTINUE
    assert controller.result("a", result(0, 2, 0.9)) == TrialScheduler.STOP
    assert (study.trials[0].state, study.trials[0].reason) == (TrialState.STOPPED, "epoch budget")
    assert study.epochs_spent == 3
    assert controller.start("c") == Searcher.FINISHED


def test_a_search_whose_first_trials_all_fail_ends_with_the_reason(study):
    controller = tune(study, trials=100)
    for number in range(5):
        assert hopeless_reason(study, 100) is None
        assert isinstance(controller.start(f"t{number}"), dict)
        failed = {"trial_number": number, "epoch": 0, "value": math.nan, "failure": "OSError: no data", "done": True}
        controller.result(f"t{number}", failed)
    assert controller.start("t5") == Searcher.FINISHED
    assert hopeless_reason(study, 100) == "all of the first 5 trials failed; trial 0: OSError: no data"


def test_one_success_keeps_a_search_going(study):
    controller = tune(study, rungs=())
    controller.start("good")
    for epoch in range(1, EPOCHS + 1):
        controller.result("good", result(0, epoch, 0.5))
    for number, trial_id in enumerate("abcdef", start=1):
        controller.start(trial_id)
        failed = {"trial_number": number, "epoch": 0, "value": math.nan, "failure": "no", "done": True}
        controller.result(trial_id, failed)
    assert isinstance(controller.start("g"), dict)


def test_rungs_are_as_before_after_a_restart(study):
    controller = tune(study)
    controller.start("a")
    controller.result("a", result(0, 1, 0.9))
    again = tune(study)
    again.start("b")
    assert again.result("b", result(1, 1, 0.5)) == TrialScheduler.STOP
