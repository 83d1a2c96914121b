"""JSON Lines files that a run appends to; a killed run leaves them with an incomplete last line."""

import base64
import datetime
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from futurel1.errors import RecordError
from futurel1.files import write_whole

__all__ = ["drop_cut_line", "json_line", "plain_value", "read_records", "readable_lines", "written_ids"]

logger = logging.getLogger(__name__)


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


def plain_value(value: Any) -> str:
    """Convert values that Parquet has but JSON lacks to text: bytes to base64."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def written_ids(file: Path) -> list[str]:
    """Read the `id` of every complete line of a file.

    Raises:
        RecordError: a line is not a record with an id; the message names the file and the line.
    """
    found = []
    for number, line in _complete_lines(file):
        try:
            found.append(str(json.loads(line)["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{file}, line {number} is no record with an id ({error}); remove it to go on") from error
    return found


def readable_lines(file: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Read the complete lines that are JSON objects, and leave out others, for files whose lines can be made again.

    Returns:
        Each line with its line break, and its record.
    """
    found = []
    for number, line in _complete_lines(file):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.append((line, record))
        else:
            logger.warning("%s, line %d is damaged and left out", file, number)
    return found


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read every complete line of a file.

    Raises:
        RecordError: a line is not a JSON object; the message names the file and the line.
    """
    found: list[dict[str, Any]] = []
    for number, line in _complete_lines(file):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{file}, line {number} is no JSON ({error}); remove it") from error
        if not isinstance(record, dict):
            raise RecordError(f"{file}, line {number} is no record but {type(record).__name__}; remove it")
        found.append(record)
    return found


def _complete_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Lines by number, from 1, without a last one that is being written or was cut off."""
    # Split bytes, because `str` would also split at other line-ending characters within texts.
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            yield number, line


def drop_cut_line(file: Path) -> None:
    """Cut a file back to its last complete line, and remove the zeros that a power cut may leave at its end."""
    text = file.read_bytes()
    written = text.rstrip(b"\0")
    whole = written[: written.rfind(b"\n") + 1]
    if whole != text:
        write_whole(file, whole)
