"""Future frames of prompts: those of a record's own reasoning, and those of its counterfactual (`docs/data.md`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from futurel1.data.benchmarks import read_images
from futurel1.data.record_fields import RecordFields
from futurel1.data.record_shapes import parse_record
from futurel1.data.samples import Frame, RawRecord, Sample, StoredImages
from futurel1.errors import RecordError

__all__ = ["FUTURES", "Future", "FutureOf", "counterfactual_answer", "counterfactual_future", "true_future"]

Future = Literal["true", "counterfactual"]
"""Which future of a prompt: the one that came, or another that could have come."""
FutureOf = Callable[[RawRecord, Sample, Path | None], tuple[Frame, ...]]
"""Finds future frames, given a record, its prompt, and the folder that no path may leave."""

COUNTERFACTUAL = "counterfactual"
_RESPONSES = frozenset({"messages", "conversations", "question_images_index", "reasoning_images_index"})
_BENCHMARKS = frozenset({"problem", "qa"})


def true_future(record: RawRecord, prompt: Sample, data_root: Path | None = None) -> tuple[Frame, ...]:
    """Frames of a record's own reasoning, in order: hints of a training record, images of a benchmark's reference.

    Args:
        record: the record as stored.
        prompt: its prompt.
        data_root: if given, media outside this folder are refused.

    Returns:
        The frames, one for each span; none for a record that has no such frames. Their files may be missing.

    Raises:
        RecordError: the record cannot be used.
    """
    if prompt.info.reference_images is not None:
        return tuple(_stored_frames(prompt.info.reference_images))
    raw = {name: value for name, value in record.raw.items() if value is not None}
    if not raw.keys() & _RESPONSES or raw.keys() & _BENCHMARKS:
        return ()
    return parse_record(
        raw, file=record.name, number=record.number, folder=record.folder, data_root=data_root, check_files=False
    ).hints


def counterfactual_future(record: RawRecord, prompt: Sample, data_root: Path | None = None) -> tuple[Frame, ...]:
    """Frames of the other future that a record names in its field `counterfactual`; none without that field.

    Args and errors: see :func:`true_future`.
    """
    fields = _counterfactual_fields(record, data_root)
    if fields is None:
        return ()
    video = fields.media_path("counterfactual.video", fields.take("counterfactual.video"))
    indices = fields.pool_indices("counterfactual.reasoning_image")
    return tuple(Frame(video, index, field="counterfactual.video") for index in indices)


def counterfactual_answer(record: RawRecord) -> str | None:
    """The answer that is right in a record's other future; None for a record without one.

    Raises:
        RecordError: the field `counterfactual` has no answer.
    """
    fields = _counterfactual_fields(record, None)
    return None if fields is None else fields.text("counterfactual.answer")


def _counterfactual_fields(record: RawRecord, data_root: Path | None) -> RecordFields | None:
    other = record.raw.get(COUNTERFACTUAL)
    if other is None:
        return None
    if not isinstance(other, Mapping):
        raise RecordError(
            f"{record.name}, record {record.number}, field 'counterfactual': {type(other).__name__} where an object "
            "with video, reasoning_image and answer is expected"
        )
    named: dict[str, Any] = {f"{COUNTERFACTUAL}.{name}": value for name, value in other.items()}
    return RecordFields(
        named, file=record.name, number=record.number, folder=record.folder, data_root=data_root, check_files=False
    )


def _stored_frames(stored: StoredImages) -> list[Frame]:
    place = Path(f"{stored.file}, record {stored.record}, {stored.column}")
    return [
        Frame(place, None, image) if isinstance(image, bytes) else Frame(image, None) for image in read_images(stored)
    ]


FUTURES: Mapping[Future, FutureOf] = {"true": true_future, "counterfactual": counterfactual_future}
"""How the frames of each future are found."""
