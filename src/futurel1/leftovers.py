"""Temporary names that say which process they belong to, so that what a killed one left is found and removed."""

import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

__all__ = [
    "is_abandoned", "is_temporary", "remove_leftovers", "remove_leftovers_of", "temporaries_of", "temporary",
]  # fmt: skip

logger = logging.getLogger(__name__)
Kind = Literal["part", "aside"]
ABANDONED_SECONDS = 24 * 3600.0
"""Age at which something that a process of another machine is writing counts as abandoned."""
_SHOWN = 30
"""Characters of a name that its temporary name repeats; file systems allow 255 bytes."""
_OWNER = r"(?P<host>.+)-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})\.(?P<kind>part|aside)"
_MADE: set[str] = set()
"""Tokens of this process's own names, since an earlier process may have had its number."""


def temporary(place: Path, kind: Kind) -> Path:
    """An unused hidden name beside a file or folder, with the machine and number of this process.

    Args:
        place: what will be replaced.
        kind: ``part`` for something that is being written, ``aside`` for what has to make way.
    """
    token = uuid.uuid4().hex[:8]
    _MADE.add(token)
    return place.with_name(f".{place.name[:_SHOWN]}.{socket.gethostname()}-{os.getpid()}-{token}.{kind}")


def temporaries_of(place: Path) -> list[Path]:
    """Everything beside a file or folder that :func:`temporary` has named for it."""
    pattern = re.compile(rf"\.{re.escape(place.name[:_SHOWN])}\.{_OWNER}")
    return [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]


def is_temporary(path: Path, kind: Kind = "part") -> bool:
    """Whether :func:`temporary` may have given a name."""
    found = re.fullmatch(rf"\..*\.{_OWNER}", path.name)
    return found is not None and found["kind"] == kind


def is_abandoned(path: Path, *, alone: bool = False) -> bool:
    """Whether the process that made a temporary file or folder has ended.

    Args:
        path: a name of :func:`temporary`.
        alone: whether no process of another machine can be writing here, because this one holds the folder's lock.
            Otherwise, what another machine's process makes counts as abandoned a day after it was last changed.
    """
    found = re.fullmatch(rf"\..*?\.{_OWNER}", path.name)
    if found is None:
        return False
    if not f".{found['host']}".endswith(f".{socket.gethostname()}"):
        return alone or _seconds_unchanged(path) > ABANDONED_SECONDS
    if int(found["pid"]) == os.getpid():
        return found["token"] not in _MADE
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # of another user
    return False


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Remove what killed processes had begun to write in a folder, at any depth.

    What had to make way stays, because it may be the only whole copy.

    Args:
        folder: the folder; it may be missing.
        alone: see :func:`is_abandoned`.
    """
    for path in list(_parts(folder)):
        if is_abandoned(path, alone=alone):
            _remove(path)


def remove_leftovers_of(place: Path) -> None:
    """Remove what killed processes had begun to write for one file or folder, whose own folder must exist.

    What had to make way stays, because it may be the only whole copy.
    """
    for path in temporaries_of(place):
        if is_temporary(path) and is_abandoned(path):
            _remove(path)


def _remove(path: Path) -> None:
    logger.info("removing %s, which a process that was killed left", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _parts(folder: Path) -> Iterator[Path]:
    for inside, folders, files in os.walk(folder):
        found = {name for name in (*folders, *files) if is_temporary(Path(name))}
        folders[:] = [name for name in folders if name not in found]
        yield from (Path(inside) / name for name in sorted(found))


def _seconds_unchanged(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
