"""The folder of a run: chosen once for all its processes, and found by `--resume`."""

import atexit
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError, MissingFileError
from futurel1.files import write_whole

RUN_DIR_VARIABLE = "FUTUREL1_RUN_DIR"
"""Environment variable that passes the run folder to processes that a Trainer starts (one per device)."""
RUN_PLACEHOLDER = "RUN_DIR"
"""Placeholder for the run folder in a logger's `save_dir`."""


def resume_arguments(command: str, args: Sequence[str], resume: str) -> list[str]:
    """Options that continue a run: its configuration and folder and, for training, its last checkpoint.

    Args:
        command: ``fit`` or ``predict``.
        args: further options, which override those of the run.
        resume: the run folder.

    Raises:
        MissingFileError: `resume` is not a run folder, or has no checkpoint yet.
        ConfigError: another command, or options that name a configuration or a checkpoint.
    """
    if command not in ("fit", "predict"):
        raise ConfigError(
            "--resume continues training or prediction; to evaluate a run, give --model.init_args.init_from RUN"
        )
    if any(arg.split("=")[0] in ("--config", "-c", "--ckpt_path") for arg in args):
        raise ConfigError(
            "--resume takes configuration and checkpoint from the run; leave --config and --ckpt_path out"
        )
    run = Path(resume)
    config = run / "config.yaml"
    if not config.is_file():
        raise MissingFileError(f"--resume: {run} is no run folder (it has no config.yaml)")
    again = ["--config", str(config), *args, "--run_dir", str(run)]
    if command == "predict":
        return again
    from futurel1.runs import newest_checkpoint

    return [*again, "--ckpt_path", str(newest_checkpoint(run))]


def unique_run_dir(runs_dir: Path, name: str) -> Path:
    """Create a new folder under `runs_dir`; if the name is taken, a number is appended."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        folder = runs_dir / (name if number == 0 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def choose_run_dir(config: Any, command: str) -> Path:
    """The folder of this run, the same one in all its processes.

    Processes that Lightning starts inherit the choice through their environment. Under torchrun all processes start
    alike: the first one of a machine chooses and writes the name to a file for the others. Several machines need
    ``--run_dir``.

    Args:
        config: parsed configuration with `runs_dir`, `run_name`, `run_dir` and `config`.
        command: name of the run if there is no configuration file.

    Raises:
        ConfigError: several machines without ``--run_dir``.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if config.run_dir is not None:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
    elif RUN_DIR_VARIABLE in os.environ and local_rank != 0:
        return Path(os.environ[RUN_DIR_VARIABLE])
    else:
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if by_torchrun and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
            raise ConfigError("on several machines give --run_dir, a folder that all of them see")
        # torchrun is the parent of all its processes on a machine
        note = Path(config.runs_dir) / f".torchrun-{os.getppid()}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        if by_torchrun and local_rank != 0:
            return _await_run_dir(note)
        stem = Path(str(config.config[0])).stem if config.get("config") else command
        name = config.run_name or f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = unique_run_dir(Path(config.runs_dir), name)
        if by_torchrun:
            write_whole(note, str(folder))
            atexit.register(note.unlink, missing_ok=True)
    os.environ[RUN_DIR_VARIABLE] = str(folder)
    return folder


def _await_run_dir(note: Path, seconds: float = 120.0) -> Path:
    deadline = time.monotonic() + seconds
    while not note.is_file():
        if time.monotonic() > deadline:
            raise ConfigError(f"the first process named no run folder within {seconds:.0f} s; give --run_dir")
        time.sleep(0.05)
    return Path(note.read_text())
