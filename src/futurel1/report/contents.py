"""What a page shows, put together from a run, its records and the runs under an intervention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import Tensor

from futurel1.models import LatentReasoner
from futurel1.report.gallery import Gallery, RecordFrames, ShownFrame
from futurel1.report.neighbours import Retrieval, SpanNeighbours, neighbours_of, retrieval_of, spans_of
from futurel1.report.pictures import Thumbnails
from futurel1.report.records import RecordView, RunRecords
from futurel1.report.runs import Prediction, RunContents, evenly
from futurel1.report.scenes import SceneReader, SeenShape
from futurel1.report.scores import Effect, Score, effects_of, scores_of
from futurel1.report.texts import Piece, bare_question, pieces_of
from futurel1.scores import verdict_of
from futurel1.worlds import SceneWorld, World
from futurel1.worlds.belonging import world_of

__all__ = ["Contents", "Rollout", "RolloutGroup", "SampleView", "assemble", "groups_of"]

_ROLLOUT_FIELDS = ("rollout_batch", "prompt_index", "id", "prompt", "response", "answer", "finish_reason")


@dataclass(frozen=True)
class Told:
    """One response: what it says, whether its answer is right (None where nobody knows), and what a judge said."""

    answer: str
    right: bool | None
    pieces: list[Piece]
    votes: Mapping[str, float]
    tokens: int
    finish_reason: str
    seconds: float | None
    judge: str


@dataclass(frozen=True)
class SpanView:
    """One imagined frame: its neighbours and, for towers that know scenes, what a decoder reads from it."""

    latents: int
    near: SpanNeighbours | None
    scene: tuple[SeenShape, ...] | None
    true_scene: tuple[SeenShape, ...] | None


@dataclass(frozen=True)
class SampleView:
    """One sample: the question, what was shown, and what was answered with each kind of latents."""

    id: str
    record_id: str
    split: str
    question: str
    options: Mapping[str, str]
    expected: str
    shown: tuple[ShownFrame, ...]
    note: str
    told: Mapping[str, Told]
    flipped: tuple[str, ...]
    spans: list[SpanView]


@dataclass(frozen=True)
class Rollout:
    """One rollout of a group."""

    pieces: list[Piece]
    finish_reason: str
    numbers: Mapping[str, float | None]


@dataclass(frozen=True)
class RolloutGroup:
    """Rollouts to one prompt."""

    batch: int
    id: str
    prompt: str
    answer: str
    rollouts: list[Rollout]


@dataclass
class Contents:
    """Everything that a page shows of samples; `frames` are data URIs that the rest names by their place."""

    frames: list[str] = field(default_factory=list)
    samples: list[SampleView] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    retrieval: Retrieval | None = None
    gallery: int = 0
    groups: list[RolloutGroup] = field(default_factory=list)
    all_groups: int = 0
    answered: int = 0


def assemble(
    run: RunContents,
    others: Mapping[str, RunContents],
    records: RunRecords | None,
    reasoner: LatentReasoner | None,
    *,
    samples: int,
    neighbours: int,
    thumbnail: int,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda names: names,
) -> Contents:
    """Put together what a page shows.

    Args:
        run: the run.
        others: runs under an intervention, by its name.
        records: the records that the run answered; None if it answered none.
        reasoner: model that encodes frames, for neighbours; None: none are shown.
        samples: most samples, spread evenly over the records; 0: all.
        neighbours: nearest frames of each kind.
        thumbnail: most pixels of the longer side of a picture.
        progress: goes through ids and shows how far it is.
    """
    contents = Contents(answered=len(run.predictions))
    groups = groups_of(run.rollouts)
    contents.groups = [groups[place] for place in evenly(len(groups), samples)]
    contents.all_groups = len(groups)
    if records is None:
        return contents
    splits = {name: str(told.get("split") or records.split(name)) for name, told in run.predictions.items()}
    contents.scores = scores_of(run.predictions, splits)
    contents.effects = effects_of(run, others)
    names = list(run.predictions)
    chosen = [names[place] for place in evenly(len(names), samples)]
    gallery = Gallery(Thumbnails(thumbnail), records.sampling, reasoner)
    read: dict[str, tuple[RecordView, RecordFrames]] = {}
    for name in progress(chosen):
        view = records.view(name)
        read[name] = (view, gallery.add(view))
    media = (frame.path for view, _ in read.values() for frame in view.shown)
    world = next((found for found in map(world_of, media) if found is not None), None)
    spans = _SpanViews(run, gallery, neighbours, world)
    for name, (view, frames) in read.items():
        contents.samples.append(_sample_view(name, splits[name], run, others, view, frames, spans.of(name, frames)))
    found = [span.near for sample in contents.samples for span in sample.spans if span.near is not None]
    contents.retrieval = retrieval_of(found)
    contents.frames = gallery.thumbnails.uris
    contents.gallery = len(gallery.frames)
    return contents


class _SpanViews:
    """Makes the views of a run's spans."""

    def __init__(self, run: RunContents, gallery: Gallery, count: int, world: World | None) -> None:
        self._run, self._gallery, self._count = run, gallery, count
        bank = run.latents
        self._rows = {} if bank is None else {name: row for row, name in enumerate(bank.ids)}
        features = gallery.features
        self._reader: SceneReader | None = None
        if features is not None and bank is not None and isinstance(world, SceneWorld):
            self._reader = SceneReader.of(features, world)

    def of(self, name: str, frames: RecordFrames) -> list[SpanView]:
        """Views of the spans of a sample; of their numbers alone where no latents were saved."""
        prediction, bank = self._run.predictions[name], self._run.latents
        lengths = [int(length) for length in prediction["spans"]]
        # Of several branches the first one's latents are saved, and the one that won the vote is shown.
        if bank is None or self._run.branches > 1 or name not in self._rows:
            return [SpanView(length, None, None, None) for length in lengths]
        row = self._rows[name]
        latents = spans_of(name, bank.latents[row, : int(bank.counts[row])], lengths)
        return [self._view(part, number, frames) for number, part in enumerate(latents)]

    def _view(self, latents: Tensor, number: int, frames: RecordFrames) -> SpanView:
        near = neighbours_of(latents, number, frames, self._gallery, self._count)
        scene = true_scene = None
        if self._reader is not None and len(latents):
            scene = self._reader.shapes(latents.mean(dim=0))
            features = self._gallery.features
            if features is not None and number < len(frames.future):
                true_scene = self._reader.shapes(features[frames.future[number]])
        return SpanView(len(latents), near, scene, true_scene)


