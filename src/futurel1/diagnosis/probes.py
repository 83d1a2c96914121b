"""Ridge probes: are the places of things in a future frame linearly readable, and where?

A probe is fitted on some questions and scored on others. Its regularization is chosen on questions that are held out
from the fit (nested split), and vectors of one question never stand on both sides. The control is the same probe with
the labels of other vectors.

Shapes: N vectors of D numbers, S things in a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError
from futurel1.metrics.functional import Difference, paired_bootstrap

__all__ = ["LEAST_QUESTIONS", "Probe", "probe"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHAS = tuple(10.0**power for power in range(-3, 6))
FOLDS = 5
LEAST_QUESTIONS = 2 * FOLDS
HELD_OUT = 4
"""One in so many questions of a fold's training part chooses the regularization."""


@dataclass(frozen=True)
class Probe:
    """How well positions can be read from vectors, on questions that the probe has not seen.

    Attributes:
        name: where the vectors are from.
        vectors: N.
        questions: questions that they belong to.
        position: share of the variance of positions that is explained (R²); 0 is the mean of the training part.
        position_shuffled: the same with shuffled labels.
        zone: share of things whose quadrant of the frame is right; the largest of four scores counts.
        zone_shuffled: the same with shuffled labels.
        gain: `zone` minus `zone_shuffled`, over questions.
        per_question: number of each question, and the shares behind `zone` and `zone_shuffled` among its things.
    """

    name: str
    vectors: int
    questions: int
    position: float
    position_shuffled: float
    zone: float
    zone_shuffled: float
    gain: Difference
    per_question: tuple[tuple[int, float, float], ...] = ()


def probe(name: str, vectors: Floats, positions: Floats, questions: Ints, seed: int = 0) -> Probe:
    """Fit and score a probe.

    Args:
        name: where the vectors are from.
        vectors: (N, D).
        positions: (N, S, 2) labels, in sides of the frame.
        questions: (N,) question of each vector.
        seed: seed of the split and of the shuffled labels.

    Raises:
        ConfigError: too few questions to split.
    """
    groups = np.unique(questions)
    if len(groups) < LEAST_QUESTIONS:
        raise ConfigError(f"{name}: a probe needs at least {LEAST_QUESTIONS} questions, got {len(groups)}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(groups)
    shuffled = positions[rng.permutation(len(positions))]
    explained, right = [], []
    for labels in (positions, shuffled):
        flat = labels.reshape(len(labels), -1)
        predicted, mean = _out_of_fold(vectors, flat, questions, order)
        explained.append(1 - float(((flat - predicted) ** 2).sum() / ((flat - mean) ** 2).sum()))
        zones = _quadrants(labels)
        scores, _ = _out_of_fold(vectors, np.eye(4)[zones].reshape(len(labels), -1), questions, order)
        right.append((scores.reshape(*zones.shape, 4).argmax(axis=-1) == zones).mean(axis=1))
    per_question = [np.array([[hits[questions == group].mean() for group in groups]]) for hits in right]
    return Probe(
        name=name,
        vectors=len(vectors),
        questions=len(groups),
        position=explained[0],
        position_shuffled=explained[1],
        zone=float(right[0].mean()),
        zone_shuffled=float(right[1].mean()),
        gain=paired_bootstrap(*per_question),
        per_question=tuple(zip(groups.tolist(), *(shares[0].tolist() for shares in per_question), strict=True)),
    )


def _quadrants(positions: Floats) -> Ints:
    """(N, S) quadrant of each of the (N, S, 2) positions."""
    right, below = np.moveaxis(positions >= 0.5, -1, 0)
    quadrants: Ints = right.astype(np.int64) + 2 * below
    return quadrants


def _out_of_fold(vectors: Floats, targets: Floats, questions: Ints, order: Ints) -> tuple[Floats, Floats]:
    """(N, K) predictions of (N, K) targets by probes that have not seen their question; and the training means."""
    predicted, means = np.empty_like(targets), np.empty_like(targets)
    for fold in range(FOLDS):
        inside = order[np.arange(len(order)) % FOLDS != fold]
        train = np.isin(questions, inside)
        chooses = np.isin(questions, inside[::HELD_OUT])
        fits = _ridge(vectors[train & ~chooses], targets[train & ~chooses])
        errors = [float(((fits(alpha)(vectors[chooses]) - targets[chooses]) ** 2).sum()) for alpha in ALPHAS]
        best = ALPHAS[int(np.argmin(errors))]
        predicted[~train] = _ridge(vectors[train], targets[train])(best)(vectors[~train])
        means[~train] = targets[train].mean(axis=0)
    return predicted, means


def _ridge(vectors: Floats, targets: Floats) -> Callable[[float], Callable[[Floats], Floats]]:
    """Ridge regression with standardized inputs and an intercept: from a regularization to a predictor."""
    center, scale, mean = vectors.mean(axis=0), vectors.std(axis=0) + 1e-12, targets.mean(axis=0)
    left, values, right = np.linalg.svd((vectors - center) / scale, full_matrices=False)
    projected = left.T @ (targets - mean)

    def fit(alpha: float) -> Callable[[Floats], Floats]:
        weights = right.T @ ((values / (values**2 + alpha))[:, None] * projected)
        return lambda given: (given - center) / scale @ weights + mean

    return fit
