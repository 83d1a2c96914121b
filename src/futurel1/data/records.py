"""Records of JSON, JSON Lines, Parquet and Arrow files, read one at a time and checked field by field.

Five shapes are understood: frame-indexed (TwiFF style), upstream TwiFF-2.7M, path-based, chat and unlabelled video.
Whatever the shape, a record becomes a `Sample`: turns of text, frames and videos in the order in which the model sees
them. A record that cannot be used raises an error that names the file, the record, the field, the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import reprlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

import numpy as np

from futurel1.data.frames import POOL_SIZE
from futurel1.errors import ConfigError, MissingFileError, RecordError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "IMAGINE_NEXT",
    "Frame",
    "Part",
    "RawRecord",
    "RecordFields",
    "RecordFileError",
    "RecordSource",
    "Sample",
    "SkippedRecord",
    "Turn",
    "Video",
    "is_unlabelled",
    "open_records",
    "parse_record",
]

Role = Literal["system", "user", "assistant"]

IMAGINE_NEXT = "Imagine what comes next."
"""What the user says after the observed frames of an unlabelled video."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_SHAPES = (
    "frame-indexed (video, image, reasoning_image, conversations, answer), "
    "upstream TwiFF (video, question, answer, question_images_index, reasoning_images_index), "
    "path-based (image, reasoning_image, conversations, answer), chat (messages, videos, images) "
    "or unlabelled video (video, image, reasoning_image)"
)
_MARKER = re.compile(r"(<r?image>|<video>)")
_THOUGHT_PREFIX = re.compile(r"\bTHOUGHT\s+\d+\s*:\s*")
_FRAME_LABEL = re.compile(r"^\s*frame_\d+\s*$", re.MULTILINE)
_INLINE_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RECORD_FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow")
_ROW_GROUPS_KEPT = 2
_ARROW_TABLES_KEPT = 2
_ARROW_FILE_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Frame:
    """One picture: entry `pool_index` (1..8) of the 8-frame pool of the video at `path`, or, if None, an image file.

    `data` holds the bytes of an image that is embedded in a record; `path` then only says, in messages, where that is.
    """

    path: Path
    pool_index: int | None
    data: bytes | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True)
class Video:
    """A whole video, sampled by the processor."""

    path: Path


Part = str | Frame | Video


@dataclass(frozen=True)
class Turn:
    """What one speaker says: texts, frames and videos in order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        id: `<file name>:<record number>`, unique within a `RecordSource`.
        turns: the conversation. In the hinted shapes texts are stripped, assistant texts are thoughts without their
            `THOUGHT n:` prefix, and assistant frames are hints; in the chat shape texts are verbatim.
        answer: the final answer that follows the last assistant turn; None in the chat shape, whose assistant texts
            are used as they are, and of unlabelled video, whose assistant turn is hints alone.
        meta: what else the record carried (`meta_data`, `gain`, `cot`, ...).
    """

    id: str
    turns: tuple[Turn, ...]
    answer: str | None
    meta: Mapping[str, Any]

    @property
    def observed(self) -> tuple[Frame, ...]:
        """Frames that the model is shown, in order."""
        return tuple(
            part for turn in self.turns if turn.role != "assistant" for part in turn.parts if isinstance(part, Frame)
        )

    @property
    def hints(self) -> tuple[Frame, ...]:
        """Future frames inside the reasoning, which latents stand for, in order."""
        return tuple(
            part for turn in self.turns if turn.role == "assistant" for part in turn.parts if isinstance(part, Frame)
        )


@dataclass(frozen=True)
class RawRecord:
    """A record as stored: its fields, its file, its 1-based number (the line, in JSON Lines) and where paths start.

    `name` stands for the file in ids and messages: the file name, or the relative path where two files share a name.
    """

    raw: dict[str, Any]
    file: Path
    number: int
    folder: Path
    name: str


Parse = Callable[[RawRecord], Sample]
"""How a source turns a record as stored into a sample."""


@dataclass
class SkippedRecord:
    """A record that was left out: its id, the class name of the error and its message."""

    id: str
    error: str
    message: str


class RecordFileError(RecordError, MissingFileError):
    """A record names an image or video file that is not there."""


# --------------------------------------------------------------------------------------------------- one record


