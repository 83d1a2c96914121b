"""JSON Lines files that a run appends to; a killed run leaves them with an incomplete last line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from futurel1.errors import RecordError
from futurel1.files import write_whole

__all__ = ["drop_cut_line", "json_line", "written_ids"]


def json_line(record: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """Encode a record as one line of UTF-8.

    A lone surrogate, which UTF-8 cannot hold, becomes a JSON escape, so that reading restores it.

    Args:
        record: the record.
        default: converts a value that JSON lacks.

    Raises:
        TypeError, ValueError: JSON cannot hold a value or a key.
    """
    return f"{json.dumps(record, ensure_ascii=False, default=default)}\n".encode("utf-8", "backslashreplace")


def written_ids(file: Path) -> list[str]:
    """Read the `id` of every complete line of a file.

    Raises:
        RecordError: a line is not a record with an id; the message names the file and the line.
    """
    found = []
    # Split bytes, because `str` would also split at other line-ending characters within texts.
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue  # incomplete: being written, or cut off
        try:
            found.append(str(json.loads(line)["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{file}, line {number} is no record with an id ({error}); remove it to go on") from error
    return found


def drop_cut_line(file: Path) -> None:
    """Cut a file back to its last complete line."""
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        write_whole(file, whole)
