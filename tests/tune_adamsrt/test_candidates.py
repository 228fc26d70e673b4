"""Which candidates are confirmed, on which seeds, and which is chosen."""

import itertools

import pytest
from search_records import make_report, make_trial

from tune_adamsrt.candidates import (
    build_confirmation,
    choose_candidate,
    confirmation_name,
    describe_failures,
    fresh_seeds,
    is_confirmation,
    listed_runs,
)
from tune_adamsrt.records import TrialState, spread_of, top_candidates
from tune_adamsrt.study import trial_seed


def run(confirms, seed, value, *, state=TrialState.COMPLETE, valid_loss=1.0, number=0):
    trial = make_trial(number, state, 3, value, confirms=confirms, origin=f"trial {confirms}, seed {seed} of 2")
    trial.seed = seed
    trial.epochs[-1] = make_report(3, value)
    object.__setattr__(trial.epochs[-1], "valid_loss", valid_loss)
    return trial


class TestSeeds:
    def test_are_none_of_the_searches_own(self):
        """A search's seeds lie below 2^31, for any number of trials; those of a confirmation above."""
        searched = {trial_seed(search, number) for search in range(20) for number in range(500)}
        fresh = {seed for search in range(20) for seed in fresh_seeds(search, 50)}
        assert max(searched) < 2**31 <= min(fresh) and max(fresh) < 2**32
        assert not searched & fresh

    def test_differ_and_depend_on_the_search_seed_only(self):
        seeds = fresh_seeds(3, 100)
        assert len(set(seeds)) == 100
        assert fresh_seeds(3, 5) == seeds[:5], "more seeds keep the first ones"
        assert fresh_seeds(4, 5) != seeds[:5]

    def test_are_the_same_for_all_candidates(self):
        candidates = [make_trial(number, TrialState.COMPLETE, 10) for number in (4, 7)]
        runs = listed_runs(candidates, [11, 22, 33])
        assert [(one.confirms, one.seed) for one in runs] == [
            (number, seed) for seed, number in itertools.product((11, 22, 33), (4, 7))
        ]
        assert runs[2].origin == "trial 4, seed 2 of 3"


class TestCandidates:
    def test_are_the_best_first_and_no_configuration_twice(self):
        trials = [
            make_trial(number, TrialState.COMPLETE, 10, value) for number, value in enumerate((0.7, 0.9, 0.8, 0.6))
        ]
        for number, lr in enumerate((0.1, 0.2, 0.2, 0.3)):
            trials[number].hyper_parameters["lr"] = lr
        assert [trial.number for trial in top_candidates(trials, 2)] == [1, 0], "trial 2 has the values of trial 1"
        assert [trial.number for trial in top_candidates(trials, 9)] == [1, 0, 3], "fewer than asked for"
        assert top_candidates([], 3) == []


class TestTheChoice:
    def test_goes_by_the_mean_and_not_by_the_best_single_run(self):
        lucky = [run(1, 11, 0.99), run(1, 22, 0.50)]
        steady = [run(2, 11, 0.80), run(2, 22, 0.80)]
        assert choose_candidate(lucky + steady) == 2

    @pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.RUNNING])
    def test_rules_out_a_candidate_with_a_run_that_did_not_train_in_full(self, state):
        runs = [run(1, 11, 0.99), run(1, 22, 0.99, state=state), run(2, 11, 0.5), run(2, 22, 0.5)]
        assert choose_candidate(runs) == 2
        assert choose_candidate(runs[:2]) is None
        assert choose_candidate([]) is None

    def test_does_not_depend_on_the_order_of_runs(self):
        """Equal means whose sums differ in the last bit: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""
        values = {1: (0.1, 0.2, 0.3), 2: (0.3, 0.2, 0.1)}
        runs = [run(number, seed, value) for number in values for seed, value in enumerate(values[number])]
        assert {choose_candidate(order) for order in itertools.permutations(runs)} == {1}

    def test_gives_ties_to_the_lower_validation_loss(self):
        runs = [run(1, 11, 0.8, valid_loss=0.5), run(2, 11, 0.8, valid_loss=0.4)]
        assert choose_candidate(runs) == 2

    def test_cannot_see_the_test_set(self):
        search = {number: make_trial(number, TrialState.COMPLETE, 10) for number in (1, 2)}
        runs = [run(1, 11, 0.8), run(2, 11, 0.7)]
        assert build_confirmation(search, runs, {}).candidate is search[1]
        assert build_confirmation(search, runs, {1: [0.0], 2: [1.0]}).candidate is search[1]


def test_what_a_confirmation_came_to():
    search = {number: make_trial(number, TrialState.COMPLETE, 10) for number in (1, 2)}
    runs = [run(2, 22, 0.6), run(1, 22, 0.9), run(1, 11, 0.8), run(2, 11, 0.7)]
    found = build_confirmation(search, runs, {1: [0.75, 0.85]})
    assert found.candidate is search[1]
    assert (found.seeds, found.candidates, found.epochs_spent, found.tested) == ((11, 22), 2, 12, 1)
    assert found.valid_accuracy == spread_of([0.8, 0.9])
    assert found.test_accuracy.mean == pytest.approx(0.8)
    assert found.test_accuracy.std == pytest.approx(0.05 * 2**0.5), "n - 1"
    assert found.best_run.seed == 22
    assert spread_of([0.5]).std == 0.0


def test_failures_are_counted_with_the_first_reason():
    failed = run(1, 11, 0.1, state=TrialState.FAILED)
    failed.reason = "diverged: train_loss is nan at epoch 2"
    assert describe_failures([failed, run(1, 22, 0.5)]) == (
        "1 of 2 runs failed; trial 1, seed 11 of 2: diverged: train_loss is nan at epoch 2"
    )


def test_names_tell_a_confirmation_from_a_search():
    name = confirmation_name("resnet20-digits-adamsrt-1", 3)
    assert is_confirmation(name) and is_confirmation(name, of="resnet20-digits-adamsrt-1")
    assert not is_confirmation(name, of="resnet20-digits-adamsrt")
    assert not is_confirmation("resnet20-digits-adamsrt-1")