def parse_record(
    raw: Mapping[str, Any],
    *,
    file: str,
    number: int,
    folder: Path,
    data_root: Path | None = None,
    check_files: bool = True,
) -> Sample:
    """Turn a raw record of any of the five shapes into a `Sample`.

    Args:
        raw: the record's fields; a field that is null counts as absent.
        file: name of the file the record comes from, for the id and messages.
        number: 1-based number of the record in that file.
        folder: folder against which relative media paths resolve.
        data_root: if given, media outside this folder are refused, whichever way a path leads there.
        check_files: whether media files have to exist.

    Returns:
        The sample; its id is `<file>:<number>`.

    Raises:
        RecordError: the record cannot be used.
        RecordFileError: a media file is missing; also a `MissingFileError`.
    """
    fields = RecordFields(raw, file=file, number=number, folder=folder, data_root=data_root, check_files=check_files)
    if "messages" in fields.values:
        return _parse_chat(fields)
    if "conversations" in fields.values:
        return _parse_conversations(fields)
    if fields.values.keys() & {"question_images_index", "reasoning_images_index"}:
        return _parse_upstream(fields)
    if is_unlabelled(fields):
        return _parse_unlabelled(fields)
    keys = ", ".join(sorted(map(str, fields.values))) or "none"
    raise RecordError(f"{fields.place}: unknown shape, its keys are: {keys}; write it as {_SHAPES}")


def is_unlabelled(fields: RecordFields) -> bool:
    """Whether a record that has the fields of no labelled shape lists frames of a video."""
    return "video" in fields.values and bool(fields.values.keys() & {"image", "reasoning_image"})


class RecordFields:
    """Typed access to a raw record's fields, remembering which were used, with errors that name the record."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        *,
        file: str,
        number: int,
        folder: Path,
        data_root: Path | None = None,
        check_files: bool = True,
    ) -> None:
        self.id = f"{file}:{number}"
        self.place = f"{file}, record {number}"
        if not isinstance(raw, Mapping):
            raise RecordError(
                f"{self.place}: {type(raw).__name__} ({_shown(raw)}) where an object is expected; write it as {_SHAPES}"
            )
        # Parquet stores a null for every column that a record does not have
        self.values = {key: value for key, value in raw.items() if value is not None}
        self.used: set[str] = set()
        self._folder = folder
        self._data_root = data_root
        self._check_files = check_files

    @property
    def meta(self) -> dict[str, Any]:
        """Fields that nothing has asked for."""
        return {key: value for key, value in self.values.items() if key not in self.used}

    def fail(self, field: str, value: object, problem: str, remedy: str) -> NoReturn:
        """Raise the error of a field."""
        raise RecordError(f"{self.place}, field '{field}' = {_shown(value)}: {problem}; {remedy}")

    def take(self, field: str) -> Any:
        """Return a field's value, None where the record lacks it."""
        self.used.add(field)
        return self.values.get(field)

    def text(self, field: str) -> str:
        """Return a string field that has to be there and not blank, stripped."""
        return self.check_text(field, self.take(field)).strip()

    def check_text(self, field: str, value: object) -> str:
        """Return a value as it is if it is a string and not blank."""
        if value is None:
            self.fail(field, value, "missing", f"add a string '{field}'")
        if not isinstance(value, str):
            self.fail(field, value, f"{type(value).__name__} where a string is expected", "write a string")
        if not value.strip():
            self.fail(field, value, "empty", "write some text or drop the record")
        return self.check_characters(field, value)

    def check_characters(self, field: str, text: str) -> str:
        """Return a text that no tokenizer trips over."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.fail(field, ascii(text), "half a surrogate pair, which is no text", "write the character as UTF-8")
        return text

    def sequence(self, field: str) -> list[Any]:
        """Return a list field, empty where the record lacks it."""
        value = self.take(field)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.fail(field, value, f"{type(value).__name__} where a list is expected", "write a list")
        return list(value)

    def pool_indices(self, field: str) -> list[int]:
        """Return a list of 1-based indices into the 8-frame pool."""
        indices = self.sequence(field)
        for index in indices:
            # bool is an int to isinstance, and True would read frame 1
            if type(index) is not int or not 1 <= index <= POOL_SIZE:
                self.fail(
                    field,
                    indices,
                    f"{_shown(index)} is not a frame of the {POOL_SIZE}-frame pool",
                    f"write integers from 1 to {POOL_SIZE}",
                )
        return indices

    def media_path(self, field: str, value: object) -> Path:
        """Resolve a media path of this record and check that it is allowed and, if asked, that it exists."""
        written = self.check_text(field, value)
        if "\0" in written or any("\ud800" <= character <= "\udfff" for character in written):
            self.fail(field, value, "characters that no file name has", "write the path of a file")
        path = Path(os.path.join(self._folder, written))
        if self._data_root is not None:
            root = Path(os.path.realpath(self._data_root))
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(root):
                self.fail(
                    field,
                    value,
                    f"leads to {real}, outside data_root {root}",
                    "move the file there or set data_root",
                )
        # isfile, unlike Path.exists, is False for names too long for the system
        if self._check_files and not os.path.isfile(path):
            raise RecordFileError(
                f"{self.place}, field '{field}' = {_shown(value)}: there is no file {path}; put it there, or correct "
                f"the path, which is relative to {self._folder}"
            )
        return path

    def media_paths(self, field: str) -> list[Path]:
        """Return the paths of a list field."""
        return [self.media_path(field, value) for value in self.sequence(field)]


def _shown(value: object) -> str:
    """Show a value within a message, shortened."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 120
    shorten.maxlist = shorten.maxtuple = 16
    try:
        return shorten.repr(value)
    except ValueError:
        # integers of thousands of digits have no decimal form in Python
        return f"<{type(value).__name__}>"


