"""The searcher and the scheduler as Ray Tune calls them, without Ray running."""

import math

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from search_records import make_report
from tune_controller import Tune

from tune_adamsrt.budget import Budget
from tune_adamsrt.records import TrialState
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.scheduler import Promotion, SuccessiveHalving
from tune_adamsrt.searcher import StudySearcher, hopeless_reason
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import open_storage
from tune_adamsrt.study import Study

EPOCHS = 3


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


def reopened(study):
    """The same study as another driver finds it."""
    return Study(
        "s",
        storage=study._storage,
        space=build_search_space(load_setting("resnet20-digits"), "adamsrt"),
        sampler="random",
        seed=0,
        protocol={"epochs": EPOCHS},
    )


def tune(study, *, trials=10, rungs=(1,), scheduler=SuccessiveHalving, **limits):
    budget = Budget(study, trials=trials, **limits)
    at_rungs = Rungs(rungs, reduction_factor=2)
    return Tune(StudySearcher(study, budget, at_rungs), scheduler(study, at_rungs, budget))


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


def test_what_runs_may_finish_when_the_epochs_are_spent(study):
    controller = tune(study, max_total_epochs=3, lets_finish=True)
    controller.start("a")
    controller.start("b")
    for number, epoch in ((0, 1), (1, 1), (0, 2)):
        controller.result("ab"[number], result(number, epoch, 0.9))
    assert controller.start("c") == Searcher.FINISHED
    for number, epoch in ((1, 2), (0, 3), (1, 3)):
        controller.result("ab"[number], result(number, epoch, 0.9))
    assert [trial.state for trial in study.trials.values()] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(("lets_finish", "state"), [(False, TrialState.STOPPED), (True, TrialState.COMPLETE)])
def test_a_lost_driver_s_trials_end_though_the_epochs_are_spent(study, lets_finish, state):
    controller = tune(study, max_total_epochs=1)
    controller.start("a")
    study.report(0, make_report(1, 0.5))  # and the driver is killed
    again = reopened(study)
    controller = tune(again, max_total_epochs=1, lets_finish=lets_finish)
    if lets_finish:
        assert controller.start("a")["trial_number"] == 0
        for epoch in range(1, EPOCHS + 1):
            controller.result("a", result(0, epoch, 0.5))
    assert controller.start("b") == Searcher.FINISHED
    assert again.trials[0].state is state
    assert not again.interrupted


def test_a_search_whose_first_trials_all_fail_ends_with_the_reason(study):
    controller = tune(study, trials=100)
    for number in range(5):
        assert hopeless_reason(study, 100) is None
        assert isinstance(controller.start(f"t{number}"), dict)
        failed = {"trial_number": number, "epoch": 0, "value": math.nan, "failure": "OSError: no data", "done": True}
        controller.result(f"t{number}", failed)
    assert controller.start("t5") == Searcher.FINISHED
    assert hopeless_reason(study, 100) == "all of the first 5 trials failed; trial 0: OSError: no data"


def test_one_healthy_epoch_keeps_a_search_going(study):
    controller = tune(study, rungs=(1,), scheduler=Promotion)
    controller.start("good")
    controller.result("good", result(0, 1, 0.5))  # paused now
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


