"""The figures and files of a comparison."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from comparison_cells import SETTING, make_cell
from search_records import make_info, make_trial

from tune_adamsrt.records import TrialState
from tune_adamsrt.reports.comparison_table import build_comparison
from tune_adamsrt.reports.table_figures import learning_rate_sensitivity, performance_against_budget
from tune_adamsrt.reports.table_page import write_comparison
from tune_adamsrt.studies import StoredSearch

COMPLETE, STOPPED = TrialState.COMPLETE, TrialState.STOPPED


def make_search(optimizer, *, top=0.9, candidates=8, stopped=8) -> StoredSearch:
    generator = np.random.default_rng(0)
    trials = [
        make_trial(number, COMPLETE if number < candidates else STOPPED, 10 if number < candidates else 2)
        for number in range(candidates + stopped)
    ]
    for trial in trials:
        trial.hyper_parameters = {"lr": float(10 ** generator.uniform(-4, -1))}
        trial.epochs = make_trial(0, COMPLETE, trial.epoch, top - float(generator.uniform(0, 0.1))).epochs
    info = make_info(setting=SETTING, optimizer=optimizer, restored=trials)
    return StoredSearch(info, {}, sampler="tpe", seed=0, started_at=1.0, ended_at=2.0, ended_by="done")


def test_better_optimizers_stand_higher_over_their_own_budget():
    good, poor = make_search("adam", top=0.95), make_search("sgd", top=0.85, stopped=0)
    (axes,) = performance_against_budget([good, poor]).figure.axes
    high, low = (line for line in axes.lines if len(line.get_xdata()) > 2)
    assert min(high.get_ydata()) > max(low.get_ydata())
    assert max(high.get_xdata()) == 8 * 10 + 8 * 2 and max(low.get_xdata()) == 80
    assert len(axes.collections) == 2, "a band for each"


def test_learning_rates_are_relative_to_the_best():
    search = make_search("adam")
    (axes,) = learning_rate_sensitivity([search]).figure.axes
    ratios, values = axes.lines[0].get_data()
    assert len(ratios) == 8 and ratios[int(np.argmax(values))] == 1.0


@pytest.mark.parametrize("draw", [performance_against_budget, learning_rate_sensitivity])
def test_what_cannot_be_drawn_is_named(draw):
    none = make_search("adamg", candidates=0)
    assert draw([none]).figure is None and "Not drawn" in draw([none]).caption
    assert draw([make_search("adam"), none]).caption.endswith("for want of trials trained in full: adamg.")


def test_the_files_of_a_comparison(tmp_path):
    comparison = build_comparison([make_cell("adam", 93.0, 93.1), make_cell("sgd", 95.0, 95.1)], published={})
    page = write_comparison(tmp_path, comparison, [make_search("adam"), make_search("sgd")])
    text = page.read_text(encoding="utf-8")
    assert "95.05 ± 0.07" in text and "http" not in text.split("</head>")[1]
    assert text.count("<svg") == 2
    for name in ("table.md", "table.tex", "table.csv", "table.parquet"):
        assert (tmp_path / name).stat().st_size and f'href="{name}"' in text
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == [
        f"{SETTING}-{name}{suffix}"
        for name in ("lr-sensitivity", "performance-against-budget")
        for suffix in (".png", ".svg")
    ]
    for svg in (tmp_path / "figures").glob("*.svg"):
        ET.fromstring(svg.read_text())
    assert not list(tmp_path.rglob("*.tmp"))
