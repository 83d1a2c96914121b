"""Do latents follow what was seen? Spans imagined for a video, and for the same video with one thing changed.

A span is the mean of its latents, a frame the mean feature of the tower, and near means a high cosine. Spans beyond the
known frames do not count.

Shapes: Q questions, M spans of a question at most, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.errors import ConfigError
from futurel1.metrics.functional import Difference, paired_bootstrap
from futurel1.models import LatentBank

__all__ = ["Change", "Imagined", "change_of", "imagined", "span_means"]


@dataclass(frozen=True)
class Imagined:
    """What was imagined for one question.

    Attributes:
        spans: mean latent of each non-empty span, by its number.
        true: (M, H) mean feature of each frame of the video's own future.
        other: (M, H) the same of the other future that its record names.
    """

    spans: Mapping[int, Tensor]
    true: Tensor
    other: Tensor


@dataclass(frozen=True)
class Change:
    """What a change of the observed video does to the imagined frames.

    Attributes:
        name: the change.
        questions: questions with a span to compare.
        spans: spans compared, for the changed and for the unchanged video.
        nearer: share of questions' spans that are nearer to the changed video's future than to the unchanged one's.
        unchanged: the same for spans imagined for the unchanged video.
        gain: `nearer` minus `unchanged`, over the same questions.
        distance: mean cosine distance (0 to 2) of the two imagined frames.
        true_distance: mean cosine distance of the two true frames.
        per_question: number, `nearer` and `unchanged` of each question with a span to compare.
    """

    name: str
    questions: int
    spans: int
    nearer: float
    unchanged: float
    gain: Difference
    distance: float
    true_distance: float
    per_question: tuple[tuple[int, float, float], ...] = ()


def span_means(bank: LatentBank, predictions: Sequence[Mapping[str, Any]]) -> list[dict[int, Tensor]]:
    """Cut latents into spans.

    Args:
        bank: the latents of the responses.
        predictions: Q predictions.

    Returns:
        For each prediction, the (H,) float32 mean latent of every non-empty span, by its number in the response.
    """
    rows = {name: row for row, name in enumerate(bank.ids)}
    found = []
    for prediction in predictions:
        lengths = [int(length) for length in prediction["spans"]]
        own = bank.latents[rows[str(prediction["id"])]].float()
        found.append(
            {
                number: own[end - length : end].mean(dim=0)
                for number, (length, end) in enumerate(zip(lengths, accumulate(lengths), strict=True))
                if length
            }
        )
    return found


def imagined(
    bank: LatentBank, predictions: Sequence[Mapping[str, Any]], futures: Sequence[tuple[Tensor, Tensor]]
) -> list[Imagined]:
    """Cut latents into spans, beside the frames that they could be.

    Args:
        bank: the latents of the responses.
        predictions: Q predictions.
        futures: per prediction, the (M, H) features of its own and of the other future.
    """
    spans = span_means(bank, predictions)
    return [Imagined(own, true.float(), other.float()) for own, (true, other) in zip(spans, futures, strict=True)]


def change_of(name: str, unchanged: Sequence[Imagined], changed: Sequence[Imagined]) -> Change:
    """Compare what was imagined for videos and for their changed form.

    Args:
        name: the change.
        unchanged: Q questions with the video as it is.
        changed: the same questions, in the same order, with the changed video, whose `other` future is that of the
            unchanged one.

    Raises:
        ConfigError: different numbers of questions, or no span that can be compared.
    """
    if len(unchanged) != len(changed):
        raise ConfigError(
            f"{name}: {len(changed)} changed questions for {len(unchanged)}; they belong together in order"
        )
    nearer: list[tuple[int, float, float]] = []
    moved: list[Tensor] = []
    apart: list[Tensor] = []
    for question, (before, after) in enumerate(zip(unchanged, changed, strict=True)):
        known = min(len(after.true), len(after.other))
        both = [number for number in after.spans if number in before.spans and number < known]
        if not both:
            continue
        span, span_before = (torch.stack([one.spans[number] for number in both]) for one in (after, before))
        true, other = after.true[both], after.other[both]
        votes = [
            (F.cosine_similarity(own, true) > F.cosine_similarity(own, other)).double() for own in (span, span_before)
        ]
        nearer.append((question, float(votes[0].mean()), float(votes[1].mean())))
        moved.append(1 - F.cosine_similarity(span, span_before))
        apart.append(1 - F.cosine_similarity(true, other))
    if not nearer:
        raise ConfigError(f"{name}: no question has a span with latents whose frame is known")
    shares = np.array([own for _, *own in nearer]).T
    return Change(
        name=name,
        questions=len(nearer),
        spans=sum(map(len, moved)),
        nearer=float(shares[0].mean()),
        unchanged=float(shares[1].mean()),
        gain=paired_bootstrap(shares[:1], shares[1:]),
        distance=float(torch.cat(moved).mean()),
        true_distance=float(torch.cat(apart).mean()),
        per_question=tuple(nearer),
    )
