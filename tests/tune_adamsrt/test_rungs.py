"""Successive halving as arithmetic."""

import math
import random
import time

import pytest

from tune_adamsrt.rungs import Rungs, choose_rungs


def test_rungs_are_powers_of_the_reduction_factor():
    assert choose_rungs(405, min_epochs=15, reduction_factor=3) == (15, 45, 135)
    assert choose_rungs(10, min_epochs=2, reduction_factor=3) == (2, 6)
    assert choose_rungs(81, min_epochs=1, reduction_factor=9) == (1, 9)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_no_rung_at_or_after_the_full_budget(epochs):
    assert all(rung < epochs for rung in choose_rungs(epochs, min_epochs=1, reduction_factor=2))
    assert choose_rungs(epochs, min_epochs=epochs, reduction_factor=2) == ()


def test_a_rung_just_after_a_learning_rate_drop_moves_before_it():
    # 405 epochs drop after 135, 225, 315; 17 * 8 = 136 is one epoch after the first drop.
    assert choose_rungs(405, min_epochs=17, reduction_factor=8) == (17, 135)
    # 20 epochs later the dust has settled.
    assert choose_rungs(405, min_epochs=20, reduction_factor=8) == (20, 160)


def test_each_trial_is_compared_at_that_epoch_only():
    rungs = Rungs([2, 6], reduction_factor=3)
    rungs.record(trial=0, epoch=5, value=0.99)  # not a rung
    assert rungs.reason_to_stop(0, 5) is None
    rungs.record(trial=0, epoch=2, value=0.5)
    rungs.record(trial=0, epoch=6, value=0.9)
    rungs.record(trial=1, epoch=2, value=0.6)
    assert rungs.reason_to_stop(1, 2) is None, "0.6 is better than trial 0 was at epoch 2, whatever it is now"
    rungs.record(trial=2, epoch=2, value=0.55)
    assert rungs.reason_to_stop(2, 2) == "rung 1 (epoch 2): rank 2 of 3, the best 1 went on"


def test_the_best_third_goes_on():
    generator = random.Random(0)
    rungs = Rungs([1], reduction_factor=3)
    values = [generator.random() for _ in range(99)]
    for trial, value in enumerate(values):
        rungs.record(trial, 1, value)
    went_on = {trial for trial in range(99) if rungs.reason_to_stop(trial, 1) is None}
    assert went_on == set(sorted(range(99), key=lambda trial: -values[trial])[:33])


@pytest.mark.parametrize(("seen", "going_on"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_the_best_third_is_rounded_up(seen, going_on):
    rungs = Rungs([1], reduction_factor=3)
    for trial in range(seen):
        rungs.record(trial, 1, value=-trial)
    assert [rungs.reason_to_stop(trial, 1) is None for trial in range(seen)].count(True) == going_on


def test_the_first_trial_and_equal_values_go_on():
    rungs = Rungs([1], reduction_factor=4)
    for trial in range(3):
        rungs.record(trial, 1, 0.7)
        assert rungs.reason_to_stop(trial, 1) is None


def test_a_rung_passed_twice_keeps_its_first_value():
    rungs = Rungs([1], reduction_factor=2)
    rungs.record(0, 1, 0.7)
    rungs.record(0, 1, 0.1)  # trained again after its worker was lost
    assert rungs.values == {1: {0: 0.7}}


@pytest.mark.parametrize("factor", [2, 3])
def test_ranks_and_promotions_are_those_of_the_definition(factor):
    generator = random.Random(0)
    rungs = Rungs([1, 2, 4], reduction_factor=factor)
    paused = {}
    for trial in range(120):
        rung = generator.choice([1, 2, 4])
        for epoch in [epoch for epoch in (1, 2, 4) if epoch <= rung]:
            rungs.record(trial, epoch, round(generator.random(), 1))  # many are equal
        if generator.random() < 0.5:
            paused[trial] = rung
        for epoch, values in rungs.values.items():
            best_first = sorted(values, key=lambda trial: (-values[trial], trial))
            promoted = best_first[: len(values) // factor]
            assert [rungs.is_promoted(trial, epoch) for trial in best_first] == [t in promoted for t in best_first]
            for one in values:
                rank = 1 + sum(value > values[one] for value in values.values())
                assert (rungs.reason_to_stop(one, epoch) is None) == (rank <= math.ceil(len(values) / factor))
                assert f"rank {rank} of {len(values)}," in rungs.reason_left_behind(one, epoch)
        wait = [trial for trial, epoch in paused.items() if rungs.is_promoted(trial, epoch)]
        first = max(wait, key=lambda trial: (paused[trial], rungs.values[paused[trial]][trial], -trial), default=None)
        assert rungs.next_promotion(paused) == first
        if first is not None and generator.random() < 0.5:
            del paused[first]


def test_a_value_that_is_not_a_number_is_the_worst():
    rungs = Rungs([1], reduction_factor=2)
    for trial, value in enumerate((math.nan, 0.1, 0.2, math.nan)):
        rungs.record(trial, 1, value)
    assert [rungs.reason_to_stop(trial, 1) is None for trial in range(4)] == [False, True, True, False]
    assert rungs.is_promoted(1, 1) and not rungs.is_promoted(0, 1)


def test_a_decision_takes_no_longer_with_many_trials():
    rungs = Rungs([1], reduction_factor=2)
    generator = random.Random(0)
    for trial in range(20_000):
        rungs.record(trial, 1, generator.random())
    started = time.process_time()
    for trial in range(1000):
        rungs.reason_to_stop(trial, 1)
        rungs.is_promoted(trial, 1)
    assert (time.process_time() - started) / 1000 < 0.0005, "half a millisecond; counting all takes 1 to 2"
