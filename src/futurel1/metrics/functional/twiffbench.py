"""TwiFF-Bench: scores from a judge's reply, and their means.

Source: Future-L1, arXiv 2606.05769, section on TwiFF-Bench. 1,078 open questions; a judge gives 0-5 for the reasoning
(CoT) and 0-5 for the answer.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from futurel1.errors import BatchError

__all__ = ["HIGHEST_SCORE", "LOWEST_SCORE", "coerce_scores", "judged_scores"]

LOWEST_SCORE, HIGHEST_SCORE = 0, 5


def coerce_scores(score: object) -> list[int] | None:
    """The two scores in the ``score`` entry of a judge's reply, read as in the reference, in any range.

    Args:
        score: a parsed JSON value, supposed to be ``[cot, answer]``. The first two numbers count, depth-first through
            nested lists; floats and numeric strings are rounded (Python: halves to even), booleans and values that are
            not finite are skipped.

    Returns:
        ``[cot, answer]``, or None if `score` is not a list or contains fewer than two numbers.
    """
    numbers = _first_two_numbers(score)
    return None if numbers is None else [round(number) for number in numbers]


def judged_scores(score: object) -> list[int] | None:
    """Like `coerce_scores`, but None also if a number, before rounding, is outside 0-5.

    A judge client calls this to decide whether to ask again; :class:`~futurel1.metrics.TwiFFBenchScore` counts None as
    a failure.
    """
    numbers = _first_two_numbers(score)
    if numbers is None or not all(LOWEST_SCORE <= number <= HIGHEST_SCORE for number in numbers):
        return None
    return [round(number) for number in numbers]


def _first_two_numbers(score: object) -> list[int | float] | None:
    if not isinstance(score, list | tuple):
        return None
    found: list[int | float] = []
    # An explicit stack, because a reply may be nested deeper than Python's recursion limit.
    waiting: list[Iterator[object]] = [iter(score)]
    while waiting and len(found) < 2:
        for item in waiting[-1]:
            if isinstance(item, list | tuple):
                waiting.append(iter(item))
                break
            number = _as_number(item)
            if number is not None:
                found.append(number)
                break
        else:
            waiting.pop()
    return found if len(found) == 2 else None


def _as_number(item: object) -> int | float | None:
    if isinstance(item, bool):
        return None
    if isinstance(item, int):
        return item
    if isinstance(item, str):
        try:
            item = float(item)
        except ValueError:
            return None
    return item if isinstance(item, float) and math.isfinite(item) else None


def _twiffbench_update(scores: Sequence[object]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed CoT scores, summed answer scores, number of scored samples, number of failures: int64 scalars."""
    judged = [pair for score in scores if (pair := judged_scores(score)) is not None]
    sums = torch.tensor(judged, dtype=torch.int64).reshape(-1, 2).sum(dim=0)
    return sums[0], sums[1], torch.tensor(len(judged)), torch.tensor(len(scores) - len(judged))


def _twiffbench_compute(cot: Tensor, answer: Tensor, scored: Tensor, failures: Tensor) -> dict[str, Tensor]:
    """Means from sums; see `TwiFFBenchScore` for the keys."""
    if not int(scored + failures):
        raise BatchError("TwiFFBenchScore has no samples to compute from: call update() first")
    mean_cot, mean_answer = cot / scored, answer / scored
    return {
        "cot": mean_cot,
        "answer": mean_answer,
        "average": (mean_cot + mean_answer) / 2,
        "samples": scored.float(),
        "failures": failures.float(),
    }
