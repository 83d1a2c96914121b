"""JSON Lines files that a run appends to, and that a run which was killed leaves with half a line at the end."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from futurel1.errors import RecordError
from futurel1.files import write_whole

__all__ = ["drop_cut_line", "json_line", "written_ids"]


def json_line(record: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """A record as one line of UTF-8.

    Half a surrogate pair, which UTF-8 cannot hold, becomes a JSON escape, so that it is read as what it was.

    Args:
        record: the record.
        default: what to write of a value that JSON does not have.

    Raises:
        TypeError, ValueError: JSON cannot hold a value or a key.
    """
    return f"{json.dumps(record, ensure_ascii=False, default=default)}\n".encode("utf-8", "backslashreplace")


def written_ids(file: Path) -> list[str]:
    """`id` of every complete line of a file.

    Raises:
        RecordError: a line that is no record; names the file and the line.
    """
    found = []
    # Bytes, because texts may hold other characters that end a line for `str`.
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue  # being written, or cut off
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
