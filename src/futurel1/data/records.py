"""Records of JSON, JSON Lines, Parquet and Arrow files, read one at a time and checked field by field.

Five shapes are understood: frame-indexed (TwiFF style), upstream TwiFF-2.7M, path-based, chat (also as ShareGPT writes
it) and unlabelled video.
Whatever the shape, a record becomes a `Sample`: turns of text, frames and videos in the order in which the model sees
them. A record that cannot be used raises an error that names the file, the record, the field, the value and the remedy.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import re
import reprlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol
from urllib.parse import unquote

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
    "path-based (image, reasoning_image, conversations, answer), chat (messages or conversations, videos, images) "
    "or unlabelled video (video, image, reasoning_image)"
)
_CHAT_FIELDS = frozenset({"messages", "videos", "images", "system"})
_INDEXED_FIELDS = frozenset({"video", "image", "reasoning_image", "conversations", "answer", "system"})
_PATH_FIELDS = _INDEXED_FIELDS | {"videos", "images"}
_UPSTREAM_FIELDS = frozenset(
    {"video", "question", "answer", "question_images_index", "reasoning_images_index", "cot", "reasoning", "system"}
)
_UNLABELLED_FIELDS = _INDEXED_FIELDS | {"messages", "question"}
TRAINING_FIELDS = _CHAT_FIELDS | _PATH_FIELDS | _UPSTREAM_FIELDS
"""Fields of records of all shapes."""
_MARKER = re.compile(r"(<r?image>|<video>)")
_URL = re.compile(r"([A-Za-z][A-Za-z\d+.-]+)://|(data):\w+/")
_CHAT_MARKER = re.compile(r"(<image>|<video>)")
_THOUGHT_PREFIX = re.compile(r"\bTHOUGHT\s+\d+\s*:\s*")
_FRAME_LABEL = re.compile(r"^\s*frame_\d+\s*$", re.MULTILINE)
_INLINE_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RECORD_FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow")
_OTHER_LOSS_KEYS = {"weight": (1,), "train": (True,), "training": (True,), "loss_scale": (1,)}
"""Keys of a turn by which other tools leave it out of the loss, with the values that change nothing."""
_LOSS_KEYS = ("loss", "loss_mask", "trainable")
"""Keys of a turn that say whether it is learned."""
_LOST_TURN_KEYS = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "thinking")
"""Keys of a turn that hold what the model would have to say or read besides its content."""
_MEDIA_MARKERS = {"image": "<image>", "video": "<video>"}
_TEXT_FIELDS = frozenset(
    {"system", "question", "answer", "video", "cot", "reasoning", "problem", "problem_type", "question_type",
     "video_path"}
)  # fmt: skip
_INTEGER_FIELDS = frozenset({"reference_length"})
_OBJECT_FIELDS = frozenset({"messages", "conversations", "options"})
_FILE_LISTS = frozenset({"videos", "images"})
_SHORTEST_MISSPELT = 4
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
    field: str = dataclasses.field(default="", repr=False, compare=False)
    """The record's field that names it, for messages."""


@dataclass(frozen=True)
class Video:
    """A whole video, sampled by the processor."""

    path: Path
    field: str = dataclasses.field(default="", repr=False, compare=False)
    """The record's field that names it, for messages."""


Part = str | Frame | Video