def _parse_conversations(fields: RecordFields) -> Sample:
    """Parse the frame-indexed shape (with `video`) and the path-based one (without)."""
    turns = _conversation_turns(fields)
    if "video" in fields.values:
        video = fields.media_path("video", fields.take("video"))
        observed_indices, hint_indices = fields.pool_indices("image"), fields.pool_indices("reasoning_image")
        _check_order(fields, "image", observed_indices, "reasoning_image", hint_indices)
        observed = [Frame(video, index) for index in observed_indices]
        hints = [Frame(video, index) for index in hint_indices]
    else:
        for field in ("image", "reasoning_image"):
            for value in fields.sequence(field):
                if isinstance(value, int | float):
                    fields.fail(
                        field,
                        fields.values[field],
                        f"{_shown(value)} is a frame index, but the record has no 'video'",
                        "add 'video', or list image files",
                    )
        observed = [Frame(path, None) for path in fields.media_paths("image")]
        hints = [Frame(path, None) for path in fields.media_paths("reasoning_image")]
    if not observed:
        fields.fail("image", fields.values.get("image"), "no observed frame", "list at least one")
    return _hinted_sample(fields, "conversations", turns, "image", observed, "reasoning_image", hints)


def _parse_upstream(fields: RecordFields) -> Sample:
    """Parse the shape of TwiFF-2.7M.

    `answer` carries the reasoning with the final answer inline as `<ans>..</ans>` (as TwiFF's published conversion
    does); with the reasoning in a field `cot` or `reasoning` it may be the bare final answer.
    """
    video = fields.media_path("video", fields.take("video"))
    observed_indices = fields.pool_indices("question_images_index")
    hint_indices = fields.pool_indices("reasoning_images_index")
    _check_order(fields, "question_images_index", observed_indices, "reasoning_images_index", hint_indices)
    if not observed_indices:
        value = fields.values.get("question_images_index")
        fields.fail("question_images_index", value, "no observed frame", "list at least one")
    question = fields.text("question")
    if "<image>" not in question:
        question = "<image>" * len(observed_indices) + question
    reasoning = ""
    # an `answer` with the marks of reasoning is the whole response
    answer = fields.values.get("answer")
    if isinstance(answer, str) and ("<ans>" in answer or _MARKER.search(answer)):
        reasoning = fields.text("answer")
        fields.values.pop("answer")
        reasoning_field = "answer"
    else:
        reasoning_field = next((field for field in ("cot", "reasoning") if fields.values.get(field)), "cot")
        if reasoning_field in fields.values:
            reasoning = fields.text(reasoning_field)
    asked: tuple[Role, str] = ("user", question)
    replied: tuple[Role, str] = ("assistant", reasoning)
    _check_question(fields, "question", [asked])
    _check_stray_markers(fields, "question", [asked])
    _check_stray_markers(fields, reasoning_field, [replied])
    return _hinted_sample(
        fields,
        reasoning_field,
        [asked, replied],
        "question_images_index",
        [Frame(video, index) for index in observed_indices],
        "reasoning_images_index",
        [Frame(video, index) for index in hint_indices],
    )


