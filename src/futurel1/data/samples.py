"""The common form of all records, whatever their shape: samples of turns, frames and videos.

A record as stored is a `RawRecord`; a source parses it into a `Sample`, or leaves it out as a `SkippedRecord`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from futurel1.errors import MissingFileError, RecordError

__all__ = [
    "Frame",
    "Parse",
    "Part",
    "PromptInfo",
    "RawRecord",
    "RecordFileError",
    "RecordTooLongError",
    "Role",
    "Sample",
    "SkippedRecord",
    "StoredImages",
    "Turn",
    "Video",
]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Frame:
    """One picture: entry `pool_index` (1..8) of the 8-frame pool of the video at `path`, or, if None, an image file.

    `data` holds the bytes of an image embedded in a record; `path` then only names that record in messages.
    """

    path: Path
    pool_index: int | None
    data: bytes | None = dataclasses.field(default=None, repr=False)
    field: str = dataclasses.field(default="", repr=False, compare=False)
    """The record's field that names this picture, for messages."""


@dataclass(frozen=True)
class Video:
    """A whole video, sampled by the processor."""

    path: Path
    field: str = dataclasses.field(default="", repr=False, compare=False)
    """The record's field that names this video, for messages."""


Part = str | Frame | Video


@dataclass(frozen=True)
class Turn:
    """One speaker's turn: texts, frames and videos in order.

    Attributes:
        role: the speaker.
        parts: what is said and shown.
        loss: whether an assistant turn is trained on; False for turns that are only context.
        field: the record's field that holds the turn, for messages.
    """

    role: Role
    parts: tuple[Part, ...]
    loss: bool = True
    field: str = dataclasses.field(default="", repr=False, compare=False)


@dataclass
class StoredImages:
    """Where a record's images are stored: they are read again when needed, so that no batch carries their bytes.

    Attributes:
        file: path of the Parquet or Arrow file.
        record: 1-based number of the record.
        column: name of the column.
    """

    file: str
    record: int
    column: str


@dataclass
class PromptInfo:
    """What a metric, a reward or a writer needs to know of a prompt; None for what its record does not have.

    Not frozen, and without bytes: Lightning's precision plugins visit every item of a batch and write into copies.

    Attributes:
        id: the record's own id.
        question: what is asked, as text.
        answer: the ground truth: the letter of a multiple-choice question, or the answer as the record has it.
        counterfactual: the answer that would be right in another future, for records that have one.
        options: letter to text of a multiple-choice question.
        question_type: the kind of question, as the record names it.
        split: the benchmark split that the prompt belongs to, such as `hop1` of FutureBench.
        reference_length: tokens of a reference response.
        reference_reasoning: reasoning for the judge to compare with, with `<rimage>` markers (TwiFF-Bench).
        question_images: the images of the question (TwiFF-Bench).
        reference_images: the images of the reference reasoning (TwiFF-Bench).
    """

    id: str | int | None = None
    question: str | None = None
    answer: str | None = None
    counterfactual: str | None = None
    options: dict[str, str] | None = None
    question_type: str | None = None
    split: str | None = None
    reference_length: int | None = None
    reference_reasoning: str | None = None
    question_images: StoredImages | None = None
    reference_images: StoredImages | None = None


@dataclass(frozen=True)
class Sample:
    """One training example, or one prompt.

    Attributes:
        id: `<file name>:<record number>`, unique within a `RecordSource`.
        turns: the conversation. In the hinted shapes texts are stripped, assistant texts are thoughts without their
            `THOUGHT n:` prefix, and assistant frames are hints; in the chat shape texts are verbatim.
        answer: the final answer that follows the last assistant turn; None in the chat shape, whose assistant texts
            are used as they are, and for unlabelled video, whose assistant turn consists of hints only.
        meta: the remaining fields of a training record (`id`, `meta_data`, `gain`, `cot`, ...).
        info: what is known about a prompt.
        shape: the shape of the record, as `docs/data.md` names it; "" for a sample that was not made from a record.
    """

    id: str
    turns: tuple[Turn, ...]
    answer: str | None
    meta: Mapping[str, Any]
    info: PromptInfo = dataclasses.field(default_factory=PromptInfo)
    shape: str = dataclasses.field(default="", compare=False)

    @property
    def place(self) -> str:
        """File and record number, as written in messages."""
        file, _, number = self.id.rpartition(":")
        return f"{file}, record {number}" if file and number.isdecimal() else self.id

    @property
    def observed(self) -> tuple[Frame, ...]:
        """Frames that the model is shown, in order."""
        return tuple(
            part for turn in self.turns if turn.role != "assistant" for part in turn.parts if isinstance(part, Frame)
        )

    @property
    def hints(self) -> tuple[Frame, ...]:
        """Future frames in the reasoning, represented by latents, in order."""
        return tuple(
            part for turn in self.turns if turn.role == "assistant" for part in turn.parts if isinstance(part, Frame)
        )


@dataclass(frozen=True)
class RawRecord:
    """A record as stored: its fields, its file, its 1-based number (the line, in JSON Lines), and the base folder.

    Relative paths start at `folder`. `name` names the file in ids and messages: the file name, or the relative path
    if two files share a name.
    """

    raw: dict[str, Any]
    file: Path
    number: int
    folder: Path
    name: str


Parse = Callable[[RawRecord], Sample]
"""Turns a stored record into a sample."""


@dataclass
class SkippedRecord:
    """A record that was left out: its id, the class name of the error and its message."""

    id: str
    error: str
    message: str


class RecordFileError(RecordError, MissingFileError):
    """A record names an image or video file that is not there."""


class RecordTooLongError(RecordError):
    """A record has more tokens than `max_length`."""
