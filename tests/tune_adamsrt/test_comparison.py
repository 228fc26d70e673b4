"""Optimizers against each other: tests, the table, what is refused and flagged, and reading cells from studies."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from comparison_cells import SETTING, make_cell
from search_records import make_info, make_report

from tune_adamsrt.reports.analysis import WinnerAt
from tune_adamsrt.reports.comparison import load_cell, load_cells
from tune_adamsrt.reports.comparison_table import build_comparison, load_published
from tune_adamsrt.reports.significance import Test, compare_all, holm, not_worse_than_best, p_value
from tune_adamsrt.reports.table_checks import flags_of, refusals_of
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import StudyError, open_storage
from tune_adamsrt.study import ListedRun, Study


def t_density(t, df):
    norm = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    return norm * (1 + t * t / df) ** (-(df + 1) / 2)


def two_sided_p(t, df, steps=20_000):
    """Student's t by Simpson's rule on [0, |t|]: an independent reference for small |t|."""
    h = abs(t) / steps
    weights = [1, *([4, 2] * steps)[: steps - 1], 1]
    inside = h / 3 * sum(w * t_density(i * h, df) for i, w in enumerate(weights))
    return 1 - 2 * inside


class TestSignificance:
    def test_welch_is_its_formula(self):
        a, b = [0.91, 0.93, 0.92, 0.95], [0.90, 0.905, 0.91]
        mean_a, mean_b = sum(a) / 4, sum(b) / 3
        var_a = sum((x - mean_a) ** 2 for x in a) / 3 / 4
        var_b = sum((x - mean_b) ** 2 for x in b) / 2 / 3
        t = (mean_a - mean_b) / math.sqrt(var_a + var_b)
        df = (var_a + var_b) ** 2 / (var_a**2 / 3 + var_b**2 / 2)
        found = p_value(dict(enumerate(a)), dict(enumerate(b)), Test.WELCH)
        assert found == pytest.approx(two_sided_p(t, df), abs=1e-8)

    def test_paired_looks_at_the_differences_on_common_seeds(self):
        a = {1: 0.91, 2: 0.95, 3: 0.93, 9: 0.1}
        b = {3: 0.92, 2: 0.93, 1: 0.905, 8: 0.9}
        differences = [0.005, 0.02, 0.01]
        mean = sum(differences) / 3
        std = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
        assert p_value(a, b, Test.PAIRED) == pytest.approx(two_sided_p(mean / (std / math.sqrt(3)), 2), abs=1e-8)

    @pytest.mark.parametrize("test", Test)
    @pytest.mark.parametrize(
        ("first", "second"),
        [({1: 0.9}, {1: 0.8}), ({1: 0.9, 2: 0.9}, {1: 0.8, 2: 0.8}), ({1: 0.9, 2: 0.8}, {})],
    )
    def test_without_spread_or_seeds_nothing_is_significant(self, first, second, test):
        assert p_value(first, second, test) == 1.0

    def test_holm_is_its_textbook_example(self):
        # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []

    def test_all_pairs_are_corrected_for(self):
        accuracies = {
            name: {1: base, 2: base + 0.01, 3: base + 0.005} for name, base in (("a", 0.9), ("b", 0.91), ("c", 0.95))
        }
        tests = compare_all(accuracies, Test.WELCH)
        assert [(found.first, found.second) for found in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
        assert min(found.corrected_p / found.p for found in tests) >= 1
        assert max(found.corrected_p / found.p for found in tests) == pytest.approx(3)

    def test_equal_optimizers_are_all_called_best_as_often_as_promised(self):
        """Seven optimizers without any difference: at most 5 % of the columns call one of them worse.

        At a rate of 5 %, more than 16 of 100 would be a false failure with odds below 1e-5; without the
        correction it is about a third of them.
        """
        generator = np.random.default_rng(0)
        wrong = 0
        for _ in range(100):
            drawn = generator.normal(0.9, 0.01, size=(7, 5))
            accuracies = {str(row): dict(enumerate(values.tolist())) for row, values in enumerate(drawn)}
            _, bold = not_worse_than_best(accuracies, compare_all(accuracies, Test.WELCH), alpha=0.05)
            wrong += len(bold) < 7
        assert wrong <= 16


class TestTable:
    def test_bold_are_the_best_and_those_that_are_not_significantly_worse(self):
        cells = [
            make_cell("adamsrt", 94.9, 95.0, 94.95),
            make_cell("adams", 94.8, 94.9, 94.95),
            make_cell("adam", 93.0, 93.1, 93.05),
        ]
        (column,) = build_comparison(cells, published={}).columns
        assert column.best == "adamsrt" and column.bold == {"adamsrt", "adams"}
        assert column.refusals == ()

    def test_one_seed_leaves_everything_open(self):
        (column,) = build_comparison([make_cell("adam", 90.0), make_cell("sgd", 95.0)], published={}).columns
        assert column.bold == {"adam", "sgd"} and column.best == "sgd"
        assert any("one seed only" in flag for flag in column.flags)

    def test_a_protocol_that_differs_is_refused_not_averaged_away(self):
        other = {"dataset": "cifar10", "epochs": 405, "limit_train_examples": 2000}
        cells = [make_cell("adam", 93.0, 93.1), make_cell("sgd", 95.0, 95.1, protocol=other)]
        (column,) = build_comparison(cells, published={}).columns
        assert column.refusals == ("unequal limit train examples: None (adam), 2000 (sgd)",)
        assert column.best is None and column.bold == frozenset() and column.tests == ()

    def test_settings_are_columns_of_their_own(self):
        cells = [make_cell("adam", 93.0), make_cell("adam", 99.0, setting="resnet20-digits")]
        comparison = build_comparison(cells, published={})
        assert [column.setting for column in comparison.columns] == [SETTING, "resnet20-digits"]
        assert comparison.optimizers == ("adam",)

    def test_two_searches_in_one_place_are_refused(self):
        with pytest.raises(ValueError, match="one search of resnet18-cifar10/adam, got adam-study and b"):
            build_comparison([make_cell("adam", 93.0), make_cell("adam", 94.0, study="b")], published={})

    def test_published_values_are_the_papers(self):
        published = load_published()
        assert len(published) == 46
        assert (published["resnet18-cifar10", "sgd"].mean, published["vgg16-svhn", "adamsrt"].std) == (0.951, 0.0005)
        assert ("resnet18-imagenet", "adamw") not in published


class TestFlags:
    def flags(self, *cells, test=Test.WELCH):
        by_name = {cell.optimizer: cell for cell in cells}
        tests = compare_all({name: cell.test for name, cell in by_name.items()}, test)
        return flags_of(by_name, tests, test=test, alpha=0.05)

    def test_nothing_is_said_of_equal_cells(self):
        assert self.flags(make_cell("adam", 93.0, 93.2), make_cell("sgd", 95.0, 95.1)) == ()
        assert refusals_of({"adam": make_cell("adam", 93.0), "sgd": make_cell("sgd", 95.0)}) == ()

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"confirm_epochs_spent": 1215}, "unequal epochs spent to confirm: from 1215 (sgd) to 3645 (adam)"),
            ({"search_epochs_allowed": 5}, "unequal epochs allowed to the search: 25920 (adam), 5 (sgd)"),
            ({"search_epochs_spent": 8999}, "unequal epochs spent by the searches: from 8999 (sgd) to 10000 (adam)"),
            ({"test": {1: 0.95, 7: 0.96}}, "unequal seeds: 2: 1 2 (adam), 2: 1 7 (sgd)"),
            ({"method": {"sampler": "random", "scheduler": "asha"}}, "unequal sampler: tpe (adam), random (sgd)"),
            ({"versions": {"version.torch": "2.14.0"}}, "unequal version of torch: 2.15.0 (adam), 2.14.0 (sgd)"),
            ({"versions": {"git_revision": "abc-dirty"}}, "unequal git revision: abc (adam), abc-dirty (sgd)"),
            ({"edges": ("lr = 1 lies ...",)}, "sgd: the best is at an edge of its space: lr = 1 lies ..."),
        ],
    )
    def test_what_a_reader_must_know(self, changes, expected):
        sgd = dataclasses.replace(make_cell("sgd", 95.0, 95.1), **changes)
        assert expected in self.flags(make_cell("adam", 93.0, 93.2), sgd)

    def test_epochs_spent_may_differ_a_little_and_trials_as_they_like(self):
        near = dataclasses.replace(make_cell("sgd", 95.0, 95.1), search_epochs_spent=9001, trials=99)
        assert self.flags(make_cell("adam", 93.0, 93.2), near) == ()

    @pytest.mark.parametrize(("name", "special"), [("adams", "adam"), ("adamg", "adam"), ("sgdmrt", "sgd")])
    def test_losing_to_a_special_case_by_more_than_noise_is_flagged(self, name, special):
        flags = self.flags(make_cell(name, 93.0, 93.1, 93.2), make_cell(special, 94.0, 94.1, 94.2))
        assert len(flags) == 1
        assert flags[0].startswith(f"{name} contains {special} (one group per element), yet loses to it by 1.00 points")

    def test_losing_within_noise_or_winning_is_not(self):
        assert self.flags(make_cell("adams", 93.0, 94.0, 95.0), make_cell("adam", 94.0, 94.1, 94.2)) == ()
        assert self.flags(make_cell("adams", 95.0, 95.1, 95.2), make_cell("adam", 94.0, 94.1, 94.2)) == ()
        assert self.flags(make_cell("adamw", 93.0, 93.1, 93.2), make_cell("adam", 94.0, 94.1, 94.2)) == ()

    def test_a_space_that_lacks_the_best_of_the_special_case_is_named(self):
        adam = make_cell("adam", 94.0, 94.1, 94.2)
        outside = adam.hyper_parameters | {"lr": 2e-4}  # below the lr of adamg's space
        flags = self.flags(make_cell("adamg", 93.0, 93.1, 93.2), dataclasses.replace(adam, hyper_parameters=outside))
        assert flags[0].endswith("its space does not hold the best values of adam")

    def test_a_winner_that_a_rung_might_have_stopped_is_flagged(self):
        standing = (WinnerAt(15, 5, 8), WinnerAt(30, 4, 8))
        (flag,) = self.flags(make_cell("sgd", 95.0, 95.1, standing=standing))
        assert flag == "sgd: early stopping might have lost the best: at epoch 15 it was 5 of 8, outside the best half"


def test_a_cell_is_what_the_confirmation_says(tmp_path):
    """A real study and its confirmation, written as the search writes them."""
    storage = open_storage(str(tmp_path / "optuna.journal"))
    space = build_search_space(load_setting("resnet20-digits"), "adamsrt")
    protocol = {"dataset": "digits", "optimizer": "adamsrt", "epochs": 2}
    search = Study("s", storage=storage, space=space, sampler="random", seed=0, protocol=protocol)
    tags = {"scheduler": "asha", "version.torch": "2.15", "device": "cpu", "host": "a"}
    search.note_start(
        make_info(study_name="s", epochs=2, trials=3, max_epochs_spent=6, space=space.to_json(), tags=tags)
    )
    for values in ((0.5, 0.9), (0.4, 0.8), (0.3,)):
        trial = search.ask()
        for epoch, value in enumerate(values, start=1):
            search.report(trial.number, make_report(epoch, value))
        if len(values) == 2:
            search.tell_complete(trial.number)
        else:
            search.tell_stopped(trial.number, "rung 1")
    with pytest.raises(StudyError, match="must have a confirmed and tested best"):
        load_cell(storage, "s")
    with pytest.raises(StudyError, match="got none of 1"):
        load_cells(storage, ["s"])

    runs = [
        ListedRun(search.trials[number].hyper_parameters, seed=seed, origin="again", confirms=number)
        for number, seed in itertools.product((0, 1), (11, 12))
    ]
    again = Study(
        "s.2-seeds.confirm", storage=storage, space=space, sampler="random", seed=0, protocol=protocol,
        listed=runs, confirms=search,
    )  # fmt: skip
    values = {(0, 11): 0.7, (0, 12): 0.72, (1, 11): 0.85, (1, 12): 0.83}  # trial 1 is better on fresh seeds
    for _ in runs:
        run = again.ask()
        for epoch in (1, 2):
            again.report(run.number, make_report(epoch, values[run.confirms, run.seed]))
        again.tell_complete(run.number)
    again.note_test(1, [0.81, 0.82])

    cell = load_cell(storage, "s")
    assert (cell.trial, cell.test, cell.valid) == (1, {11: 0.81, 12: 0.82}, {11: 0.85, 12: 0.83})
    assert (cell.trials, cell.search_epochs_spent, cell.confirm_epochs_spent) == (3, 5, 8)
    assert cell.protocol == {"dataset": "digits", "epochs": 2}
    assert cell.versions == {"version.torch": "2.15", "device": "cpu"}
    assert cell.method == {"sampler": "random", "scheduler": "asha", "published_first_points": ""}
    assert [(at.epoch, at.rank) for at in cell.standing] == [(1, 2)]

    Study("new", storage=storage, space=space, sampler="random", seed=0, protocol=protocol)
    assert load_cells(storage, ["s", "new"]) == (
        [cell],
        ["new: left out, its best has not been confirmed and tested yet"],
    )