def _sample_view(
    name: str,
    split: str,
    run: RunContents,
    others: Mapping[str, RunContents],
    view: RecordView,
    frames: RecordFrames,
    spans: list[SpanView],
) -> SampleView:
    own = run.predictions[name]
    told = {"none": _told(own)}
    told |= {kind: _told(other.predictions[name]) for kind, other in others.items() if name in other.predictions}
    flipped = tuple(kind for kind, one in told.items() if kind != "none" and _flips(told["none"], one))
    info = view.info
    record_id = own.get("record_id")
    return SampleView(
        id=name,
        record_id="" if record_id is None else str(record_id),
        split=split,
        question=bare_question(info.question or "", info.options or {}),
        options=info.options or {},
        expected=str(own.get("expected") or info.answer or ""),
        shown=frames.shown,
        note=frames.note,
        told=told,
        flipped=flipped,
        spans=spans,
    )


def _told(prediction: Prediction) -> Told:
    seconds = prediction.get("seconds")
    return Told(
        answer=str(prediction["answer"]),
        right=verdict_of(prediction),
        pieces=pieces_of(str(prediction["response"]), [int(length) for length in prediction["spans"]]),
        votes=prediction.get("votes") or {},
        tokens=int(prediction.get("tokens") or 0),
        finish_reason=str(prediction.get("finish_reason") or ""),
        seconds=None if seconds is None else float(seconds),
        judge=f"{prediction['score']}: {prediction.get('judge') or ''}" if "score" in prediction else "",
    )


def _flips(own: Told, other: Told) -> bool:
    """Whether another answer is right where the own one is wrong or the other way round; or just another one."""
    return own.answer != other.answer if own.right is None else own.right != other.right


# ------------------------------------------------------------------ rollouts


def groups_of(rollouts: Sequence[Mapping[str, Any]]) -> list[RolloutGroup]:
    """Group the lines of `rollouts.jsonl` by batch and prompt, in their order."""
    return [
        _group(list(lines))
        for _, lines in groupby(rollouts, key=lambda line: (line.get("rollout_batch"), line.get("prompt_index")))
    ]


def _group(lines: Sequence[Mapping[str, Any]]) -> RolloutGroup:
    first = lines[0]
    return RolloutGroup(
        batch=int(first.get("rollout_batch") or 0),
        id=str(first.get("id") or ""),
        prompt=str(first.get("prompt") or ""),
        answer=str(first.get("answer") or ""),
        rollouts=list(_rollouts(lines)),
    )


def _rollouts(lines: Sequence[Mapping[str, Any]]) -> Iterator[Rollout]:
    for line in lines:
        numbers = {name: _finite(value) for name, value in line.items() if name not in _ROLLOUT_FIELDS}
        yield Rollout(
            pieces=pieces_of(str(line.get("response") or ""), None),
            finish_reason=str(line.get("finish_reason") or ""),
            numbers={name: value for name, value in numbers.items() if value is None or isinstance(value, int | float)},
        )


def _finite(value: Any) -> Any:
    """A number that JSON can hold; a reward that failed is logged as none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
