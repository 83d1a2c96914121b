"""Intervals over seeds and the paired bootstrap, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.miniature.statistics import T_975, paired_bootstrap, seed_mean


def test_interval_over_seeds_is_students() -> None:
    mean = seed_mean([60.0, 64.0, 71.0])
    assert mean.seeds == 3
    assert mean.value == pytest.approx(65.0)
    deviation = math.sqrt((25 + 1 + 36) / 2)
    assert mean.half == pytest.approx(4.303 * deviation / math.sqrt(3), rel=1e-9)


def test_quantiles_are_students() -> None:
    # Closed forms with 1 and 2 degrees of freedom
    assert T_975[0] == pytest.approx(math.tan(math.pi * 0.475), abs=5e-4)
    assert T_975[1] == pytest.approx(0.95 * math.sqrt(2 / (4 * 0.975 * 0.025)), abs=5e-4)
    # The tail beyond the quantile by integration of the density, with all others
    x = np.linspace(0, 1, 200_001)[1:]
    for freedom in (3, 7, 30):
        quantile = T_975[freedom - 1]
        points = quantile / x  # from the quantile to infinity
        gamma = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        density = gamma * (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
        assert np.trapezoid(density * quantile / x**2, x) == pytest.approx(0.025, abs=2e-5)


def test_one_seed_has_no_interval() -> None:
    assert seed_mean([50.0]).half is None


def test_bootstrap_interval_is_that_of_a_mean() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((1, 2000)) < 0.7, rng.random((1, 2000)) < 0.66
    gain = first[0].astype(float) - second[0]
    error = gain.std() / math.sqrt(gain.size)
    found = paired_bootstrap(first, second)
    assert found.value == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.05 * error)
    z = gain.mean() / error
    assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)


def test_bootstrap_is_paired() -> None:
    """Questions are hard or easy for both: the pairing takes that out, so a constant gain has no spread."""
    hard = np.random.default_rng(0).random(300)
    found = paired_bootstrap([hard + 0.25], [hard])
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.p == pytest.approx(2 / 10_001)


def test_bootstrap_averages_seeds_first() -> None:
    first = [[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]]
    mean = [[1, 0, 2 / 3, 1]]
    second = [[0, 0, 1, 1]]
    assert paired_bootstrap(first, second) == paired_bootstrap(mean, second)
    back = paired_bootstrap(second, first)
    assert back.value == pytest.approx(-paired_bootstrap(first, second).value)


def test_bootstrap_of_equal_rows_says_so() -> None:
    row = [[1, 0, 1], [0, 0, 1], [1, 1, 0]]
    found = paired_bootstrap(row, row)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_bootstrap_is_the_same_every_time() -> None:
    first, second = [[1, 0, 1, 0, 1, 1]], [[0, 0, 1, 1, 1, 0]]
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second)
    assert paired_bootstrap(first, second, seed=1).value == paired_bootstrap(first, second).value


@pytest.mark.parametrize(("first", "second"), [([[1, 0]], [[1]]), ([1, 0], [1, 0]), (np.zeros((0, 2)), [[1, 0]])])
def test_bootstrap_refuses_other_shapes(first: object, second: object) -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_bootstrap(first, second)  # type: ignore[arg-type]
