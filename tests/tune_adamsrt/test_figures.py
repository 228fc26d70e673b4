"""Figures: what is drawn, against small cases worked out by hand; and that each can be read on light and dark."""

import io
import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image
from stored_searches import make_stored, make_stored_trial

from tune_adamsrt.records import TrialState
from tune_adamsrt.reports import chart
from tune_adamsrt.reports.chart import (
    DARK,
    PAGE,
    SERIES_COLORS,
    STATE_COLORS,
    Chart,
    render_inline_svg,
    render_png,
    render_svg,
)
from tune_adamsrt.reports.figures import (
    MAX_POINTS_PER_CURVE,
    MAX_VECTOR_CURVES,
    best_so_far,
    ends_per_rung,
    learning_curves,
    rank_fidelity,
    search_charts,
    thinned_curve,
)
from tune_adamsrt.reports.space_figures import importance, parallel_coordinates, response_map

NAN = math.nan
COMPLETE, STOPPED, FAILED, RUNNING = TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING


@pytest.fixture(scope="module")
def search():
    """Twelve candidates, two stopped trials, one failed, one running."""
    curves = [[0.5 + 0.01 * i, 0.6 + 0.005 * i, 0.7, 0.9 - 0.01 * ((5 * i) % 12)] for i in range(12)]
    return make_stored(
        *(make_stored_trial(i, COMPLETE, values, times=range(4 * i, 4 * i + 4)) for i, values in enumerate(curves)),
        make_stored_trial(12, STOPPED, [0.3, 0.4], times=[48, 49], reason="rung 1 (epoch 2): ..."),
        make_stored_trial(13, STOPPED, [0.2, 0.35], times=[50, 51], reason="rung 1 (epoch 2): ..."),
        make_stored_trial(14, FAILED, [0.3, NAN], times=[52, 53], reason="diverged"),
        make_stored_trial(15, RUNNING, [0.3], times=[54]),
    )


def only_axes(drawn: Chart):
    assert drawn.figure is not None, drawn.caption
    return drawn.figure.axes[0]


def lines_of(drawn: Chart):
    return [([*line.get_xdata()], [*line.get_ydata()]) for line in only_axes(drawn).lines]


def as_lists(values):
    return [list(map(float, value)) for value in values]


def test_best_so_far_steps_at_each_better_candidate_and_goes_on_to_the_end():
    adam = make_stored(
        make_stored_trial(0, COMPLETE, [0.25, 0.5], times=[1, 2]),
        make_stored_trial(1, STOPPED, [0.625], times=[3]),
        make_stored_trial(2, COMPLETE, [0.25, 0.75], times=[4, 5]),
        make_stored_trial(3, STOPPED, [0.125], times=[6]),
        epochs=2, rungs="1", optimizer="adam",
    )  # fmt: skip
    sgd = make_stored(make_stored_trial(0, RUNNING, [0.5], times=[1]), epochs=2, optimizer="sgd")
    drawn = best_so_far([adam, sgd])
    assert [as_lists(line) for line in lines_of(drawn)] == [
        [[1, 2, 3, 5, 6], [25, 50, 62.5, 75, 75]],
        [[2, 5, 6], [50, 75, 75]],
        [[1, 1], [50, 50]],
    ]
    assert {line.get_drawstyle() for line in only_axes(drawn).lines} == {"steps-post"}
    assert [text.get_text() for text in only_axes(drawn).get_legend().get_texts()] == ["adam", "sgd"]
    assert "No trial has reached the full budget yet: sgd." in drawn.caption


def test_searches_that_share_a_name_are_told_apart_by_their_studies():
    trial = make_stored_trial(0, COMPLETE, [0.5, 0.5])
    drawn = best_so_far([make_stored(trial, epochs=2, study_name=name) for name in ("first", "second")])
    assert [text.get_text() for text in only_axes(drawn).get_legend().get_texts()] == ["first", "second"]


