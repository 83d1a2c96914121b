"""A small world, and a configuration for runs of a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from futurel1.worlds import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, train=24, test=4, size=64, progress=False)
    (out / "prompt.txt").write_text("Think, then answer.")
    return out


@pytest.fixture
def settings(world: Path, tmp_path: Path) -> list[str]:
    """A configuration for runs of a few seconds, and where they go."""
    config: dict[str, Any] = {
        "seed_everything": 0,
        "model": {
            "class_path": "LatentSFTModule",
            "init_args": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
        },
        "data": {
            "class_path": "VideoHintDataModule",
            "init_args": {
                "train": str(world / "train.jsonl"), "val": str(world / "test.jsonl"), "batch_size": 4,
                "num_workers": 0, "system_prompt": str(world / "prompt.txt"),
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 2, "max_epochs": 100, "log_every_n_steps": 1,
            "gradient_clip_val": 1.0, "limit_val_batches": 0, "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }  # fmt: skip
    file = tmp_path / "quick.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["--config", str(file), "--runs_dir", str(tmp_path / "runs")]
