"""Files of a run over several sessions: its checkpoints and its rows of metrics."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from futurel1 import leftovers
from futurel1.errors import ConfigError, DiskFullError
from futurel1.modules import whole_checkpoints
from futurel1.modules.checkpointing import ResumedFiles
from futurel1.modules.loggers import ResumableCSVLogger
from futurel1.modules.whole_checkpoints import WholeCheckpointIO, link_checkpoint
from futurel1.runs import newest_checkpoint


class Killed(BaseException):
    """Ends a run as a kill does: nothing but the test catches it."""


class Line(LightningModule):
    """One weight, whose loss rises from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.weight + float(self.global_step)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(100, 1))  # type: ignore[arg-type]


class Kill(Callback):
    """Kills after the checkpoint of a step, before the row of the step is written."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def fit(
    run: Path, steps: int, *, kill: int | None = None, resume: str | None = None, **options: Any
) -> None:  # fmt: skip
    settings = {"every_n_train_steps": 1, "save_last": True, **options}
    checkpoint = ModelCheckpoint(dirpath=run / "checkpoints", **settings)
    trainer = Trainer(
        max_steps=steps, callbacks=[checkpoint], logger=ResumableCSVLogger(str(run)), accelerator="cpu",
        default_root_dir=run, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    ResumedFiles.attach(trainer)
    trainer.callbacks.append(Kill(kill))  # type: ignore[attr-defined]
    file = None if resume is None else run / "checkpoints" / resume
    if kill is None:
        trainer.fit(Line(), ckpt_path=file, weights_only=False)
    else:
        with pytest.raises(Killed):
            trainer.fit(Line(), ckpt_path=file, weights_only=False)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def rows(run: Path) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream)]


@pytest.mark.parametrize("way", ["in place", "moved", "relative", "another interval"])
def test_a_resumed_run_keeps_as_many_checkpoints_as_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    run = tmp_path / "run"
    fit(run, 9, kill=3)
    assert names(run) == ["epoch=0-step=3.ckpt", "last.ckpt"]
    if way == "moved":
        shutil.move(run, tmp_path / "there")
        run = tmp_path / "there"
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        run = Path("run")
    interval = 2 if way == "another interval" else 1
    for steps, last in ((5, 5 - 5 % interval), (6, 6)):
        fit(run, steps, resume="last.ckpt", every_n_train_steps=interval)
        assert names(run) == [f"epoch=0-step={last}.ckpt", "last.ckpt"]


def test_the_checkpoint_that_was_resumed_from_goes_too(tmp_path: Path) -> None:
    fit(tmp_path, 9, kill=3, save_last=False)
    fit(tmp_path, 4, resume="epoch=0-step=3.ckpt", save_last=False)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]
    fit(tmp_path, 6, resume="epoch=0-step=4.ckpt", save_last=False, save_top_k=-1)
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (4, 5, 6)]
    fit(tmp_path, 7, resume="epoch=0-step=6.ckpt", save_last=False)
    assert names(tmp_path)[:2] == ["epoch=0-step=4.ckpt", "epoch=0-step=5.ckpt"]  # somebody wanted to keep them
    assert names(tmp_path)[-1] == "epoch=0-step=7.ckpt"


def test_the_best_checkpoints_stay_the_best(tmp_path: Path) -> None:
    best = {"monitor": "loss", "mode": "max", "save_top_k": 2, "filename": "{step}"}
    fit(tmp_path, 9, kill=4, **best)
    assert names(tmp_path) == ["last.ckpt", "step=3.ckpt", "step=4.ckpt"]
    fit(tmp_path, 5, resume="last.ckpt", **best)
    assert names(tmp_path) == ["last.ckpt", "step=4.ckpt", "step=5.ckpt"]


def test_what_a_kill_left_between_saving_and_removing_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    fit(tmp_path, 9, kill=2)
    with monkeypatch.context() as patched:
        patched.setattr(ModelCheckpoint, "_remove_checkpoint", kill)
        with pytest.raises(Killed):
            fit(tmp_path, 9, resume="last.ckpt")
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=0-step=3.ckpt", "last.ckpt"]
    (tmp_path / "checkpoints" / "mine.ckpt").touch()
    shutil.copyfile(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "last-v1.ckpt")
    fit(tmp_path, 5, resume="epoch=0-step=3.ckpt")
    assert names(tmp_path) == ["epoch=0-step=5.ckpt", "last.ckpt", "mine.ckpt"]


def test_the_row_of_a_checkpoint_is_not_lost(tmp_path: Path) -> None:
    whole = [(step, float(step)) for step in range(7)]
    fit(tmp_path, 7, kill=3)
    assert rows(tmp_path) == whole[:2]  # killed before the row of its step
    fit(tmp_path, 7, resume="last.ckpt", kill=5)
    assert rows(tmp_path) == whole[:4]
    with (tmp_path / "metrics.csv").open("ab") as stream:
        stream.write(b"0,6" + b"\0" * 20)  # a power cut
    fit(tmp_path, 7, resume="last.ckpt")
    assert rows(tmp_path) == whole


def test_the_row_of_the_last_step_is_not_lost_though_nothing_is_left_to_train(tmp_path: Path) -> None:
    whole = [(step, float(step)) for step in range(3)]
    fit(tmp_path, 3, kill=3)
    assert rows(tmp_path) == whole[:2]
    fit(tmp_path, 3, resume="last.ckpt")
    assert rows(tmp_path) == whole
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("0,9.0,3\n")  # logged after the last step
    before = (tmp_path / "metrics.csv").read_bytes()
    fit(tmp_path, 3, resume="last.ckpt")
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_rows_after_the_checkpoint_come_again_once(tmp_path: Path) -> None:
    whole = [(step, float(step)) for step in range(6)]
    fit(tmp_path, 6, kill=5, every_n_train_steps=2)
    assert rows(tmp_path) == whole[:4]
    fit(tmp_path, 6, resume="last.ckpt", every_n_train_steps=2)
    assert rows(tmp_path) == whole


def test_checkpoints_do_not_pass_through_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    fit(tmp_path / "run", 2)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 2
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = file.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        WholeCheckpointIO().save_checkpoint({"state": lambda: None}, file)  # cannot be pickled
    assert file.read_bytes() == before
    assert names(tmp_path / "run") == ["epoch=0-step=2.ckpt", "last.ckpt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        WholeCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")


# ---------------------------------------------------------------------- save_last: link


def linked(run: Path, name: str = "last.ckpt") -> str:
    """What a link names; "" for a file of its own."""
    file = run / "checkpoints" / name
    return str(file.readlink()) if file.is_symlink() else ""


def test_a_link_costs_no_second_copy(tmp_path: Path) -> None:
    fit(tmp_path, 5, every_n_train_steps=2, save_last="link")
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "last.ckpt"]
    assert linked(tmp_path) == "epoch=0-step=4.ckpt"
    fit(tmp_path, 9, resume="last.ckpt", every_n_train_steps=3, save_last="link")
    assert names(tmp_path) == ["epoch=0-step=9.ckpt", "last.ckpt"]
    assert linked(tmp_path) == "epoch=0-step=9.ckpt"
    shutil.move(tmp_path / "checkpoints", tmp_path / "moved")
    assert torch.load(tmp_path / "moved" / "last.ckpt", weights_only=False)["global_step"] == 9


@pytest.mark.parametrize("moment", ["_remove_checkpoint", "_link_checkpoint", "symlink", "rename"])
def test_a_kill_around_the_link_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    fit(tmp_path, 9, kill=2, save_last="link")
    with monkeypatch.context() as patched:
        if moment in ("symlink", "rename"):
            patched.setattr(os, moment, kill)
        elif moment == "_remove_checkpoint":
            patched.setattr(ModelCheckpoint, moment, kill)
        else:
            patched.setattr(whole_checkpoints, "link_checkpoint", kill)
        with pytest.raises(Killed):
            fit(tmp_path, 9, resume="last.ckpt", save_last="link")
    assert newest_checkpoint(tmp_path).name == "epoch=0-step=3.ckpt"
    assert linked(tmp_path) == "epoch=0-step=2.ckpt"
    assert (tmp_path / "checkpoints" / "last.ckpt").exists() == (moment == "_remove_checkpoint")  # or it dangles
    monkeypatch.setattr(leftovers, "_MADE", set())  # another process goes on
    leftovers.remove_leftovers(tmp_path)
    fit(tmp_path, 5, resume=newest_checkpoint(tmp_path).name, save_last="link")
    assert names(tmp_path) == ["epoch=0-step=5.ckpt", "last.ckpt"]
    assert linked(tmp_path) == "epoch=0-step=5.ckpt"


def test_a_checkpoint_in_the_place_of_the_link_leaves_its_target_alone(tmp_path: Path) -> None:
    fit(tmp_path, 3, save_last="link", save_top_k=-1)
    WholeCheckpointIO().save_checkpoint({"global_step": 9}, tmp_path / "checkpoints" / "last.ckpt")  # a run was stopped
    assert linked(tmp_path) == ""
    target = torch.load(tmp_path / "checkpoints" / "epoch=0-step=3.ckpt", weights_only=False)
    assert target["global_step"] == 3
    assert newest_checkpoint(tmp_path).name == "last.ckpt"


def test_without_links_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuses)
    fit(tmp_path, 3, save_last="link")
    assert names(tmp_path) == ["epoch=0-step=3.ckpt", "last.ckpt"]
    one, two = ((tmp_path / "checkpoints" / name).read_bytes() for name in names(tmp_path))
    assert one == two
    assert linked(tmp_path) == ""
    monkeypatch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DiskFullError, match=r"last\.ckpt: no space left .*step=4\.ckpt is whole"):
        fit(tmp_path, 4, resume="last.ckpt", save_last="link")
    assert newest_checkpoint(tmp_path).name == "epoch=0-step=4.ckpt"


def test_folders_of_shards_are_linked_and_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for step in (1, 2):
        (tmp_path / f"step={step}.ckpt").mkdir()
        (tmp_path / f"step={step}.ckpt" / ".metadata").touch()
    (tmp_path / "last.ckpt").mkdir()  # a run was stopped, and wrote its own
    (tmp_path / "last.ckpt" / "old").touch()
    for step in (1, 2):
        link_checkpoint(trainer, str(tmp_path / f"step={step}.ckpt"), str(tmp_path / "last.ckpt"))
        assert (tmp_path / "last.ckpt").readlink() == Path(f"step={step}.ckpt")

    def dies(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(Killed):
        WholeCheckpointIO().remove_checkpoint(tmp_path / "step=1.ckpt")
    WholeCheckpointIO().remove_checkpoint(tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=2.ckpt"]
