"""Checkpoints that are written beside their place and renamed, and an error that says what a full disk left whole."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from futurel1.files import replacing
from futurel1.full_disk import told_when_full


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
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = "checkpoints written before are whole; free some, then `futurel1 fit --resume RUN` continues the run"
        with told_when_full(file, whole), replacing(file) as partial, partial.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())


class WholeCheckpoints(Callback):
    """Has a Trainer write its checkpoints with :class:`WholeCheckpointIO`, unless it was given another way.

    The training modules add this callback to their Trainer.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's default."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
