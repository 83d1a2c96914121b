"""Files of object stores and web servers, through fsspec, and the local mirror in which they have a place.

A remote file has a fixed place on the local disk, ``<cache>/remote/s3/bucket/folder/name``, whether or not it has been
copied there. That path stands for the file wherever the library passes paths: relative media paths resolve against it,
and :func:`ensure_local` copies the file there before it is read. Copies are removed again, least recently used first.
"""

from __future__ import annotations

import os
import posixpath
import re
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from futurel1.errors import ConfigError, FutureL1Error, MissingFileError, RemoteError
from futurel1.files import replacing, writable
from futurel1.leftovers import is_abandoned, is_temporary

__all__ = [
    "STORES", "ask_store", "cache_folder", "ensure_local", "filesystem", "is_there", "is_url", "media_folder",
    "mirror_place", "names_file", "shown", "url_of",
]  # fmt: skip

T = TypeVar("T")
CACHE, CACHE_GB = "FUTUREL1_CACHE", "FUTUREL1_CACHE_GB"
"""Environment variables: folder of local copies and indexes, and the most gigabytes of copies that it holds."""
DEFAULT_GB = 50.0
IN_USE_SECONDS = 120.0
"""Copies that were opened so recently are never removed, because they may be open, or about to be."""
_URL = re.compile(r"([A-Za-z][A-Za-z\d+.-]*)://(.*)", re.DOTALL)
_ATTEMPTS = 4
_LOCKS = 256
STORES: dict[str, Any] = {}
"""By scheme, stores of the library itself, with `info` and `get_file` of a file system of fsspec."""
_copied_since_clearing: dict[Path, float] = {}
"""By mirror, bytes that this process has copied since it last cleared it; absent before its first copy."""


def is_url(text: object) -> bool:
    """Whether a text is the address of a remote file: ``scheme://..``, but not ``file://``."""
    found = _URL.match(text) if isinstance(text, str) else None
    return found is not None and found[1].lower() not in ("file", "local")


def cache_folder() -> Path:
    """Folder of local copies and indexes: ``$FUTUREL1_CACHE``, else ``futurel1`` in the user's cache folder."""
    given = os.environ.get(CACHE)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return _real(given or os.path.join(base, "futurel1"))


@lru_cache(maxsize=8)
def _real(folder: str) -> Path:
    """A folder without links, looked up once: it is asked for with every path of a record."""
    return Path(os.path.realpath(folder))


def mirror_place(url: str) -> Path:
    """The place of a remote file or folder in the mirror; nothing is copied.

    Raises:
        ConfigError: an address without a place: chained, with a query, or outside its bucket.
    """
    found = _URL.match(url)
    scheme, rest = (found[1].lower(), found[2]) if found else ("", "")
    parts = posixpath.normpath("/" + rest).strip("/")
    climbs = posixpath.normpath(rest.lstrip("/")).split("/")[0] == ".."
    if not parts or climbs or "::" in url or "\0" in url or (scheme.startswith("http") and re.search(r"[?#]", rest)):
        raise ConfigError(
            f"{url}: not the address of a file or folder of a store; write SCHEME://BUCKET/PATH, without `::`, `..` "
            "above the bucket, or a query"
        )
    return _mirror() / scheme / parts


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The address of the remote file that a path of the mirror stands for; None for any other path."""
    mirror = str(_mirror())
    text = os.path.normpath(path)
    if not text.startswith(mirror + os.sep):
        return None
    scheme, _, rest = text[len(mirror) + 1 :].replace(os.sep, "/").partition("/")
    return f"{scheme}://{rest}" if rest else None


def shown(path: str | os.PathLike[str]) -> str:
    """A path as messages show it: of a remote file, its address."""
    return url_of(path) or str(path)


def names_file(message: str, path: Path) -> bool:
    """Whether a message names a file, by its path or, if it is remote, by its address."""
    return str(path) in message or shown(path) in message


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file; of a remote one that shows only when it is read."""
    # isfile, unlike Path.exists, is False for names too long for the system
    return url_of(path) is not None or os.path.isfile(path)


