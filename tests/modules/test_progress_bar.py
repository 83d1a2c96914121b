"""The progress bar: steps of the run in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from futurel1.modules import StepProgressBar


class Line(LightningModule):
    """Fits a line; validates, tests and predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).square().mean(), prog_bar=True)

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int) -> Any:
    return DataLoader(torch.ones(batches, 1), batch_size=1)


def run(
    folder: Path, *, terminal: bool = True, verb: str = "fit", bar: Any = None, ckpt: Any = None, **options: Any
) -> str:
    """What a run shows."""
    shown = io.StringIO()
    console = {"file": shown, "force_terminal": terminal, "width": 140, "color_system": None}
    bar = bar or StepProgressBar(console_kwargs=console)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_model_summary=False, callbacks=[bar],
        **{"num_sanity_val_steps": 0, "enable_checkpointing": False, **options},
    )  # fmt: skip
    if verb == "fit":
        trainer.fit(Line(), loader(6), loader(3), ckpt_path=ckpt)
    else:
        getattr(trainer, verb)(Line(), loader(3))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())


@pytest.mark.parametrize(("options", "total"), [
    ({"max_steps": 10, "max_epochs": 1000}, 10),  # in the second epoch
    ({"max_steps": 10}, 10),
    ({"max_epochs": 3}, 18),
    ({"max_epochs": 3, "max_steps": 100}, 18),  # whichever is first
    ({"max_epochs": 2, "accumulate_grad_batches": 4}, 4),  # optimizer steps, of which the last has fewer batches
    ({"max_epochs": 2, "limit_train_batches": 5}, 10),
])  # fmt: skip
def test_training_counts_the_steps_of_the_run(tmp_path: Path, options: dict[str, Any], total: int) -> None:
    shown = run(tmp_path, **options)
    assert f"step {total}/{total}" in shown
    counts = {tuple(map(int, found)) for found in re.findall(r"step (\d+)/(\d+)", shown)}
    assert {whole for _, whole in counts} == {total}
    assert max(done for done, _ in counts) == total
    last = shown[shown.rindex("Training") :]
    assert re.search(r"train/loss: \d+\.\d{3} +val/loss: \d+\.\d{3}", " ".join(last.split()))
    assert "Epoch" not in shown


def test_a_resumed_run_starts_at_its_step(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    first = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_model_summary=False, max_steps=8,
        enable_progress_bar=False, callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=8)],
    )  # fmt: skip
    first.fit(Line(), loader(6), loader(3))
    (file,) = tmp_path.glob("*.ckpt")
    shown = run(tmp_path, ckpt=file, max_steps=12)
    counts = {int(done) for done in re.findall(r"step (\d+)/12", shown)}
    assert min(counts) >= 8
    assert 12 in counts


@pytest.mark.parametrize(
    ("verb", "title"), [("validate", "Validation"), ("test", "Testing"), ("predict", "Predicting")]
)
def test_other_commands_count_batches(tmp_path: Path, verb: str, title: str) -> None:
    shown = run(tmp_path, verb=verb)
    assert title in shown
    assert "batch 3/3" in shown
    assert "step" not in shown


def test_where_there_is_no_terminal_a_line_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "futurel1")

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("futurel1")]

    assert run(tmp_path, terminal=False, max_steps=8) == ""
    assert not told()  # it took no minute
    for verb in ("fit", "validate", "test", "predict"):
        run(tmp_path, verb=verb, bar=StepProgressBar(0.0, console_kwargs={"force_terminal": False}), max_steps=8)
    assert re.fullmatch(r"step 1/8, train/loss \d\.\d{3}", told()[0])
    assert re.fullmatch(r"step 8/8, train/loss \d\.\d{3}, val/loss \d\.\d{3}", told()[10])
    for line in ("validation batch 3/3", "test batch 3/3", "prediction batch 3/3"):
        assert line in told()
    assert "━" not in capsys.readouterr().out


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    bar = StepProgressBar(refresh_rate=0, console_kwargs={"force_terminal": True})
    run(tmp_path, bar=bar, max_steps=2)
    assert bar.progress is None
