"""The numbers behind the figures, against small cases that were worked out by hand."""

import math

import numpy as np
import pytest
from stored_searches import STARTED, make_stored, make_stored_trial

from tune_adamsrt.records import TrialState
from tune_adamsrt.reports.analysis import (
    BestSoFar,
    Stage,
    TooFewTrialsError,
    best_so_far,
    comparison_epochs,
    edge_lines,
    importance,
    rank_fidelity,
    rungs_of,
    stages,
    winner_at,
)
from tune_adamsrt.reports.scales import build_scale, stored_space
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space

NAN = math.nan
COMPLETE, STOPPED, FAILED, RUNNING = TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING


def candidate(number, values, **changes):
    return make_stored_trial(number, COMPLETE, values, **changes)


def test_the_best_so_far_follows_the_order_of_the_reports():
    """Epochs arrive as 0 1 0 1 | 0 0 1(stopped) 2 2 2 2: a candidate counts at its last epoch, the eighth and so on."""
    search = make_stored(
        candidate(0, [0.2, 0.4, 0.4, 0.5], times=[1, 3, 5, 6]),
        make_stored_trial(1, STOPPED, [0.3, 0.7, 0.7], times=[2, 4, 7]),
        candidate(2, [0.1, NAN, 0.6, 0.6], times=[8, 9, 10, 11]),
    )
    assert best_so_far(search) == BestSoFar(
        candidates=((6, 0.5), (11, 0.6)),
        any_epoch=((1, 0.2), (2, 0.3), (3, 0.4), (4, 0.7)),
        spent=11,
    )


def test_epochs_trained_twice_are_spent():
    search = make_stored(candidate(0, [0.2, 0.4], times=[1, 2], epochs_repeated=3), epochs=2)
    assert best_so_far(search) == BestSoFar(candidates=((5, 0.4),), any_epoch=((1, 0.2), (5, 0.4)), spent=5)


def test_without_times_of_reports_trials_count_in_the_order_of_their_ends():
    search = make_stored(
        make_stored_trial(0, RUNNING, [0.9]),
        candidate(1, [0.2, 0.4], ended_at=STARTED + 20),
        candidate(2, [0.5, 0.6], ended_at=STARTED + 10),
        epochs=2,
    )
    found = best_so_far(search)
    assert found.candidates == ((2, 0.6),) and found.any_epoch == ((1, 0.5), (2, 0.6), (5, 0.9))


def test_nothing_reported_is_no_best():
    assert best_so_far(make_stored(make_stored_trial(0, RUNNING, []))) == BestSoFar((), (), 0)


def test_every_trial_is_counted_once_per_stage():
    search = make_stored(
        candidate(0, [0.5] * 4),
        make_stored_trial(1, STOPPED, [0.4] * 2, reason="rung 1 (epoch 2): ..."),
        make_stored_trial(2, STOPPED, [0.4] * 3, reason="time budget"),
        make_stored_trial(3, FAILED, [0.4, NAN]),
        make_stored_trial(4, FAILED, []),
        make_stored_trial(5, RUNNING, [0.4]),
    )
    assert stages(search) == [
        Stage(epoch=0, reached=6, went_on=4, stopped=0, elsewhere=0, failed=1, running=1),
        Stage(epoch=2, reached=4, went_on=1, stopped=1, elsewhere=1, failed=1, running=0),
        Stage(epoch=4, reached=1, went_on=1, stopped=0, elsewhere=0, failed=0, running=0),
    ]


def test_rungs_come_from_the_search_or_from_its_stopped_trials():
    reasons = [f"rung {rung} (epoch {epoch}): rank 2 of 2" for rung, epoch in ((2, 8), (1, 4), (1, 4))]
    stopped = [make_stored_trial(i, STOPPED, [0.5] * 4, reason=reason) for i, reason in enumerate(reasons)]
    assert rungs_of(make_stored(*stopped, epochs=16, rungs="4, 8, 12")) == (4, 8, 12)
    assert rungs_of(make_stored(*stopped, epochs=16, rungs=None)) == (4, 8)
    without = make_stored(epochs=405, rungs="")
    assert rungs_of(without) == () and comparison_epochs(without) == (50, 101, 202)
    assert comparison_epochs(make_stored(epochs=2, rungs="")) == (1,)


def test_rank_fidelity_is_kendalls_tau_with_the_end():
    """Epoch 1 is the reverse order; at epoch 2 one of the ten pairs is the other way round: (9 - 1) / 10."""
    curves = [(0.5, 0.2, 0.51), (0.4, 0.1, 0.52), (0.3, 0.3, 0.53), (0.2, 0.4, 0.54), (0.1, 0.5, 0.55)]
    search = make_stored(*(candidate(i, values) for i, values in enumerate(curves)), epochs=3)
    found = rank_fidelity(search)
    assert found.tau == pytest.approx({1: -1.0, 2: 0.8, 3: 1.0}) and (found.until, found.trials) == (3, 5)


def test_with_few_candidates_the_latest_rung_that_enough_reached_is_the_end():
    stopped = [make_stored_trial(i, STOPPED, [0.1 * i, 0.1 * i]) for i in range(1, 5)]
    search = make_stored(candidate(0, [0.0, 0.9, 0.9, 0.9]), *stopped)
    found = rank_fidelity(search)
    assert (found.until, found.trials) == (2, 5)
    assert found.tau == pytest.approx({1: (6 - 4) / 10, 2: 1.0})  # trial 0 is the worst at epoch 1, then the best
    with pytest.raises(TooFewTrialsError, match="needs at least 5 trials at one rung"):
        rank_fidelity(make_stored(candidate(0, [0.1] * 4), *stopped[:3]))
    with pytest.raises(TooFewTrialsError, match="same value"):
        rank_fidelity(make_stored(*(candidate(i, [0.1, 0.2, 0.3, 0.4]) for i in range(5))))


