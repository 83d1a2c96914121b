"""The folder of a run: chosen once for all its processes, and found by `--resume`."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from futurel1.agreement import agree
from futurel1.cli.replaced_run import FolderAsItWas, Replaced, only_started
from futurel1.errors import ConfigError, FutureL1Error, MissingFileError
from futurel1.files import write_whole
from futurel1.launch import Launch

logger = logging.getLogger(__name__)

RUN_VARIABLE = "FUTUREL1_RUN"
"""Environment variable that tells the choice of a process to those that its Trainer starts, one per device."""
RUN_PLACEHOLDER = "RUN_DIR"
"""Placeholder for the run folder in a logger's `save_dir`."""
JOB_FILE = "job.json"
"""File of a run folder that names its SLURM job, so that the requeued job finds it."""


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


class RunFolder:
    """The folder of a run, in one of its processes.

    Args:
        path: the folder.
        created: whether this process created it.
        temporary: whether nothing of the run is to be kept.
        checkpoint: checkpoint with which a requeued job goes on.
        replaced: the run that stood there before.
        before: the files of an existing folder that this run adds to.

    Attributes:
        begun: whether the run has done its first step, or written what is to be kept.
    """

    def __init__(
        self,
        path: Path,
        *,
        created: bool = False,
        temporary: bool = False,
        checkpoint: Path | None = None,
        replaced: Replaced | None = None,
        before: FolderAsItWas | None = None,
    ) -> None:
        self.path = path
        self.created = created
        self.temporary = temporary
        self.checkpoint = checkpoint
        self.begun = False
        self._replaced = replaced
        self._before = before

    def begin(self) -> None:
        """The first step is done: what stood here before is not needed any more."""
        self.begun = True
        self._before = None
        if self._replaced is not None:
            self._replaced.remove()
            self._replaced = None

    def close(self) -> None:
        """At the end of the run, undo what was written if nothing has begun: remove the folder, or restore it."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._before is not None:
            self._before.restore()
        elif self.created and not self.begun and self.path.is_dir() and only_started(self.path):
            shutil.rmtree(self.path)
            if self._replaced is not None:
                self._replaced.restore()
        elif self._replaced is not None and not self.begun:
            logger.warning("%s has results although its first step was not done; %s", self.path, self._replaced)


def choose_run_folder(config: Any, command: str | None, launch: Launch, *, resumed: bool = False) -> RunFolder:
    """The folder of this run, the same one in all its processes.

    The first process chooses and creates it. Processes that a Trainer starts inherit the choice through their
    environment, those of a launcher learn it by `agree`; with ``--run_dir`` all know it.

    Args:
        config: parsed configuration with `runs_dir`, `run_name`, `run_dir`, `overwrite`, `config`, `trainer`,
            `ckpt_path`.
        command: the subcommand; None: objects are only made, and so is no folder.
        launch: how this process was started.
        resumed: whether `--resume` named the run.

    Raises:
        ConfigError: the folder exists or cannot be made, or processes that have no name in common need ``--run_dir``.
    """
    if config.trainer.fast_dev_run:
        # Removed at exit too: what `make_cli(run=False)` returned may be used until then.
        folder = Path(tempfile.mkdtemp(prefix="futurel1-fast-dev-run-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return RunFolder(folder, temporary=True)
    inherited = _inherited(launch)
    if inherited is not None:
        return inherited
    choice = _Choice(config, command, launch, resumed)
    try:
        chosen = choice.given() if config.run_dir is not None else choice.named()
    except FutureL1Error:  # some are OSErrors too
        raise
    except OSError as error:
        raise ConfigError(
            f"the run folder cannot be made: {error.strerror}: {error.filename}; choose another --runs_dir or --run_dir"
        ) from error
    told = {"process": os.getpid(), "folder": str(chosen.path), "checkpoint": str(chosen.checkpoint or "")}
    os.environ[RUN_VARIABLE] = json.dumps(told)
    return chosen


def _inherited(launch: Launch) -> RunFolder | None:
    """The choice of the process that started this one for a device; None if this one was not started so."""
    if launch.launcher != "environment" or launch.local_rank == 0 or RUN_VARIABLE not in os.environ:
        return None
    told = json.loads(os.environ[RUN_VARIABLE])
    if told["process"] != os.getppid():  # an earlier run in a process that has other ancestors in common with this one
        return None
    return RunFolder(Path(told["folder"]), checkpoint=Path(told["checkpoint"]) if told["checkpoint"] else None)


class _Choice:
    """The choice of a run folder in one process; the arguments are those of `choose_run_folder`."""

    def __init__(self, config: Any, command: str | None, launch: Launch, resumed: bool) -> None:
        self.config, self.command, self.launch, self.resumed = config, command, launch, resumed
        files = config.get("config")
        self.stem = Path(str(files[0])).stem if files else command or "run"

    def given(self) -> RunFolder:
        """The folder that ``--run_dir`` names."""
        folder, config = Path(self.config.run_dir), self.config
        start = config.get("ckpt_path")
        resumed = self.resumed or (start is not None and Path(start).resolve().is_relative_to(folder.resolve()))
        if resumed and config.overwrite:
            raise ConfigError(f"--overwrite would remove {folder}, which this run continues; leave it out")
        if self.command is None:
            return RunFolder(folder)
        if self._requeued(folder):
            return self._go_on(folder)
        replaced = None
        if not resumed and folder.exists() and self._results(folder):
            if not config.overwrite:
                raise ConfigError(self._taken(f"--run_dir {folder}", folder))
            if self.launch.is_first:
                replaced = Replaced.set_aside(folder, config)
        # Only the first process creates and removes; the others write into the folder when all have met.
        created = self.launch.is_first and not folder.exists()
        before = FolderAsItWas(folder) if self.launch.is_first and not created else None
        if self.launch.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            if not resumed:
                self._note(folder)
        return RunFolder(folder, created=created, replaced=replaced, before=before)

    def named(self) -> RunFolder:
        """A folder under `runs_dir`."""
        runs_dir, launch = Path(self.config.runs_dir), self.launch
        by_hand = launch.world_size == 1 and int(self.config.trainer.num_nodes) > 1 and "NODE_RANK" in os.environ
        if launch.world_size == 1 and not by_hand:
            return self._named(runs_dir)
        if not launch.id or launch.rank is None:
            raise ConfigError(
                "several processes were started that have no name in common by which they could agree on a run "
                f"folder ({launch.launcher}): give --run_dir, a folder that all of them see"
            )
        mine: list[RunFolder] = []

        def decide() -> dict[str, Any]:
            chosen = self._named(runs_dir)
            mine.append(chosen)
            return {"folder": str(chosen.path), "checkpoint": str(chosen.checkpoint or "")}

        try:
            decided = agree(runs_dir, launch, decide)
        except BaseException:
            for chosen in mine:
                chosen.close()
            raise
        checkpoint = Path(decided["checkpoint"]) if decided["checkpoint"] else None
        return mine[0] if mine else RunFolder(Path(decided["folder"]), checkpoint=checkpoint)

    def _named(self, runs_dir: Path) -> RunFolder:
        name = self.config.run_name
        if self.command is None:
            return RunFolder(runs_dir / (name or self.stem))
        if name is None:
            mine = (folder for folder in sorted(runs_dir.glob("*")) if folder.name.startswith(f"{self.stem}-"))
            before = [folder for folder in mine if self._requeued(folder)]
            if len(before) > 1:
                raise ConfigError(
                    f"SLURM has restarted job {self.launch.job}, which made {', '.join(map(str, before))}: give each "
                    "of its runs a --run_name"
                )
            if before:
                return self._go_on(before[0])
            return self._new(unique_run_dir(runs_dir, f"{self.stem}-{datetime.now():%Y%m%d-%H%M%S}"))
        folder = runs_dir / name
        if self._requeued(folder):
            return self._go_on(folder)
        replaced = Replaced.set_aside(folder, self.config) if self.config.overwrite and folder.exists() else None
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(self._taken(f"--run_name {name}", folder)) from None
        return self._new(folder, replaced)

    def _new(self, folder: Path, replaced: Replaced | None = None) -> RunFolder:
        self._note(folder)
        return RunFolder(folder, created=True, replaced=replaced)

    def _taken(self, option: str, folder: Path) -> str:
        ways = [f"replace it with --overwrite, or choose another {option.split()[0]}"]
        if self.command in ("fit", "predict") and (folder / "config.yaml").is_file():
            ways.insert(0, f"continue it with futurel1 {self.command} --resume {folder}")
        return f"{option}: {folder} exists; {', '.join(ways)}"

    def _results(self, folder: Path) -> bool:
        """Whether the command would write over results: `fit` over any, others over those of another command."""
        trained = any(any(folder.glob(name)) for name in ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt", "huggingface"))
        predicted = any(file.stat().st_size for file in folder.glob("predictions*.jsonl"))
        return trained or (predicted and self.command != "predict")

    # ------------------------------------------------------------------ SLURM

    def _note(self, folder: Path) -> None:
        """Note the job, if there is one, so that it finds the folder again."""
        if self.launch.job:
            note = {"job": self.launch.job, "step": self.launch.step, "command": self.command}
            write_whole(folder / JOB_FILE, json.dumps(note) + "\n")

    def _requeued(self, folder: Path) -> bool:
        """Whether this very job made the folder before SLURM restarted it.

        A job keeps its number when it is requeued. Within one start of it, a second run is another one.
        """
        file = folder / JOB_FILE
        if not self.launch.job or self.resumed or not file.is_file():
            return False
        note = json.loads(file.read_text(encoding="utf-8"))
        same = (note["job"], note["command"]) == (self.launch.job, self.command)
        if self.config.run_name is None and self.config.run_dir is None:
            same = same and note["step"] == self.launch.step
        return same and (self.launch.restarts > 0 or any(folder.glob("hpc_ckpt_*.ckpt")))

    def _go_on(self, folder: Path) -> RunFolder:
        from futurel1.runs import newest_checkpoint

        if self.config.overwrite and self.launch.is_first:
            logger.info("--overwrite concerned the first start of the job")
        checkpoint = None
        if self.command == "fit":
            try:
                checkpoint = newest_checkpoint(folder)
            except MissingFileError:
                logger.info("%s has no checkpoint yet", folder)
        if self.launch.is_first:
            start = f" from {checkpoint.name}" if checkpoint else ""
            print(f"SLURM has restarted job {self.launch.job}: going on with {folder}{start}")
        before = FolderAsItWas(folder) if self.launch.is_first else None
        return RunFolder(folder, checkpoint=checkpoint, before=before)


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