@dataclass(frozen=True)
class Turn:
    """What one speaker says: texts, frames and videos in order.

    Attributes:
        role: the speaker.
        parts: what is said and shown.
        loss: whether the turn is learned, if it is the assistant's; False for context that was not worth learning.
        field: the record's field that holds the turn, for messages.
    """

    role: Role
    parts: tuple[Part, ...]
    loss: bool = True
    field: str = dataclasses.field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        id: `<file name>:<record number>`, unique within a `RecordSource`.
        turns: the conversation. In the hinted shapes texts are stripped, assistant texts are thoughts without their
            `THOUGHT n:` prefix, and assistant frames are hints; in the chat shape texts are verbatim.
        answer: the final answer that follows the last assistant turn; None in the chat shape, whose assistant texts
            are used as they are, and of unlabelled video, whose assistant turn is hints alone.
        meta: what else the record carried (`id`, `meta_data`, `gain`, `cot`, ...).
    """

    id: str
    turns: tuple[Turn, ...]
    answer: str | None
    meta: Mapping[str, Any]

    @property
    def place(self) -> str:
        """File and record number as messages name them."""
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

    A record's `system` field becomes its system turn, as it is given.

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
    system = fields.system_turns()
    fields.identity()
    fields.used.discard("id")  # it stays in `meta`
    if "messages" in fields.values:
        fields.refuse_misspelt(_CHAT_FIELDS)
        sample = _parse_chat(fields, "messages", _turns(fields, "messages"))
    elif "conversations" in fields.values:
        sample = _parse_conversations(fields)
    elif fields.values.keys() & {"question_images_index", "reasoning_images_index"}:
        sample = _parse_upstream(fields)
    elif is_unlabelled(fields):
        sample = _parse_unlabelled(fields)
    else:
        fields.fail_shape(_SHAPES, TRAINING_FIELDS)
    return _with_system(fields, sample, system)


def _with_system(fields: RecordFields, sample: Sample, system: tuple[Turn, ...]) -> Sample:
    """Put the system turn of the field `system` first; a turn that the record has besides has to say the same."""
    if not system:
        return sample
    text = str(system[0].parts[0])
    stated = ["".join(map(str, turn.parts)).strip() for turn in sample.turns if turn.role == "system"]
    # outer blanks aside, because the hinted shapes strip their turns
    if stated and stated != [text.strip()]:
        fields.fail("system", text, f"the record has another system turn, {_shown(stated[0])}", "keep one of them")
    return replace(sample, turns=(*system, *(turn for turn in sample.turns if turn.role != "system")))


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
        raise RecordError(f"{self.place}, field '{_name(field)}' = {_shown(value)}: {problem}; {remedy}")

    def fail_shape(self, shapes: str, known: Collection[str]) -> NoReturn:
        """Raise the error of a record that has the fields of no shape.

        Args:
            shapes: the shapes, for the remedy.
            known: fields of all shapes, of which the record may have misspelt some.
        """
        pairs = ((key, _misspelt(key, tuple(sorted(known)))) for key in self.values if key not in known)
        keys = ", ".join(sorted(self.keys)) or "none"
        guess = next((f" ('{_name(key)}' looks like '{right}')" for key, right in pairs if right), "")
        raise RecordError(f"{self.place}: unknown shape, its keys are: {keys}{guess}; write it as {shapes}")

    @property
    def keys(self) -> list[str]:
        """The record's keys, printable, for messages."""
        return [_name(key) for key in self.values]

    def refuse_misspelt(self, known: Collection[str]) -> None:
        """Raise the error of an unknown key that looks like one of `known` which the record lacks.

        It has to hold what that field would. Other keys are left alone: public records carry many of their own.
        """
        absent = tuple(sorted(name for name in known if name not in self.values))
        for key, value in self.values.items():
            right = None if key in known else _misspelt(key, absent)
            if right is not None and _could_be(right, key, value):
                self.fail(
                    key,
                    value,
                    f"an unknown key that looks like '{right}', which the record lacks",
                    f"rename it to '{right}', or, if it is something else, to a name less like it",
                )

    def system_turns(self) -> tuple[Turn, ...]:
        """The system turn of the field `system`, its text as it is given; nothing where the record lacks it."""
        value = self.take("system")
        if value is None:
            return ()
        if isinstance(value, str) and not value.strip():
            self.fail("system", value, "empty", "write some text, or leave it out for the default system turn")
        return (Turn("system", (self.check_text("system", value),), field="system"),)

    def identity(self) -> str | int | None:
        """The record's own `id`, None where it lacks one; what is neither a text nor an integer is written as text."""
        value = self.take("id")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas makes a column of integers with gaps one of floats
        elif isinstance(value, float) and math.isnan(value):
            value = None
        elif isinstance(value, Mapping | list | tuple):
            value = json.dumps(value, ensure_ascii=False, default=str)
        # bool is an int to isinstance
        elif value is not None and type(value) not in (str, int):
            value = str(value)
        if value is None:
            self.values.pop("id", None)
        else:
            self.values["id"] = value
        return value  # type: ignore[no-any-return]

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
        url = _URL.match(written)
        if url is not None:
            scheme = (url[1] or url[2]).casefold()
            if scheme != "file":
                self.fail(field, value, f"a {scheme} URL, which is not read", "save it as a file and write its path")
            written = unquote(written[url.end() :].removeprefix("localhost"))
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
                    f"leads to {shorter(real)}, outside data_root {root}",
                    "move the file there or set data_root",
                )
        # isfile, unlike Path.exists, is False for names too long for the system
        if self._check_files and not os.path.isfile(path):
            raise RecordFileError(
                f"{self.place}, field '{field}' = {_shown(value)}: there is no file {shorter(path)}; put it there, or "
                f"correct the path, which is relative to {self._folder}"
            )
        return path

    def image(self, field: str, value: object, number: int = 1, name: str = "image") -> Frame:
        """Return an image: a path, ``{"path": ..}``, bytes, or ``{"bytes": ..}`` (the images of `datasets`).

        In JSON, which has no bytes, they are written in base64.

        Args:
            field: the field that holds it.
            value: the image.
            number: its number among those of the record, from 1, for messages.
            name: what it is, for messages.
        """
        content = value
        if isinstance(value, Mapping):
            data = value.get("bytes")
            content = value.get("path") if data is None else self._decoded(field, data)
        if isinstance(content, str):
            return Frame(self.media_path(field, content), None, field=field)
        if not isinstance(content, bytes) or not content:
            self.fail(field, value, "not an image", 'embed its bytes, or {"bytes": .., "path": ..}')
        return Frame(Path(f"{self.place}, {name} {number}"), None, content, field)

    def _decoded(self, field: str, data: object) -> object:
        """Embedded bytes; JSON holds them as base64."""
        if not isinstance(data, str):
            return data
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            self.fail(field, data, f"not base64 ({error})", "write the image's bytes in base64, or name its file")

    def images(self, field: str, name: str = "image") -> list[Frame]:
        """Return the images of a list field, see :meth:`image`."""
        return [self.image(field, value, number, name) for number, value in enumerate(self.sequence(field), 1)]

    def video(self, field: str, value: object) -> Video:
        """Return a whole video: a path, or ``{"path": ..}``."""
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                self.fail(field, "{'bytes': ..}", "an embedded video", "write it to a file and name that")
            value = value.get("path")
        if isinstance(value, list | tuple):
            self.fail(
                field, value, "a list of frames where one video is expected", "name a video file, or list the frames "
                "as images"
            )  # fmt: skip
        return Video(self.media_path(field, value), field)

    def videos(self, field: str) -> list[Video]:
        """Return the whole videos of a list field, see :meth:`video`."""
        return [self.video(field, value) for value in self.sequence(field)]


