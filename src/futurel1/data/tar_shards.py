"""Tar shards of records and their media, in WebDataset's naming: ``KEY.json`` is a record, ``KEY.*`` are its media.

Members are read where they lie, by an index of their places; nothing is unpacked. `futurel1 pack` writes the index
beside each shard (``SHARD.tar.idx``); shards of others are scanned. A shard in a store is copied whole, since one
record after the other is read from it.

The record names a medium by its member. Its path is a place of the mirror that stands for the member:
``packed://VERSION/PATH/OF/SHARD.tar/MEMBER``.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from futurel1.data.remote import STORES, ensure_local, mirror_place, url_of
from futurel1.data.stored_files import StoredFile, local_file
from futurel1.errors import MissingFileError, RecordError

__all__ = [
    "INDEX_SUFFIX", "PACKED", "PACKING", "RECORD_MEMBER", "Member", "TarMembers", "check_finished", "member_folder",
    "member_of", "scan_members", "tar_members",
]  # fmt: skip

PACKED = "packed"
"""Scheme of the addresses of members."""
RECORD_MEMBER = ".json"
PACKING = ".packing.json"
"""File of a packed folder that says what is packed, and that all of it is."""
INDEX_SUFFIX = ".idx"
_SHARDS_KEPT = 64
_MEMBER = re.compile(rf"{PACKED}://([0-9a-f]{{8}})/(?:([a-z][a-z\d+.-]*):/)?(.+?\.tar)/(.+)", re.IGNORECASE | re.DOTALL)
Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class TarMembers:
    """Members of a shard, in their order.

    Attributes:
        names: (M,) names, as bytes of UTF-8.
        spans: (M, 2) where the data of each start and end.
    """

    names: np.ndarray[Any, np.dtype[np.bytes_]]
    spans: Numbers

    def records(self) -> Numbers:
        """(N, 2) spans of the records."""
        return self.spans[np.char.endswith(self.names, RECORD_MEMBER.encode())]

    def span(self, name: str) -> tuple[int, int] | None:
        """Where a member's data start and end; None if there is no such member."""
        found = np.flatnonzero(self.names == name.encode())
        return (int(self.spans[found[0], 0]), int(self.spans[found[0], 1])) if len(found) else None

    def save(self, stream: BinaryIO, size: int) -> None:
        """Write the index of a shard of so many bytes."""
        np.savez(stream, names=self.names, spans=self.spans, size=np.int64(size))


def scan_members(stream: BinaryIO) -> TarMembers:
    """Find the members of a shard by its headers.

    Raises:
        tarfile.TarError: it is no tar file, or cut short.
    """
    names, spans = [], []
    with tarfile.open(fileobj=stream, mode="r:") as shard:
        for member in shard:
            if member.isfile():
                names.append(member.name.removeprefix("./").encode())
                spans.append((member.offset_data, member.offset_data + member.size))
    return TarMembers(np.array(names, dtype=np.bytes_), np.array(spans, dtype=np.int64).reshape(-1, 2))


@lru_cache(maxsize=_SHARDS_KEPT)
def tar_members(file: StoredFile) -> TarMembers:
    """The members of a shard: from the index beside it, if there is one of this shard, else by its headers.

    Raises:
        RecordError: the file is no tar file, or cut short.
    """
    beside = StoredFile(
        file.path.with_name(file.path.name + INDEX_SUFFIX), None if file.url is None else file.url + INDEX_SUFFIX, 0, ""
    )
    try:
        stored = beside.using(_load)
    except FileNotFoundError:
        stored = None
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise RecordError(f"{beside.place}: damaged ({error}); remove it, and the shard is read through") from error
    if stored is not None and stored[1] == file.size:
        return stored[0]
    try:
        with file.local().open("rb") as stream:
            members = scan_members(stream)
    except tarfile.TarError as error:
        raise RecordError(f"{file.place}: not a readable tar file ({error}); copy or pack it again") from error
    stop = int(members.spans[:, 1].max(initial=0))
    if stop > file.size:
        raise RecordError(f"{file.place}: the file is cut short at {file.size} of at least {stop} bytes; copy it again")
    return members


def _load(stream: BinaryIO) -> tuple[TarMembers, int]:
    with np.load(stream, allow_pickle=False) as stored:
        return TarMembers(stored["names"], stored["spans"]), int(stored["size"])


def member_folder(file: StoredFile) -> Path:
    """The folder that the members of a shard seem to lie in: each version of a shard has another."""
    shard = file.url.replace("://", ":/", 1) if file.url else file.path.absolute().as_posix().lstrip("/")
    # One slash, since a path has no empty part.
    return mirror_place(f"{PACKED}://{file.stamp:08x}/{shard}")


@dataclass(frozen=True)
class Member:
    """A member of a shard, as a place of the mirror names it.

    Attributes:
        shard: the shard; of a remote one, its place in the mirror.
        stamp: number of the shard's version.
        name: the member.
    """

    shard: Path
    stamp: int
    name: str


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """The member that a path stands for; None for any other path."""
    url = url_of(path)
    found = None if url is None else _MEMBER.fullmatch(url)
    if found is None:
        return None
    stamp, scheme, shard, name = found.groups()
    return Member(mirror_place(f"{scheme}://{shard}") if scheme else Path(f"/{shard}"), int(stamp, 16), name)


def check_finished(folder: Path) -> None:
    """Refuse a folder in which `futurel1 pack` has not come to its end.

    Raises:
        RecordError: shards are missing.
    """
    note = folder / PACKING
    if note.is_file() and "packed" not in json.loads(note.read_text(encoding="utf-8")):
        raise RecordError(f"{folder}: its records are not all packed; call the same `futurel1 pack` again, it goes on")


class _Members:
    """Members of shards, as a store whose files are copied one by one."""

    def info(self, url: str) -> dict[str, Any]:
        return {}

    def get_file(self, url: str, target: str) -> None:
        """Copy one member out of its shard."""
        member = member_of(mirror_place(url))
        if member is None:
            raise FileNotFoundError(url)
        ensure_local(member.shard, member.stamp)
        file = local_file(member.shard)
        if url_of(member.shard) is None and file.stamp != member.stamp:
            raise MissingFileError(f"{url}: {file.place} has changed since; open its records again")
        span = tar_members(file).span(member.name)
        if span is None:
            raise FileNotFoundError(url)
        Path(target).write_bytes(file.read(*span))


STORES[PACKED] = _Members()
