"""The chosen records, in the shape they came in, as JSON Lines."""

from __future__ import annotations

import base64
import datetime
import os
from pathlib import Path
from typing import Any, BinaryIO

from futurel1.curation.results import ProbeTable
from futurel1.curation.selection import Selection
from futurel1.data.records import RecordSource
from futurel1.data.samples import RawRecord
from futurel1.errors import RecordError
from futurel1.json_lines import json_line

__all__ = ["curated_record", "write_curated"]

MEDIA_FIELDS = ("video", "image", "reasoning_image", "videos", "images")
"""Fields of records with hints that hold paths: a path, or a list of paths, of ``{"path": ..}`` or of frame numbers."""


def write_curated(
    source: RecordSource, table: ProbeTable, selection: Selection, *, rollouts: int, folder: Path, stream: BinaryIO
) -> None:
    """Write the chosen records, best first.

    Args:
        source: the records.
        table: how often each was answered.
        selection: the chosen ones. Those of one gain are in the order of the records, so the source is read from front
            to back once per gain.
        rollouts: responses per probe; names the fields.
        folder: where the file will lie; relative paths are rewritten to start there.
        stream: the file.

    Raises:
        RecordError: a record that has changed into something else, or whose keys JSON cannot hold.
    """
    for number in selection.chosen.tolist():
        record = source.raw(number)
        added = {
            "gain": int(selection.gains[number]),
            f"correct_in_{rollouts}_base": int(table.base[number]),
            f"correct_in_{rollouts}_hint": int(table.hint[number]),
        }
        try:
            stream.write(json_line(curated_record(record, added, folder), default=_plain))
        except (TypeError, ValueError) as error:
            raise RecordError(f"{record.name}, record {record.number}: cannot be written as JSON: {error}") from error


def curated_record(record: RawRecord, added: dict[str, int], folder: Path) -> dict[str, Any]:
    """A record with fields added, and its relative paths as seen from another folder.

    Args:
        record: the record as stored.
        added: fields to set.
        folder: the folder that paths are to start from.
    """
    here, there = os.path.realpath(record.folder), os.path.realpath(folder)

    def moved(path: Any) -> Any:
        if isinstance(path, dict) and "path" in path:
            return {**path, "path": moved(path["path"])}
        if not isinstance(path, str) or os.path.isabs(path):
            return path
        return os.path.relpath(os.path.join(here, path), there)

    media = {field: record.raw[field] for field in MEDIA_FIELDS if field in record.raw}
    paths = {
        field: [moved(item) for item in value] if isinstance(value, list) else moved(value)
        for field, value in media.items()
    }
    return {**record.raw, **paths, **added}


def _plain(value: Any) -> str:
    """What Parquet has and JSON has not, as text: bytes in base 64."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
