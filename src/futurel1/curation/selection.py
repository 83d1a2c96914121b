"""Selection and order of the candidates to keep (`docs/curation.md`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from futurel1.curation.results import FAILED, NO_HINTS, PROBED, SKIPPED, ProbeTable
from futurel1.errors import ConfigError

__all__ = ["OUTCOMES", "Outcome", "Selection", "Thresholds", "select"]

Outcome = Literal["open", "chosen", "beyond_top", "easy", "unhelpful", "no_hints", "failed", "skipped"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Thresholds:
    """Requirements for a candidate to be chosen.

    Args:
        max_base: most correct responses without hints; a candidate with more is too easy.
        min_gain: fewest correct responses that the hints must add.
        top: keep only this many candidates, those with the largest gains; None: all that meet the other two.

    Raises:
        ConfigError: `max_base` or `top` below 0.
    """

    max_base: int = 6
    min_gain: int = 2
    top: int | None = 50_000

    def __post_init__(self) -> None:
        if self.max_base < 0 or (self.top is not None and self.top < 0):
            raise ConfigError(f"max_base and top must not be negative, got {self.max_base} and {self.top}")


@dataclass(frozen=True)
class Selection:
    """The decision on N candidates.

    Attributes:
        chosen: (K,) numbers of the chosen candidates, largest gain first; equal gains are in the order of the records.
        outcomes: (N,) index into `OUTCOMES`.
        gains: (N,) correct responses that the hints added, 0 if a candidate was not probed.
    """

    chosen: NDArray[np.int64]
    outcomes: NDArray[np.uint8]
    gains: NDArray[np.int32]

    def counts(self) -> dict[Outcome, int]:
        """Number of candidates per outcome; the numbers add up to N."""
        found = np.bincount(self.outcomes, minlength=len(OUTCOMES)).tolist()
        return dict(zip(OUTCOMES, found, strict=True))


def select(table: ProbeTable, thresholds: Thresholds) -> Selection:
    """Keep candidates that are not too easy and that hints help: `p_t <= max_base` and `p_v - p_t >= min_gain`.

    Args:
        table: results of all candidates.
        thresholds: the requirements, and how many candidates to keep.

    Returns:
        The decision on every candidate. It depends only on the arguments, not on the order or sharing of the probes.
    """
    probed = table.status == PROBED
    gains = np.where(probed, table.hint.astype(np.int32) - table.base, 0).astype(np.int32)
    outcomes = np.zeros(len(table), np.uint8)
    for status, outcome in ((NO_HINTS, "no_hints"), (FAILED, "failed"), (SKIPPED, "skipped")):
        outcomes[table.status == status] = OUTCOMES.index(outcome)
    easy = probed & (table.base > thresholds.max_base)
    unhelpful = probed & ~easy & (gains < thresholds.min_gain)
    outcomes[easy] = OUTCOMES.index("easy")
    outcomes[unhelpful] = OUTCOMES.index("unhelpful")
    kept = np.flatnonzero(probed & ~easy & ~unhelpful)
    ranked = kept[np.argsort(-gains[kept], kind="stable")]
    outcomes[ranked[: thresholds.top]] = OUTCOMES.index("chosen")
    outcomes[ranked[len(ranked) if thresholds.top is None else thresholds.top :]] = OUTCOMES.index("beyond_top")
    return Selection(ranked[: thresholds.top], outcomes, gains)
