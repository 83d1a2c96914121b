"""Right answers while a model trains."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from futurel1.data import open_records
from futurel1.datamodules import VideoHintDataModule
from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner
from futurel1.modules import HeldOutAccuracy, LatentSFTModule
from futurel1.worlds import write_world


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zones")
    write_world(out, train=4, test=6, size=64, kinds=["zone"], progress=False)
    return out


def fit(zones: Path, tmp_path: Path, callback: HeldOutAccuracy, **options: Any) -> LatentSFTModule:
    module = LatentSFTModule("tiny", learning_rate=0.0, warmup_ratio=0.0)
    data = VideoHintDataModule(
        str(zones / "train.jsonl"), val=options.pop("val", str(zones / "test.jsonl")), batch_size=2, num_workers=0,
        max_latent_tokens=1, fixed_latents=True, max_hint_tokens=4,
    )  # fmt: skip
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=2, val_check_interval=2, check_val_every_n_epoch=None,
        log_every_n_steps=1, logger=CSVLogger(tmp_path, "", ""), enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[callback], **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return module


def test_accuracy_is_logged_before_and_while_training(zones: Path, tmp_path: Path) -> None:
    callback = HeldOutAccuracy(batch_size=4)
    module = fit(zones, tmp_path, callback)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    logged = [(row["step"], float(row["val/accuracy"])) for row in rows if row["val/accuracy"]]
    assert [step for step, _ in logged] == ["0", "1"]
    assert logged[0][1] == pytest.approx(logged[1][1])  # nothing was learned at a rate of 0
    assert 0 <= logged[0][1] <= 1
    assert module.training
    assert logged[0][1] * 6 == pytest.approx(round(logged[0][1] * 6))  # six questions


def test_right_answers_are_those_of_the_records(zones: Path, tmp_path: Path) -> None:
    callback = HeldOutAccuracy(str(zones / "test.jsonl"), num_records=3)
    fit(zones, tmp_path, callback)

    reasoner = LatentReasoner.from_pretrained("tiny")
    truth = [sample.answer for sample in open_records(zones / "test.jsonl")]

    def generate(prompt: Any, **options: Any) -> Any:
        rollout = LatentReasoner.generate(reasoner, prompt, max_new_tokens=1)
        told = [f"<answer>{truth[0]}</answer>", f"<answer>{truth[1]}</answer>", "<answer>nothing</answer>"]
        ids = [reasoner.tokenizer(text)["input_ids"] for text in told]
        width = max(map(len, ids))
        rollout.responses = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        rollout.response_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]).bool()
        rollout.span_table = rollout.span_table[:0]
        rollout.finish_reasons = ["stop"] * 3
        return rollout

    reasoner.generate = generate  # type: ignore[method-assign]
    assert callback._right(reasoner, range(3)) == 2


def test_without_held_out_records_a_run_says_so_and_trains(
    zones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(zones, tmp_path, HeldOutAccuracy(), val=None)
    assert "HeldOutAccuracy has no records and logs nothing" in caplog.text
    assert "val/accuracy" not in (tmp_path / "metrics.csv").read_text()


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_records, max_new_tokens and batch_size are at least 1"):
        HeldOutAccuracy(num_records=0)
