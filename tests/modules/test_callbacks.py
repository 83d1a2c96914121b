"""The export tells in its model card which run it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from lightning import Trainer

from futurel1.datamodules import VideoHintDataModule
from futurel1.models.model_card import is_generated
from futurel1.modules import HuggingFaceExport, LatentSFTModule


def fit(world: Path, folder: Path, max_steps: int, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=1,
        enable_model_summary=False, default_root_dir=folder, max_steps=max_steps, limit_val_batches=1,
        val_check_interval=2, callbacks=[HuggingFaceExport(**options)],
    )  # fmt: skip
    module = LatentSFTModule(lr_schedule="constant", warmup_ratio=0.0, learning_rate=1e-3, projection_head="lvr")
    data = VideoHintDataModule(
        train=str(world / "train.jsonl"), val=str(world / "test.jsonl"), batch_size=2, num_workers=0,
        system_prompt=str(world / "prompt.txt"),
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def test_the_card_of_an_export_tells_settings_data_and_metrics(world: Path, tmp_path: Path) -> None:
    trainer = fit(world, tmp_path, max_steps=2)
    text = (tmp_path / "huggingface" / "README.md").read_text()
    assert is_generated(text)
    assert ModelCard(text).data.to_dict()["futurel1_backbone"] == "tiny"
    assert "`LatentSFTModule`, 2 optimizer steps." in text
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("```\n")[0])
    assert settings["model"]["learning_rate"] == 1e-3
    assert settings["model"]["projection_head"] == "lvr"
    assert settings["data"]["class"] == "VideoHintDataModule"
    assert settings["data"]["train"] == ".../train.jsonl"
    assert str(world) not in text
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `"))
    assert {"`train/loss`", "`val/ce`"} <= rows.keys()
    for name, value in trainer.callback_metrics.items():
        assert rows[f"`{name}`"] == f"{float(value):.6g}"


def test_later_exports_of_a_run_replace_its_card_but_not_one_that_was_edited(world: Path, tmp_path: Path) -> None:
    fit(world, tmp_path, max_steps=2, every_n_steps=1)
    card = tmp_path / "huggingface" / "README.md"
    assert ", 2 optimizer steps." in card.read_text()
    card.write_text("# Mine\n")
    fit(world, tmp_path, max_steps=1)
    assert card.read_text() == "# Mine\n"
    assert (tmp_path / "huggingface" / "model.safetensors").is_file()