def _parse_chat(fields: RecordFields) -> Sample:
    turns = [_turn(fields, "messages", entry, "role", "content") for entry in fields.sequence("messages")]
    _check_turns(fields, "messages", turns)
    _check_question(fields, "messages", turns)
    if not any(role == "assistant" and text.strip() for role, text in turns):
        fields.fail("messages", fields.values["messages"], "empty answer", "write what the assistant says")
    supply: dict[str, list[Part]] = {
        "<video>": [Video(path) for path in fields.media_paths("videos")],
        "<image>": [Frame(path, None) for path in fields.media_paths("images")],
    }
    for marker, field in (("<video>", "videos"), ("<image>", "images")):
        _check_markers(fields, field, len(supply[marker]), marker, [text.count(marker) for _, text in turns])
    parsed = []
    for role, text in turns:
        parts: list[Part] = []
        for piece in re.split("(<image>|<video>)", text):
            if piece in supply:
                if role == "assistant":
                    fields.fail(
                        "messages",
                        text,
                        f"a {piece} marker in an assistant turn",
                        "move it to a user turn; future frames belong in the path-based shape as 'reasoning_image'",
                    )
                parts.append(supply[piece].pop(0))
            elif piece:
                parts.append(piece)
        parsed.append(Turn(role, tuple(parts)))
    return Sample(fields.id, tuple(parsed), None, fields.meta)


def _parse_unlabelled(fields: RecordFields) -> Sample:
    """Parse the shape without texts: the frames that are seen, and those to imagine."""
    for field in ("question", "answer", "problem", "qa"):
        if field in fields.values:
            fields.fail(
                field,
                fields.values[field],
                f"a video with '{field}' but without 'conversations'",
                f"add 'conversations', or leave '{field}' out of an unlabelled video",
            )
    video = fields.media_path("video", fields.take("video"))
    observed, hints = fields.pool_indices("image"), fields.pool_indices("reasoning_image")
    if not observed:
        fields.fail("image", fields.values.get("image"), "no observed frame", "list at least one")
    if not hints:
        value = fields.values.get("reasoning_image")
        fields.fail("reasoning_image", value, "no frame to imagine", "list at least one, or drop the record")
    _check_order(fields, "image", observed, "reasoning_image", hints)
    shown = [part for index in observed for part in (f"frame_{index}", Frame(video, index))]
    imagined = [Frame(video, index) for index in hints]
    turns = (Turn("user", (*shown, IMAGINE_NEXT)), Turn("assistant", tuple(imagined)))
    return Sample(fields.id, turns, None, fields.meta)


def _conversation_turns(fields: RecordFields) -> list[tuple[Role, str]]:
    """Return (role, text) of `conversations`, a list of turns or, columnar, an object of two lists."""
    value = fields.take("conversations")
    if isinstance(value, Mapping):
        speakers, texts = value.get("from"), value.get("value")
        if not isinstance(speakers, list | tuple) or not isinstance(texts, list | tuple) or len(speakers) != len(texts):
            fields.fail(
                "conversations",
                value,
                "an object that does not hold two lists 'from' and 'value' of one length",
                "write a list of turns, or two such lists",
            )
        value = [{"from": speaker, "value": text} for speaker, text in zip(speakers, texts, strict=True)]
    if not isinstance(value, list | tuple):
        fields.fail("conversations", value, f"{type(value).__name__} where a list is expected", "write a list of turns")
    turns = [_turn(fields, "conversations", entry, "from", "value") for entry in value]
    _check_turns(fields, "conversations", turns)
    _check_question(fields, "conversations", turns)
    _check_stray_markers(fields, "conversations", turns)
    return turns


