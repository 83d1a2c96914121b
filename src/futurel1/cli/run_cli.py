"""LightningCLI with one folder per run."""

import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from futurel1.cli.errors import CommandLineError
from futurel1.cli.parsing_errors import Command, explain
from futurel1.cli.run_folder import RUN_PLACEHOLDER, choose_run_dir
from futurel1.cli.suggestions import names_in
from futurel1.modules import JSONLinesWriter


class ParsedConfig(SaveConfigCallback):
    """Saves the configuration as given, without the folders of this run, so that it can start a new run."""

    def __init__(self, parser: LightningArgumentParser, config: Any, *, as_given: Any, **options: Any) -> None:
        super().__init__(parser, as_given, **options)


class RunCLI(LightningCLI):
    """LightningCLI with one folder per run.

    Args:
        asked: the requested subcommand; None if there is none.
        made: list to which the run folder is appended as soon as it is chosen.
        arguments: positional arguments of `LightningCLI`.
    """

    def __init__(self, *arguments: Any, asked: str | None, made: list[Path], **options: Any) -> None:
        self._asked = asked
        self._made = made
        self._given = sys.argv[1:] if options.get("args") is None else options["args"]
        try:
            super().__init__(*arguments, **options)
        except ArgumentError as error:
            name = asked or "fit"
            example = f"futurel1 {name} --config tiny/{'predict' if name == 'predict' else 'sft'}"
            known = ["config", *names_in(self._options)]  # the usage shows only the short form of this one
            # once what was given is parsed, the settings in a checkpoint are
            file = self.config.get(f"{name}.ckpt_path") if hasattr(self, "config") else None
            if file:
                wrong = explain(str(error), Command(name, [], known, example))
                raise CommandLineError(f"--ckpt_path {file}: its settings do not fit this command: {wrong}") from error
            raise explain(str(error), Command(name, self._given, known, example)) from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in Lightning, and called as here
        """Only the requested subcommand, because collecting the options of each further one takes as long."""
        every = LightningCLI.subcommands()
        return {name: skipped for name, skipped in every.items() if name == self._asked} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that determine the run folder."""
        self._options = parser
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder that holds the run folders")
        parser.add_argument("--run_name", type=str | None, default=None, help="name of the run folder")
        parser.add_argument("--run_dir", type=str | None, default=None, help="use exactly this run folder")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, and pass it to the Trainer, the loggers and the callbacks."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        as_given = config.clone()
        for name in ("run_dir", "run_name", "ckpt_path"):
            if name in as_given:
                as_given[name] = None
        self.save_config_kwargs["as_given"] = as_given
        run_dir = choose_run_dir(config, self.subcommand or "run")
        self._made.append(run_dir)
        trainer = config.trainer
        if trainer.enable_progress_bar is False:
            self.trainer_defaults["callbacks"] = []
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(run_dir)
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        for logger in loggers:
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and arguments.get("save_dir") == RUN_PLACEHOLDER:
                arguments["save_dir"] = str(run_dir)
        for callback in trainer.callbacks or []:
            arguments = getattr(callback, "init_args", None)
            if arguments is not None and "dirpath" in arguments and arguments.get("dirpath") is None:
                arguments["dirpath"] = str(run_dir / "checkpoints")
        if self.subcommand == "predict":
            self._write_predictions(trainer)

    def _write_predictions(self, trainer: Any) -> None:
        given = [getattr(callback, "class_path", "") for callback in trainer.callbacks or []]
        if not any(str(name).endswith("JSONLinesWriter") for name in given):
            self.trainer_defaults["callbacks"] = [*self.trainer_defaults["callbacks"], JSONLinesWriter()]
