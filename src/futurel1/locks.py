"""One writer per folder: a lock that names its owner and that a crash releases."""

import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from futurel1.errors import ConfigError
from futurel1.files import writable, write_whole

__all__ = ["LOCK_FILES", "Owner", "one_writer"]

logger = logging.getLogger(__name__)
LOCK_SECONDS = 15.0
"""Most seconds to wait for a lock whose owner does not run: processes that a killed one started may hold it as long."""
LOCK_FILES = ".writer."
"""Beginning of the names of the files of a folder's usual lock."""
GRACE_SECONDS = 1.0
"""Seconds to wait for an owner that runs: a process that was just killed still does for a moment."""
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_HELD: dict[Path, int] = {}
"""Locks of this process, and how many blocks hold each."""
os.register_at_fork(after_in_child=_HELD.clear)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Args:
        host: name of its machine.
        pid: its process id there.
        command: its command line.
        since: local time at which it took the lock, ISO 8601.
    """

    host: str
    pid: int
    command: str
    since: str

    @classmethod
    def this_process(cls) -> "Owner":
        """This process, from now on."""
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return cls(
            socket.gethostname(), os.getpid(), command, datetime.now().astimezone().isoformat(timespec="seconds")
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (`{self.command}`, since {self.since})"

    @property
    def runs(self) -> bool:
        """Whether the process is known to run; False where that cannot be seen from this machine."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # of another user
        return True


@contextmanager
def one_writer(folder: Path, name: str = "writer") -> Iterator[None]:
    """Make sure that no other process writes to a folder during the block.

    The lock is the kernel's (`flock`) on a hidden file, so it ends with the process, however the process ends. A
    process that has the lock may take it again. On NFS the lock holds between machines if the server's lock service
    runs, on Lustre if it is mounted with `flock`; where a file system has no locks, a warning says so and the block
    runs.

    Args:
        folder: the folder; created if missing.
        name: which of the folder's locks; writers of different names do not exclude each other.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    key = folder.resolve() / name
    if key in _HELD:
        _HELD[key] += 1
        try:
            yield
        finally:
            _HELD[key] -= 1
        return
    note = folder / f".{name}.owner"
    lock = _lock(folder, name, note)
    _HELD[key] = 1
    try:
        yield
    finally:
        _HELD.pop(key, None)
        if lock is not None:
            # Whoever waits for the lock of a removed file takes that of a new one, so nothing is left in the folder.
            for file in (note, Path(lock.lock_file)):
                file.unlink(missing_ok=True)
            lock.release()


def _lock(folder: Path, name: str, note: Path) -> FileLock | None:
    """Take the lock and leave a note about its owner; None where the file system has no locks."""
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock", thread_local=False)
        if not _taken(lock, str(folder) if name == "writer" else f"{name} in {folder}", note):
            return None
        write_whole(note, json.dumps(asdict(Owner.this_process())) + "\n")
    return lock


def _taken(lock: FileLock, what: str, note: Path) -> bool:
    """Take the lock, waiting while its owner may be dying; return False where the file system has no locks."""
    began = time.monotonic()
    waits = False
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _LOCKLESS:
                raise
            logger.warning(
                "the file system of %s has no locks (%s): take care that only one process writes there", what, error
            )
            return False
        else:
            return True
        owner = _owner(note)
        if time.monotonic() - began > (GRACE_SECONDS if owner is not None and owner.runs else LOCK_SECONDS):
            raise ConfigError(
                f"{what} is in use by {owner or 'another process'}: wait until it has ended, stop it, or name "
                "another folder"
            )
        if not waits:
            logger.info("%s is in use by %s: waiting for up to %.0f s", what, owner or "a process", LOCK_SECONDS)
        waits = True
        time.sleep(0.1)


def _owner(note: Path) -> Owner | None:
    """The owner that a note names; None while there is no readable note."""
    try:
        return Owner(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
