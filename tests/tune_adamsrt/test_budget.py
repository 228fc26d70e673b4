"""Budgets: whichever comes first."""

from types import SimpleNamespace

from tune_adamsrt.budget import Budget


def budget(*, trials_done=0, interrupted=0, epochs_spent=0, now=0.0, **limits):
    study = SimpleNamespace(
        trials=dict.fromkeys(range(trials_done)), interrupted=[None] * interrupted, epochs_spent=epochs_spent, paused={}
    )
    times = iter([0.0, now, now, now])
    return Budget(study, clock=lambda: next(times), **({"trials": 10} | limits))


def test_trials_limit_what_starts_and_not_what_runs():
    assert budget(trials_done=9).reason_not_to_start() is None
    assert budget(trials_done=10).reason_not_to_start() == "all trials done"
    assert budget(trials_done=10).reason_to_stop() is None
    assert budget(trials_done=10, interrupted=1).reason_not_to_start() is None, "one of the ten is to be finished"


def test_time_stops_running_trials_too():
    assert budget(time_budget_s=60, now=59.9).reason_to_stop() is None
    assert budget(time_budget_s=60, now=60.0).reason_to_stop() == "time budget"
    assert budget(time_budget_s=60, now=60.0).reason_not_to_start() == "time budget"


def test_what_runs_may_be_let_finish():
    spent = {"max_total_epochs": 100, "epochs_spent": 100, "lets_finish": True}
    assert budget(**spent).reason_to_stop(unreported_epochs=1) is None
    assert budget(**spent).reason_not_to_start() == "epoch budget"


def test_epochs_of_all_trials_count():
    assert budget(max_total_epochs=100, epochs_spent=99).reason_to_stop() is None
    assert budget(max_total_epochs=100, epochs_spent=100).reason_to_stop() == "epoch budget"
