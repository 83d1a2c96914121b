"""Files of records on a local disk, in an object store or on a web server, opened and read in one way."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from futurel1.data.remote import ask_store, ensure_local, filesystem, mirror_place
from futurel1.errors import ConfigError, MissingFileError, RemoteError

__all__ = ["StoredFile", "is_pattern", "local_file", "remote_files", "without_archives"]

_VERSION_KEYS = (
    "ETag", "etag", "Content-MD5", "md5Hash", "content_hash", "blob_id", "generation", "version_id", "LastModified",
    "last_modified", "Last-Modified", "updated", "mtime", "created",
)  # fmt: skip
"""What stores call the digest or the time of a file."""
T = TypeVar("T")
_BLOCK_BYTES = 16 * 2**20
"""What one request for a file that is read from front to back asks for."""


@dataclass(frozen=True)
class StoredFile:
    """A file of records, as it was when its source was opened.

    Attributes:
        path: its path; of a remote file, its place in the mirror (:mod:`futurel1.data.remote`).
        url: address of a remote file; None for a local one.
        size: bytes.
        version: what changes when the file does: the store's digest or time, locally the time of change. "" if a server
            tells neither.
    """

    path: Path
    url: str | None
    size: int
    version: str

    @property
    def stamp(self) -> int:
        """A number that changes with the file."""
        return zlib.crc32(f"{self.size} {self.version}".encode())

    @property
    def place(self) -> str:
        """The file as messages show it."""
        return self.url or str(self.path)

    def using(self, function: Callable[[BinaryIO], T]) -> T:
        """Return what a function makes of the open file; of a remote file it may be called again after an error.

        Raises:
            FileNotFoundError: the file has gone.
            OSError: it cannot be read.
        """
        if self.url is None:
            with self.path.open("rb") as stream:
                return function(stream)
        system, name = filesystem(self.url)

        def use() -> T:
            with system.open(name, "rb", block_size=_BLOCK_BYTES) as stream:
                return function(stream)

        return ask_store(self.url, use)

    def read(self, start: int, stop: int) -> bytes:
        """Read some bytes: of a remote file, by one request.

        Raises:
            FileNotFoundError: it has gone.
            OSError: it cannot be read.
        """
        if self.url is None:
            with self.path.open("rb") as stream:
                stream.seek(start)
                return stream.read(stop - start)
        url = self.url
        system, name = filesystem(url)
        data: bytes = ask_store(url, lambda: system.cat_file(name, start=start, end=stop))
        if len(data) != stop - start:
            raise RemoteError(
                f"{url}: {len(data)} bytes came where {stop - start} were asked for: the file has changed, or its "
                "server ignores ranges; open the records again, or serve them by one that knows ranges"
            )
        return data

    def local(self) -> Path:
        """Path of the file on a local disk; a remote one is copied first."""
        if self.url is not None:
            ensure_local(self.path, self.stamp)
        return self.path


def is_pattern(text: str) -> bool:
    """Whether a text has the wildcards `*` or `[..]` in it."""
    return "*" in text or "[" in text


def without_archives(names: Sequence[T]) -> list[T]:
    """Leave the tar files of a folder out if it holds other records: there they are archives of media."""
    others = [name for name in names if not str(name).lower().endswith(".tar")]
    return others or list(names)


def local_file(path: Path) -> StoredFile:
    """Describe a local file."""
    status = path.stat()
    return StoredFile(path, None, status.st_size, str(status.st_mtime_ns))


def remote_files(url: str, suffixes: tuple[str, ...]) -> list[StoredFile]:
    """Find the files that an address names.

    Args:
        url: address of a file, a folder, or a pattern with `*`, `**` or `[..]`.
        suffixes: extensions of files that are looked for in folders.

    Returns:
        The file; all files with these extensions in or below a folder, without hidden ones and archives; or those that
        match; by address in ascending order.

    Raises:
        ConfigError: the package of the store is not installed, or nothing with these extensions is found.
        MissingFileError: there is no such file or folder.
        RemoteError: the store does not answer.
    """
    system, name = filesystem(url)
    if name.lower().endswith(suffixes) and not is_pattern(url):
        return [_described(url, ask_store(url, lambda: system.info(name)))]
    if is_pattern(url):
        found: Mapping[str, Any] = ask_store(url, lambda: system.glob(name, detail=True))
        if not found:
            raise MissingFileError(f"{url}: no file matches; check the pattern")
    else:
        found = ask_store(url, lambda: system.find(name, detail=True))
        if not found:
            ask_store(url, lambda: system.info(name))  # tells a folder that is not there from an empty one
    scheme, fixed = url.partition("://")[0], re.split(r"[*[]", url)[0]
    files = {}
    for key, info in sorted(found.items()):
        address = key if "://" in key else f"{scheme}://{key.lstrip('/')}"
        hidden = any(part.startswith(".") for part in address[len(fixed) :].split("/"))
        if info.get("type") != "directory" and address.lower().endswith(suffixes) and not hidden:
            files[address] = info
    if not is_pattern(url):
        files = {address: files[address] for address in without_archives(list(files))}
    if not files:
        raise ConfigError(f"{url}: there is no {', '.join(suffixes)} file; check the address")
    return [_described(address, info) for address, info in files.items()]


def _described(url: str, info: Mapping[str, Any]) -> StoredFile:
    size = info.get("size")
    if size is None or not any(info.get(key) for key in _VERSION_KEYS):
        # listings of web servers name files, no more
        system, name = filesystem(url)
        info = {**info, **ask_store(url, lambda: system.info(name))}
        size = info.get("size")
    if size is None:
        raise RemoteError(f"{url}: the server does not tell the file's size, by which it is read; serve it by another")
    version = " ".join(f"{info[key]}" for key in _VERSION_KEYS if info.get(key))
    return StoredFile(mirror_place(url), url, int(size), version)
