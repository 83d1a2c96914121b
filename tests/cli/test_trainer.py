"""Whole runs: one process and two, and one that is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_checks import command_of_rank, metrics, python
from safetensors.torch import load_file

from futurel1.cli import main, make_cli
from processes import Command, run_ranks
from rounding import assert_same_after_training


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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_follow_one(settings: list[str], tmp_path: Path, strategy: str) -> None:
    steps = ["--trainer.max_steps", "3", "--trainer.callbacks+=HuggingFaceExport"]
    if strategy == "ddp":  # the shipped configuration, on this test's clips
        shipped = Path(__file__).parents[2] / "configs" / "tiny" / "sft.yaml"
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


@pytest.mark.campaign
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