def test_learning_curves_hold_every_finite_value_under_its_outcome(search):
    axes = only_axes(learning_curves(search))
    found = {}
    for collection in axes.collections:
        assert isinstance(collection, LineCollection)
        found[tuple(collection.get_color()[0][:3])] = [segment.tolist() for segment in collection.get_segments()]
    by_state = {
        state: found[tuple(int(STATE_COLORS[state][i : i + 2], 16) / 255 for i in (1, 3, 5))]
        for state in (COMPLETE, STOPPED, FAILED, RUNNING)
    }
    assert len(by_state[COMPLETE]) == 12
    assert by_state[COMPLETE][1] == pytest.approx(np.array([[1, 51], [2, 60.5], [3, 70], [4, 85]]))
    assert by_state[STOPPED] == [[[1, 30], [2, 40]], [[1, 20], [2, 35]]]
    assert by_state[FAILED] == [[[1, 30]]] and by_state[RUNNING] == [[[1, 30]]]
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["1 running", "1 failed", "2 stopped", "12 complete", "best (trial 0)"]


def test_long_curves_are_thinned_between_their_first_and_last_epoch():
    long = make_stored_trial(0, COMPLETE, [0.5 + i / 1000 for i in range(405)])
    points = thinned_curve(long)
    assert len(points) == MAX_POINTS_PER_CURVE and points[0] == (1, 50) and points[-1] == (405, 90.4)
    assert {after[0] - before[0] for before, after in itertools.pairwise(points)} == {4, 5}
    assert len(thinned_curve(make_stored_trial(0, COMPLETE, [0.5] * 100))) == 100


def test_very_many_curves_become_one_image():
    few, many = (
        make_stored(*(make_stored_trial(i, STOPPED, [0.5, 0.5]) for i in range(n))) for n in (3, MAX_VECTOR_CURVES + 1)
    )
    assert "<image" not in render_svg(learning_curves(few).figure)
    assert "<image" in render_svg(learning_curves(many).figure)


def test_parallel_lines_end_at_the_value_of_candidates_only():
    points = [{"lr": lr, "betas": (0.89, 0.9), "weight_decay": 0.0} for lr in (1e-4, 3e-2)]
    search = make_stored(
        make_stored_trial(0, COMPLETE, [0.8] * 4, hyper_parameters=points[0]),
        make_stored_trial(1, STOPPED, [0.9] * 2, hyper_parameters=points[1]),
    )
    lines = [line for line in lines_of(parallel_coordinates(search)) if len(line[0]) > 2]
    stopped, complete = sorted(lines, key=lambda line: len(line[0]))
    assert stopped[0] == [0, 1, 2, 3] and complete[0] == [0, 1, 2, 3, 4]
    assert stopped[1] == pytest.approx([1, 0.5, 0, -0.14]) and complete[1] == pytest.approx([0, 0.5, 0, -0.14, 1])


def test_the_response_map_colours_candidates_and_rings_the_best(search):
    axes = only_axes(response_map(search))
    [points] = axes.collections
    assert points.get_array().tolist() == pytest.approx([90 - ((5 * i) % 12) for i in range(12)])
    lr = [0.001 * (1 + i) for i in range(12)]
    assert points.get_offsets()[:, 0].tolist() == pytest.approx([math.log(10 * x / 1e-3) / math.log(300) for x in lr])
    marked = {line.get_label(): len(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}
    assert marked == {"running": 1, "failed": 1, "stopped": 2, "best (trial 0)": 1}


def test_bars_show_shares_and_what_chance_gives(search):
    drawn = importance(search)
    axes = only_axes(drawn)
    shares = [bar.get_width() for bar in axes.patches]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares)
    [marks] = [line for line in axes.lines if line.get_marker() == "|"]
    assert len(marks.get_xdata()) == len(shares)
    assert "of the 12 trials that reached the full budget" in drawn.caption


