"""Results of the probes: one line per candidate, in a folder that many processes write to, and a table of all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.files import writable, write_first
from futurel1.full_disk import told_when_full
from futurel1.locks import one_writer

__all__ = ["ProbeFolder", "ProbeResult", "ProbeTable", "Status"]

logger = logging.getLogger(__name__)
Status = Literal["open", "probed", "no_hints", "failed", "skipped"]
STATUSES: tuple[Status, ...] = get_args(Status)
OPEN, PROBED, NO_HINTS, FAILED, SKIPPED = range(len(STATUSES))
MAX_ROLLOUTS = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True)
class ProbeResult:
    """The result of one candidate.

    Attributes:
        number: position of the record in its source, from 0.
        id: `<file name>:<record number>`.
        status: ``probed``; ``no_hints``: it has no hint frames; ``failed``: the judge gave no verdict on a response;
            ``skipped``: the record could not be read.
        hints: number of hint frames.
        base: correct responses to the prompt with only the observed frames.
        hint: correct responses to the prompt with the hint frames added.
        attempt: 1 for the first probe, increased by every retry.
        reason: why the candidate failed or was skipped.
    """

    number: int
    id: str
    status: Status
    hints: int = 0
    base: int = 0
    hint: int = 0
    attempt: int = 1
    reason: str = ""


class ProbeTable:
    """The newest result of every candidate, 9 bytes each.

    Args:
        num_candidates: number of records.

    Attributes:
        status: (N,) index into `STATUSES`.
        hints: (N,) number of hint frames.
        base: (N,) correct responses without hints.
        hint: (N,) correct responses with hints.
        attempt: (N,) attempt of the newest result; 0 if there is none.
    """

    def __init__(self, num_candidates: int) -> None:
        self.status = np.full(num_candidates, OPEN, np.uint8)
        self.attempt = np.zeros(num_candidates, np.uint16)
        self.hints, self.base, self.hint = np.zeros((3, num_candidates), np.uint16)

    def __len__(self) -> int:
        return len(self.status)

    def put(self, result: ProbeResult) -> None:
        """Store a result, unless the table has one of the same or a later attempt."""
        number = result.number
        if result.attempt <= self.attempt[number]:
            return
        self.status[number] = STATUSES.index(result.status)
        self.attempt[number] = result.attempt
        self.hints[number], self.base[number], self.hint[number] = result.hints, result.base, result.hint

    @property
    def num_open(self) -> int:
        """Number of candidates without a result."""
        return int((self.status == OPEN).sum())

    def todo(self, shard: int, num_shards: int, *, block: int = 1, retry_failed: bool = False) -> NDArray[np.int64]:
        """Numbers of the candidates that a shard still has to probe, ascending.

        Shards consist of whole blocks, so that a block is decoded in one batch whatever the number of shards.

        Args:
            shard: the shard, from 0.
            num_shards: number of shards.
            block: records per batch.
            retry_failed: include candidates that failed or were skipped.
        """
        num_blocks = -(-len(self) // block)
        first, stop = (num_blocks * place // num_shards * block for place in (shard, shard + 1))
        wanted = (OPEN, FAILED, SKIPPED) if retry_failed else (OPEN,)
        return np.flatnonzero(np.isin(self.status[first:stop], wanted)) + first


class ProbeFolder:
    """Probe results on disk, written by any number of processes, each to its shard's file.

    Args:
        path: the folder; created if missing.
        record_id: returns the id of a record, given its number.
        num_candidates: number of records.
    """

    SETTINGS = "settings.json"

    def __init__(self, path: str | Path, record_id: Callable[[int], str], num_candidates: int) -> None:
        self.path = Path(path)
        self._id = record_id
        self._num_candidates = num_candidates
        self._digest = ""

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Store the settings of these results, or check that they equal the stored ones.

        Raises:
            ConfigError: the folder holds results of other settings.
        """
        with writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        now = json.loads(json.dumps(settings, sort_keys=True))
        file = self.path / self.SETTINGS
        with writable(self.path):
            write_first(file, (json.dumps(now, indent=2) + "\n").encode())
        before = self.settings()
        odd = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        if odd:
            raise ConfigError(
                f"{self.path} holds probes made with other settings ({', '.join(odd)} differ); restore them, or give "
                "another --out"
            )
        self._digest = _digest(now)

    def settings(self) -> dict[str, Any]:
        """The settings of the stored results.

        Raises:
            MissingFileError: the folder holds no settings, so nothing was probed there.
            ConfigError: the settings file is damaged.
        """
        file = self.path / self.SETTINGS
        if not file.is_file():
            raise MissingFileError(f"{self.path} holds no probes (no {self.SETTINGS}); probe first, or correct --out")
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                f"{file} is damaged ({error}); remove this file alone, and start the same again"
            ) from error
        if not isinstance(found, dict):
            raise ConfigError(f"{file} holds no settings; remove this file alone, and start the same again")
        self._digest = _digest(found)
        return found

    def table(self) -> ProbeTable:
        """Read the results of all shards, whatever their number; incomplete lines, still being written, are ignored.

        Raises:
            ConfigError: a line belongs to other settings or records.
            RecordError: a line is not a result; the message names the file and the line.
        """
        table = ProbeTable(self._num_candidates)
        for file in sorted(self.path.glob("probes-*-of-*.jsonl")):
            for result in self._read(file):
                table.put(result)
        return table

    def _read(self, file: Path) -> Iterator[ProbeResult]:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    return  # being written, or cut off
                try:
                    values = json.loads(line)
                    settings = values.pop("settings")
                    result = ProbeResult(**values)
                    known = self._id(result.number) == result.id and result.status in STATUSES
                except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                    raise RecordError(f"{file}, line {number} is no probe ({error}); remove it to go on") from error
                if settings != self._digest or not known:
                    raise ConfigError(
                        f"{file}, line {number} is of other records or settings than {self.path / self.SETTINGS}; "
                        "remove that file"
                    )
                yield result

    @contextmanager
    def shard_file(self, shard: int, num_shards: int) -> Iterator[BinaryIO]:
        """Open the file of a shard for appending; an incomplete last line is removed.

        Raises:
            ConfigError: another process is probing the shard, or the folder cannot be written.
        """
        file = self.path / f"probes-{shard:05d}-of-{num_shards:05d}.jsonl"
        with one_writer(self.path, file.stem), file.open("ab+") as stream:
            _cut_back(stream)
            yield stream

    def append(self, stream: BinaryIO, results: Sequence[ProbeResult]) -> None:
        """Append results and sync them to disk."""
        lines = [json.dumps({**asdict(result), "settings": self._digest}) for result in results]
        with told_when_full(stream.name, "earlier results are whole; free some, and the same command goes on"):
            stream.write("".join(f"{line}\n" for line in lines).encode())
            stream.flush()
            os.fsync(stream.fileno())


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _cut_back(stream: BinaryIO, step: int = 1 << 16) -> None:
    """Cut a file back to its last complete line."""
    stop = stream.seek(0, os.SEEK_END)
    while stop:
        start = max(0, stop - step)
        stream.seek(start)
        newline = stream.read(stop - start).rfind(b"\n")
        if newline >= 0:
            stream.truncate(start + newline + 1)
            return
        stop = start
    stream.truncate(0)
