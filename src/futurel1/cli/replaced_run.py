"""What stood in a run folder before a run, and comes back if that run never begins: a resumed or an overwritten one."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from futurel1.errors import ConfigError
from futurel1.files import write_whole
from futurel1.leftovers import is_temporary
from futurel1.locks import LOCK_FILES

logger = logging.getLogger(__name__)
START_FILES = (
    "config.yaml", "job.json", "hparams.yaml", "metrics.csv", "events.out.tfevents*", "skipped*.jsonl",
    "predictions.settings.json", "*.lock", ".*.owner", ".*.part",
)  # fmt: skip
"""What a run may write before its first step."""
EARLY_RESULTS = ("rollouts.jsonl",)
"""What it may write before it writes `config.yaml`, besides: rollouts for the first step."""
_SHOWN = 50
"""Characters of a folder's name that its name aside repeats."""
WEIGHTS = (".ckpt", ".safetensors")
"""Suffixes of files with weights or latents."""


def only_started(folder: Path, *, besides: Sequence[str] = ()) -> bool:
    """Whether a folder has no file but empty ones and those that a run may write before its first step.

    Args:
        folder: the folder.
        besides: patterns of further files that it may have.
    """
    files = (file for file in folder.rglob("*") if file.is_symlink() or (file.is_file() and file.stat().st_size))
    return all(any(file.match(pattern) for pattern in (*START_FILES, *besides)) for file in files)


class Replaced:
    """A run that was moved aside.

    Args:
        original: where it was.
        aside: where it is.
    """

    def __init__(self, original: Path, aside: Path) -> None:
        self.original = original
        self.aside = aside

    @classmethod
    def set_aside(cls, folder: Path, config: Any) -> Replaced:
        """Move a run folder aside, beside its place.

        If a run that replaced another one was killed before its first step, the other one, which still waits aside, is
        what may come back, and the beginnings of the killed one are removed.

        Args:
            folder: the folder.
            config: the configuration of the run that replaces it; it must not read from the folder.

        Raises:
            ConfigError: the folder is no run folder or holds others, a process works in it, or the new run needs it.
        """
        _check_kind(folder)
        for file in _lock_files(folder):
            if _is_held(file):
                raise ConfigError(f"--overwrite: another process works in {folder}: it holds {file.name}")
        inside = folder.resolve()
        for key, value in _strings(config):
            if "\0" not in value and Path(value).resolve().is_relative_to(inside):
                raise ConfigError(f"--overwrite would remove {folder}, but the new run reads {key}={value} there")
        waiting = _waiting(folder) if only_started(folder, besides=EARLY_RESULTS) else None
        if waiting is not None:
            shutil.rmtree(folder)
            logger.info("%s still waits until the first step of a run that replaces it", waiting)
            return cls(folder, waiting)
        aside = folder.with_name(f".{folder.name[:_SHOWN]}.{uuid.uuid4().hex[:8]}.replaced")
        os.rename(folder, aside)
        logger.info("%s waits as %s until the first step of the run that replaces it", folder, aside.name)
        return cls(folder, aside)

    def __str__(self) -> str:
        return f"the run that stood there before is {self.aside}"

    def remove(self) -> None:
        """Remove the run for good."""
        shutil.rmtree(self.aside)

    def restore(self) -> None:
        """Move the run back to where it was."""
        os.rename(self.aside, self.original)


def _check_kind(folder: Path) -> None:
    """Only a folder that this library made for one run is removed."""
    problem, config = "", folder / "config.yaml"
    if folder.is_symlink() or not folder.is_dir():
        problem = "is no folder of its own (a link or a file)"
    elif Path.cwd().is_relative_to(folder.resolve()):
        problem = "is or holds the working folder"
    elif not (_is_ours(config) if config.exists() else only_started(folder, besides=EARLY_RESULTS)):
        problem = "is no run folder (it has no config.yaml of a run)"
    elif any(file.parent != folder for file in folder.glob("*/config.yaml")):
        problem = "holds other run folders"
    if problem:
        raise ConfigError(
            f"--overwrite removes only run folders, and {folder} {problem}; remove it yourself, or rename it"
        )


def _waiting(folder: Path) -> Path | None:
    """The run that waits aside since it was replaced in a folder; None if there is none, or its name was cut."""
    if len(folder.name) > _SHOWN:
        return None
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.replaced")
    found = [path for path in folder.parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _is_ours(config: Path) -> bool:
    """Whether a file is a configuration that this library saved."""
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and {"runs_dir", "run_dir", "model", "trainer"} <= found.keys()


def _lock_files(folder: Path) -> list[Path]:
    return [file for pattern in ("*.lock", ".*lock*") for file in folder.glob(pattern) if file.is_file()]


def _is_held(file: Path) -> bool:
    """Whether another process holds a lock of either kind on a file."""
    with file.open("rb+") as stream:
        for lock in (fcntl.flock, fcntl.lockf):
            try:
                lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return True
            lock(stream, fcntl.LOCK_UN)
    return False


def _strings(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a configuration with their keys, but for the names of the run folder itself."""
    values = config.as_dict() if hasattr(config, "as_dict") else config
    if isinstance(values, dict):
        for name, value in values.items():
            if key or name not in ("run_dir", "run_name", "runs_dir"):
                yield from _strings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _strings(value, key)
    elif isinstance(values, str | os.PathLike):
        yield key, os.fspath(values)


class FolderAsItWas:
    """The files of a folder before a run, to restore them if the run fails before its first step.

    Contents are kept of files at the top, because a run changes no others before its first step, and not of weights,
    which it only reads until then and which may be larger than memory (`hpc_ckpt_1.ckpt`), nor of what a kill left.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = self._present()
        top = (path for path in self._paths if path.parent == folder and path.is_file())
        kept = (path for path in top if path.suffix not in WEIGHTS and not is_temporary(path))
        self._contents = {path: path.read_bytes() for path in kept}

    def _present(self) -> set[Path]:
        """All that is in the folder, but for its lock, which this process may hold."""
        return {path for path in self.folder.rglob("*") if not path.name.startswith(LOCK_FILES)}

    def restore(self) -> None:
        """Remove what was added, and write back what was changed or removed."""
        for path in sorted(self._present() - self._paths, reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        for file, data in self._contents.items():
            if not file.is_file() or file.read_bytes() != data:
                write_whole(file, data)
