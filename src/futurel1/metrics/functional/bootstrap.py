"""Intervals of differences between answers to the same questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from futurel1.errors import BatchError

__all__ = ["RESAMPLES", "Difference", "paired_bootstrap"]

RESAMPLES = 10_000


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
        BatchError: the shapes do not match.

    Example:
        >>> found = paired_bootstrap([[1, 1, 1, 0]], [[0, 0, 1, 0]])
        >>> found.value, found.low <= 0.5 <= found.high
        (0.5, True)
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or 0 in (*one.shape, *other.shape):
        raise BatchError(f"(seeds, questions) with the same questions are needed, got {one.shape} and {other.shape}")
    gain = one.mean(axis=0) - other.mean(axis=0)
    number = len(gain)
    counts = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
    means = counts @ gain / number
    low, high = np.quantile(means, [0.025, 0.975])
    # The tolerance is for rounding: sums of shares such as 1/3 are not exactly zero.
    below, above = int((means <= 1e-12).sum()), int((means >= -1e-12).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    return Difference(float(gain.mean()), float(low), float(high), p)