def _turn(fields: RecordFields, field: str, entry: object, role_key: str, text_key: str) -> tuple[Role, str]:
    if not isinstance(entry, Mapping):
        fields.fail(
            field,
            entry,
            f"{type(entry).__name__} where a turn is expected",
            f'write {{"{role_key}": .., "{text_key}": ..}}',
        )
    speaker, text = entry.get(role_key), entry.get(text_key)
    if not isinstance(speaker, str) or speaker not in _ROLES:
        fields.fail(f"{field}.{role_key}", speaker, "not a known speaker", f"write one of {', '.join(_ROLES)}")
    if not isinstance(text, str):
        fields.fail(f"{field}.{text_key}", text, f"{type(text).__name__} where a string is expected", "write a string")
    return _ROLES[speaker], fields.check_characters(f"{field}.{text_key}", text)


def _check_turns(fields: RecordFields, field: str, turns: Sequence[tuple[Role, str]]) -> None:
    value = fields.values[field]
    roles = [role for role, _ in turns]
    if "assistant" not in roles:
        fields.fail(field, value, "no assistant turn", "add the response to learn")
    if "user" not in roles[: roles.index("assistant")]:
        fields.fail(field, value, "no user turn before the first assistant turn", "add the question")
    if roles[-1] != "assistant":
        fields.fail(field, value, f"the last turn is the {roles[-1]}'s", "end with the assistant's response")


def _check_question(fields: RecordFields, field: str, turns: Sequence[tuple[Role, str]]) -> None:
    asked = "\n".join(text for role, text in turns if role == "user")
    if not _FRAME_LABEL.sub("", _MARKER.sub("", asked)).strip():
        fields.fail(field, asked, "empty question", "write the question after the images or drop the record")


def _check_stray_markers(fields: RecordFields, field: str, turns: Sequence[tuple[Role, str]]) -> None:
    for role, text in turns:
        for marker in ("<video>",) if role == "assistant" else ("<video>", "<rimage>"):
            if marker in text:
                fields.fail(field, text, f"a {marker} marker in a {role} turn", "mark observed frames by <image>")


def _check_order(
    fields: RecordFields, observed_field: str, observed: Sequence[int], hint_field: str, hints: Sequence[int]
) -> None:
    for hint in hints:
        if observed and hint < max(observed):
            fields.fail(
                hint_field,
                list(hints),
                f"hint {hint} comes before the last observed frame, {max(observed)} in '{observed_field}'",
                "list future frames only",
            )


def _check_markers(fields: RecordFields, field: str, num_media: int, marker: str, counts: Sequence[int]) -> None:
    if sum(counts) != num_media:
        fields.fail(
            field,
            fields.values.get(field),
            f"{num_media} given, but the text has {sum(counts)} {marker} markers (per turn: {list(counts)})",
            f"write one {marker} for each",
        )


def _hinted_sample(
    fields: RecordFields,
    text_field: str,
    turns: Sequence[tuple[Role, str]],
    observed_field: str,
    observed: list[Frame],
    hint_field: str,
    hints: list[Frame],
) -> Sample:
    """Put frames in the place of markers, take the final answer out of the reasoning and strip the texts."""
    answer, turns = _final_answer(fields, text_field, turns)
    shown = [len(_MARKER.findall(text)) for role, text in turns if role != "assistant"]
    hinted = [len(_MARKER.findall(text)) for role, text in turns if role == "assistant"]
    _check_markers(fields, observed_field, len(observed), "<image>", shown)
    hint_marker = "<rimage>" if any("<rimage>" in text for _, text in turns) else "<image>"
    _check_markers(fields, hint_field, len(hints), hint_marker, hinted)
    frames = {False: iter(observed), True: iter(hints)}
    parsed = []
    for role, text in turns:
        parts: list[Part] = []
        for piece in _MARKER.split(text):
            if _MARKER.fullmatch(piece):
                parts.append(next(frames[role == "assistant"]))
            else:
                stripped = (_THOUGHT_PREFIX.sub("", piece) if role == "assistant" else piece).strip()
                if stripped:
                    parts.append(stripped)
        parsed.append(Turn(role, tuple(parts)))
    return Sample(fields.id, tuple(parsed), answer, fields.meta)


