"""Write the chosen records as JSON Lines, in the shape in which they came."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from futurel1.curation.results import ProbeTable
from futurel1.curation.selection import Selection
from futurel1.data.records import RecordSource
from futurel1.data.remote import is_url, url_of
from futurel1.data.samples import RawRecord
from futurel1.errors import RecordError
from futurel1.json_lines import json_line, plain_value

__all__ = ["curated_record", "write_curated"]

MEDIA_FIELDS = ("video", "image", "reasoning_image", "videos", "images")
"""Path fields of records with hints: a path, or a list of paths, of ``{"path": ..}`` or of frame numbers."""


def write_curated(
    source: RecordSource, table: ProbeTable, selection: Selection, *, rollouts: int, folder: Path, stream: BinaryIO
) -> None:
    """Write the chosen records, best first.

    Args:
        source: the records.
        table: how often each record was answered correctly.
        selection: the chosen records. Records of equal gain are in source order, so the source is read from front to
            back once per gain.
        rollouts: responses per probe; part of the field names.
        folder: folder of the written file; relative paths are rewritten to start there.
        stream: the written file.

    Raises:
        RecordError: a record is no longer an object, or has keys that JSON cannot hold.
    """
    for number in selection.chosen.tolist():
        record = source.raw(number)
        added = {
            "gain": int(selection.gains[number]),
            f"correct_in_{rollouts}_base": int(table.base[number]),
            f"correct_in_{rollouts}_hint": int(table.hint[number]),
        }
        try:
            stream.write(json_line(curated_record(record, added, folder), default=plain_value))
        except (TypeError, ValueError) as error:
            raise RecordError(f"{record.name}, record {record.number}: cannot be written as JSON: {error}") from error


def curated_record(record: RawRecord, added: dict[str, int], folder: Path) -> dict[str, Any]:
    """Return a record with added fields, and with its relative paths rewritten for another folder.

    Args:
        record: the record as stored.
        added: fields to set.
        folder: the folder that relative paths start from afterwards.
    """
    here, there = os.path.realpath(record.folder), os.path.realpath(folder)

    def moved(path: Any) -> Any:
        if isinstance(path, dict) and "path" in path:
            return {**path, "path": moved(path["path"])}
        if not isinstance(path, str) or os.path.isabs(path) or is_url(path):
            return path
        address = url_of(os.path.join(record.folder, path))
        if address is not None:
            return address
        return os.path.relpath(os.path.join(here, path), there)

    media = {field: record.raw[field] for field in MEDIA_FIELDS if field in record.raw}
    paths = {
        field: [moved(item) for item in value] if isinstance(value, list) else moved(value)
        for field, value in media.items()
    }
    return {**record.raw, **paths, **added}
