"""One line for a full disk: which file could not be written, and what is whole."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from futurel1.errors import DiskFullError

__all__ = ["is_full", "told_when_full"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_WORDS = re.compile(r"No space left on device|Disk quota exceeded|\(os error (?:28|122)\)")
"""What libraries say that are not written in Python, such as safetensors."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is about a disk or a quota without space."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _FULL or isinstance(seen, DiskFullError) or _IN_WORDS.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def told_when_full(path: str | Path, whole: str) -> Iterator[None]:
    """Turn the error of a full disk within the block into one that a user can act on; others pass.

    Args:
        path: the file or folder that is written.
        whole: what is whole, and how to go on.

    Raises:
        DiskFullError: there is no space left.
    """
    try:
        yield
    except DiskFullError as error:  # the file is named already
        raise DiskFullError(f"{error}; {whole}") from error
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFullError(f"{path}: no space left on the disk, or in the quota; {whole}") from error
