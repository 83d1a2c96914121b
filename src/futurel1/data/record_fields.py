"""Typed access to the fields of one record, with errors that name the record, the field, the value and the remedy."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from futurel1.data.frames import POOL_SIZE
from futurel1.data.misspellings import could_be, misspelt
from futurel1.data.remote import is_there, is_url, mirror_place, shown, url_of
from futurel1.data.samples import Frame, RecordFileError, Turn, Video
from futurel1.data.tar_shards import PACKED, member_of
from futurel1.errors import ConfigError, RecordError

__all__ = ["TRAINING_SHAPES", "RecordFields", "printable", "quoted", "shorter"]

TRAINING_SHAPES = (
    "frame-indexed (video, image, reasoning_image, conversations, answer), "
    "upstream TwiFF (video, question, answer, question_images_index, reasoning_images_index), "
    "path-based (image, reasoning_image, conversations, answer), chat (messages or conversations, videos, images) "
    "or unlabelled video (video, image, reasoning_image)"
)
"""The shapes of training records, as listed in error messages."""
_URL = re.compile(r"([A-Za-z][A-Za-z\d+.-]+)://|(data):\w+/")


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
                f"{self.place}: {type(raw).__name__} ({quoted(raw)}) where an object is expected; write it "
                f"as {TRAINING_SHAPES}"
            )
        # Parquet stores a null for every column that a record does not have
        self.values = {key: value for key, value in raw.items() if value is not None}
        self.used: set[str] = set()
        self._folder = folder
        self._data_root = data_root
        self._check_files = check_files

    @property
    def meta(self) -> dict[str, Any]:
        """Fields that were not read."""
        return {key: value for key, value in self.values.items() if key not in self.used}

    def fail(self, field: str, value: object, problem: str, remedy: str) -> NoReturn:
        """Raise the error of a field."""
        raise RecordError(f"{self.place}, field '{printable(field)}' = {quoted(value)}: {problem}; {remedy}")

    def fail_shape(self, shapes: str, known: Collection[str]) -> NoReturn:
        """Raise the error of a record that has the fields of no shape.

        Args:
            shapes: the shapes, for the remedy.
            known: fields of all shapes; the record may have misspelt some of them.
        """
        pairs = ((key, misspelt(key, tuple(sorted(known)))) for key in self.values if key not in known)
        keys = ", ".join(sorted(self.keys)) or "none"
        guess = next((f" ('{printable(key)}' looks like '{right}')" for key, right in pairs if right), "")
        raise RecordError(f"{self.place}: unknown shape, its keys are: {keys}{guess}; write it as {shapes}")

    @property
    def keys(self) -> list[str]:
        """The record's keys, printable, for messages."""
        return [printable(key) for key in self.values]

    def refuse_misspelt(self, known: Collection[str]) -> None:
        """Raise an error for an unknown key that looks like a field in `known` which the record lacks.

        The key's value must also suit that field. Other unknown keys are ignored: public records carry many.
        """
        absent = tuple(sorted(name for name in known if name not in self.values))
        for key, value in self.values.items():
            right = None if key in known else misspelt(key, absent)
            if right is not None and could_be(right, key, value):
                self.fail(
                    key,
                    value,
                    f"an unknown key that looks like '{right}', which the record lacks",
                    f"rename it to '{right}', or, if it is something else, to a name less like it",
                )

    def system_turns(self) -> tuple[Turn, ...]:
        """The system turn from the field `system`, its text verbatim; empty if the record has no such field."""
        value = self.take("system")
        if value is None:
            return ()
        if isinstance(value, str) and not value.strip():
            self.fail("system", value, "empty", "write some text, or leave it out for the default system turn")
        return (Turn("system", (self.check_text("system", value),), field="system"),)

    def identity(self) -> str | int | None:
        """The record's own `id`, None if it has none; a value that is neither string nor integer becomes a string."""
        value = self.take("id")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns an integer column with gaps into floats
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
        """Return a field's value, None if the record lacks it."""
        self.used.add(field)
        return self.values.get(field)

    def text(self, field: str) -> str:
        """Return a required string field, stripped; it must not be blank."""
        return self.check_text(field, self.take(field)).strip()

    def check_text(self, field: str, value: object) -> str:
        """Return a value unchanged if it is a string and not blank."""
        if value is None:
            self.fail(field, value, "missing", f"add a string '{field}'")
        if not isinstance(value, str):
            self.fail(field, value, f"{type(value).__name__} where a string is expected", "write a string")
        if not value.strip():
            self.fail(field, value, "empty", "write some text or drop the record")
        return self.check_characters(field, value)

    def check_characters(self, field: str, text: str) -> str:
        """Return a text unchanged; refuse surrogate code points, which tokenizers cannot encode."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.fail(field, ascii(text), "half a surrogate pair, which is no text", "write the character as UTF-8")
        return text

    def sequence(self, field: str) -> list[Any]:
        """Return a list field, empty if the record lacks it."""
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
                    f"{quoted(index)} is not a frame of the {POOL_SIZE}-frame pool",
                    f"write integers from 1 to {POOL_SIZE}",
                )
        return indices

    def media_path(self, field: str, value: object) -> Path:
        """Resolve a media path of this record; check that it is allowed and, with `check_files`, that it exists."""
        path = self._resolved(field, value)
        if self._data_root is not None:
            root = Path(os.path.realpath(self._data_root))
            member = member_of(path)
            real = Path(os.path.realpath(path if member is None else member.shard))
            if not real.is_relative_to(root):
                self.fail(
                    field,
                    value,
                    f"leads to {shorter(shown(real))}, outside data_root {shown(root)}",
                    "move the file there or set data_root",
                )
        if self._check_files and not is_there(path):
            raise RecordFileError(
                f"{self.place}, field '{field}' = {quoted(value)}: there is no file {shorter(path)}; put it there, or "
                f"correct the path, which is relative to {self._folder}"
            )
        return path

    def _resolved(self, field: str, value: object) -> Path:
        """The path that a record means; of a remote file, its place in the mirror."""
        written = self.check_text(field, value)
        url = _URL.match(written)
        scheme = "" if url is None else (url[1] or url[2]).casefold()
        if scheme == "file" and url is not None:
            written = unquote(written[url.end() :].removeprefix("localhost"))
        elif scheme and not self._may_be_named(written):
            self.fail(
                field, value, f"a {scheme} URL, which is not read", "save it as a file and write its path, or set "
                "data_root to the address of the folder that holds it"
            )  # fmt: skip
        if "\0" in written or any("\ud800" <= character <= "\udfff" for character in written):
            self.fail(field, value, "characters that no file name has", "write the path of a file")
        folder = url_of(self._folder)
        if not is_url(written) and (folder is None or os.path.isabs(written)):
            path = Path(os.path.join(self._folder, written))
            if url_of(path) is not None:  # reading it would ask the network
                self.fail(field, value, "a place in the cache of remote files", "write the path of a file elsewhere")
            return path
        try:
            place = mirror_place(written if is_url(written) else f"{folder}/{written}")
        except ConfigError as error:
            self.fail(field, value, str(error), "write the path of a file in the store of the records")
        if not is_url(written) and member_of(self._folder / "x") and not place.is_relative_to(self._folder):
            self.fail(field, value, "leads out of the shard", "write the name of one of its members")
        return place

    def _may_be_named(self, address: str) -> bool:
        """Whether a record may name a medium by its address: below a remote `data_root`, or in a local shard."""
        if not is_url(address):
            return False
        if self._data_root is not None and url_of(self._data_root):
            return True
        try:
            member = member_of(mirror_place(address)) if address.startswith(f"{PACKED}://") else None
        except ConfigError:
            return False
        return member is not None and url_of(member.shard) is None

    def image(self, field: str, value: object, number: int = 1, name: str = "image") -> Frame:
        """Return an image: a path, ``{"path": ..}``, bytes, or ``{"bytes": ..}`` (the images of `datasets`).

        JSON has no bytes, so they are written in base64.

        Args:
            field: the field that holds it.
            value: the image.
            number: its number among the record's images, from 1, for messages.
            name: what kind of image it is, for messages.
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
        """Decode embedded bytes, which JSON holds as base64."""
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


def printable(key: object) -> str:
    """Show a key within a message: printable and shortened."""
    return shorter(str(key).encode("utf-8", "backslashreplace").decode(), 60)


def shorter(text: object, most: int = 300) -> str:
    """Show a text within a message: its beginning and end if it has more than `most` characters."""
    written = str(text)
    return written if len(written) <= most else f"{written[: most // 2]}...{written[-most // 2 :]}"


def quoted(value: object) -> str:
    """Show a value within a message, shortened."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 120
    shorten.maxlist = shorten.maxtuple = 16
    try:
        return shorten.repr(value)
    except ValueError:
        # integers of thousands of digits have no decimal form in Python
        return f"<{type(value).__name__}>"
