"""What Optuna's samplers are shown of a space with a conditional weight decay, and of trials that have not ended."""

import itertools
import random
import time

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState, create_trial

from tune_adamsrt import samplers
from tune_adamsrt.samplers import MOST_SHOWN, ZERO_SHARE, JointSampler, build_sampler
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space

SETTING = load_setting("resnet18-cifar10")
SPACE = build_search_space(SETTING, "adamsrt")


def study_with(sampler):
    return optuna.create_study(direction="maximize", sampler=sampler)


def ask(study, space=SPACE):
    trial = study.ask()
    return trial, space.suggest(trial)


@pytest.mark.parametrize("optimizer", list(SETTING.optimizers))
def test_every_point_lies_in_the_space_and_is_the_samplers_own(optimizer):
    space = build_search_space(SETTING, optimizer)
    study = study_with(build_sampler("tpe", space, seed=0))
    for i in range(25):
        trial, point = ask(study, space)
        assert space.contains(point)
        assert trial.params.keys() == space.encode(point).keys()
        assert trial.params.keys() <= trial.relative_params.keys(), "none is sampled independently"
        study.tell(trial, 0.01 * i)


def test_before_anything_is_known_a_sixth_has_no_weight_decay():
    study = study_with(JointSampler(RandomSampler(seed=0), SPACE))
    decays = [ask(study)[1]["weight_decay"] for _ in range(600)]
    zero = sum(decay == 0 for decay in decays) / len(decays)
    assert zero == pytest.approx(ZERO_SHARE, abs=0.06)  # four standard deviations
    middle = (1e-6 * 5e-3) ** 0.5
    below = sum(0 < decay < middle for decay in decays) / sum(decay > 0 for decay in decays)
    assert below == pytest.approx(0.5, abs=0.09)  # the range itself is still log-uniform


def test_no_weight_decay_is_learned_as_the_end_of_its_range():
    study = study_with(build_sampler("tpe", SPACE, seed=0))
    for _ in range(40):
        trial, point = ask(study)
        study.tell(trial, -point["weight_decay"])
    last = [ask(study)[1]["weight_decay"] for _ in range(20)]
    assert sum(decay == 0 for decay in last) > 10, "six times its share"


def share_near_the_survivors(sampler):
    """How often a learning rate above 3e-3 is drawn, where those with one run on and all others were stopped."""
    study = study_with(sampler)
    for i in range(40):
        trial = study.ask()
        point = SPACE.suggest(trial)
        is_good = point["lr"] > 3e-3
        trial.report(0.5 + 0.001 * i if is_good else 0.2, 30 if is_good else 15)
        if not is_good:
            study.tell(trial, state=TrialState.PRUNED)
    return sum(ask(study)[1]["lr"] > 3e-3 for _ in range(40)) / 40


def test_survivors_that_still_run_are_what_it_looks_for():
    # Of 40 draws a random sampler has 16 such learning rates, and more than 26 in one of 1,000 cases.
    assert share_near_the_survivors(build_sampler("tpe", SPACE, seed=0)) > 26 / 40
    # The reason for _View: Optuna's constant liar counts whatever runs among the poor.
    assert share_near_the_survivors(TPESampler(seed=0, multivariate=True, constant_liar=True)) < 16 / 40


def test_the_study_itself_stays_as_it_is():
    study = study_with(build_sampler("tpe", SPACE, seed=0))
    trials = [ask(study)[0] for _ in range(12)]
    for trial in trials:
        trial.report(0.5, 1)
    before = [(trial.state, trial.params) for trial in study.trials]
    ask(study)
    assert [(trial.state, trial.params) for trial in study.trials[:12]] == before
    assert {state for state, _ in before} == {TrialState.RUNNING}


def test_another_driver_with_the_same_trials_draws_the_same_point():
    study = study_with(build_sampler("tpe", SPACE, seed=0))
    for i in range(15):
        trial, _ = ask(study)
        trial.report(0.1 * i, 1)
        study.tell(trial, state=TrialState.PRUNED if i % 2 else TrialState.COMPLETE, values=None if i % 2 else 0.1 * i)
    points = []
    for _ in range(2):
        again = study_with(build_sampler("tpe", SPACE, seed=1))
        again.add_trials(study.trials)
        points.append(ask(again)[1])
    assert points[0] == points[1]


