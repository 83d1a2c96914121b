"""Intervals over seeds; those over questions are `futurel1.metrics.functional.paired_bootstrap`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


def seed_mean(values: Sequence[float]) -> Mean:
    """Mean and 95% interval (Student's t) of one number per seed, at least one."""
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers)
    if count == 1:
        return Mean(float(numbers[0]), None, 1)
    quantile = T_975[count - 2] if count - 2 < len(T_975) else 1.96
    return Mean(float(numbers.mean()), quantile * float(numbers.std(ddof=1)) / math.sqrt(count), count)
