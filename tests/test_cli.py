from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from futurel1.cli import main, make_cli
from futurel1.cli.errors import one_line
from futurel1.cli.run_folder import resume_arguments, unique_run_dir
from futurel1.errors import CheckpointError, ConfigError, MissingFileError, RecordError
from futurel1.runs import newest_checkpoint
from futurel1.worlds import write_world
from processes import Command, run_ranks
from rounding import assert_same_after_training


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


def python(module: str, *args: str) -> None:
    """Run a module in a process of its own, as a user does."""
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def command_of_rank(rank: int, *args: str) -> None:
    main(args)


def metrics(run: Path, *columns: str) -> list[list[str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [[row[column] for column in columns] for row in csv.DictReader(stream) if row[columns[-1]]]


# ---------------------------------------------------------------------------------------------- help and errors


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "world", "curves", "--resume", "--debug"):
        assert command in text
    main(["--version"])
    assert capsys.readouterr().out.startswith("futurel1 0.")


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("futurel1: error: ")
    return error


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'train'; there are fit" in fails(capsys, "train")


def test_debug_shows_the_exception() -> None:
    with pytest.raises(ConfigError, match="no command"):
        main(["train", "--debug"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_record_ends_in_one_line_without_traceback(
    settings: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    bad = world / f"bad{num_workers}.jsonl"
    record = json.loads((world / "train.jsonl").read_text().splitlines()[0])
    bad.write_text(json.dumps({**record, "reasoning_image": [9]}) + "\n")
    error = fails(
        capsys, "fit", *settings, "--data.init_args.train", str(bad), f"--data.init_args.num_workers={num_workers}"
    )
    assert bad.name in error
    assert "9" in error
    assert "reasoning_image" in error


@pytest.mark.parametrize("option", ["--data.init_args.val_fraction=2", "--model.init_args.feedback_share=2"])
def test_what_a_constructor_refuses_is_one_line_and_leaves_no_folder(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    error = fails(capsys, "fit", *settings, option)
    assert option.split(".")[-1].split("=")[0] in error
    assert not list((tmp_path / "runs").iterdir())


def test_help_names_what_the_parser_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert "--resume RUN" in text
    assert "--debug" in text
    assert "--optimizer" not in text  # modules make their own


def test_missing_checkpoint_and_data_are_named(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such/model" in fails(capsys, "fit", *settings, "--model.init_args.backbone", "no/such/model")
    assert "nowhere.jsonl" in fails(capsys, "fit", *settings, "--data.init_args.train", "nowhere.jsonl")


def test_errors_from_loader_workers_lose_their_traceback() -> None:
    text = (
        "Caught RecordError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\nfuturel1.errors.RecordError: a.jsonl: record 3: bad'
    )
    assert one_line(RecordError(text)) == "a.jsonl: record 3: bad"
    assert one_line(RecordError("a plain one")) == "a plain one"


# ---------------------------------------------------------------------------------------------- run folders


def test_run_folders_are_unique(tmp_path: Path) -> None:
    assert [unique_run_dir(tmp_path / "runs", "a").name for _ in range(3)] == ["a", "a-1", "a-2"]


def test_resume_arguments(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=r"no config\.yaml"):
        resume_arguments(["fit", "--resume", str(run)])
    (run / "config.yaml").write_text("{}")
    with pytest.raises(MissingFileError, match="before its first checkpoint"):
        resume_arguments(["fit", "--resume", str(run)])
    for age, name in ((20, "last.ckpt"), (10, "step=8.ckpt"), (30, "step=4.ckpt")):
        file = run / "checkpoints" / name
        torch.save({"state_dict": {}}, file)
        os.utime(file, (time.time() - age, time.time() - age))
    assert newest_checkpoint(run).name == "step=8.ckpt"
    expected = ["fit", "--config", f"{run}/config.yaml", "--trainer.max_steps", "9", "--run_dir", str(run),
                "--ckpt_path", f"{run}/checkpoints/step=8.ckpt"]  # fmt: skip
    assert resume_arguments(["fit", "--resume", str(run), "--trainer.max_steps", "9"]) == expected
    assert resume_arguments(["fit", f"--resume={run}", "--trainer.max_steps", "9"]) == expected
    assert resume_arguments(["fit", "--config", "x.yaml"]) == ["fit", "--config", "x.yaml"]
    again = ["predict", "--config", f"{run}/config.yaml", "--run_dir", str(run)]
    assert resume_arguments(["predict", "--resume", str(run)]) == again
    for command in ("validate", "test"):
        with pytest.raises(ConfigError, match=r"init_args\.init_from"):
            resume_arguments([command, "--resume", str(run)])
    with pytest.raises(ConfigError, match="leave --config"):
        resume_arguments(["fit", "--resume", str(run), "--config", "x.yaml"])
    with pytest.raises(ConfigError, match="needs the folder"):
        resume_arguments(["fit", "--resume"])


def test_a_damaged_checkpoint_gives_way_to_an_older_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {}}, folder / "step=4.ckpt")
    whole = (folder / "step=4.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    os.utime(folder / "step=4.ckpt", (1, 1))
    (folder / "sharded.ckpt").mkdir()  # killed before its metadata was written
    assert newest_checkpoint(tmp_path / "run").name == "step=4.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    (folder / "step=4.ckpt").unlink()
    with pytest.raises(CheckpointError, match="all checkpoints"):
        newest_checkpoint(tmp_path / "run")


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


def test_fit_validate_test_and_predict_from_one_configuration(
    settings: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = ["--trainer.callbacks+=HuggingFaceExport", "--trainer.callbacks+=JSONLinesWriter"]
    main(["fit", *settings, *callbacks, "--run_name", "first"])
    run = tmp_path / "runs" / "first"
    assert f"run folder: {run}" in capsys.readouterr().out
    assert [row[0] for row in metrics(run, "step", "train/loss")] == ["0", "1"]
    assert list(run.glob("events.out.tfevents*"))
    assert (run / "huggingface" / "model.safetensors").is_file()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["learning_rate"] == 1e-3
    start = ["--model.init_args.init_from", str(run), "--trainer.limit_val_batches", "1.0"]
    main(["validate", *settings, *start, "--run_name", "checked"])
    validated = float(metrics(tmp_path / "runs" / "checked", "val/ce")[0][0])
    main(["test", *settings, *start, "--run_name", "tested"])
    assert float(metrics(tmp_path / "runs" / "tested", "test/ce")[0][0]) == pytest.approx(validated, rel=1e-6)
    main(["predict", *settings, *start, "--run_name", "predicted"])  # the command adds the writer
    rows = [json.loads(line) for line in (tmp_path / "runs/predicted/predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test.jsonl:{n}" for n in range(1, 5)]


def test_world_and_curves_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["world", "--out", str(tmp_path / "w"), "--train", "3", "--test", "2", "--size", "64"])
    assert len((tmp_path / "w" / "train.jsonl").read_text().splitlines()) == 3
    questions = [json.loads(line) for line in (tmp_path / "w" / "futurebench.jsonl").read_text().splitlines()]
    assert [len(question["qa"]["Options"]) for question in questions] == [4, 4]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,train/loss\n0,2.0\n1,1.0\n")
    capsys.readouterr()
    main(["curves", "--run", str(tmp_path / "run")])
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "curves.png" in capsys.readouterr().out


def test_import_is_light() -> None:
    code = "import futurel1, sys; print(sorted({'torch', 'transformers', 'lightning'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# ---------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_follow_one(settings: list[str], tmp_path: Path, strategy: str) -> None:
    steps = ["--trainer.max_steps", "3", "--trainer.callbacks+=HuggingFaceExport"]
    if strategy == "ddp":  # the shipped configuration, on this test's clips
        shipped = Path(__file__).parents[1] / "configs" / "tiny" / "sft.yaml"
        settings = ["--config", str(shipped), *settings]
    main(["fit", *settings, *steps, "--run_name", "one"])
    options = ["--trainer.devices", "2", "--data.init_args.batch_size", "2", "--run_name", "two"]
    if strategy == "ddp":
        python("futurel1.cli", "fit", *settings, *steps, *options, "--trainer.strategy", "ddp")
    else:
        sharding = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
        file = tmp_path / "fsdp2.yaml"
        strategy_config = {"class_path": "ModelParallelStrategy", "init_args": sharding}
        file.write_text(yaml.safe_dump({"trainer": {"strategy": strategy_config}}))
        options += ["--config", str(file), "--run_dir", str(tmp_path / "runs" / "two")]
        run_ranks(command_of_rank, "fit", *settings, *steps, *options)
    columns = ("step", "train/loss", "train/ce", "train/latent", "train/cosine", "train/grad_norm")
    one = [list(map(float, row)) for row in metrics(tmp_path / "runs" / "one", *columns)]
    two = [list(map(float, row)) for row in metrics(tmp_path / "runs" / "two", *columns)]
    assert len(one) == 3
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=1e-5)
    weights = [load_file(tmp_path / "runs" / name / "huggingface" / "model.safetensors") for name in ("one", "two")]
    assert_same_after_training(*weights, learning_rate=1e-3)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_very_same_weights(settings: list[str], tmp_path: Path) -> None:
    # 3 records a batch and 2 batches a step: checkpoints every 3 steps fall into the middle of epochs of 24 records.
    file = tmp_path / "checkpoints.yaml"
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 3, "save_last": True}}
    trainer = {
        "max_steps": 10,
        "accumulate_grad_batches": 2,
        "callbacks": [checkpoint, {"class_path": "HuggingFaceExport"}],
    }
    file.write_text(yaml.safe_dump({"trainer": trainer}))
    options = ["--config", str(file), "--data.init_args.batch_size", "3", "--data.init_args.num_workers", "1"]
    main(["fit", *settings, *options, "--run_name", "whole"])
    runs = tmp_path / "runs"
    killed = Command(["fit", *settings, *options, "--run_name", "killed"], tmp_path / "killed.log")
    table = runs / "killed" / "metrics.csv"
    # Killed one step or more after the checkpoint of step 6, with rows of the log that are computed once more.
    killed.kill_when(lambda: table.is_file() and len(metrics(table.parent, "train/loss")) >= 7)
    assert not (runs / "killed" / "huggingface").exists()
    main(["fit", "--resume", str(runs / "killed")])
    one, two = (load_file(runs / name / "huggingface" / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    columns = ("epoch", "step", "train/latents_per_sample", "train/loss")
    assert metrics(runs / "killed", *columns) == metrics(runs / "whole", *columns)
    assert len(metrics(runs / "whole", *columns)) == 10


@pytest.mark.slow
def test_processes_of_torchrun_share_one_run_folder(settings: list[str], tmp_path: Path) -> None:
    processes = ["--standalone", "--nproc_per_node", "2", "-m", "futurel1.cli"]
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "2"]
    python("torch.distributed.run", *processes, "fit", *settings, *options, "--run_name", "together")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["together"]
    assert len(metrics(tmp_path / "runs" / "together", "train/loss")) == 2


@pytest.mark.slow
def test_two_processes_score_a_benchmark_like_one(world: Path, tmp_path: Path) -> None:
    options = {"A": "left", "B": "right", "C": "up", "D": "down"}
    records = [
        {
            "id": f"q{number}", "video_path": f"videos/train-{number:05d}.mp4", "question_type": "hop1",
            "qa": {"Question": f"Where is shape {number}?", "Options": options, "Answer": "ABCD"[number % 4]},
        }
        for number in range(5)
    ]  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(records))
    model = {"sampling": {"max_new_tokens": 12}, "benchmark": "futurebench", "num_branches": 3, "do_sample": True}
    data = {"records": str(tmp_path / "bench.json"), "video_root": str(world), "num_frames": 2, "num_workers": 0}
    config = {
        "model": {"class_path": "LatentPredictor", "init_args": model},
        "data": {"class_path": "FutureBenchDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    }
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(config))
    settings = ["--config", str(file), "--runs_dir", str(tmp_path / "runs")]
    main(["test", *settings, "--run_name", "one"])
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run_ranks(command_of_rank, "test", *settings, *devices, "--run_dir", str(tmp_path / "runs" / "two"))
    one, two = (json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["samples"] == 5
    for name in one.keys() - {"seconds_per_sample"}:
        assert two[name] == pytest.approx(one[name]), name
    lines = [
        json.loads(line)
        for part in sorted((tmp_path / "runs" / "two").glob("samples*.jsonl"))
        for line in part.read_text().splitlines()
    ]
    assert sorted(line["record_id"] for line in lines) == [f"q{number}" for number in range(5)]


def test_make_cli_only_instantiates_when_told(settings: list[str]) -> None:
    cli = make_cli(settings, run=False)
    assert type(cli.model).__name__ == "LatentSFTModule"
    assert not hasattr(cli.model, "reasoner")
    assert cli.trainer.global_step == 0
