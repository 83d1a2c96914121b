"""Checkpoints are there whole, or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from futurel1 import leftovers
from futurel1.errors import DiskFullError
from futurel1.modules import LatentSFTModule, TowerPretrainModule
from futurel1.modules.whole_checkpoints import WholeCheckpointIO, WholeCheckpoints, write_folders_beside


def test_it_is_read_as_any_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))  # the system's, which is not used
    file = tmp_path / "deep" / "a.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(3)}, "epoch": 1}, str(file))
    assert [path.name for path in file.parent.iterdir()] == ["a.ckpt"]
    loaded = TorchCheckpointIO().load_checkpoint(file, weights_only=True)
    assert loaded["epoch"] == 1
    assert torch.equal(loaded["state_dict"]["a"], torch.ones(3))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, file)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        DiskFullError, match=r"last\.ckpt: no space left .* checkpoints written before are whole; .*--resume"
    ):
        WholeCheckpointIO().save_checkpoint({"step": 2}, file)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(file)["step"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_torch_says_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: real(Path("/dev/full"), *args))
    with pytest.raises(DiskFullError, match=r"last\.ckpt: no space left"):
        WholeCheckpointIO().save_checkpoint({"a": torch.ones(1 << 16)}, tmp_path / "last.ckpt")


@pytest.mark.parametrize("module", [LatentSFTModule("tiny@random"), TowerPretrainModule()])
def test_the_training_modules_bring_it(module: Any) -> None:
    (callback,) = module.configure_callbacks()
    assert isinstance(callback, WholeCheckpoints)
    trainer = Trainer(accelerator="cpu", logger=False)
    callback.setup(trainer, module, "fit")
    assert type(trainer.strategy.checkpoint_io) is WholeCheckpointIO


def test_another_way_that_was_asked_for_stays() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[AsyncCheckpointIO()])
    WholeCheckpoints().setup(trainer, LatentSFTModule("tiny@random"), "fit")
    assert type(trainer.strategy.checkpoint_io) is AsyncCheckpointIO


class Killed(BaseException):
    """Ends a run as a kill does: nothing but the test catches it."""


class Sharding:
    """A strategy that writes a checkpoint as a folder."""

    is_global_zero = True
    _save_distributed_checkpoint = True

    def __init__(self) -> None:
        self.killed = False

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self, name: str) -> None:
        pass

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Path, storage_options: Any = None) -> None:
        filepath.mkdir(parents=True, exist_ok=True)
        for name, text in checkpoint.items():
            (filepath / name).write_text(text)
            if self.killed:
                raise Killed


def test_a_sharded_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy: Any = Sharding()
    write_folders_beside(strategy)
    place = tmp_path / "last.ckpt"

    def contents() -> dict[str, dict[str, str]]:
        found = [path for path in tmp_path.iterdir() if path.suffix == ".ckpt"]
        return {path.name: {file.name: file.read_text() for file in path.iterdir()} for path in found}

    one, two = {"shard": "1", ".metadata": "1"}, {"shard": "2"}
    strategy.save_checkpoint(one, place)
    assert contents() == {"last.ckpt": one}
    strategy.killed = True
    with pytest.raises(Killed):
        strategy.save_checkpoint(two, place)
    assert contents() == {"last.ckpt": one}
    monkeypatch.setattr(leftovers, "_MADE", set())  # another process goes on
    strategy.killed = False
    rename, renamed = os.rename, list[Path]()

    def dies(old: Path, new: Path) -> None:
        if renamed:
            raise Killed
        renamed.append(new)
        rename(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", dies)
        with pytest.raises(Killed):
            strategy.save_checkpoint(two, place)
    assert contents() == {"last-replaced.ckpt": one}
    monkeypatch.setattr(leftovers, "_MADE", set())
    strategy.save_checkpoint(two, place)
    assert contents() == {"last.ckpt": two}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