class TestPromotion:
    def test_a_trial_waits_until_it_is_among_the_best_and_goes_on_from_its_checkpoint(self, study):
        controller = tune(study, trials=3, scheduler=Promotion)
        controller.start("a")
        assert controller.result("a", result(0, 1, 0.5)) == TrialScheduler.STOP
        study.note_checkpoint(0, "/checkpoints/0")
        assert study.trials[0].state is TrialState.PAUSED
        controller.start("b")
        assert controller.result("b", result(1, 1, 0.4)) == TrialScheduler.STOP  # one of two goes on: the other
        promoted = controller.start("a again")
        assert (promoted["trial_number"], promoted["checkpoint"]) == (0, "/checkpoints/0")
        assert study.trials[0].state is TrialState.RUNNING
        for epoch in (2, 3):
            controller.result("a again", result(0, epoch, 0.5))
        assert study.trials[0].state is TrialState.COMPLETE
        assert study.epochs_spent == 4, "no epoch was trained twice"

    def test_a_trial_among_the_best_on_arrival_does_not_wait(self, study):
        controller = tune(study, scheduler=Promotion)
        for number, (trial_id, value) in enumerate([("a", 0.4), ("b", 0.5)]):
            controller.start(trial_id)
            decision = controller.result(trial_id, result(number, 1, value))
        assert decision == TrialScheduler.CONTINUE

    def test_those_never_promoted_end_as_stopped(self, study):
        controller = tune(study, trials=3, scheduler=Promotion)
        for number, (trial_id, value) in enumerate([("a", 0.4), ("b", 0.5), ("c", 0.3)]):
            controller.start(trial_id)
            controller.result(trial_id, result(number, 1, value))
        assert controller.start("x") is None, "b still runs"
        for epoch in (2, 3):
            controller.result("b", result(1, epoch, 0.5))
        assert controller.start("x") == Searcher.FINISHED
        assert [study.trials[n].state for n in range(3)] == [
            TrialState.STOPPED,
            TrialState.COMPLETE,
            TrialState.STOPPED,
        ]
        assert study.trials[0].reason == "rung 1 (epoch 1): rank 2 of 3, the best 1 went on"

    def test_a_search_does_not_end_without_a_trial_in_full(self, study):
        controller = tune(study, trials=2, rungs=(1, 2), scheduler=Promotion)
        controller.start("a")
        assert controller.result("a", result(0, 1, 0.4)) == TrialScheduler.STOP
        controller.start("b")  # the better of two goes on, and waits at rung 2, where it is alone
        assert controller.result("b", result(1, 1, 0.5)) == TrialScheduler.CONTINUE
        assert controller.result("b", result(1, 2, 0.5)) == TrialScheduler.STOP
        assert controller.start("b again")["trial_number"] == 1
        for epoch in (1, 2):  # its checkpoint is gone
            assert controller.result("b again", result(1, epoch, 0.5)) == TrialScheduler.CONTINUE
        controller.result("b again", result(1, 3, 0.5))
        assert controller.start("x") == Searcher.FINISHED
        assert [study.trials[n].state for n in range(2)] == [TrialState.STOPPED, TrialState.COMPLETE]

    def test_a_worker_lost_while_the_checkpoint_is_saved_is_not_handed_out_twice(self, study):
        controller = tune(study, trials=3, scheduler=Promotion)
        controller.start("a")
        # The scheduler pauses it; the worker dies before Tune has told the searcher, and the trial is retried.
        assert controller.scheduler.on_trial_result(None, None, result(0, 1, 0.9)) == TrialScheduler.STOP
        controller.start("b")
        controller.result("b", result(1, 1, 0.5))
        assert controller.start("c")["trial_number"] == 2, "trial 0 is among the best, but still at work"
        for epoch in (1, 2, 3):
            controller.result("a", result(0, epoch, 0.9))
        assert study.trials[0].state is TrialState.COMPLETE

    def test_a_restart_lets_them_wait_on(self, study):
        controller = tune(study, trials=3, scheduler=Promotion)
        for number, (trial_id, value) in enumerate([("a", 0.4), ("b", 0.5)]):
            controller.start(trial_id)
            controller.result(trial_id, result(number, 1, value))
        again = reopened(study)
        assert [record.number for record in again.interrupted] == [0, 1]
        again.pause_interrupted((1,))
        controller = tune(again, trials=3, scheduler=Promotion)
        assert controller.start("b again")["trial_number"] == 1, "the best of two was promoted before"
        assert controller.start("c")["trial_number"] == 2
        assert again.trials[0].state is TrialState.PAUSED

    def test_a_spent_budget_ends_those_that_wait(self, study):
        controller = tune(study, scheduler=Promotion, max_total_epochs=1)
        controller.start("a")
        controller.result("a", result(0, 1, 0.4))
        assert controller.start("b") == Searcher.FINISHED
        assert (study.trials[0].state, study.trials[0].reason) == (TrialState.STOPPED, "epoch budget")


def test_the_highest_rung_is_promoted_first():
    rungs = Rungs([1, 3], reduction_factor=2)
    for trial, (first, second) in enumerate([(0.9, 0.9), (0.8, 0.8), (0.7, None), (0.95, None), (0.1, None)]):
        rungs.record(trial, 1, first)
        if second is not None:
            rungs.record(trial, 3, second)
    assert rungs.next_promotion({0: 3, 1: 3, 3: 1, 2: 1}) == 0
    assert rungs.next_promotion({1: 3, 3: 1, 2: 1}) == 3
    assert rungs.next_promotion({1: 3, 2: 1}) is None
