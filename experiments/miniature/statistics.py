"""Intervals over seeds, and a paired bootstrap over questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5% quantile of Student's t with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        half: half the width of its 95% interval; None with one seed.
        seeds: number of seeds.
    """

    value: float
    half: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """A difference of two means over the same questions.

    Attributes:
        value: first minus second.
        low: lower end of its 95% interval.
        high: upper end.
        p: two-sided p-value of no difference.
    """

    value: float
    low: float
    high: float
    p: float


def seed_mean(values: Sequence[float]) -> Mean:
    """Mean and 95% interval (Student's t) of one number per seed, at least one."""
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers)
    if count == 1:
        return Mean(float(numbers[0]), None, 1)
    quantile = T_975[count - 2] if count - 2 < len(T_975) else 1.96
    return Mean(float(numbers.mean()), quantile * float(numbers.std(ddof=1)) / math.sqrt(count), count)


def paired_bootstrap(first: ArrayLike, second: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Difference of two means over the same questions, which are resampled; seeds are averaged first.

    Args:
        first: (seeds, questions) score of each run on each question.
        second: the same for the other side, with as many questions; its number of seeds may differ.
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        The difference with its percentile interval. `p` is twice the smaller share of resamples on one side of zero,
        where a resample at zero counts for both sides, and at least ``2 / (resamples + 1)``.

    Raises:
        ValueError: the shapes do not match.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or 0 in (*one.shape, *other.shape):
        raise ValueError(f"(seeds, questions) with the same questions are needed, got {one.shape} and {other.shape}")
    gain = one.mean(axis=0) - other.mean(axis=0)
    number = len(gain)
    counts = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
    means = counts @ gain / number
    low, high = np.quantile(means, [0.025, 0.975])
    # The tolerance is for rounding: sums of shares such as 1/3 are not exactly zero.
    below, above = int((means <= 1e-12).sum()), int((means >= -1e-12).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    return Difference(float(gain.mean()), float(low), float(high), p)
