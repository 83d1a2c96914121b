"""A sharded run that was killed after a checkpoint was written, and before `last.ckpt` named it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from futurel1.worlds import write_world
from processes import run_ranks

pytestmark = [pytest.mark.campaign, pytest.mark.slow]


def work(rank: int, world: str, run: str, steps: int, resumed: bool) -> None:
    """Train up to a step, from the newest checkpoint or from the start."""
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

    from futurel1.datamodules import VideoHintDataModule
    from futurel1.modules import LatentSFTModule
    from futurel1.modules.checkpointing import ResumedFiles
    from futurel1.runs import newest_checkpoint
    from futurel1.trainer_checkpoints import check_checkpoint

    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), default_root_dir=run, max_epochs=-1,
        max_steps=steps, callbacks=[ModelCheckpoint(f"{run}/checkpoints", every_n_train_steps=1, save_last="link")],
        **options,
    )  # fmt: skip
    ResumedFiles.attach(trainer)
    module = LatentSFTModule(learning_rate=1e-3, lr_schedule="constant", warmup_ratio=0.0)
    data = VideoHintDataModule(
        train=f"{world}/train.jsonl", batch_size=1, num_workers=0, cache_dir=f"{world}/cache"
    )  # fmt: skip
    checkpoint = newest_checkpoint(Path(run)) if resumed else None
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    module.export(Path(run, "huggingface"))


def test_it_ends_like_an_undisturbed_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    world, whole, killed = tmp_path / "world", tmp_path / "whole", tmp_path / "killed"
    write_world(world, train=8, test=1, size=64, progress=False)
    run_ranks(work, str(world), str(whole), 4, False)
    run_ranks(work, str(world), str(killed), 2, False)
    link = killed / "checkpoints" / "last.ckpt"
    link.unlink()
    link.symlink_to("epoch=0-step=1.ckpt")  # which is removed by then
    run_ranks(work, str(world), str(killed), 4, True)
    assert sorted(path.name for path in link.parent.iterdir()) == ["epoch=0-step=4.ckpt", "last.ckpt"]
    assert link.readlink() == Path("epoch=0-step=4.ckpt")
    wanted, found = (load_file(run / "huggingface" / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
