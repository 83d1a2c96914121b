"""Checkpoints that are written beside their place and renamed, and an error that says what a full disk left whole."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from futurel1.files import replacing, writable
from futurel1.full_disk import told_when_full
from futurel1.leftovers import is_abandoned, temporaries_of, temporary

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without symbolic links says."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint in its own folder, synced to disk before it gets its name.

    Lightning's own makes it in memory, then in the system's temporary folder, which may be small, and copies it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; an address of another storage goes Lightning's way.

        Raises:
            DiskFullError: there is no space left; the file is as it was before.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        with writable(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        whole = "checkpoints written before are whole; free some, then `futurel1 fit --resume RUN` continues the run"
        with told_when_full(file, whole), replacing(file) as partial, partial.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; a folder loses its name first, so that a kill leaves no half one."""
        place = Path(path)
        if not _is_folder(place):
            super().remove_checkpoint(path)
            return
        partial = temporary(place, "part")
        os.rename(place, partial)
        shutil.rmtree(partial)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Have a Trainer write its checkpoints beside their places, unless it was given another way to write them.

    Args:
        trainer: the Trainer.
    """
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()
    write_folders_beside(strategy)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback._link_checkpoint = link_checkpoint  # type: ignore[method-assign]


def link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
    """Give a checkpoint a second name (`save_last: link`), in the place of `ModelCheckpoint._link_checkpoint`.

    The name is always there: it changes from one checkpoint to the next at once, but for a moment if it is a folder's
    own. On a file system without links the checkpoint is copied.

    Args:
        trainer: the Trainer; its first process makes the link, and all wait for it.
        filepath: the checkpoint, a file or a folder.
        linkpath: its second name, of the same folder.
    """
    checkpoint, place = Path(filepath), Path(linkpath)
    if trainer.is_global_zero and checkpoint.absolute() != place.absolute():
        partial = temporary(place, "part")
        with told_when_full(place, f"{checkpoint} is whole"):
            try:
                os.symlink(os.path.relpath(checkpoint, place.parent), partial)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                (shutil.copytree if checkpoint.is_dir() else shutil.copyfile)(checkpoint, partial)
            _put(partial, place)
    trainer.strategy.barrier("after a link to a checkpoint")


def write_folders_beside(strategy: Any) -> None:
    """Have a strategy that shards its checkpoints write the folder of one beside its place, and rename it.

    The folder that it replaces is `NAME-replaced.ckpt` between two renames, where a resume finds it.

    Args:
        strategy: any strategy; those that write files stay as they are.
    """
    sharded = getattr(strategy, "_save_distributed_checkpoint", False)  # FSDP2, and FSDP
    if not sharded and getattr(strategy, "_state_dict_type", "full") != "sharded":
        return
    save = strategy.save_checkpoint
    if getattr(save, "writes_beside", False):
        return

    def save_beside(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        place = Path(strategy.broadcast(filepath))
        partial = Path(strategy.broadcast(temporary(place, "part")))
        if strategy.is_global_zero and place.parent.is_dir():
            for abandoned in (path for path in temporaries_of(place) if is_abandoned(path, alone=True)):
                _remove(abandoned)
        strategy.barrier("before a sharded checkpoint")
        save(checkpoint, partial, storage_options)
        strategy.barrier("after a sharded checkpoint")
        if strategy.is_global_zero:
            _put(partial, place)

    save_beside.writes_beside = True  # type: ignore[attr-defined]
    strategy.save_checkpoint = save_beside


def _put(partial: Path, place: Path) -> None:
    """Rename a checkpoint to its place; what a folder replaces there, or makes way itself, goes when that is done."""
    replaced = place.with_name(f"{place.stem}-replaced{place.suffix}")
    if os.path.lexists(place) and (_is_folder(partial) or _is_folder(place)):
        _remove(replaced)
        os.rename(place, replaced)
    os.rename(partial, place)
    _remove(replaced)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class WholeCheckpoints(Callback):
    """Has a Trainer write its checkpoints with :class:`WholeCheckpointIO`, unless it was given another way.

    The training modules add this callback to their Trainer.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's default."""
        write_whole_checkpoints(trainer)