def test_bars_per_rung_add_up_to_the_trials_that_came(search):
    axes = only_axes(ends_per_rung(search))
    widths = {container.get_label(): [bar.get_width() for bar in container] for container in axes.containers}
    assert widths == {"went on": [15, 12, 12], "stopped here": [0, 2, 0], "failed": [0, 1, 0], "running": [1, 0, 0]}
    assert [text.get_text() for text in axes.texts] == ["16", "15", "12"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["started", "epoch 2", "epoch 4 (full)"]


def test_rank_fidelity_marks_the_rungs_and_says_what_is_missing(search):
    drawn = rank_fidelity(search)
    curve, dots = lines_of(drawn)
    assert curve[0] == [1, 2, 4], "all are alike at epoch 3"
    assert dots[0] == [2] and dots[1] == [curve[1][1]]
    assert "Those stopped earlier are missing" in drawn.caption
    assert "The best trial (0) among all trials, as known now: epoch 2: rank 12 of 14, outside the best half" in (
        drawn.caption
    )


@pytest.mark.parametrize(
    "trials",
    [
        (),
        (make_stored_trial(0, RUNNING, []),),
        (make_stored_trial(0, FAILED, [NAN]),),
        (make_stored_trial(0, STOPPED, [0.5]),),
        (make_stored_trial(0, COMPLETE, [0.5] * 4),),
        (make_stored_trial(0, COMPLETE, [0.0] * 4), make_stored_trial(1, COMPLETE, [1.0] * 4)),
        tuple(make_stored_trial(i, COMPLETE, [0.5] * 4) for i in range(12)),
    ],
    ids=["none", "just begun", "diverged at once", "one stopped", "one candidate", "0 % and 100 %", "all alike"],
)
@pytest.mark.parametrize("rungs", ["2", ""])
def test_a_figure_that_cannot_be_drawn_says_why(trials, rungs):
    for drawn in search_charts(make_stored(*trials, rungs=rungs)):
        if drawn.figure is None:
            assert drawn.caption.startswith("Not drawn: ") and len(drawn.caption) > 30
        else:
            assert render_png(drawn.figure).startswith(b"\x89PNG")


def test_all_figures_are_drawn_as_wide_images(search):
    images = {drawn.name: Image.open(io.BytesIO(render_png(drawn.figure))) for drawn in search_charts(search)}
    assert sorted(images) == [
        *("best-so-far", "ends-per-rung", "importance", "learning-curves"),
        *("parallel-coordinates", "rank-fidelity", "response-map"),
    ]
    assert min(image.width for image in images.values()) > 900


def test_svg_is_well_formed_with_text_as_text_and_the_same_each_time(search):
    svg = render_svg(learning_curves(search).figure)
    assert svg == render_svg(learning_curves(search).figure)
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "validation accuracy (%)" in texts


def test_inline_svg_has_ids_of_its_own_and_only_colours_of_the_theme(search):
    charts = [drawn for drawn in search_charts(search) if drawn.figure is not None]
    assert len(charts) == 7
    ids = []
    for index, drawn in enumerate(charts):
        svg = render_inline_svg(drawn, f"f{index}")
        element = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
        assert element.get("role") == "img" and element.get("aria-labelledby") == f"f{index}-title"
        ids += re.findall(r'\bid="([^"]+)"', svg)
        for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
            assert f'id="{reference}"' in svg
        assert not re.findall(r"#[0-9a-fA-F]{3,6}\b(?!\))", re.sub(r'(href="#|url\(#)[^")]+', "", svg)), drawn.name
        assert "http" not in svg and "<style" not in svg
        assert f"var({chart.variable(chart.TEXT)})" in svg
    assert len(ids) == len(set(ids))


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(color, other):
    """WCAG 2's contrast ratio, from 1 to 21."""
    low, high = sorted(luminance(c) for c in (color, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("color", sorted({*STATE_COLORS.values(), *SERIES_COLORS, chart.TEXT, chart.MUTED}))
def test_colours_can_be_seen_on_light_and_dark(color):
    """WCAG asks 3:1 of graphics and 4.5:1 of text."""
    needed = 4.5 if color in (chart.TEXT, chart.MUTED) else 3.0
    assert contrast(color, PAGE) >= needed
    assert contrast(DARK[color], DARK[PAGE]) >= needed


def test_higher_values_stand_out_more_on_light_and_on_dark():
    for colors, page in ((chart.LOW_TO_HIGH, PAGE), ([DARK[c] for c in chart.LOW_TO_HIGH], DARK[PAGE])):
        ratios = [contrast(color, page) for color in colors]
        assert ratios == sorted(ratios)
