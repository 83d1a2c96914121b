"""Run folders: new ones, and those that are resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from command_checks import fails, metrics, python

from futurel1.cli import main
from futurel1.cli.run_folder import resume_arguments, unique_run_dir
from futurel1.errors import ConfigError, MissingFileError


def test_run_folders_are_unique(tmp_path: Path) -> None:
    assert [unique_run_dir(tmp_path / "runs", "a").name for _ in range(3)] == ["a", "a-1", "a-2"]


def test_resume_arguments(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=r"no config\.yaml"):
        resume_arguments("fit", [], str(run))
    (run / "config.yaml").write_text("{}")
    with pytest.raises(MissingFileError, match="before its first checkpoint"):
        resume_arguments("fit", [], str(run))
    torch.save({"global_step": 1}, run / "checkpoints" / "last.ckpt")
    expected = ["--config", f"{run}/config.yaml", "--trainer.max_steps", "9", "--run_dir", str(run),
                "--ckpt_path", f"{run}/checkpoints/last.ckpt"]  # fmt: skip
    assert resume_arguments("fit", ["--trainer.max_steps", "9"], str(run)) == expected
    assert resume_arguments("predict", [], str(run)) == ["--config", f"{run}/config.yaml", "--run_dir", str(run)]
    for command in ("validate", "test"):
        with pytest.raises(ConfigError, match=r"init_args\.init_from"):
            resume_arguments(command, [], str(run))
    for option in ("--config", "--ckpt_path"):
        with pytest.raises(ConfigError, match="leave --config"):
            resume_arguments("fit", [option, "x"], str(run))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_saved_configuration_starts_a_run_of_its_own(settings: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.yaml"
    callback = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_last": True}}
    checkpoint.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    runs = tmp_path / "runs"
    main(["fit", *settings, "--config", str(checkpoint), "--run_name", "first"])
    before = snapshot(runs / "first")
    assert "checkpoints/last.ckpt" in before
    main(["fit", "--config", str(runs / "first" / "config.yaml"), "--run_name", "second"])
    assert snapshot(runs / "first") == before
    assert (runs / "second" / "checkpoints" / "last.ckpt").is_file()
    # a run that was moved goes on where it is now
    (runs / "first").rename(runs / "moved")
    main(["fit", "--resume", str(runs / "moved"), "--trainer.max_steps", "3"])
    assert not (runs / "first").exists()
    assert [row[0] for row in metrics(runs / "moved", "step", "train/loss")] == ["0", "1", "2"]
    main(["fit", "--resume", str(runs / "moved"), "--trainer.max_steps", "4"])
    assert [row[0] for row in metrics(runs / "moved", "step", "train/loss")] == ["0", "1", "2", "3"]


def test_a_resume_that_fails_keeps_the_curves(
    settings: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.yaml"
    callback = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}
    checkpoint.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    main(["fit", *settings, "--config", str(checkpoint), "--run_name", "first"])
    run = tmp_path / "runs" / "first"
    before = (run / "metrics.csv").read_bytes()
    fails(capsys, "fit", "--resume", str(run), "--trainer.max_steps", "4", "--data.init_args.train", "nowhere.jsonl")
    assert (run / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_processes_of_torchrun_share_one_run_folder(settings: list[str], tmp_path: Path) -> None:
    processes = ["--standalone", "--nproc_per_node", "2", "-m", "futurel1.cli"]
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "2"]
    python("torch.distributed.run", *processes, "fit", *settings, *options, "--run_name", "together")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["together"]
    assert len(metrics(tmp_path / "runs" / "together", "train/loss")) == 2
