"""What the tables count."""

import math

import numpy as np
import pytest

from benchmarks.regret import epochs_to_keep, quartiles, ratios

EPOCHS = np.array([10.0, 20.0, 30.0])


@pytest.mark.parametrize(
    ("regret", "expected"),
    [([0.5, 0.1, 0.1], 20), ([0.1, 0.5, 0.1], 30), ([0.1, 0.1, 0.5], math.inf), ([0.1, 0.1, 0.1], 10)],
)
def test_a_target_counts_from_where_it_is_kept(regret, expected):
    assert epochs_to_keep(np.array(regret), EPOCHS, 0.1) == expected


def test_who_never_reaches_the_target_counts_against_us():
    values, silent = ratios([10.0, 20.0, math.inf, math.inf], [20.0, math.inf, 10.0, math.inf], spent=100.0)
    assert values.tolist() == [0.5, 0.2, math.inf]
    assert silent == 1


def test_quartiles_bear_infinity():
    assert quartiles([1.0, 2.0, math.inf]) == (2.0, 2.0, math.inf)
