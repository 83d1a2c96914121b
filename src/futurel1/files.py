"""Files that are written whole or not at all.

A killed run, a full disk or a second writer never leaves half a file under the name that others read: the contents go
to a temporary file in the same folder, which then takes that name.
"""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "write_first", "write_whole"]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give the path of an empty temporary file beside `file`, and rename it to `file` when the block ends well.

    When the block or the rename fails, the temporary file is removed and `file` stays as it was. Several writers may
    replace a file at once: the last rename counts. The permissions are those that `file.open("wb")` would leave,
    whatever the block sets.

    Args:
        file: the file to replace or to make; its folder has to be there.
    """
    with _beside(file) as partial:
        mode = (file if file.is_file() else partial).stat().st_mode
        yield partial
        set_mode(partial, mode)
        os.replace(partial, file)


def set_mode(file: Path, mode: int) -> None:
    """Set permissions, where the file system has them; safetensors lets nobody else read what it writes.

    Args:
        file: the file.
        mode: permission bits; others are left out.
    """
    with suppress(OSError):
        file.chmod(stat.S_IMODE(mode))


def write_whole(file: Path, data: bytes | str) -> None:
    """Write a file at once; see :func:`replacing`.

    Args:
        file: the file to replace or to make; its folder has to be there.
        data: its contents; text is encoded as UTF-8.
    """
    with replacing(file) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_first(file: Path, data: bytes) -> None:
    """Write a file unless it is there, and see it to the disk. Of several writers at once the first one counts.

    Args:
        file: the file to make; its folder has to be there.
        data: its contents.
    """
    with _beside(file) as partial:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(partial, file)


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """An empty file in the folder of `file` under a name of its own; removed at the end, if it is still there."""
    # Not the process id: machines that share the folder may have the same one. Cut, because file systems allow 255
    # bytes for a name.
    partial = file.with_name(f".{file.name[:50]}.{uuid.uuid4().hex}.part")
    try:
        partial.touch(exist_ok=False)
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
