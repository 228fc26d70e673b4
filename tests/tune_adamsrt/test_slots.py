"""How many trials are out at a time, with a cluster that grows and shrinks."""

from ray.tune.search import Searcher

from tune_adamsrt.slots import LOOK_EVERY_S, WithinSlots


class Counting(Searcher):
    def suggest(self, trial_id):
        return {"trial": trial_id}

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass


def asked(limiter, trials):
    return sum(limiter.suggest(trial) is not None for trial in trials)


def test_trials_follow_the_slots():
    now, slots = [0.0], [2]
    limiter = WithinSlots(Counting(), 2, lambda: slots[0], clock=lambda: now[0])
    assert asked(limiter, "abcd") == 2
    slots[0] = 5
    assert asked(limiter, "cd") == 0  # it does not look at every question
    now[0] += LOOK_EVERY_S
    assert asked(limiter, "cdefgh") == 3
    slots[0] = 0  # every node lost: what ran waits for another, and no more than that
    now[0] += LOOK_EVERY_S
    for trial in "abcde":
        limiter.on_trial_complete(trial, {})
    assert asked(limiter, "ij") == 1


def test_a_number_that_was_chosen_stays_and_a_head_that_is_away_changes_nothing():
    now = [0.0]
    fixed = WithinSlots(Counting(), 3, None, clock=lambda: now[0])

    def away():
        raise ConnectionError

    unsure = WithinSlots(Counting(), 3, away, clock=lambda: now[0])
    now[0] += 100 * LOOK_EVERY_S
    assert asked(fixed, "abcd") == asked(unsure, "abcd") == 3