def test_ask_stays_cheap_with_many_trials():
    study = study_with(RandomSampler(seed=0))
    ask(study)
    params, distributions = study.trials[0].params, study.trials[0].distributions
    pruned = [
        create_trial(
            state=TrialState.PRUNED, params=params, distributions=distributions, intermediate_values={1: i % 7}
        )
        for i in range(4000)
    ]
    study.add_trials(pruned)
    study.sampler = build_sampler("tpe", SPACE, seed=0)
    ask(study)  # the trials it has not seen yet
    started = time.process_time()
    for _ in range(10):
        ask(study)
    assert (time.process_time() - started) / 10 < 0.05


def add_trials(study, count, *, seed=0):
    """Trials in every state: some without a value, some with equal values, some that failed."""
    generator = random.Random(seed)
    for _ in range(count):
        trial, _ = ask(study)
        carry_on(study, trial, generator)


def carry_on(study, trial, generator):
    """Let a running trial report, and mostly end."""
    last = max(study.get_trials(deepcopy=False)[trial.number].intermediate_values, default=0)
    for epoch in range(last + 1, last + generator.choice([1, 2, 4, 4, 9])):
        trial.report(round(generator.random(), 1), epoch)
    if generator.random() < 0.9:
        state = generator.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL])
        study.tell(trial, round(generator.random(), 1) if state is TrialState.COMPLETE else None, state=state)


def seen_by(sampler, study, *states):
    shown = sampler._view.of(study)._get_trials(states=states or None)
    return [(trial.number, trial.state, trial.value, trial.params, trial.intermediate_values) for trial in shown]


def test_a_sampler_that_has_followed_a_study_sees_what_a_new_one_sees(monkeypatch):
    study = study_with(RandomSampler(seed=0))
    generator = random.Random(1)
    for most in (MOST_SHOWN, 60):  # of about 110 with a value
        monkeypatch.setattr(samplers, "MOST_SHOWN", most)
        monkeypatch.setattr(samplers, "BEST_SHOWN", 30)
        follows = build_sampler("tpe", SPACE, seed=0)
        for _ in range(30):
            add_trials(study, 2, seed=generator.random())
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                carry_on(study, optuna.trial.Trial(study, trial._trial_id), generator)
            new = build_sampler("tpe", SPACE, seed=0)
            assert seen_by(follows, study) == seen_by(new, study) != []
            assert seen_by(follows, study, TrialState.PRUNED) == seen_by(new, study, TrialState.PRUNED)


def test_up_to_500_trials_all_are_seen():
    study = study_with(RandomSampler(seed=0))
    add_trials(study, 550)  # a fifth of which has failed
    sampler = build_sampler("tpe", SPACE, seed=0)
    shown = sampler._view.of(study)._get_trials()
    with_something_to_say = [trial for trial in study.trials if trial.state is not TrialState.FAIL]
    assert len(with_something_to_say) <= MOST_SHOWN
    assert [trial.number for trial in shown] == [trial.number for trial in with_something_to_say]


def test_of_more_trials_those_that_tpe_models_as_good_are_the_same():
    study = study_with(RandomSampler(seed=0))
    add_trials(study, 1500)
    sampler = build_sampler("tpe", SPACE, seed=0)
    shown = sampler._view.of(study)._get_trials()
    everything = [seen for trial in study.trials if (seen := sampler._encode(trial)) is not None]
    everything = [trial for trial in everything if trial.state is not TrialState.FAIL]
    before_first_epoch = [trial.number for trial in everything if trial.state is TrialState.RUNNING]
    assert len(shown) == MOST_SHOWN + len(before_first_epoch) < len(everything)
    assert set(before_first_epoch) <= {trial.number for trial in shown}
    good, _ = _split_trials(study, everything, 25)  # Optuna's own
    good_of_shown, others = _split_trials(study, shown, 25)
    assert [trial.number for trial in good_of_shown] == [trial.number for trial in good]
    assert max(b.number - a.number for a, b in itertools.pairwise(others)) < 15, (
        "the others are from all over the study"
    )
