"""Which frames an imagined span is nearest to, and how good the true one's rank is against chance.

Shapes: L latents of a span, F frames of the gallery, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.errors import RecordError
from futurel1.report.gallery import Gallery, RecordFrames

__all__ = ["Near", "Retrieval", "SpanNeighbours", "TrueFrame", "neighbours_of", "retrieval_of", "spans_of"]


@dataclass(frozen=True)
class Near:
    """A frame beside a span.

    Attributes:
        frame: its place among the thumbnails.
        label: what it is called within its video.
        video: name of the file.
        cosine: cosine of its mean feature and the span's mean latent.
    """

    frame: int
    label: str
    video: str
    cosine: float


@dataclass(frozen=True)
class TrueFrame:
    """The frame that a span should show.

    Attributes:
        near: the frame.
        rank: 1 if no candidate is nearer; candidates that are just as near count as nearer.
        of: candidates: later frames of the own video, and all frames of other videos.
        own_rank: the same among the own video's frames alone.
        own_of: their number.
        latents: cosine of each latent and the frame's mean feature.
    """

    near: Near
    rank: int
    of: int
    own_rank: int
    own_of: int
    latents: tuple[float, ...]


@dataclass(frozen=True)
class SpanNeighbours:
    """What a page shows of a span.

    Attributes:
        true: the frame that it should show; None where the record has none.
        own: nearest frames of the own video, nearest first.
        others: nearest frames of other videos.
        observed: whether `own` are frames that the model was shown, as there are no later ones.
        other_mean: mean cosine to all frames of other videos; None without any.
    """

    true: TrueFrame | None
    own: tuple[Near, ...]
    others: tuple[Near, ...]
    observed: bool
    other_mean: float | None


@dataclass(frozen=True)
class Retrieval:
    """How often spans are nearest to their true frame, over all spans that have one.

    Attributes:
        spans: how many were compared.
        first: share whose true frame has rank 1.
        first_chance: the same by chance: the mean of one over the number of candidates.
        median_rank: median rank of the true frame.
        median_candidates: median number of candidates; the median rank by chance is half of it.
        own_first: share whose true frame is the nearest of the own video's later frames; None where no video has two.
        own_chance: the same by chance.
        cosine: mean cosine to the true frame.
        cosine_others: mean cosine to frames of other videos; None without other videos.
    """

    spans: int
    first: float
    first_chance: float
    median_rank: float
    median_candidates: float
    own_first: float | None
    own_chance: float | None
    cosine: float
    cosine_others: float | None


def spans_of(name: str, latents: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Cut the latents of a response into spans.

    Args:
        name: id of the sample, for messages.
        latents: (L, H) all latents of the response.
        lengths: latents of each span.

    Raises:
        RecordError: the lengths do not add up to the latents.
    """
    if sum(lengths) != len(latents):
        raise RecordError(
            f"{name} has spans of {list(lengths)} latents, but {len(latents)} latents were saved; predictions and "
            "latents.safetensors are of different runs: predict again with save_latents, into a new run folder"
        )
    return [part.float() for part in torch.split(latents, list(lengths))]


def neighbours_of(
    latents: Tensor, number: int, record: RecordFrames, gallery: Gallery, count: int
) -> SpanNeighbours | None:
    """Compare a span with all candidates.

    Args:
        latents: (L, H) the span; without latents it is near to nothing.
        number: number of the span within its response, from 0; the record's future frame of that number is the true
            one.
        record: the record's pictures.
        gallery: all frames.
        count: most neighbours of each kind.

    Returns:
        The neighbours; None for a span without latents, or without candidates.
    """
    features = gallery.features
    if features is None or not len(latents):
        return None
    cosines = F.cosine_similarity(features, latents.mean(dim=0)[None], dim=1)
    own = list(record.own)
    others = [place for place, frame in enumerate(gallery.frames) if not frame.sources & record.sources]
    true = None
    if number < len(record.future):
        place = record.future[number]
        per_latent = F.cosine_similarity(latents, features[place][None], dim=1)
        true = TrueFrame(
            near=_near(place, cosines, gallery),
            rank=_rank(place, [*own, *others], cosines),
            of=len(own) + len(others),
            own_rank=_rank(place, own, cosines),
            own_of=len(own),
            latents=tuple(round(value, 4) for value in per_latent.tolist()),
        )
    return SpanNeighbours(
        true=true,
        own=_nearest(own, cosines, gallery, count),
        others=_nearest(others, cosines, gallery, count),
        observed=record.observed,
        other_mean=round(float(cosines[others].mean()), 4) if others else None,
    )


def retrieval_of(spans: Sequence[SpanNeighbours]) -> Retrieval | None:
    """Sum up the spans of all samples; None if none has a true frame."""
    found = [(span.true, span.other_mean) for span in spans if span.true is not None]
    true = [one for one, _ in found]
    if not true:
        return None
    choices = [one for one in true if one.own_of > 1]
    others = [value for _, value in found if value is not None]
    return Retrieval(
        spans=len(true),
        first=mean(one.rank == 1 for one in true),
        first_chance=mean(1 / one.of for one in true),
        median_rank=median(one.rank for one in true),
        median_candidates=median(one.of for one in true),
        own_first=mean(one.own_rank == 1 for one in choices) if choices else None,
        own_chance=mean(1 / one.own_of for one in choices) if choices else None,
        cosine=mean(one.near.cosine for one in true),
        cosine_others=mean(others) if others else None,
    )


def _near(place: int, cosines: Tensor, gallery: Gallery) -> Near:
    frame = gallery.frames[place]
    return Near(frame.picture.frame, frame.picture.label, frame.video, round(float(cosines[place]), 4))


def _nearest(places: Sequence[int], cosines: Tensor, gallery: Gallery, count: int) -> tuple[Near, ...]:
    ordered = sorted(places, key=lambda place: -float(cosines[place]))
    return tuple(_near(place, cosines, gallery) for place in ordered[:count])


def _rank(place: int, candidates: Sequence[int], cosines: Tensor) -> int:
    return int((cosines[torch.tensor(candidates)] >= cosines[place]).sum())
