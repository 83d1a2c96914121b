"""Which errors become a line, and which stay tracebacks."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
import torch
from command_checks import fails
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from futurel1.cli import main
from futurel1.cli.errors import error_line
from futurel1.errors import ConfigError, DiskFullError


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(("error", "line"), [
    (ConfigError("no\nsuch thing"), "no such thing"),
    (chained(ValueError("wrapped"), ConfigError("own")), "own"),
    (DiskFullError("f: no space left"), "f: no space left"),
    (OSError(errno.EROFS, "Read-only file system", "runs/a"), "runs/a: Read-only file system"),
    (PermissionError(errno.EACCES, "Permission denied", "runs/a", None, "runs/b"), "runs/a -> runs/b: Permission"),
    (chained(RuntimeError("x"), OSError(errno.ENOSPC, "No space left")), "a file that was written: No space left"),
    (MisconfigurationException("You requested gpu: [0, 1, 2, 3]\n But your machine only has: [0, 1]"),
     "trainer.devices asks for the GPUs [0, 1, 2, 3], and this machine has [0, 1]; ask for fewer"),
    (AssertionError("Torch not compiled with CUDA enabled"), "give --trainer.accelerator cpu, or auto"),
    (RuntimeError("Found no NVIDIA driver on your system."), "give --trainer.accelerator cpu, or auto"),
    (ModuleNotFoundError("Requirement 'neptune>=1.0' not met."), "the settings need the package neptune>=1.0"),
])  # fmt: skip
def test_errors_that_a_user_can_act_on(error: Exception, line: str) -> None:
    told = error_line(error)
    assert told is not None
    assert line in told
    assert "\n" not in told


@pytest.mark.parametrize("error", [
    ValueError("a bug"), TypeError("a bug"), KeyError("state_dict"), AssertionError(), ModuleNotFoundError("x"),
    OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError("x"), ZeroDivisionError(),
])  # fmt: skip
def test_bugs_keep_their_tracebacks(error: Exception) -> None:
    assert error_line(error) is None


@pytest.mark.parametrize(("options", "message"), [
    (["--trainer.accelerator", "gpu", "--trainer.devices", "4"], "give --trainer.accelerator cpu, or auto"),
    (["--trainer.strategy", "fsdp"], "trainer: The strategy `fsdp` requires a GPU accelerator"),
    (["--trainer.strategy", "dp2"], "trainer: You selected an invalid strategy name: `strategy='dp2'`"),
    (["--trainer.accelerator", "gpux"], "trainer: You selected an invalid accelerator name"),
    (["--trainer.devices", "none"], "trainer: `devices` selected with `CPUAccelerator`"),
    (["--trainer.logger", "WandbLogger"], "loggers.WandbLogger needs the package wandb>="),
    (["--trainer.logger", "MLFlowLogger"], "loggers.MLFlowLogger needs the package mlflow>="),
    (["--trainer.logger", "CometLogger"], "loggers.CometLogger needs the package comet-ml>="),
    (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    (["--model.init_args.freeze", "[vision]", "--trainer.val_check_interval", "99", "--trainer.limit_val_batches", "1"],
     "trainer: `val_check_interval` (99) must be less than or equal to"),
])  # fmt: skip
def test_settings_that_cannot_be_met(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for package in ("wandb", "mlflow", "comet_ml"):
        monkeypatch.setitem(sys.modules, package, None)
    assert message in fails(capsys, "fit", *settings, *options)


def test_debug_raises_what_lightning_said(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MisconfigurationException, match="gpu"):
        main(["fit", *settings, "--trainer.accelerator", "gpu", "--debug"])


def test_a_checkpoint_of_something_else(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"foo": 1}}, file)
    message = "the checkpoint was not written by a Trainer: it has no 'pytorch-lightning_version'"
    assert message in fails(capsys, "fit", *settings, "--ckpt_path", str(file))
