"""Intervals over seeds, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.miniature.statistics import T_975, seed_mean


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
