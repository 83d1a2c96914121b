"""Intervals over seeds, differences over seeds and questions together, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from futurel1.metrics.functional import Difference


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


def seed_mean(values: Sequence[float]) -> Mean:
    """Mean and 95% interval (Student's t) of one number per seed, at least one."""
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers)
    if count == 1:
        return Mean(float(numbers[0]), None, 1)
    quantile = float(stats.t.ppf(0.975, count - 1))
    return Mean(float(numbers.mean()), quantile * float(numbers.std(ddof=1)) / math.sqrt(count), count)


def paired_difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """Difference of two means, where other seeds and other questions might have been taken.

    Seeds and questions are crossed random effects: the variance of the mean of S x Q paired differences is estimated as
    `(MS_seeds + MS_questions - MS_rest) / (S Q)` from the mean squares of an analysis of variance with two factors, and
    never below what seeds or questions alone give. Degrees of freedom are Satterthwaite's. With one seed, questions are
    all that varies.

    Args:
        first: (S, Q) score of each seed's run on each question.
        second: the same for the other side.

    Returns:
        The difference with its 95% interval (Student's t) and p-value.

    Raises:
        ValueError: the shapes do not match, or there is one question.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 2 or one.shape != other.shape or one.shape[0] < 1 or one.shape[1] < 2:
        raise ValueError(f"(seeds, questions) of one shape are needed, got {one.shape} and {other.shape}")
    gain = one - other
    value = float(gain.mean())
    error, freedom = _error_of_mean(gain - value)
    if error == 0:
        return Difference(value, value, value, float(value == 0))
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Difference(value, value - half, value + half, float(2 * stats.t.sf(abs(value) / error, freedom)))


def _error_of_mean(centred: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean of (S, Q) crossed numbers less their mean, and its degrees of freedom."""
    seeds, questions = centred.shape
    by_seed, by_question = centred.mean(axis=1, keepdims=True), centred.mean(axis=0, keepdims=True)
    questions_alone = (seeds * float((by_question**2).sum()) / (questions - 1), float(questions - 1))
    estimates = [questions_alone]
    if seeds > 1:
        of_seeds = questions * float((by_seed**2).sum()) / (seeds - 1)
        rest_freedom = (seeds - 1) * (questions - 1)
        rest = float(((centred - by_seed - by_question) ** 2).sum()) / rest_freedom
        both = of_seeds + questions_alone[0] - rest
        spread = of_seeds**2 / (seeds - 1) + questions_alone[0] ** 2 / (questions - 1) + rest**2 / rest_freedom
        estimates += [(of_seeds, float(seeds - 1)), (both, both**2 / spread if spread else 1.0)]
    variance, freedom = max(estimates)
    return math.sqrt(variance / (seeds * questions)), freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's method, in their order.

    At 0.05, at most one family in twenty has a claim that is called significant and is not true.
    """
    count, adjusted, highest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
