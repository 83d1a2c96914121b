"""Replacing a folder that is taken for whole: written beside, then renamed.

A folder of files that belong together, such as an export, is there whole or not at all: a kill leaves the old one, and
what the killed process had begun is removed by the next writer.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from futurel1.files import set_mode, writable
from futurel1.leftovers import is_abandoned, temporaries_of, temporary

__all__ = ["place_of", "replacing_folder", "standing"]

logger = logging.getLogger(__name__)
_STAGED: dict[Path, Path] = {}
"""Folders that this process is writing, and the places that they will get."""
_CANNOT_MOVE = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of renaming a folder that may be written all the same: a mount point, a parent of somebody else."""


@contextmanager
def replacing_folder(
    folder: Path, *, drops: Callable[[str], bool] = lambda name: False, last: str = "config.json"
) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, and put it into that place if the block succeeds.

    Files that only the old folder has are kept, except those that `drops` names. Between two renames there is no
    `folder` for a moment, but :func:`standing` finds the old one. A folder that cannot be renamed (a mount point, a
    current directory, in a parent that may not be written) gets the files one by one instead: without `last` first, and
    with it again when all others are there.

    Within the block, the yielded folder may be given to this function again, which then yields it as it is.

    Args:
        folder: the folder to replace or to create; its parents are created.
        drops: whether a file of the old folder, given by its relative path, must not be kept.
        last: name of the file without which nobody takes the folder for whole.

    Raises:
        ConfigError: the folder cannot be written.
    """
    if folder in _STAGED:
        yield folder
        return
    place = folder.resolve()
    with writable(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        _clean(place)
        staged, movable = _stage(place)
    _STAGED[staged] = folder
    try:
        yield staged
        _keep_others(place, staged, drops)
        _sync(staged)
        if place.is_dir():
            set_mode(staged, place.stat().st_mode)
        if not (movable and _renamed(staged, place)):
            _move_files(staged, place, drops, last)
        _sync_folder(place.parent)
    finally:
        _STAGED.pop(staged, None)
        shutil.rmtree(staged, ignore_errors=True)


def place_of(folder: Path) -> Path:
    """The place that a folder of :func:`replacing_folder` will get; any other folder itself."""
    return _STAGED.get(folder, folder)


def standing(folder: Path) -> Path:
    """The folder, or where a process that was killed between two renames left it."""
    if not folder.exists() and folder.parent.is_dir():
        asides = [path for path in temporaries_of(folder) if path.suffix == ".aside"]
        if asides:
            return max(asides, key=lambda path: path.stat().st_mtime_ns)
    return folder


def _stage(place: Path) -> tuple[Path, bool]:
    """An empty folder beside a place, or inside of it where it cannot be beside; and whether it may be renamed."""
    working = Path.cwd().resolve()
    movable = not os.path.ismount(place) and not working.is_relative_to(place)
    try:
        staged = temporary(place, "part")
        staged.mkdir()
    except OSError as error:
        if error.errno not in _CANNOT_MOVE or not place.is_dir():
            raise
        staged, movable = temporary(place / place.name, "part"), False
        staged.mkdir()
    return staged, movable


def _clean(place: Path) -> None:
    """Remove what killed processes of this machine began, and put back what one of them had moved aside."""
    inside = temporaries_of(place / place.name) if place.is_dir() and os.access(place, os.R_OK) else []
    found = [*(temporaries_of(place) if os.access(place.parent, os.R_OK) else []), *inside]
    abandoned = [path for path in found if is_abandoned(path)]
    if not place.exists():
        old = standing(place)
        if old in abandoned:
            with suppress(OSError):  # another writer was faster
                os.rename(old, place)
    for path in abandoned:
        shutil.rmtree(path, ignore_errors=True)


def _keep_others(place: Path, staged: Path, drops: Callable[[str], bool]) -> None:
    """Give the new folder the files that only the old one has."""
    if staged.is_relative_to(place):
        return
    for old in sorted(place.rglob("*")) if place.is_dir() else []:
        name = old.relative_to(place)
        new = staged / name
        if os.path.lexists(new) or drops(name.as_posix()) or (old.is_dir() and not old.is_symlink()):
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(old, new, follow_symlinks=False)


def _renamed(staged: Path, place: Path) -> bool:
    """Put a folder into its place; False if the place cannot be renamed."""
    while True:
        aside = temporary(place, "aside")
        try:
            os.rename(place, aside)
        except FileNotFoundError:
            pass  # new, or another writer is between its renames
        except OSError as error:
            if error.errno not in _CANNOT_MOVE:
                raise
            return False
        try:
            os.rename(staged, place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was faster; the last one wins
                shutil.rmtree(aside, ignore_errors=True)
                continue
            if aside.exists():
                os.rename(aside, place)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return True


def _move_files(staged: Path, place: Path, drops: Callable[[str], bool], last: str) -> None:
    """Move the files of a folder into another one, which is not taken for whole meanwhile."""
    (place / last).unlink(missing_ok=True)
    new = {file.relative_to(staged).as_posix(): file for file in staged.rglob("*") if not file.is_dir()}
    for old in [path for path in place.rglob("*") if not path.is_dir() and not path.is_relative_to(staged)]:
        name = old.relative_to(place).as_posix()
        if drops(name) and name not in new:
            old.unlink()
    for name, file in sorted(new.items(), key=lambda entry: (entry[0] == last, entry[0])):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place / name)
    _sync_folder(place)


def _sync(folder: Path) -> None:
    """Write a folder's files to the disk, so that a power cut after the rename leaves whole ones."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            _sync_folder(path)
        elif path.stat().st_nlink == 1:  # links to files of the old folder are on the disk
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
