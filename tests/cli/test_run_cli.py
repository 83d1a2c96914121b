"""What a run leaves in its folder, whatever a configuration lists, and what it leaves nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_checks import fails, metrics

from futurel1.cli import main


def overlay(folder: Path, **trainer: Any) -> list[str]:
    """A configuration file that changes settings of the Trainer."""
    file = folder / f"overlay-{len(list(folder.glob('overlay-*')))}.yaml"
    file.write_text(yaml.safe_dump({"trainer": trainer}))
    return ["--config", str(file)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_keeps_what_it_needs_whatever_is_listed_and_its_name(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, logs = tmp_path / "runs" / "base", tmp_path / "logs"
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}
    board = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(logs)}}
    listed = overlay(tmp_path, callbacks=[checkpoint], logger=[board])
    main(["fit", *settings, *listed, "--run_name", "base"])
    written = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "huggingface", "checkpoints"} <= written
    assert len(metrics(run, "train/loss")) == 2
    assert list((run / "checkpoints").glob("*.ckpt"))
    assert not list(logs.rglob("config.yaml"))
    assert not list(logs.rglob("*.ckpt"))
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["run_name"], saved["overwrite"], saved["export"], saved["trainer"]["default_root_dir"]) == (
        None, False, True, None,
    )  # fmt: skip

    before = snapshot(run)
    taken = fails(capsys, "fit", *settings, "--run_name", "base")
    assert f"runs/base exists; continue it with futurel1 fit --resume {run}, replace it with --overwrite" in taken
    fails(capsys, "fit", *settings, "--run_name", "base", "--overwrite", "--data.init_args.train", "nowhere.jsonl")
    elsewhere = fails(capsys, "fit", *settings, *overlay(tmp_path, default_root_dir=str(tmp_path / "else")))
    assert "is not the run folder" in elsewhere
    assert "--run_dir" in elsewhere
    assert snapshot(run) == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["base"]
    assert not (tmp_path / "else").exists()

    main(["fit", *settings, *overlay(tmp_path, logger=False), "--run_name", "base", "--overwrite", "--export", "false"])
    assert {path.name for path in run.iterdir()} == {"config.yaml", "checkpoints"}  # no metrics asked for
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["base"]


def test_a_run_that_never_began_leaves_only_what_was_there(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ["--data.init_args.train", str(tmp_path / "nowhere.jsonl")]
    fails(capsys, "fit", *settings, *broken)
    assert "export is true, false or a number" in fails(capsys, "fit", *settings, "--export=-1")
    fails(capsys, "fit", *settings, *broken, "--run_dir", str(tmp_path / "new"))
    (tmp_path / "mine").mkdir()
    fails(capsys, "fit", *settings, *broken, "--run_dir", str(tmp_path / "mine"))
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "runs").glob("*"))


def test_fast_dev_run_leaves_nothing(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    listed = ["--trainer.callbacks+=HuggingFaceExport", "--trainer.callbacks+=ModelCheckpoint"]
    main(["fit", *settings, *listed, "--trainer.fast_dev_run", "true", "--run_name", "quick", "--export", "1"])
    assert "fast_dev_run: nothing was kept" in capsys.readouterr().out
    main(["predict", *settings, "--trainer.fast_dev_run", "1"])
    assert {path for path in tmp_path.rglob("*")} == before


def test_predictions_are_written_once_whatever_is_listed(settings: list[str], tmp_path: Path) -> None:
    summary = [{"class_path": "ModelSummary"}]
    for name, listed in {"other": summary, "twice": [*summary, {"class_path": "JSONLinesWriter"}]}.items():
        main(["predict", *settings, *overlay(tmp_path, callbacks=listed, logger=False), "--run_name", name])
        lines = (tmp_path / "runs" / name / "predictions.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [f"test.jsonl:{n}" for n in range(1, 5)]
        assert (tmp_path / "runs" / name / "config.yaml").is_file()


def test_a_requeued_job_goes_on(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch script that was given two tasks and starts one process, without srun."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "77", "NTASKS": "2", "PROCID": "0", "LOCALID": "0", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}
    ending = {"class_path": "command_checks.RequeueSignal", "init_args": {"step": 2}}
    command = ["fit", *settings, *overlay(tmp_path, callbacks=[checkpoint, ending]), "--run_name", "slurm"]
    main(command)
    run = tmp_path / "runs" / "slurm"
    assert (run / "hpc_ckpt_1.ckpt").is_file()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    capsys.readouterr()
    main([*command, "--trainer.max_steps", "3"])
    printed = capsys.readouterr().out
    assert f"SLURM has restarted job 77: going on with {run} from " in printed
    assert [row[0] for row in metrics(run, "step", "train/loss")] == ["0", "1", "2"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["slurm"]
