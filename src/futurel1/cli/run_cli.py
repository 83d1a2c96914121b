"""LightningCLI with one folder per run."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from futurel1.cli.cluster import check_processes, cluster_environment
from futurel1.cli.interrupts import done, progress_of
from futurel1.cli.parsing_errors import Command, explain
from futurel1.cli.run_folder import RUN_PLACEHOLDER, RunFolder, choose_run_folder
from futurel1.cli.run_lock import writing_run
from futurel1.cli.suggestions import names_in
from futurel1.errors import ConfigError
from futurel1.launch import Launch
from futurel1.modules import HuggingFaceExport, JSONLinesWriter, ResumableCSVLogger
from futurel1.modules.checkpointing import ResumedFiles
from futurel1.modules.stopping import StopInOrder
from futurel1.trainer_checkpoints import check_checkpoint


class RunCLI(LightningCLI):
    """LightningCLI with one folder per run.

    Args:
        asked: the requested subcommand; None if there is none.
        made: list to which the run folder is appended as soon as it is chosen.
        resumed: whether `--resume` named the run folder.
        held: what is released when the command has ended; gets the lock of the run folder.
        arguments: positional arguments of `LightningCLI`.
    """

    def __init__(
        self,
        *arguments: Any,
        asked: str | None,
        made: list[RunFolder],
        held: ExitStack,
        resumed: bool = False,
        **options: Any,
    ) -> None:
        self._asked = asked
        self._made = made
        self._held = held
        self._resumed = resumed
        self._launch = Launch.detect()
        self._given = sys.argv[1:] if options.get("args") is None else options["args"]
        try:
            super().__init__(*arguments, **options)
        except ArgumentError as error:
            name = asked or "fit"
            example = f"futurel1 {name} --config tiny/{'predict' if name == 'predict' else 'sft'}"
            known = ["config", *names_in(self._options)]  # the usage shows only the short form of this one
            raise explain(str(error), Command(name, self._given, known, example)) from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in Lightning, and called as here
        """Only the requested subcommand, because collecting the options of each further one takes as long."""
        every = LightningCLI.subcommands()
        return {name: skipped for name, skipped in every.items() if name == self._asked} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that determine the run folder, and what is always written into it."""
        self._options = parser
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder that holds the run folders")
        parser.add_argument(
            "--run_name", type=str | None, default=None, help="name of the run folder (default: config name and time)"
        )
        parser.add_argument("--run_dir", type=str | None, default=None, help="use exactly this run folder")
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="replace the run of that name as soon as this one's first step is done",
        )
        parser.add_argument(
            "--export", type=bool | int, default=True,
            help="fit: write the model in Hugging Face format to huggingface/ in the run folder: true: when training "
            "ends; a number n: also every n optimizer steps; false: never",
        )  # fmt: skip

    def _parse_ckpt_path(self) -> None:
        """Refuse a checkpoint that could run code before anything of it is used, and keep the settings as given.

        Lightning would replace them by those that the checkpoint stores.
        """
        config = self.config[self.config.subcommand] if self.config.get("subcommand") else {}
        if config.get("ckpt_path"):
            check_checkpoint(config["ckpt_path"])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Have the Trainer read checkpoints as data, also from an address, where Lightning's default is another."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, and pass it to the Trainer and the loggers."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        as_given = config.clone()
        for name, default in {"run_dir": None, "run_name": None, "ckpt_path": None, "overwrite": False}.items():
            if name in as_given:
                as_given[name] = default
        if config.export < 0:
            raise ConfigError(f"export is true, false or a number of steps, got {config.export}")
        self._folder = folder = choose_run_folder(config, self.subcommand, self._launch, resumed=self._resumed)
        self._made.append(folder)
        self.save_config_kwargs |= {"as_given": as_given, "begun": folder.begin}
        if self.subcommand and not folder.temporary:
            self._held.enter_context(writing_run(folder.path, self._launch))
            progress_of(self.subcommand, folder.path)
        if folder.checkpoint is not None:
            config["ckpt_path"] = str(folder.checkpoint)
        trainer, root = config.trainer, config.trainer.default_root_dir
        if root is not None and not folder.temporary and Path(root).resolve() != folder.path.resolve():
            raise ConfigError(
                f"trainer.default_root_dir: {root} is not the run folder {folder.path}, where everything of a run is "
                "written; leave it out, and name the folder by --run_dir, or by --runs_dir and --run_name"
            )
        trainer.default_root_dir = str(folder.path)
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        for logger in loggers:
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and arguments.get("save_dir") == RUN_PLACEHOLDER:
                arguments["save_dir"] = str(folder.path)

    def after_instantiate_classes(self) -> None:
        """Refuse a Trainer for another number of processes than were started."""
        if self.subcommand and not self._has_own_environment:
            check_processes(self.trainer, self._launch)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Add what a run needs, whatever callbacks, loggers and plugins a configuration lists."""
        listed = _as_list(config.get("callbacks"))
        if not self._config_of("export"):
            listed = [callback for callback in listed if not isinstance(callback, HuggingFaceExport)]
        if config.get("enable_progress_bar") is False or any(isinstance(one, ProgressBar) for one in listed):
            self.trainer_defaults["callbacks"] = []
        config["callbacks"] = [*listed, *self._needed_callbacks(config, listed)]
        for callback in config["callbacks"]:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self._folder.path / "checkpoints")
        config["logger"] = self._loggers(config.get("logger"))
        plugins = _as_list(config.get("plugins"))
        strategy = getattr(config.get("strategy"), "cluster_environment", None)
        self._has_own_environment = any(isinstance(one, ClusterEnvironment) for one in [*plugins, strategy])
        environment = None if self._has_own_environment else cluster_environment(self._launch)
        config["plugins"] = [*plugins, *([environment] if environment is not None else [])]
        trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        ResumedFiles.attach(trainer)
        StopInOrder.attach(trainer, done)
        return trainer

    def _needed_callbacks(self, config: dict[str, Any], listed: list[Callback]) -> list[Callback]:
        needed: list[Callback] = []
        export = self._config_of("export")
        # Objects made without a subcommand may be used for any: each callback acts in its own only.
        if (
            self.subcommand in ("fit", None)
            and export
            and hasattr(self.model, "export")
            and not config.get("fast_dev_run")
        ):
            needed.append(HuggingFaceExport(None if export is True else int(export)))
        if self.subcommand in ("predict", None):
            needed.append(JSONLinesWriter())
        needed = [one for one in needed if not any(isinstance(given, type(one)) for given in listed)]
        if config.get("enable_checkpointing") is not False and not any(isinstance(one, Checkpoint) for one in listed):
            needed.append(ModelCheckpoint())
        return needed

    def _loggers(self, given: Any) -> Any:
        """The loggers of a configuration, and `metrics.csv` beside them unless it wants none."""
        folder = str(self._folder.path)
        if given is True:
            return [ResumableCSVLogger(folder), TensorBoardLogger(folder, name="", version="")]
        loggers = [logger for logger in _as_list(given) if logger is not False]
        if loggers and not any(isinstance(logger, CSVLogger) for logger in loggers):
            loggers.append(ResumableCSVLogger(folder))
        return loggers or False

    def _config_of(self, name: str) -> Any:
        return self._get(self.config, name)


def _as_list(given: Any) -> list[Any]:
    """What an option holds that takes nothing, one object or several."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
