"""The paired bootstrap, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from futurel1.errors import BatchError
from futurel1.metrics.functional import paired_bootstrap


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
    with pytest.raises(BatchError, match="same questions"):
        paired_bootstrap(first, second)  # type: ignore[arg-type]
