"""Ridge probes on vectors whose content is known."""

from __future__ import annotations

import numpy as np
import pytest

from futurel1.diagnosis import probe
from futurel1.diagnosis.probes import _ridge
from futurel1.errors import ConfigError

RNG = np.random.default_rng(0)
QUESTIONS = np.repeat(np.arange(60), 4)
POSITIONS = RNG.uniform(0, 1, (240, 3, 2))


def test_what_is_there_is_read_and_shuffled_labels_are_not() -> None:
    mixed = POSITIONS.reshape(240, 6) @ RNG.normal(size=(6, 24)) + 0.05 * RNG.normal(size=(240, 24))
    found = probe("latents", mixed, POSITIONS, QUESTIONS)
    assert (found.vectors, found.questions) == (240, 60)
    assert found.position > 0.95
    assert found.zone > 0.75  # linear scores cannot cut a square into its quadrants exactly
    assert abs(found.position_shuffled) < 0.1
    assert 0.1 < found.zone_shuffled < 0.4
    assert found.gain.low > 0.3
    numbers, zones, shuffled = zip(*found.per_question, strict=True)
    assert numbers == tuple(range(60))
    assert (np.mean(zones), np.mean(shuffled)) == pytest.approx((found.zone, found.zone_shuffled))


def test_noise_holds_nothing_even_with_many_dimensions() -> None:
    found = probe("noise", RNG.normal(size=(240, 300)), POSITIONS, QUESTIONS)
    assert found.position < 0.1
    assert found.gain.low < 0 < found.gain.high


def test_a_question_is_never_on_both_sides() -> None:
    """Vectors that only name their question would reveal its position to a probe that saw another vector of it."""
    own = RNG.normal(size=(60, 100))[QUESTIONS]
    positions = POSITIONS[QUESTIONS]
    found = probe("names", own, positions, QUESTIONS)
    assert found.position < 0.1


def test_ridge_is_the_closed_form() -> None:
    vectors, targets = RNG.normal(size=(30, 5)), RNG.normal(size=(30, 2))
    given = (vectors - vectors.mean(0)) / vectors.std(0)
    weights = np.linalg.solve(given.T @ given + 2.5 * np.eye(5), given.T @ (targets - targets.mean(0)))
    np.testing.assert_allclose(_ridge(vectors, targets)(2.5)(vectors), given @ weights + targets.mean(0), atol=1e-9)


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 10 questions, got 3"):
        probe("latents", POSITIONS[:12], POSITIONS[:12], QUESTIONS[:12])
