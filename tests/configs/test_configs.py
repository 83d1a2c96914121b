"""Every shipped YAML is parsed and instantiated; the tiny ones also run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from futurel1.cli import main, make_cli
from futurel1.worlds import write_world

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
PAGE = Path(__file__).parents[2] / "docs" / "configurations.md"


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_there_are_configs() -> None:
    assert {"tiny/sft.yaml", "qwen3_vl_8b/sft.yaml"} <= {name(path) for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_is_in_the_readme_table(path: Path) -> None:
    assert f"configs/{name(path)}" in PAGE.read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_is_instantiated(path: Path, tmp_path: Path) -> None:
    # On this machine there are no GPUs: the accelerator is replaced, everything else is taken as it stands.
    options = ["--trainer.accelerator", "cpu", "--runs_dir", str(tmp_path)]
    cli = make_cli(["--config", str(path), *options], run=False)
    written: dict[str, Any] = yaml.safe_load(path.read_text())
    assert type(cli.model).__name__ == written["model"]["class_path"]
    for key, value in written["model"]["init_args"].items():
        if key not in ("judge", "latent_policy", "reward"):  # objects, not hyper-parameters
            found = cli.model.hparams[key]
            assert (found | value if isinstance(value, dict) else value) == found, key
    for key, value in written["data"]["init_args"].items():
        assert cli.datamodule.hparams[key] == value, key
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    listed = {callback["class_path"] for callback in written["trainer"].get("callbacks", [])}
    assert listed | {"JSONLinesWriter"} <= names
    assert ("HuggingFaceExport" in names) == hasattr(cli.model, "export")
    strategy = written["trainer"].get("strategy")
    if strategy:
        assert type(cli.trainer.strategy).__name__ == strategy["class_path"]


def test_paper_run_has_the_papers_numbers() -> None:
    run = yaml.safe_load((Path(__file__).parents[2] / "configs/qwen3_vl_8b/sft.yaml").read_text())
    model, data, trainer = run["model"]["init_args"], run["data"]["init_args"], run["trainer"]
    assert trainer["devices"] * data["batch_size"] * trainer["accumulate_grad_batches"] == 128
    assert (model["latent_weight"], data["max_latent_tokens"], model["learning_rate"]) == (0.1, 4, 1e-5)
    assert (model["betas"], model["weight_decay"], model["warmup_ratio"]) == ([0.9, 0.95], 0.1, 0.1)
    assert trainer["max_epochs"] == 1
    assert data["max_length"] == 16384


def test_tiny_predict_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(Path("runs/world"), train=1, test=4, progress=False)
    quick = ["--model.init_args.sampling.max_new_tokens", "8", "--data.init_args.num_workers", "0"]
    main(["predict", "--config", "tiny/predict", *quick])  # by its name, after which the run is named
    (run,) = (tmp_path / "runs").glob("predict-*")
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_tiny_sft_runs_on_real_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from futurel1.worlds import write_footage

    monkeypatch.chdir(tmp_path)
    write_world(Path("runs/world"), train=16, test=4, progress=False)
    write_footage(Path("runs/world"))
    config = CONFIGS[[name(path) for path in CONFIGS].index("tiny/sft.yaml")]
    quick = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--data.init_args.batch_size", "4"]
    main(["fit", "--config", str(config), *quick, "--run_name", "tiny"])
    run = tmp_path / "runs" / "tiny"
    assert (run / "huggingface" / "model.safetensors").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    lines = (run / "metrics.csv").read_text().splitlines()
    assert any("val/retrieval" in line for line in lines[:1])
