"""What is found out about one record: what is wrong with it, what looks wrong, and what it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from futurel1.data.samples import RecordTooLongError
from futurel1.data.video import VideoInfo

__all__ = ["Finding", "Problem", "RecordFacts"]

_FIELD = re.compile(r"\bfields? '([^']*)'")
_NO_FILE = re.compile(r"there is no file (.+?); put it there")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a record or a file.

    Attributes:
        split: the setting of the data module that names the file, such as `train`.
        file: the record file, as messages name it; "" where no record file could be opened.
        record: 1-based number of the record, in JSON Lines its line; None for what is wrong with a whole file.
        error: class of the error that a run would get; of a warning, what it is about.
        field: the record's field, as far as the message names one.
        media: the image or video file that is missing or unreadable; "" if it is none.
        message: what is wrong and what to do.
    """

    split: str
    file: str
    record: int | None
    error: str
    field: str
    media: str
    message: str

    @classmethod
    def of(cls, split: str, id: str, error: BaseException, media: str = "") -> Problem:
        """The problem that an error means.

        Args:
            split: name of the split.
            id: `file:record`; "" for an error of a whole file.
            error: what reading the record raised.
            media: the file that could not be read, if it is known.
        """
        message = str(error)
        named = _FIELD.search(message)
        missing = _NO_FILE.search(message)
        # of a record that is too long all fields are named
        field = named[1] if named and not isinstance(error, RecordTooLongError) else ""
        return cls(split, *_place(id), type(error).__name__, field, media or (missing[1] if missing else ""), message)

    @classmethod
    def warning(cls, split: str, id: str, about: str, message: str, *, field: str = "", media: str = "") -> Problem:
        """What does not stop a run, but is hardly meant so."""
        return cls(split, *_place(id), about, field, media, message)

    @property
    def kind(self) -> str:
        """What it is counted under."""
        return f"{self.error}, field '{self.field}'" if self.field else self.error


def _place(id: str) -> tuple[str, int | None]:
    file, _, number = id.rpartition(":")
    return (file, int(number)) if number.isdecimal() else (id, None)


@dataclass(frozen=True)
class RecordFacts:
    """What a record that can be used holds.

    Attributes:
        shape: its shape.
        own_id: its own `id`.
        tokens: tokens in all.
        latents: latents in what it teaches.
        spans: spans of latents in that.
        observed: observed frames.
        hints: future frames.
        videos: paths of its videos.
        images: paths of its image files.
    """

    shape: str
    own_id: str | int | None
    tokens: int
    latents: int
    spans: int
    observed: int
    hints: int
    videos: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """All that is found out about one record.

    Attributes:
        split: name of its split.
        id: `file:record`.
        problem: why it cannot be used; None if it can.
        warnings: what looks wrong about a record that can be used.
        facts: what it holds; None if it cannot be used.
        opened: videos that were opened for the first time, by path.
    """

    split: str
    id: str
    problem: Problem | None = None
    warnings: tuple[Problem, ...] = ()
    facts: RecordFacts | None = None
    opened: tuple[tuple[str, VideoInfo], ...] = ()
