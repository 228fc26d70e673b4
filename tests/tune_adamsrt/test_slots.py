"""How many trials are out at a time, with a cluster that grows and shrinks."""

from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher
from search_records import make_info, make_report

from tune_adamsrt import confirm as confirming
from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.cluster.versions import OtherVersionsError, describe_difference, installed
from tune_adamsrt.plan import make_plans
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.slots import LOOK_EVERY_S, WithinSlots
from tune_adamsrt.storage import open_storage
from tune_adamsrt.study import Study


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


ONE_CPU = TrialResources(cpus=1.0, gpus=0.0)


@pytest.fixture
def searched(tmp_path):
    """A plan and its study, whose one trial has trained in full."""
    options = ["--setting", "resnet20-digits", "--epochs", "1", "--study", "s", "--confirm-seeds", "3"]
    [plan] = make_plans(parse_arguments([*options, "--output", str(tmp_path)]))
    storage = open_storage(str(tmp_path / "optuna.journal"))
    study = Study("s", storage=storage, space=plan.space, sampler="random", seed=0, protocol=plan.protocol)
    study.report(study.ask().number, make_report(1, 0.9))
    study.tell_complete(0)
    return plan, study, storage


def test_a_confirmation_follows_the_slots_as_well(searched, monkeypatch):
    plan, study, storage = searched
    asked = []

    def run(plan, study, budget, *, max_concurrent, slots, **others):
        now = [0.0]
        limiter = WithinSlots(Counting(), max_concurrent, slots, clock=lambda: now[0])
        now[0] += LOOK_EVERY_S
        asked.append((max_concurrent, sum(limiter.suggest(str(n)) is not None for n in range(9))))
        return "interrupted"

    monkeypatch.setattr(confirming, "run_trials", run)
    silent = SimpleNamespace(note=print, search_started=print)
    _, stopped_by = confirming.confirm(
        plan,
        study,
        storage,
        info=make_info(),
        resources=ONE_CPU,
        max_concurrent=1,
        slots=lambda: 3,
        view=silent,
        tracking=SimpleNamespace(for_confirmation=lambda info: silent),
    )
    assert (stopped_by, asked) == ("interrupted", [(1, 3)])


def test_a_node_with_other_versions_does_not_read_the_test_set(searched):
    plan, study, _ = searched
    other = {**installed(), "torch": "2.11.0"}
    place = {**plan.place(ONE_CPU), "versions": other}
    config = {"protocol": plan.protocol, "place": place, "hyper_parameters": study.trials[0].hyper_parameters}
    assert describe_difference(installed(), other).endswith(", got 2.11.0")
    with pytest.raises(OtherVersionsError):
        confirming.measure_test_accuracies({**config, "seed": 0}, [])
