"""Intervals over seeds, differences over seeds and questions, Holm's correction: closed forms and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments.proof.statistics import holm, paired_difference, seed_mean


def test_interval_over_seeds_is_students() -> None:
    mean = seed_mean([60.0, 64.0, 71.0])
    assert mean.seeds == 3
    assert mean.value == pytest.approx(65.0)
    deviation = math.sqrt((25 + 1 + 36) / 2)
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))  # closed form with two degrees of freedom
    assert mean.half == pytest.approx(quantile * deviation / math.sqrt(3), rel=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert seed_mean([50.0]).half is None


def test_one_seed_is_a_paired_t_test_over_questions() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((1, 500)) < 0.7, rng.random((1, 500)) < 0.62
    found = paired_difference(first, second)
    expected = stats.ttest_rel(first[0].astype(float), second[0].astype(float))
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue))


def test_seeds_that_decide_alone_are_a_paired_t_test_over_seeds() -> None:
    """Where every question gains the same, seeds are all that varies, however many questions there are."""
    gains = np.array([0.1, 0.3, 0.35])
    found = paired_difference(np.tile(gains[:, None], 400), np.zeros((3, 400)))
    expected = stats.ttest_1samp(gains, 0)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue))


def test_questions_are_paired() -> None:
    """Questions are hard or easy for both: the pairing takes that out, so a constant gain has no spread."""
    hard = np.random.default_rng(0).random(300)
    found = paired_difference([hard + 0.25], [hard])
    assert found.high - found.low < 1e-12
    assert found.value == pytest.approx(0.25)
    assert found.p < 1e-9


@pytest.mark.parametrize(("of_seeds", "of_questions"), [(0.0, 0.3), (0.05, 0.3), (0.2, 0.1)])
def test_the_interval_covers_the_truth_where_seeds_and_questions_are_samples(
    of_seeds: float, of_questions: float
) -> None:
    """Coverage over simulated experiments; neither too low nor, where both matter, far too high."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        gain = 0.1 + of_seeds * rng.standard_normal((3, 1)) + of_questions * rng.standard_normal((1, 200))
        gain = gain + 0.3 * rng.standard_normal((3, 200))
        found = paired_difference(gain, np.zeros_like(gain))
        covered += found.low <= 0.1 <= found.high
    # 400 experiments: a standard error of 1.1 points around 95
    assert 0.92 <= covered / 400 <= 0.995


def test_equal_rows_say_so() -> None:
    row = [[1, 0, 1], [0, 0, 1], [1, 1, 0]]
    found = paired_difference(row, row)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_sides_change_signs() -> None:
    first, second = [[1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1]], [[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]]
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert (other.value, other.low, other.high, other.p) == pytest.approx((-one.value, -one.high, -one.low, one.p))


@pytest.mark.parametrize(
    ("first", "second"), [([[1, 0]], [[1, 0, 1]]), ([1, 0], [1, 0]), ([[1, 0]], [[1, 0]] * 2), ([[1]], [[0]])]
)
def test_shapes_that_do_not_match_are_refused(first: list[object], second: list[object]) -> None:
    with pytest.raises(ValueError, match="seeds, questions"):
        paired_difference(first, second)  # type: ignore[arg-type]


def test_holm_multiplies_by_the_claims_that_are_left() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