def _final_answer(
    fields: RecordFields, text_field: str, turns: Sequence[tuple[Role, str]]
) -> tuple[str, list[tuple[Role, str]]]:
    """Return the final answer and the turns without it: field `answer`, else the inline `<ans>..</ans>`."""
    inline: list[str] = []
    remaining: list[tuple[Role, str]] = []
    for role, text in turns:
        if role == "assistant":
            inline += _INLINE_ANSWER.findall(text)
            text = _INLINE_ANSWER.sub("", text)
            if "<ans>" in text or "</ans>" in text:
                fields.fail(text_field, text, "an unpaired <ans> or </ans>", "write <ans>the answer</ans>")
        remaining.append((role, text))
    if len(inline) > 1:
        fields.fail(text_field, inline, f"{len(inline)} final answers", "write one <ans>..</ans>")
    if text_field == "answer" and not inline:
        fields.fail("answer", turns[-1][1], "reasoning without a final answer", "mark that by <ans>the answer</ans>")
    if "answer" in fields.values or not inline:
        return fields.text("answer"), remaining
    return fields.check_text(f"{text_field} (<ans>)", inline[0]).strip(), remaining


# ------------------------------------------------------------------------------------------------ files of records


class RecordSource:
    """Records of one or more files, by position.

    Only an index stays in memory for JSON Lines (8 bytes a record) and Parquet (8 bytes a row group); Arrow files are
    mapped, JSON files held whole. A source may be pickled, forked and read by several workers.

    Args:
        files: record files in order.
        data_root: if given, media outside this folder are refused.
        parse: turns a record as stored into a sample, in place of `parse_record`; it then sees to `data_root` itself.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        data_root: str | os.PathLike[str] | None = None,
        parse: Parse | None = None,
    ) -> None:
        self.files = tuple(files)
        self._parse = parse
        self._names = _display_names(files)
        self._data_root = None if data_root is None else Path(data_root)
        if self._data_root is not None and not self._data_root.is_dir():
            raise MissingFileError(f"data_root {self._data_root}: no such folder; name the folder that holds the media")
        self._files = [_open_file(file, name) for file, name in zip(files, self._names, strict=True)]
        self._ends = np.cumsum([len(file) for file in self._files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(index) for index in range(len(self)))

    def id(self, index: int) -> str:
        """Return `<name>:<record number>` of a record without reading it."""
        which, position = self._locate(index)
        return f"{self._names[which]}:{self._files[which].number(position)}"

    def raw(self, index: int) -> RawRecord:
        """Read a record as it is stored.

        Args:
            index: position in the source, from 0; negative values count from the end.

        Raises:
            IndexError: there is no such position.
            RecordError: what is stored there is not an object, or not readable.
            MissingFileError: the file has gone since the source was opened.
        """
        which, position = self._locate(index)
        file = self._files[which]
        number = file.number(position)
        place = f"{self._names[which]}, record {number}"
        try:
            value = file.read(position, place)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{place}: the file {file.path} has gone since it was opened; put it back or open the records again"
            ) from error
        if not isinstance(value, dict):
            shapes = _SHAPES if self._parse is None else "an object with named fields"
            raise RecordError(
                f"{place}: {type(value).__name__} ({_shown(value)}) where an object is expected; write it as {shapes}"
            )
        return RawRecord(value, file.path, number, file.path.parent, self._names[which])

    def sample(self, index: int, check_files: bool = True) -> Sample:
        """Read and parse a record.

        Args:
            index: position in the source, from 0; negative values count from the end.
            check_files: whether the media files have to exist; a `parse` of one's own decides that itself.

        Raises:
            IndexError: there is no such position.
            RecordError: the record cannot be used.
            RecordFileError: a media file is missing.
            MissingFileError: the record file has gone since the source was opened.
        """
        record = self.raw(index)
        if self._parse is not None:
            return self._parse(record)
        return parse_record(
            record.raw,
            file=record.name,
            number=record.number,
            folder=record.folder,
            data_root=self._data_root,
            check_files=check_files,
        )

    def _locate(self, index: int) -> tuple[int, int]:
        """Return (file, position within the file)."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        which = int(np.searchsorted(self._ends, position, side="right"))
        return which, position - (int(self._ends[which - 1]) if which else 0)


