"""Commands that are stopped by Ctrl-C or SIGTERM: what they say, their exit status, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_checks import metrics
from safetensors.torch import load_file

from futurel1.cli import main
from futurel1.cli.interrupts import Progress
from futurel1.runs import is_whole_export, start_checkpoint
from processes import Command

HERE = Path(__file__).parent
COLUMNS = ("step", "train/loss", "train/grad_norm")
SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM


def sends(tmp_path: Path, signum: int, place: str, **options: Any) -> tuple[list[str], Path]:
    """Options for a run that gets a signal, and the file that is made then."""
    sent = tmp_path / f"sent-{len(list(tmp_path.glob('*-signal.yaml')))}"
    overlay = tmp_path / f"{sent.name}-signal.yaml"
    options |= {"sent": str(sent), "signum": int(signum), "place": place}
    names = ("HuggingFaceExport", "JSONLinesWriter")
    callbacks = [{"class_path": "signalling.Signalling", "init_args": options}, *({"class_path": n} for n in names)]
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return ["--config", str(overlay)], sent


def stopped(args: list[str], tmp_path: Path, signum: int, place: str, **options: Any) -> str:
    """Run a command that gets a signal, in a session of its own; returns the line that it ends with."""
    given, sent = sends(tmp_path, signum, place, **options)
    log = tmp_path / "log.txt"
    status = Command([*args, *given], log, [HERE]).wait()
    text = log.read_text()
    assert sent.exists(), text
    assert status == 128 + signum, text
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


@pytest.fixture
def training(settings: list[str], tmp_path: Path) -> list[str]:
    """`fit` with a loader worker, two micro-batches per step, three steps per epoch and a validation every two."""
    file = tmp_path / "training.yaml"
    trainer = {
        "max_steps": 5, "accumulate_grad_batches": 2, "limit_val_batches": 1.0, "val_check_interval": 4,
        "check_val_every_n_epoch": None, "num_sanity_val_steps": 0,
    }  # fmt: skip
    file.write_text(yaml.safe_dump({"trainer": trainer, "data": {"init_args": {"num_workers": 1}}}))
    return ["fit", *settings, "--config", str(file)]


def rows(run: Path) -> list[list[str]]:
    return [*metrics(run, *COLUMNS), *metrics(run, "step", "val/loss")]


@pytest.mark.slow
def test_a_stopped_training_goes_on_as_if_nothing_had_been(training: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    main([*training, "--trainer.callbacks+=HuggingFaceExport", "--run_name", "whole"])
    assert len(rows(runs / "whole")) == 5 + 2
    whole = load_file(runs / "whole" / "huggingface" / "model.safetensors")
    # in the middle of step 3, the last of its epoch; in the validation after step 4
    for signum, place, number, step in (
        (SIGTERM, "on_train_batch_start", 6, 3),
        (SIGINT, "on_validation_batch_start", 2, 4),
    ):
        run = runs / f"stopped-{step}"
        line = stopped([*training, "--run_name", run.name], tmp_path, signum, place, number=number, group=True)
        name = "Ctrl-C" if signum == SIGINT else "SIGTERM"
        assert line == f"futurel1: stopped by {name} after {step} steps; continue with: futurel1 fit --resume {run}"
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
        assert [row[0] for row in metrics(run, *COLUMNS)] == [str(number) for number in range(step)]
        assert not (run / "huggingface").exists()
        main(["fit", "--resume", str(run)])
        assert rows(run) == rows(runs / "whole"), run.name
        resumed = load_file(run / "huggingface" / "model.safetensors")
        assert all(torch.equal(resumed[key], whole[key]) for key in whole), run.name


@pytest.mark.campaign
@pytest.mark.slow
def test_a_second_signal_stops_at_once_and_the_first_one_before_the_first_step(
    training: list[str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    line = stopped([*training, "--run_name", "twice"], tmp_path, SIGINT, "on_train_batch_start", number=4, twice=True)
    assert line.startswith("futurel1: stopped by Ctrl-C after 1 step; there is no checkpoint yet: start the same")
    assert "once more stops at once" in (tmp_path / "log.txt").read_text()
    assert not list(runs.glob("twice/checkpoints/*"))
    line = stopped([*training, "--run_name", "early"], tmp_path, SIGTERM, "on_fit_start")
    assert line == "futurel1: stopped by SIGTERM; there is no checkpoint yet: start the same command again"


@pytest.mark.campaign
@pytest.mark.slow
def test_a_kill_within_an_export_leaves_none(training: list[str], tmp_path: Path) -> None:
    overlay, died, run = tmp_path / "dies.yaml", tmp_path / "died", tmp_path / "runs" / "half"
    callbacks = [
        {"class_path": "signalling.DiesInExport", "init_args": {"died": str(died)}},
        {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}},
        {"class_path": "HuggingFaceExport"},
    ]
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks, "max_steps": 1}}))
    command = Command([*training, "--config", str(overlay), "--run_name", run.name], tmp_path / "log.txt", [HERE])
    assert command.wait() == -signal.SIGKILL
    assert Path(died.read_text()).parent.parent == run
    assert not (run / "huggingface").exists()
    assert start_checkpoint(str(run)) == run / "checkpoints" / "epoch=0-step=1.ckpt"
    main(["fit", "--resume", str(run)])
    assert is_whole_export(run / "huggingface")
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.fixture
def predicting(world: Path, tmp_path: Path) -> list[str]:
    """`predict` for four records, one per batch."""
    file = tmp_path / "predicting.yaml"
    model = {"backbone": "tiny@random", "sampling": {"max_new_tokens": 4}}
    data = {"predict": str(world / "test.jsonl"), "batch_size": 1, "num_workers": 1}
    config = {
        "model": {"class_path": "LatentPredictor", "init_args": model},
        "data": {"class_path": "PromptDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    }
    file.write_text(yaml.safe_dump(config))
    return ["predict", "--config", str(file), "--runs_dir", str(tmp_path / "runs")]


def ids(run: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (run / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.campaign
@pytest.mark.slow
def test_stopped_predictions_go_on_and_have_one_writer(predicting: list[str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "p"
    line = stopped([*predicting, "--run_name", "p"], tmp_path, SIGTERM, "on_predict_batch_start", number=2, group=True)
    go_on = f"continue with: futurel1 predict --resume {run}"
    assert line == f"futurel1: stopped by SIGTERM after 2 predicted batches; {go_on}"
    assert ids(run) == ["test.jsonl:1", "test.jsonl:2"]
    # the first of two waits in a batch until the second one has ended
    waiting = run / "waiting"
    config = yaml.safe_load((run / "config.yaml").read_text())
    wait = {"class_path": "signalling.Waiting", "init_args": {"here": str(waiting), "until": str(run / "go on")}}
    config["trainer"]["callbacks"].append(wait)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    first = Command(["predict", "--resume", str(run)], tmp_path / "first.txt", [HERE])
    first.when(waiting.exists)
    before = sorted(path.name for path in run.iterdir())
    second = Command(["predict", "--resume", str(run)], tmp_path / "second.txt", [HERE])
    assert second.wait() == 1
    error = (tmp_path / "second.txt").read_text().strip().splitlines()[-1]
    assert error.startswith(f"futurel1: error: {run} is in use by process {first.pid} on ")
    assert sorted(path.name for path in run.iterdir()) == before
    (run / "go on").touch()
    assert first.wait() == 0
    assert ids(run) == [f"test.jsonl:{number}" for number in range(1, 5)]
    assert not list(run.glob(".writer*"))


@pytest.mark.campaign
@pytest.mark.slow
def test_a_stopped_world_goes_on_and_has_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "world"
    args = ["world", "--out", str(out), "--test", "1", "--size", "32", "--task", "next_zone"]
    first = Command([*args, "--train", "100000"], tmp_path / "first.txt")
    first.when(lambda: len(list(out.glob("videos/train-*.mp4"))) > 2)
    second = Command([*args, "--train", "4"], tmp_path / "second.txt")
    assert second.wait() == 1
    assert f"{out} is in use by process {first.pid} on " in (tmp_path / "second.txt").read_text()
    assert first.signal(SIGINT) == 130
    text = (tmp_path / "first.txt").read_text()
    assert "futurel1: stopped by Ctrl-C; start the same command again; it goes on where it stopped" in text
    assert "Traceback" not in text
    assert Command([*args, "--train", "4"], tmp_path / "third.txt").wait() == 0
    assert "kept" in (tmp_path / "third.txt").read_text()
    assert not [path for path in out.rglob(".*") if path.is_file()]


@pytest.mark.campaign
@pytest.mark.slow
def test_two_ranks_leave_together(training: list[str], tmp_path: Path) -> None:
    given, _ = sends(tmp_path, SIGTERM, "on_train_batch_start", number=4, rank=0)
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "2"]
    command = [sys.executable, "-m", "futurel1.cli", *training, *given, *ranks, "--run_name", "two"]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=False, env=environment)
    assert done.returncode == 143, done.stdout + done.stderr
    run = tmp_path / "runs" / "two"
    assert f"stopped by SIGTERM after 2 steps; continue with: futurel1 fit --resume {run}" in done.stderr
    assert done.stderr.count("futurel1: stopped by") == 1
    assert "Traceback" not in done.stderr
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_what_a_stopped_command_says(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    assert Progress("ask").advice() == "start the same command again"
    assert Progress("curate").advice() == "start the same command again; it goes on where it stopped"
    for command in ("test", "validate", "predict"):
        assert Progress(command, run).advice() == "start the same command again"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    assert Progress("predict", run).advice() == f"continue with: futurel1 predict --resume '{run}'"
    assert Progress("fit", run).advice().startswith("there is no checkpoint yet")
    (run / "checkpoints" / "epoch=0-step=3.ckpt").touch()
    assert Progress("fit", run).advice() == f"continue with: futurel1 fit --resume '{run}'"
