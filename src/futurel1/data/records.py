"""Sources of records: find the files, and read and parse each record by position on demand.

A record that cannot be used raises an error that names the file, the record, the field, the value and the remedy.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from futurel1.data.mixtures import MixtureSource, WeightedRecords, weighted_paths
from futurel1.data.record_fields import TRAINING_SHAPES, quoted
from futurel1.data.record_files import RECORD_FILE_SUFFIXES, RecordFile, decode_json, open_file
from futurel1.data.record_shapes import parse_record
from futurel1.data.remote import is_url, media_folder, url_of
from futurel1.data.samples import Parse, RawRecord, Sample
from futurel1.data.stored_files import StoredFile, is_pattern, local_file, remote_files, without_archives
from futurel1.data.tar_shards import check_finished
from futurel1.errors import ConfigError, MissingFileError, RecordError

__all__ = ["RecordSource", "check_outside", "open_records"]

_FILES_AT_A_TIME = 16
"""Remote files that are opened at the same time."""


class RecordSource:
    """Records of one or more files, by position.

    For JSON Lines, Parquet and tar only an index stays in memory (8 bytes per record or row group, 16 per record of a
    tar shard); Arrow files are memory-mapped, and JSON files are held whole. A source can be pickled, forked and read
    by several workers.

    Args:
        files: record files in order.
        data_root: if given, media outside this folder are refused.
        parse: turns a stored record into a sample, in place of `parse_record`; it must then check `data_root` itself.
        weights: name, number of files and weight of each part of a training mixture, in the order of `files`.

    Attributes:
        files: the record files, as they were when the source was opened.
        mixed: the parts of a training mixture; empty without weights.
    """

    def __init__(
        self,
        files: Sequence[StoredFile],
        *,
        data_root: str | os.PathLike[str] | None = None,
        parse: Parse | None = None,
        weights: Sequence[tuple[str, int, float]] = (),
    ) -> None:
        self.files = tuple(files)
        self._parse = parse
        self._names = _display_names([file.path for file in files])
        self._data_root = media_folder("data_root", data_root)
        self._files = _opened(self.files, self._names)
        self._ends = np.cumsum([len(file) for file in self._files], dtype=np.int64)
        self.mixed: tuple[MixtureSource, ...] = ()
        first = last = 0
        for name, count, weight in weights:
            last += count
            stop = int(self._ends[last - 1])
            self.mixed += (MixtureSource(name, range(first, stop), weight),)
            first = stop

    @property
    def shards(self) -> tuple[range, ...]:
        """Records of each tar shard; empty if any file is of another kind."""
        if any(file.path.suffix.lower() != ".tar" for file in self.files):
            return ()
        bounds = [0, *map(int, self._ends)]
        return tuple(range(first, stop) for first, stop in pairwise(bounds))

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
        """Read a record as stored.

        Args:
            index: position in the source, from 0; negative values count from the end.

        Raises:
            IndexError: there is no such position.
            RecordError: the stored value is not an object, or not readable.
            MissingFileError: the file has disappeared since the source was opened.
        """
        which, position = self._locate(index)
        file = self._files[which]
        number = file.number(position)
        place = f"{self._names[which]}, record {number}"
        try:
            value = file.read(position, place)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{place}: the file {file.file.place} has gone since it was opened; put it back or open the records "
                "again"
            ) from error
        except OSError as error:
            raise RecordError(
                f"{place}: the file {file.file.place} cannot be read ({error}); check it and its disk"
            ) from error
        if not isinstance(value, dict):
            shapes = TRAINING_SHAPES if self._parse is None else "an object with named fields"
            raise RecordError(
                f"{place}: {type(value).__name__} ({quoted(value)}) where an object is expected; write it as {shapes}"
            )
        return RawRecord(value, file.file.path, number, file.folder, self._names[which])

    def sample(self, index: int, check_files: bool = True) -> Sample:
        """Read and parse a record.

        Args:
            index: position in the source, from 0; negative values count from the end.
            check_files: whether the media files must exist; a custom `parse` decides that itself.

        Raises:
            IndexError: there is no such position.
            RecordError: the record cannot be used.
            RecordFileError: a media file is missing.
            MissingFileError: the record file has disappeared since the source was opened.
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
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | WeightedRecords],
    *,
    data_root: str | os.PathLike[str] | None = None,
    parse: Parse | None = None,
) -> RecordSource:
    """Open record files.

    Args:
        paths: a `.json`, `.jsonl`, `.parquet`, `.arrow` or `.tar` file, a folder (every such file below it, sorted,
            without hidden ones, and without tar files beside others; for a dataset saved by `save_to_disk` of
            `datasets`, its Arrow files), a pattern with `*`, `**` or `[..]`, or a list of those. Each is a local path
            or an address that fsspec opens, such as ``s3://bucket/train/*.jsonl``. All members of a list may have a
            weight, ``{"path": .., "weight": ..}``, see :class:`futurel1.data.Mixture`.
        data_root: if given, media outside this folder are refused.
        parse: turns a stored record into a sample, in place of `parse_record`; it must then check `data_root` itself.

    Returns:
        A source over all records, files in the order given.

    Raises:
        MissingFileError: a path or `data_root` does not exist.
        ConfigError: no path is given, a file has another extension, a folder has no record files, or a file is named
            twice.
        RecordError: a file has no records, or its content does not match its extension.
        RemoteError: a store does not answer.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not listed:
        suffixes = ", ".join(RECORD_FILE_SUFFIXES)
        raise ConfigError(f"no record files are given: name a file ({suffixes}), or a folder of them")
    weighted = weighted_paths(listed)
    parts: list[list[Any]] = [list(listed)] if weighted is None else [part for part, _ in weighted]
    found = [[file for path in part for file in _files_named(os.fspath(path))] for part in parts]
    weights = [
        (", ".join(map(str, part)), len(files), weight)
        for (part, weight), files in zip(weighted or [], found, strict=False)
    ]
    files = [file for part in found for file in part]
    seen: set[str] = set()
    for file in files:
        real = file.url or os.path.realpath(file.path)
        if real in seen:
            raise ConfigError(f"{file.place}: the file is named twice, directly or through a folder; name it once")
        seen.add(real)
    return RecordSource(files, data_root=data_root, parse=parse, weights=weights)


def check_outside(records: str | list[str], out: str) -> None:
    """Refuse a folder to write to that lies in a folder of records, since what is written there would be read too.

    Raises:
        ConfigError: it does.
    """
    target = Path(out).resolve()
    for given in [records] if isinstance(records, str) else records:
        if Path(given).is_dir() and target.is_relative_to(Path(given).resolve()):
            raise ConfigError(
                f"--out {out} lies in {given}, and what is written there would be read as records; choose another one"
            )


def _files_named(given: str) -> list[StoredFile]:
    """The record files that a path or an address names."""
    url = given if is_url(given) else url_of(given)
    if url is not None:
        return remote_files(url, RECORD_FILE_SUFFIXES)
    path = Path(given.removeprefix("file://"))
    if path.is_dir():
        check_finished(path)
        return [local_file(file) for file in _saved_dataset_files(path) or _files_below(path)]
    if not path.exists() and is_pattern(str(path)):
        matches = [Path(match) for match in sorted(glob(str(path), recursive=True))]
        matches = [match for match in matches if match.suffix.lower() in RECORD_FILE_SUFFIXES and match.is_file()]
        if not matches:
            raise MissingFileError(f"{path}: no {', '.join(RECORD_FILE_SUFFIXES)} file matches; check the pattern")
        return [local_file(match) for match in matches]
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder; check the path of the records")
    if path.suffix.lower() not in RECORD_FILE_SUFFIXES:
        raise ConfigError(
            f"{path}: extension '{path.suffix}' is not one of {', '.join(RECORD_FILE_SUFFIXES)}; "
            "convert or rename the file"
        )
    return [local_file(path)]


def _opened(files: Sequence[StoredFile], names: Sequence[str]) -> list[RecordFile]:
    """Open record files; remote ones several at a time, since most of that is waiting."""
    if all(file.url is None for file in files):
        return list(map(open_file, files, names))
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return list(pool.map(open_file, files, names))


def _saved_dataset_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a dataset, or of all its splits, saved by `datasets`; nothing for other folders."""
    splits = _saved_index(folder / "dataset_dict.json", "splits")
    if splits is not None:
        return [file for split in splits for file in _saved_dataset_files(_within(folder, split))]
    state = folder / "state.json"
    shards = _saved_index(state, "_data_files")
    if shards is None:
        return []
    if _saved_index(state, "_indices_data_files"):
        raise ConfigError(f"{folder}: its rows are chosen by an index; save it after flatten_indices()")
    files = [_within(folder, shard.get("filename") if isinstance(shard, dict) else shard) for shard in shards]
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file}: {state} lists this file, but it is not there; copy or save the data again")
    return files


def _within(folder: Path, name: object) -> Path:
    """A file or folder that metadata of `datasets` name; they name only what lies in their own folder."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ConfigError(f"{folder}: its metadata name {quoted(name)}, which is no file of the folder; save it again")
    return folder / name


def _saved_index(file: Path, key: str) -> list[Any] | None:
    """Return a list from a metadata file of `datasets`; None if there is no such file or list."""
    value = decode_json(file.read_bytes(), str(file), "save the data again") if file.is_file() else None
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _files_below(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in RECORD_FILE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ConfigError(f"{folder}: the folder holds no {', '.join(RECORD_FILE_SUFFIXES)} file; check the path")
    return without_archives(files)


def _display_names(files: Sequence[Path]) -> list[str]:
    """Return file names; files that share a name get their paths relative to the common folder."""
    names = [file.name for file in files]
    counts = Counter(names)
    common = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    return [
        Path(os.path.relpath(os.path.abspath(file), common)).as_posix() if counts[name] > 1 else name
        for file, name in zip(files, names, strict=True)
    ]
