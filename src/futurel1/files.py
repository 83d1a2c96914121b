"""Writing files atomically.

A killed run, a full disk or a second writer never leaves a partial file under the final name: the contents go to a
temporary file in the same folder, which is then renamed. What a kill leaves of it, `remove_leftovers` removes.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from futurel1.errors import ConfigError
from futurel1.full_disk import told_when_full
from futurel1.leftovers import temporary

__all__ = ["replacing", "set_mode", "writable", "write_first", "write_whole"]

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `file`, and rename it to `file` if the block succeeds.

    If the block or the rename fails, the temporary file is removed and `file` stays as it was. Several writers may
    replace a file at the same time: the last rename wins. The permissions are those that `file.open("wb")` would leave,
    whatever the block sets.

    Args:
        file: the file to replace or to create; its folder must exist.

    Raises:
        DiskFullError: there is no space left.
    """
    with _beside(file) as partial:
        mode = (file if file.is_file() else partial).stat().st_mode
        with told_when_full(file, "it is as it was before"):
            yield partial
            set_mode(partial, mode)
            os.replace(partial, file)


def set_mode(file: Path, mode: int) -> None:
    """Set permissions if the file system has them; safetensors lets only the owner read the files that it writes.

    Args:
        file: the file.
        mode: permission bits; other bits are ignored.
    """
    with suppress(OSError):
        file.chmod(stat.S_IMODE(mode))


def write_whole(file: Path, data: bytes | str) -> None:
    """Write a file atomically; see :func:`replacing`.

    Args:
        file: the file to replace or to create; its folder must exist.
        data: its contents; text is encoded as UTF-8.
    """
    with replacing(file) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_first(file: Path, data: bytes) -> None:
    """Write a file unless it exists, and sync it to disk. If there are several writers, the first one wins.

    Args:
        file: the file to create; its folder must exist.
        data: its contents.
    """
    with told_when_full(file, "it is not there"), _beside(file) as partial:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(partial, file)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make an error of the block that says that a folder cannot be written a `ConfigError` that names the folder.

    Args:
        folder: the folder that the block begins to write to.

    Raises:
        ConfigError: the block met a read-only file system, missing permissions, or a file in the place of a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); name another folder, or change its permissions"
        ) from error


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """An empty file with a unique name in the folder of `file`; removed at the end if it still exists."""
    partial = temporary(file, "part")
    try:
        partial.touch(exist_ok=False)
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