def test_where_the_winner_stood_counts_stopped_and_failed_trials():
    winner = candidate(0, [0.1, 0.3, 0.8, 0.9])
    search = make_stored(
        winner,
        candidate(1, [0.1, 0.5, 0.6, 0.7]),
        make_stored_trial(2, STOPPED, [0.1, 0.4]),
        make_stored_trial(3, FAILED, [0.1, NAN]),
        make_stored_trial(4, RUNNING, [0.1]),
        rungs="2, 3",
    )
    [first, second] = winner_at(search, winner)
    assert (first.epoch, first.rank, first.trials, first.is_in_best_half) == (2, 3, 3, False)
    assert (second.epoch, second.rank, second.trials, second.is_in_best_half) == (3, 1, 2, True)


def planted(trials, value_of, *, seed=0, without_decay=0.5):
    """Candidates at random points of adamsrt's space, with values that a function of the point gives."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(trials):
        lr, decay = 10 ** generator.uniform(-4, -2), 10 ** generator.uniform(-6, -3)
        point = {
            "lr": float(lr),
            "betas": (float(generator.uniform(0.8, 0.98)), float(1 - 10 ** generator.uniform(-3, -1))),
            "weight_decay": float(decay) if generator.random() >= without_decay else 0.0,
        }
        value = value_of(point)
        found.append(candidate(number, [value, value], hyper_parameters=point))
    return make_stored(*found, epochs=2, rungs="1")


def test_what_decides_alone_is_the_most_important_and_beyond_chance():
    found = importance(planted(60, lambda point: 0.9 - 0.05 * abs(math.log10(point["lr"]) + 2.5)))
    assert next(iter(found.shares)) == "lr" and found.shares["lr"] > 2 * found.chance["lr"]
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.shares) == {"lr", "beta1", "beta2", "weight_decay", "weight_decay = 0"}
    assert (found.epoch, found.trials, found.top) == (2, 60, 0.1)


def test_whether_there_is_weight_decay_is_a_question_of_its_own():
    search = planted(60, lambda point: 0.5 + 0.1 * (point["weight_decay"] == 0) + point["lr"], without_decay=0.2)
    found = importance(search)
    assert found.shares["weight_decay = 0"] > found.chance["weight_decay = 0"]


def test_noise_stays_within_chance():
    """Fixed seeds; each of five marks is exceeded in one of twenty cases, so that 15 bars exceed some 0.75."""
    exceeded = 0
    for seed in range(3):
        noise = np.random.default_rng(1000 + seed)
        found = importance(planted(20, lambda _, noise=noise: float(noise.uniform()), seed=seed))
        exceeded += sum(found.shares[name] > found.chance[name] for name in found.shares)
    assert exceeded <= 3


def test_importance_needs_trials_that_differ():
    with pytest.raises(TooFewTrialsError, match="needs at least 10 trials"):
        importance(planted(9, lambda point: point["lr"]))
    with pytest.raises(TooFewTrialsError, match="same value at epoch 2"):
        importance(planted(12, lambda point: 0.5))


def test_the_stored_space_is_the_one_that_was_searched():
    space = build_search_space(load_setting("resnet20-digits"), "adamsrt")
    stored = stored_space(space.to_json())
    assert stored.ranges == space.ranges and list(stored.ranges) == list(space.ranges)
    point = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
    lines = edge_lines(make_stored(), candidate(0, [0.5], hyper_parameters=point))
    assert lines == space.edges(point) and lines[0].startswith("lr = 0.0001 lies within 2%")


def test_scales_place_values_as_they_were_searched():
    ranges = build_search_space(load_setting("resnet20-digits"), "adamsrt").ranges
    scales = {scale.name: scale for scale in (build_scale(name, allowed) for name, allowed in ranges.items())}
    assert list(scales) == ["lr", "beta1", "beta2", "weight_decay"]
    # Log-uniform: lr in [1e-4, 3e-2], 1 - beta2 in [5e-4, 0.1], weight decay 0 or in [1e-6, 5e-3].
    assert scales["lr"].position(1e-3) == pytest.approx(1 / math.log10(300))
    assert scales["beta1"].position(0.89) == pytest.approx(0.5)
    assert scales["beta2"].position(0.99) == pytest.approx(1 / math.log10(200))
    assert [scales["beta2"].position(value) for value in (0.9, 0.9995)] == pytest.approx([0, 1])
    assert scales["weight_decay"].position(1e-6) == 0 and scales["weight_decay"].position(0.0) < -0.1
    assert [label for _, label in scales["weight_decay"].ticks] == ["0", "1e-6", "1e-5", "0.0001", "0.001", "0.005"]
    for scale in scales.values():
        places = [place for place, _ in scale.ticks]
        assert places == sorted(places)
        for place, label in scale.ticks:
            assert scale.position(float(label)) == pytest.approx(place, abs=0.01)


def test_a_grid_stands_in_steps():
    ranges = build_search_space(load_setting("resnet20-digits"), "adam", grid=True).ranges
    decay = build_scale("weight_decay", ranges["weight_decay"])
    assert [decay.position(value) for value in (0.0, 7.8125e-6, 5e-4)] == pytest.approx([0, 1 / 7, 1])
    assert build_scale("lr", ranges["lr"]).position(1e-3) == 0.5