def open_records(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    data_root: str | os.PathLike[str] | None = None,
    parse: Parse | None = None,
) -> RecordSource:
    """Open record files.

    Args:
        paths: a `.json`, `.jsonl`, `.parquet` or `.arrow` file, a folder (every such file below it, sorted, hidden ones
            left out; of a data set saved by `datasets`' `save_to_disk`, its Arrow files), or a list of those.
        data_root: if given, media outside this folder are refused.
        parse: turns a record as stored into a sample, in place of `parse_record`; it then sees to `data_root` itself.

    Returns:
        A source over all records, files in the order given.

    Raises:
        MissingFileError: a path or `data_root` does not exist.
        ConfigError: no path is given, a file has another extension, a folder has no record files, or a file is named
            twice.
        RecordError: a file has no records, or is not what its extension says.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not listed:
        suffixes = ", ".join(_RECORD_FILE_SUFFIXES)
        raise ConfigError(f"no record files are given: name a file ({suffixes}), or a folder of them")
    files: list[Path] = []
    for path in map(Path, listed):
        if path.is_dir():
            files += _saved_dataset_files(path) or _files_below(path)
        elif not path.exists():
            raise MissingFileError(f"{path}: no such file or folder; check the path of the records")
        elif path.suffix.lower() not in _RECORD_FILE_SUFFIXES:
            raise ConfigError(
                f"{path}: extension '{path.suffix}' is not one of {', '.join(_RECORD_FILE_SUFFIXES)}; "
                "convert or rename the file"
            )
        else:
            files.append(path)
    seen: set[str] = set()
    for file in files:
        real = os.path.realpath(file)
        if real in seen:
            raise ConfigError(f"{file}: the file is named twice, directly or through a folder; name it once")
        seen.add(real)
    return RecordSource(files, data_root=data_root, parse=parse)


def _saved_dataset_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set, or of all its splits, that `datasets` saved; nothing for other folders."""
    splits = _saved_index(folder / "dataset_dict.json", "splits")
    if splits is not None:
        return [file for split in splits for file in _saved_dataset_files(folder / str(split))]
    state = folder / "state.json"
    shards = _saved_index(state, "_data_files")
    if shards is None:
        return []
    if _saved_index(state, "_indices_data_files"):
        raise ConfigError(f"{folder}: its rows are chosen by an index; save it after flatten_indices()")
    files = [folder / str(shard["filename"]) for shard in shards]
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file}: {state} lists this file, but it is not there; copy or save the data again")
    return files


