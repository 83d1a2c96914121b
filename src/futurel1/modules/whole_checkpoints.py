"""Checkpoints that are written beside their place and renamed, and an error that says what a full disk left whole."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from futurel1.files import replacing, writable
from futurel1.full_disk import told_when_full
from futurel1.leftovers import is_abandoned, temporaries_of, temporary


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


def write_whole_checkpoints(strategy: Any) -> None:
    """Have a strategy write its checkpoints beside their places, unless it was given another way to write them.

    Args:
        strategy: a Trainer's strategy.
    """
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()
    write_folders_beside(strategy)


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
            replaced = place.with_name(f"{place.stem}-replaced{place.suffix}")
            if os.path.lexists(place):
                _remove(replaced)
                os.rename(place, replaced)
            os.rename(partial, place)
            _remove(replaced)

    save_beside.writes_beside = True  # type: ignore[attr-defined]
    strategy.save_checkpoint = save_beside


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class WholeCheckpoints(Callback):
    """Has a Trainer write its checkpoints with :class:`WholeCheckpointIO`, unless it was given another way.

    The training modules add this callback to their Trainer.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's default."""
        write_whole_checkpoints(trainer.strategy)
