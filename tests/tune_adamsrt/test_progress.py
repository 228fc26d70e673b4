"""What is known of a search: counts, the best, speed and estimates."""

import pytest
from search_records import add_reports, make_progress, make_report, make_trial

from tune_adamsrt.records import TrialState


def test_epochs_spent_and_ended_include_every_state() -> None:
    progress = make_progress(
        make_trial(0, TrialState.COMPLETE, 10),
        make_trial(1, TrialState.STOPPED, 2, epochs_repeated=1),
        make_trial(2, TrialState.FAILED, 3),
        make_trial(3, TrialState.RUNNING, 4),
    )
    assert progress.epochs_spent == 10 + 3 + 3 + 4
    assert len(progress.ended) == 3


def test_speed_is_that_of_the_recent_past_and_falls_when_reports_are_overdue() -> None:
    progress = make_progress()
    assert progress.epochs_per_second(5.0) is None
    add_reports(progress, every_s=10.0, count=50)
    for index in range(20):  # the window: 20 reports, now one a second
        progress.add_report(501.0 + index, 1.0)
    assert progress.epochs_per_second(520.0) == pytest.approx(1.0)
    assert progress.epochs_per_second(521.0) == pytest.approx(1.0)
    assert progress.epochs_per_second(500.0 + 210.0) == pytest.approx(0.1)


def test_reports_that_arrive_together_count_the_time_that_their_epochs_took() -> None:
    progress = make_progress()
    for _ in range(4):
        progress.add_report(100.0, 20.0)
    assert progress.epochs_per_second(100.0) == pytest.approx(4 / 20)


def test_time_left_is_remaining_epochs_over_speed() -> None:
    progress = make_progress(
        make_trial(0, TrialState.COMPLETE, 10),
        make_trial(1, TrialState.STOPPED, 2),
        make_trial(2, TrialState.STOPPED, 3),
        make_trial(3, TrialState.RUNNING, 1),
        make_trial(4, TrialState.RUNNING, 4),
    )
    now = add_reports(progress, every_s=0.5, count=20)
    # 11 to come at the mean of 5; trial 3: the mean of those beyond epoch 1; trial 4: of those beyond epoch 4
    assert progress.seconds_left(now) == pytest.approx((11 * 5 + (5 - 1) + (10 - 4)) * 0.5)


def test_time_left_is_at_least_what_the_slowest_trial_needs() -> None:
    progress = make_progress(make_trial(0, TrialState.COMPLETE, 10), make_trial(1, TrialState.RUNNING, 4), trials=2)
    now = add_reports(progress, every_s=0.1, count=20)  # many trials at once, until now
    assert progress.seconds_left(now) == pytest.approx(6 * 2.0)


def test_a_resumed_search_counts_what_was_done_before_but_not_its_speed() -> None:
    running = make_trial(2, TrialState.RUNNING, 4)
    restored = [make_trial(0, TrialState.COMPLETE, 10), make_trial(1, TrialState.STOPPED, 2), running]
    progress = make_progress(restored=restored, trials=3)
    assert (progress.ended_before, len(progress.ended), progress.epochs_spent) == (2, 2, 16)
    assert progress.best is restored[0]
    assert progress.leader is running
    assert progress.epochs_per_second(100.0) is None
    assert progress.seconds_left(100.0) is None
    for epoch in (5, 6):  # four times as fast as the 2 s per epoch of the run before
        running.epochs.append(make_report(epoch, 0.9, seconds=0.5))
        progress.add_report(100.0 + 0.5 * (epoch - 4), 0.5)
    assert progress.epochs_per_second(101.0) == pytest.approx(2.0)
    assert progress.seconds_left(101.0) == pytest.approx(4 * 0.5)
    running.state = TrialState.COMPLETE
    assert (progress.ended_before, len(progress.ended), progress.epochs_spent) == (2, 3, 18)


def test_epochs_of_the_run_before_do_not_bound_the_time_left() -> None:
    waiting = make_trial(1, TrialState.RUNNING, 4)  # took 2 s per epoch
    progress = make_progress(restored=[make_trial(0, TrialState.COMPLETE, 10), waiting], trials=2)
    now = add_reports(progress, every_s=0.1, count=20)
    assert progress.seconds_left(now) == pytest.approx(6 * 0.1)