def _name(key: object) -> str:
    """A key within a message: printable whatever it holds, and shortened."""
    return shorter(str(key).encode("utf-8", "backslashreplace").decode(), 60)


def shorter(text: object, most: int = 300) -> str:
    """A text within a message: its beginning and end if it has more than `most` characters."""
    written = str(text)
    return written if len(written) <= most else f"{written[: most // 2]}...{written[-most // 2 :]}"


@lru_cache(maxsize=4096)
def _misspelt(key: str, names: tuple[str, ...]) -> str | None:
    """The name that a key looks like: the same letters, or but for one that is missing, added or swapped with the next.

    The number of words has to be the same: `image_w` is not `image` with a letter too many.
    """
    letters = _letters(key)
    if len(letters) < _SHORTEST_MISSPELT:
        return None
    long = [name for name in names if len(name) >= _SHORTEST_MISSPELT]
    same = (name for name in long if _letters(name) == letters)
    near = (name for name in long if _words(name) == _words(key) and _one_slip(_letters(name), letters))
    return next(same, None) or next(near, None)


def _letters(key: str) -> str:
    return re.sub(r"[\W_]", "", key).casefold()


def _words(key: str) -> int:
    return len(re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", key))


def _one_slip(name: str, key: str) -> bool:
    """Whether a letter of a name is missing or swapped with the next, or one is added."""
    if len(name) == len(key):
        return any(name[:at] + name[at + 1] + name[at] + name[at + 2 :] == key for at in range(len(name) - 1))
    short, long = sorted((name, key), key=len)
    cuts = (at for at, character in enumerate(long) if character.isalpha())
    return len(long) - len(short) == 1 and any(long[:at] + long[at + 1 :] == short for at in cuts)


def _could_be(field: str, key: str, value: object) -> bool:
    """Whether a value under a key that looks like a field is one that the field could have."""
    if field in _INTEGER_FIELDS:
        return type(value) is int
    if not isinstance(value, str | list | tuple | Mapping) or not value:
        return False
    if field in _TEXT_FIELDS:
        # `answers` and `questions` are columns of their own
        return isinstance(value, str) and _letters(key) != f"{_letters(field)}s"
    if field in _OBJECT_FIELDS:
        return not isinstance(value, str)
    # `video` for `videos` holds one file
    return field in _FILE_LISTS or isinstance(value, list | tuple)


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
    """Parse the frame-indexed shape (with `video`), the path-based one (without), and chats as ShareGPT writes them."""
    fields.refuse_misspelt(_INDEXED_FIELDS if "video" in fields.values else _PATH_FIELDS)
    turns = _turns(fields, "conversations")
    columns = fields.values.keys() & {"videos", "images"}
    hinted = fields.values.keys() & {"video", "image", "reasoning_image", "answer"}
    if columns and not hinted and not any("<ans>" in turn.text for turn in turns):
        return _parse_chat(fields, "conversations", turns)
    videos: list[Video] = []
    image_field = "image"
    if "video" in fields.values:
        video = fields.media_path("video", fields.take("video"))
        observed_indices, hint_indices = fields.pool_indices("image"), fields.pool_indices("reasoning_image")
        _check_order(fields, "image", observed_indices, "reasoning_image", hint_indices)
        observed = [Frame(video, index, field="video") for index in observed_indices]
        hints = [Frame(video, index, field="video") for index in hint_indices]
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
        if "image" in fields.values:
            observed = _image_files(fields, "image")
        else:
            image_field = "images" if "images" in fields.values else "image"
            observed = fields.images(image_field)
        videos = fields.videos("videos")
        hints = _image_files(fields, "reasoning_image")
    _check_stray_markers(fields, "conversations", turns, videos=bool(videos))
    if not observed and not videos:
        fields.fail("image", fields.values.get("image"), "no observed frame", "list at least one")
    shown: dict[str, tuple[str, Sequence[Part]]] = {"<image>": (image_field, observed)}
    if videos:
        shown["<video>"] = ("videos", videos)
    return _hinted_sample(fields, "conversations", turns, shown, "reasoning_image", hints)


def _image_files(fields: RecordFields, field: str) -> list[Frame]:
    return [Frame(fields.media_path(field, value), None, field=field) for value in fields.sequence(field)]


def _parse_upstream(fields: RecordFields) -> Sample:
    """Parse the shape of TwiFF-2.7M.

    `answer` carries the reasoning with the final answer inline as `<ans>..</ans>` (as TwiFF's published conversion
    does); with the reasoning in a field `cot` or `reasoning` it may be the bare final answer.
    """
    fields.refuse_misspelt(_UPSTREAM_FIELDS)
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
    asked = _Said("user", question, field="question")
    replied = _Said("assistant", reasoning, field=reasoning_field)
    _check_question(fields, "question", [asked])
    _check_stray_markers(fields, "question", [asked])
    _check_stray_markers(fields, reasoning_field, [replied])
    return _hinted_sample(
        fields,
        reasoning_field,
        [asked, replied],
        {"<image>": ("question_images_index", [Frame(video, index, field="video") for index in observed_indices])},
        "reasoning_images_index",
        [Frame(video, index, field="video") for index in hint_indices],
    )


def _parse_chat(fields: RecordFields, field: str, turns: Sequence[_Said]) -> Sample:
    """Parse the chat shape, whose turns stand in `messages` or, as ShareGPT writes them, in `conversations`."""
    if not any(turn.role == "assistant" and turn.loss and turn.text.strip() for turn in turns):
        fields.fail(field, fields.values[field], "empty answer", "write what the assistant says")
    supply: dict[str, list[Part]] = {"<video>": [*fields.videos("videos")], "<image>": [*fields.images("images")]}
    for marker, column in (("<video>", "videos"), ("<image>", "images")):
        counts = [turn.text.count(marker) - sum(name == marker for name, _ in turn.media.values()) for turn in turns]
        _check_markers(fields, column, len(supply[marker]), marker, counts)
    parsed = []
    for turn in turns:
        parts: list[Part] = []
        for place, piece in enumerate(_CHAT_MARKER.split(turn.text)):
            if piece in supply:
                if turn.role == "assistant":
                    fields.fail(
                        field,
                        turn.text,
                        f"a {piece} marker in an assistant turn",
                        "move it to a user turn; future frames belong in the path-based shape as 'reasoning_image'",
                    )
                # markers stand at the odd places of what is split at them
                own = turn.media.get(place // 2)
                parts.append(supply[piece].pop(0) if own is None else own[1])
            elif piece:
                parts.append(piece)
        parsed.append(Turn(turn.role, tuple(parts), turn.loss, field))
    return Sample(fields.id, tuple(parsed), None, fields.meta)


def _parse_unlabelled(fields: RecordFields) -> Sample:
    """Parse the shape without texts: the frames that are seen, and those to imagine."""
    fields.refuse_misspelt(_UNLABELLED_FIELDS)
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
    shown = [part for index in observed for part in (f"frame_{index}", Frame(video, index, field="video"))]
    imagined = [Frame(video, index, field="video") for index in hints]
    turns = (Turn("user", (*shown, IMAGINE_NEXT)), Turn("assistant", tuple(imagined)))
    return Sample(fields.id, turns, None, fields.meta)


class _Said(NamedTuple):
    """A turn as a record has it: its text with markers, and, by number of the marker, media that the turn names."""

    role: Role
    text: str
    loss: bool = True
    field: str = ""
    media: Mapping[int, tuple[str, Part]] = {}


_TURN_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Fields that hold turns, and the keys of speaker and text in them."""


def _turns(fields: RecordFields, field: str) -> list[_Said]:
    """Return the turns of a field, a list of objects or, columnar, an object of lists, and check their order."""
    role_key, text_key = _TURN_KEYS[field]
    value = fields.take(field)
    if isinstance(value, Mapping):
        columns = {key: column for key, column in value.items() if column is not None}
        lists = all(isinstance(column, list | tuple) for column in columns.values())
        if not lists or not {role_key, text_key} <= columns.keys() or len(set(map(len, columns.values()))) != 1:
            fields.fail(
                field,
                value,
                f"an object that does not hold two lists '{role_key}' and '{text_key}' of one length",
                "write a list of turns, or two such lists",
            )
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, list | tuple):
        fields.fail(field, value, f"{type(value).__name__} where a list is expected", "write a list of turns")
    turns = [_turn(fields, field, entry, role_key, text_key) for entry in value]
    _check_turns(fields, field, turns)
    _check_question(fields, field, turns)
    return turns


def _turn(fields: RecordFields, field: str, entry: object, role_key: str, text_key: str) -> _Said:
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
    role, place = _ROLES[speaker], f"{field}.{text_key}"
    media: dict[int, tuple[str, Part]] = {}
    if field == "messages" and isinstance(text, list | tuple):
        text, media = _typed_content(fields, place, text)
    if not isinstance(text, str):
        fields.fail(place, text, f"{type(text).__name__} where a string is expected", "write a string")
    return _Said(role, fields.check_characters(place, text), _loss(fields, field, entry, role), field, media)


def _loss(fields: RecordFields, field: str, entry: Mapping[str, Any], role: Role) -> bool:
    """Whether a turn is learned: its `loss` (ms-swift), `loss_mask` or `trainable`, true if it has none.

    Only an assistant's turn can be learned, so that true on another one says nothing.
    """
    stated: dict[str, bool] = {}
    for key, value in entry.items():
        if value is None:
            continue
        if key in _LOSS_KEYS:
            # bool is an int to isinstance; a column of integers with gaps is one of floats
            if not isinstance(value, int | float) or value not in (0, 1):
                fields.fail(
                    f"{field}.{key}",
                    value,
                    f"{type(value).__name__} where true or false is expected",
                    "write true or false (1 or 0)",
                )
            stated[key] = bool(value)
        elif key not in _OTHER_LOSS_KEYS and (right := _misspelt(str(key), _LOSS_KEYS)):
            fields.fail(
                f"{field}.{_name(key)}", value, f"an unknown key that looks like '{right}'", f"rename it to '{right}'"
            )
        if value not in _OTHER_LOSS_KEYS.get(key, (value,)):
            fields.fail(
                f"{field}.{key}", value, "a weight of the turn that is not read", "write 'loss': false on turns that "
                "are not to be learned"
            )  # fmt: skip
        if key in _LOST_TURN_KEYS and value:
            fields.fail(f"{field}.{key}", value, "not read, and so it would be lost", "write it into the text")
    if role == "assistant" and len(set(stated.values())) > 1:
        fields.fail(f"{field}.{next(iter(stated))}", stated, "they contradict each other", "keep one of them")
    return all(stated.values())


def _typed_content(fields: RecordFields, place: str, content: Sequence[Any]) -> tuple[str, dict[int, tuple[str, Part]]]:
    """Text with markers, and the media of those markers, of a list of typed parts (Qwen and Hugging Face chats)."""
    text = ""
    media: dict[int, tuple[str, Part]] = {}
    for part in content:
        if not isinstance(part, Mapping):
            fields.fail(place, part, f"{type(part).__name__} where a part is expected", 'write {"type": .., ..}')
        kind = part.get("type")
        # Parquet gives all parts the keys of all
        given = {key: value for key, value in part.items() if key != "type" and value is not None and value != ""}
        if kind == "text":
            written = part.get("text")
            if not isinstance(written, str) or set(given) - {"text"}:
                fields.fail(place, part, "not a text part", 'write {"type": "text", "text": ..}, with nothing besides')
            text += written
        elif isinstance(kind, str) and kind in _MEDIA_MARKERS:
            marker = _MEDIA_MARKERS[kind]
            if len(given) > 1 or set(given) - {kind, "path", "url"}:
                fields.fail(
                    place,
                    part,
                    f"a part of type '{kind}' with more than its file",
                    f'write {{"type": "{kind}", "{kind}": ..}}; sizes and sampling are settings of the data module',
                )
            number = len(_CHAT_MARKER.findall(text))
            text += marker
            # without a file of its own it is the next one of the column
            for source in given.values():
                shown = fields.image(place, source, number + 1) if kind == "image" else fields.video(place, source)
                media[number] = marker, shown
        else:
            fields.fail(f"{place}.type", kind, "not a known type of part", "write text, image or video")
    return text, media


def _check_turns(fields: RecordFields, field: str, turns: Sequence[_Said]) -> None:
    value = fields.values[field]
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        fields.fail(field, value, "no assistant turn", "add the response to learn")
    if "user" not in roles[: roles.index("assistant")]:
        fields.fail(field, value, "no user turn before the first assistant turn", "add the question")
    if roles[-1] != "assistant":
        fields.fail(field, value, f"the last turn is the {roles[-1]}'s", "end with the assistant's response")
    if not any(turn.loss for turn in turns if turn.role == "assistant"):
        fields.fail(f"{field}.loss", False, "no assistant turn to learn", "set it for one, or drop the record")


def _check_question(fields: RecordFields, field: str, turns: Sequence[_Said]) -> None:
    asked = "\n".join(turn.text for turn in turns if turn.role == "user")
    if not _FRAME_LABEL.sub("", _MARKER.sub("", asked)).strip():
        fields.fail(field, asked, "empty question", "write the question after the images or drop the record")


def _check_stray_markers(fields: RecordFields, field: str, turns: Sequence[_Said], videos: bool = False) -> None:
    """Refuse markers in turns that have no media of that kind; `videos`: whether the record has whole videos."""
    for turn in turns:
        stray = ("<video>",) if turn.role == "assistant" else ("<rimage>",) if videos else ("<video>", "<rimage>")
        for marker in stray:
            if marker in turn.text:
                fields.fail(
                    field, turn.text, f"a {marker} marker in a {turn.role} turn", "mark observed frames by <image>"
                )


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
    turns: Sequence[_Said],
    observed: Mapping[str, tuple[str, Sequence[Part]]],
    hint_field: str,
    hints: list[Frame],
) -> Sample:
    """Put media in the place of markers, take the final answer out of the reasoning and strip the texts.

    Args:
        fields: the record.
        text_field: the field that holds the reasoning.
        turns: the conversation.
        observed: by marker, the field that lists what is shown, and what that is.
        hint_field: the field that lists the hints.
        hints: the hints.
    """
    answer, turns = _final_answer(fields, text_field, turns)
    for marker, (field, media) in observed.items():
        counts = [turn.text.count(marker) for turn in turns if turn.role != "assistant"]
        _check_markers(fields, field, len(media), marker, counts)
    hinted = [len(_MARKER.findall(turn.text)) for turn in turns if turn.role == "assistant"]
    hint_marker = "<rimage>" if any("<rimage>" in turn.text for turn in turns) else "<image>"
    _check_markers(fields, hint_field, len(hints), hint_marker, hinted)
    shown = {marker: iter(media) for marker, (_, media) in observed.items()}
    imagined = iter(hints)
    parsed = []
    for turn in turns:
        parts: list[Part] = []
        for piece in _MARKER.split(turn.text):
            if _MARKER.fullmatch(piece):
                parts.append(next(imagined) if turn.role == "assistant" else next(shown[piece]))
            else:
                stripped = (_THOUGHT_PREFIX.sub("", piece) if turn.role == "assistant" else piece).strip()
                if stripped:
                    parts.append(stripped)
        parsed.append(Turn(turn.role, tuple(parts), turn.loss, turn.field))
    return Sample(fields.id, tuple(parsed), answer, fields.meta)


def _final_answer(fields: RecordFields, text_field: str, turns: Sequence[_Said]) -> tuple[str, list[_Said]]:
    """Return the final answer and the turns without it: field `answer`, else the inline `<ans>..</ans>`."""
    inline: list[str] = []
    remaining: list[_Said] = []
    for turn in turns:
        if turn.role == "assistant":
            inline += _INLINE_ANSWER.findall(turn.text)
            text = _INLINE_ANSWER.sub("", turn.text)
            if "<ans>" in text or "</ans>" in text:
                fields.fail(text_field, text, "an unpaired <ans> or </ans>", "write <ans>the answer</ans>")
            turn = turn._replace(text=text)
        remaining.append(turn)
    if len(inline) > 1:
        fields.fail(text_field, inline, f"{len(inline)} final answers", "write one <ans>..</ans>")
    if text_field == "answer" and not inline:
        fields.fail("answer", turns[-1].text, "reasoning without a final answer", "mark that by <ans>the answer</ans>")
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
        except OSError as error:
            raise RecordError(
                f"{place}: the file {file.path} cannot be read ({error}); check it and its disk"
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


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object, of whose equal keys `json` would silently keep the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _RepeatedKeyError(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return value


def _decode_json(data: bytes, place: str, remedy: str) -> Any:
    """Decode one JSON value; `remedy` says what to do about a syntax error."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
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
    except _RepeatedKeyError as error:
        raise RecordError(
            f"{place}, field '{_name(error.key)}': an object has this key twice, and only one of the values could "
            "count; remove the other"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: JSON that Python cannot hold ({error}); correct or drop it") from error


class _JsonFile:
    """A JSON array of records, or one record, held in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        data = path.read_bytes()
        try:
            value = _decode_json(data, name, "correct it, or name the file .jsonl if each line is a record of its own")
        except RecordError as error:
            whole = isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError)
            items = None if whole else _items(data)
            if items is None:
                raise
            # each by itself, so that only the records that cannot be held are errors
            value = items
        if not isinstance(value, list | dict):
            raise RecordError(f"{name}: {type(value).__name__} where a list is expected; write an array of records")
        self._records = value if isinstance(value, list) else [value]

    def __len__(self) -> int:
        return len(self._records)

    def number(self, position: int) -> int:
        return position + 1

    def read(self, position: int, place: str) -> Any:
        record = self._records[position]
        return _decode_json(record, place, "correct it") if isinstance(record, bytes) else record


_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _items(data: bytes) -> list[bytes] | None:
    """Cut a JSON array into its items, of an object make the only one; None if brackets do not pair."""
    data = data.removeprefix(_BYTE_ORDER_MARK).strip()
    if data.startswith(b"{"):
        return [data]
    items: list[bytes] = []
    depth, start = 0, 1
    for token in _JSON_TOKEN.finditer(data):
        what = token[0]
        if what in b"[{":
            depth += 1
        elif what in b"]}":
            depth -= 1
        if (what == b"," and depth == 1) or depth == 0:
            items.append(data[start : token.start()].strip())
            start = token.end()
        if depth == 0:
            break
    return items if data.startswith(b"[") and depth == 0 and start == len(data) and all(items) else None


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
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{place}: the row cannot be read ({error}); write the Parquet file again") from error
        return _row(table, position - first, place)


def _row(table: pa.Table, position: int, place: str) -> dict[str, Any]:
    """Convert a row to Python values, column by column, so that an error names the field."""
    import pyarrow as pa

    row: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in row:
            raise RecordError(
                f"{place}, field '{_name(name)}': the table has this column twice, and only one could count; remove "
                "the other"
            )
        try:
            row[name] = column[position].as_py()
        # dates beyond Python's calendar, unknown time zones, bytes that are no UTF-8, structs with a field twice
        except (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, OSError) as error:
            raise RecordError(
                f"{place}, field '{_name(name)}': the value of type {column.type} cannot be read ({error}); write it "
                "as text, a number or a list"
            ) from error
    return row


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
            table = _arrow_table(self.path, self._version)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{place}: the row cannot be read ({error}); save the Arrow file again") from error
        return _row(table, position, place)


@lru_cache(maxsize=_ARROW_TABLES_KEPT)
def _arrow_table(path: Path, version: tuple[int, int]) -> pa.Table:
    """Map an Arrow file; `version` keeps a rewritten file from being served from the cache."""
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    opener = pa.ipc.open_file if mapped.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC else pa.ipc.open_stream
    mapped.seek(0)
    # without Arrow's thread pool, which does not survive a fork
    return opener(mapped, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
