"""Where the lines of a JSON Lines file start: found by one pass over its bytes, and kept for files that are remote."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from futurel1.data.remote import cache_folder
from futurel1.data.stored_files import StoredFile
from futurel1.files import replacing

__all__ = ["LineIndex", "index_lines"]

logger = logging.getLogger(__name__)
Numbers = np.ndarray[Any, np.dtype[np.int64]]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHUNK_BYTES = 2**20
_BLANKS = np.frombuffer(b" \t\n\r\x0b\x0c", dtype=np.uint8)
_LINE_BREAK = ord("\n")


@dataclass(frozen=True)
class LineIndex:
    """The lines of a file that are not blank.

    Attributes:
        bounds: (N + 1,) where each starts, and where the file ends.
        blanks: (M,) for each blank line, how many lines before it are not blank: enough to number the lines.
    """

    bounds: Numbers
    blanks: Numbers

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def span(self, position: int) -> tuple[int, int]:
        """Where a line starts, and where the next one does that is not blank, or the file ends."""
        return int(self.bounds[position]), int(self.bounds[position + 1])


def index_lines(file: StoredFile) -> LineIndex:
    """Find the lines of a file; of a remote file, take them from the cache if it has not changed.

    Raises:
        OSError: the file cannot be read.
    """
    if file.url is None or not file.version:
        return file.using(_scan)
    key = hashlib.sha256(f"{file.url}\n{file.size}\n{file.version}".encode()).hexdigest()[:32]
    kept = cache_folder() / "indexes" / f"{key}.npz"
    if kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as stored:
                return LineIndex(stored["bounds"], stored["blanks"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.warning("%s is damaged (%s): %s is indexed again", kept, error, file.place)
    index = file.using(_scan)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as partial, partial.open("wb") as stream:
            np.savez(stream, bounds=index.bounds, blanks=index.blanks)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run reads %s again", kept, error, file.place)
    return index


def _scan(stream: BinaryIO) -> LineIndex:
    starts: list[Numbers] = []
    blanks: list[Numbers] = []
    position = records = 0
    while chunk := stream.read(_CHUNK_BYTES):
        if not chunk.endswith(b"\n"):
            chunk += stream.readline()
        data = np.frombuffer(chunk, dtype=np.uint8)
        ends = np.flatnonzero(data == _LINE_BREAK) + 1
        if not len(ends) or ends[-1] < len(data):
            ends = np.append(ends, len(data))
        begins = np.concatenate([[0], ends[:-1]])
        blank = np.isin(data[begins], _BLANKS)
        if position == 0 and chunk.startswith(_BYTE_ORDER_MARK):
            blank[0] = True
        for line in np.flatnonzero(blank):
            content = chunk[begins[line] : ends[line]]
            blank[line] = not (content.removeprefix(_BYTE_ORDER_MARK) if position == line == 0 else content).strip()
        starts.append(begins[~blank] + position)
        blanks.append(records + np.cumsum(~blank)[blank])
        position += len(chunk)
        records += len(starts[-1])
    bounds = np.concatenate([*starts, [position]]).astype(np.int64)
    return LineIndex(bounds, np.concatenate([np.zeros(0, np.int64), *blanks]).astype(np.int64))