def _saved_index(file: Path, key: str) -> list[Any] | None:
    """Return a list that one of `datasets`' own files holds; None where there is no such file or list."""
    value = _decode_json(file.read_bytes(), str(file), "save the data again") if file.is_file() else None
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _files_below(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _RECORD_FILE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ConfigError(f"{folder}: the folder holds no {', '.join(_RECORD_FILE_SUFFIXES)} file; check the path")
    return files


def _display_names(files: Sequence[Path]) -> list[str]:
    """Return file names, replaced by paths relative to the common folder where two files share a name."""
    names = [file.name for file in files]
    counts = Counter(names)
    common = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    return [
        Path(os.path.relpath(os.path.abspath(file), common)).as_posix() if counts[name] > 1 else name
        for file, name in zip(files, names, strict=True)
    ]


class _RecordFile(Protocol):
    """One file of records; `read` and `number` take positions from 0."""

    path: Path

    def __len__(self) -> int: ...

    def number(self, position: int) -> int: ...

    def read(self, position: int, place: str) -> Any: ...


def _open_file(path: Path, name: str) -> _RecordFile:
    if path.stat().st_size == 0:
        raise RecordError(f"{path}: the file is empty (0 bytes); write records to it or leave it out")
    suffix = path.suffix.lower()
    file: _RecordFile
    if suffix == ".jsonl":
        file = _JsonLinesFile(path)
    elif suffix == ".parquet":
        file = _ParquetFile(path, name)
    elif suffix == ".arrow":
        file = _ArrowFile(path, name)
    else:
        file = _JsonFile(path, name)
    if len(file) == 0:
        raise RecordError(f"{path}: the file has no records; write some or leave it out")
    return file


def _decode_json(data: bytes, place: str, remedy: str) -> Any:
    """Decode one JSON value; `remedy` says what to do about a syntax error."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{place}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        excerpt = error.doc[max(0, error.pos - 20) : error.pos + 20]
        raise RecordError(
            f"{place}: not valid JSON: {error.msg}, line {error.lineno} column {error.colno}, near {excerpt!r}; "
            f"{remedy}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: JSON that Python cannot hold ({error}); correct or drop it") from error


class _JsonFile:
    """A JSON array of records, or one record, held in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        value = _decode_json(
            path.read_bytes(), name, "correct it, or name the file .jsonl if each line is a record of its own"
        )
        if not isinstance(value, list | dict):
            raise RecordError(f"{name}: {type(value).__name__} where a list is expected; write an array of records")
        self._records = value if isinstance(value, list) else [value]

    def __len__(self) -> int:
        return len(self._records)

    def number(self, position: int) -> int:
        return position + 1

    def read(self, position: int, place: str) -> Any:
        return self._records[position]


class _JsonLinesFile:
    """JSON Lines, indexed by where each line starts; a record's number is its line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, blanks = array("q"), array("q")
        position = 0
        with path.open("rb") as stream:
            for line in stream:
                content = line.removeprefix(_BYTE_ORDER_MARK) if position == 0 else line
                if content.strip():
                    starts.append(position)
                else:
                    blanks.append(len(starts))
                position += len(line)
        self._starts = np.array(starts, dtype=np.int64)
        # number of records before each blank line, which is enough to find a record's line
        self._blanks = np.array(blanks, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, position: int) -> int:
        return position + 1 + int(np.searchsorted(self._blanks, position, side="right"))

    def read(self, position: int, place: str) -> Any:
        with self.path.open("rb") as stream:
            stream.seek(int(self._starts[position]))
            line = stream.readline()
        return _decode_json(line.rstrip(b"\r\n"), place, "write one JSON object on the line")


class _ParquetFile:
    """Parquet, read a row group at a time."""

    def __init__(self, path: Path, name: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{name}: not a readable Parquet file ({error}); copy or write it again") from error
        self._ends = np.cumsum([0, *sizes], dtype=np.int64)[1:]
        status = path.stat()
        self._version = (status.st_mtime_ns, status.st_size)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def number(self, position: int) -> int:
        return position + 1

    def read(self, position: int, place: str) -> Any:
        import pyarrow as pa

        group = int(np.searchsorted(self._ends, position, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        try:
            table = _row_group(self.path, self._version, group)
            return table.slice(position - first, 1).to_pylist()[0]
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError) as error:
            raise RecordError(f"{place}: the row cannot be read ({error}); write the Parquet file again") from error


@lru_cache(maxsize=_ROW_GROUPS_KEPT)
def _row_group(path: Path, version: tuple[int, int], group: int) -> pa.Table:
    """Read a row group; `version` keeps a rewritten file from being served from the cache."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        # without Arrow's thread pool, which does not survive a fork
        return file.read_row_group(group, use_threads=False)


class _ArrowFile:
    """Arrow, as `datasets` saves it: mapped into memory, so that only the rows that are asked for are read."""

    def __init__(self, path: Path, name: str) -> None:
        import pyarrow as pa

        self.path = path
        status = path.stat()
        self._version = (status.st_mtime_ns, status.st_size)
        try:
            self._length = int(_arrow_table(path, self._version).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{name}: not a readable Arrow file ({error}); copy or save it again") from error

    def __len__(self) -> int:
        return self._length

    def number(self, position: int) -> int:
        return position + 1

    def read(self, position: int, place: str) -> Any:
        import pyarrow as pa

        try:
            return _arrow_table(self.path, self._version).slice(position, 1).to_pylist()[0]
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError) as error:
            raise RecordError(f"{place}: the row cannot be read ({error}); save the Arrow file again") from error


@lru_cache(maxsize=_ARROW_TABLES_KEPT)
def _arrow_table(path: Path, version: tuple[int, int]) -> pa.Table:
    """Map an Arrow file; `version` keeps a rewritten file from being served from the cache."""
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    opener = pa.ipc.open_file if mapped.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC else pa.ipc.open_stream
    mapped.seek(0)
    # without Arrow's thread pool, which does not survive a fork
    return opener(mapped, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