def media_folder(setting: str, folder: str | os.PathLike[str] | None) -> Path | None:
    """The folder that a setting names: a path, or the place of an address in the mirror; None if it names none.

    Raises:
        MissingFileError: there is no such local folder.
        ConfigError: an address that names no folder of a store.
    """
    if folder is None:
        return None
    if is_url(folder):
        return mirror_place(str(folder))
    if url_of(folder) is None and not Path(folder).is_dir():
        raise MissingFileError(f"{setting} {folder}: no such folder; name the folder that holds the media")
    return Path(folder)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and its name there; safe after a fork.

    Raises:
        ConfigError: no such kind of store, or its package is not installed.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0].lower()
    if scheme in STORES:
        return STORES[scheme], url
    try:
        system, name = url_to_fs(url)
    except ImportError as error:
        package = known_implementations.get(scheme, {"class": scheme})["class"].partition(".")[0]
        raise ConfigError(
            f"{url}: {scheme}:// needs a package that is not installed: pip install {package} ({error})"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{url}: not an address that fsspec opens ({error}); check what stands before ://") from error
    return system, str(name)


def ask_store(url: str, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, tried again after errors that may pass.

    Raises:
        MissingFileError: there is no such file.
        RemoteError: the store refuses or does not answer; the message has its reason.
    """
    import pyarrow as pa
    from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_random_exponential

    # What Arrow refuses has come, but is no Arrow or Parquet.
    final = (FileNotFoundError, PermissionError, IsADirectoryError, FutureL1Error, pa.ArrowException)
    attempts = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        retry=retry_if_not_exception_type(final),
        reraise=True,
    )
    try:
        return attempts(ask)
    except (FutureL1Error, pa.ArrowException):
        raise
    except FileNotFoundError as error:
        reason = f" ({error.__cause__})" if error.__cause__ is not None else ""
        raise MissingFileError(f"{url}: no such file or folder there{reason}; check the address") from error
    # Clients of stores have no common class of errors.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RemoteError(f"{url}: cannot be read ({reason}); check the address, the rights and the network") from error


# ------------------------------------------------------------------------------------------------- local copies


def ensure_local(path: Path, stamp: int = 0) -> None:
    """Copy the remote file that a path of the mirror stands for, if it is not there; do nothing for other paths.

    Args:
        path: any path.
        stamp: number of the file's version; a copy of another one is replaced. 0: a copy counts as the file for as long
            as it is kept, so that a file that changes under its name is not seen.

    Raises:
        ConfigError: its package is not installed, or `FUTUREL1_CACHE_GB` is no number above 0.
        MissingFileError: there is no such file.
        RemoteError: the store does not give it.
        DiskFullError: there is no space left.
    """
    url = url_of(path)
    if url is None:
        return
    if _used(path, stamp):
        return
    limit, mirror = _limit(), _mirror()
    system, name = filesystem(url)
    locks = mirror.with_name("locks")
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        locks.mkdir(exist_ok=True)
    # Several workers may come for the same file. What another copy holds is not locked: that copy is.
    lock = FileLock(locks / f"{zlib.crc32(url.encode()) % _LOCKS:04d}.lock")
    with nullcontext() if system in STORES.values() else lock:
        if _used(path, stamp):
            return
        with replacing(path) as partial:
            ask_store(url, lambda: _copy(system, name, partial))
            size = partial.stat().st_size
            os.utime(partial, (time.time(), stamp))
    copied = _copied_since_clearing.get(mirror, float("inf")) + size
    _copied_since_clearing[mirror] = copied
    if copied > limit / 100:
        _copied_since_clearing[mirror] = 0
        _clear(mirror, limit)


def _used(path: Path, stamp: int) -> bool:
    """Whether there is a copy of a version; notes that it is used."""
    # A copy's time of change stands for its version, its time of access for its last use.
    with suppress(FileNotFoundError):
        if int(path.stat().st_mtime) == stamp:
            os.utime(path, (time.time(), stamp))
            return True
    return False


def _copy(system: Any, name: str, target: Path) -> None:
    expected = system.info(name).get("size")
    system.get_file(name, str(target))
    size = target.stat().st_size
    if expected is not None and size != expected:
        raise OSError(f"{size} of {expected} bytes came: the file changed meanwhile, or the connection was cut")


def _limit() -> float:
    """Most bytes of local copies."""
    given = os.environ.get(CACHE_GB, str(DEFAULT_GB))
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise ConfigError(f"{CACHE_GB}={given}: not a number of gigabytes above 0; set one, or unset it")
    return gigabytes * 1e9


def _clear(mirror: Path, limit: float) -> None:
    """Remove the least recently used copies above nine tenths of the limit, unless another process is at it."""
    try:
        with FileLock(mirror.with_name("clearing.lock"), blocking=False):
            copies = []
            for folder, _, names in os.walk(mirror):
                for file in (Path(folder, name) for name in names):
                    if is_temporary(file):
                        if is_abandoned(file):
                            file.unlink(missing_ok=True)
                        continue
                    with suppress(FileNotFoundError):
                        status = file.stat()
                        copies.append((status.st_atime, status.st_size, file))
            total = sum(size for _, size, _ in copies)
            if total <= limit:
                return
            for used, size, file in sorted(copies):
                if total <= 0.9 * limit or used > time.time() - IN_USE_SECONDS:
                    break
                file.unlink(missing_ok=True)
                total -= size
    except Timeout:
        return


def _mirror() -> Path:
    return cache_folder() / "remote"
