"""Commands that are stopped by Ctrl-C or SIGTERM: what they say, their exit status, and how they go on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_checks import metrics
from safetensors.torch import load_file

from futurel1.cli import main
from processes import Command

HERE = Path(__file__).parent
COLUMNS = ("step", "train/loss", "train/grad_norm")


def signalled(args: list[str], tmp_path: Path, signum: int, place: str, **options: Any) -> tuple[int, str]:
    """Run a command that gets a signal, in a session of its own; returns its exit status and what it printed."""
    overlay, log = tmp_path / "signal.yaml", tmp_path / "log.txt"
    sent = log.with_name(f"sent-{len(list(tmp_path.glob('sent-*')))}")
    options |= {"sent": str(sent), "signum": int(signum), "place": place}
    callback = {"class_path": "signalling.Signalling", "init_args": options}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    status = Command([*args, "--config", str(overlay)], log, [HERE]).wait()
    assert sent.exists(), log.read_text()
    return status, log.read_text()


@pytest.fixture
def training(settings: list[str], world: Path, tmp_path: Path) -> list[str]:
    """`fit` with a loader worker, two micro-batches per step, three steps per epoch and a validation every two."""
    file = tmp_path / "training.yaml"
    data = {"batch_size": 4, "num_workers": 1}
    trainer = {
        "max_steps": 8, "accumulate_grad_batches": 2, "limit_val_batches": 1.0, "val_check_interval": 4,
        "check_val_every_n_epoch": None, "num_sanity_val_steps": 0,
    }  # fmt: skip
    file.write_text(yaml.safe_dump({"trainer": trainer, "data": {"init_args": data}}))
    return ["fit", *settings, "--config", str(file)]


def rows(run: Path) -> list[list[str]]:
    return [*metrics(run, *COLUMNS), *metrics(run, "step", "val/loss")]


def state(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True))


def test_a_stopped_training_goes_on_as_if_nothing_had_been(training: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    last = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.init_args.save_last=true"]
    main([*training, *last, "--run_name", "whole"])
    assert len(rows(runs / "whole")) == 8 + 4
    # in the middle of step 3, which is the last of its epoch; in a validation after step 4; in that after step 6
    places = [
        ("step", signal.SIGTERM, "on_train_batch_start", 6, 3),
        ("validation", signal.SIGINT, "on_validation_batch_start", 2, 4),
        ("after an epoch", signal.SIGTERM, "on_validation_batch_start", 3, 6),
    ]
    for name, signum, place, number, step in places:
        run = runs / name
        args = [*training, "--run_name", name]
        status, log = signalled(args, tmp_path, signum, place, number=number, group=True)
        assert status == 128 + signum, log
        told = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
        resume = f"stopped by {told} after {step} steps; continue with: futurel1 fit --resume '{run}'"
        assert resume.replace("'", "") in log.replace("'", ""), log
        assert "Traceback" not in log
        assert state(run)["global_step"] == step
        assert [row[0] for row in metrics(run, *COLUMNS)] == [str(number) for number in range(step)]
        main(["fit", "--resume", str(run)])
        assert rows(run) == rows(runs / "whole"), name
        ends = [state(run)["state_dict"], state(runs / "whole")["state_dict"]]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1]), name
