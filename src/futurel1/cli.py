"""The command line: LightningCLI's `fit`, `validate`, `test`, `predict`, and the library's own subcommands."""

import atexit
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError, FutureL1Error, MissingFileError
from futurel1.files import write_whole
from futurel1.version import __version__

RUN_DIR_VARIABLE = "FUTUREL1_RUN_DIR"
"""Tells processes that a Trainer starts (one per device) which run folder they belong to."""

TRAINER_COMMANDS = {
    "fit": "train a model: futurel1 fit --config configs/tiny/sft.yaml",
    "validate": "evaluate on the validation records",
    "test": "evaluate on the test records",
    "predict": "write one line per record to predictions.jsonl",
}
OWN_COMMANDS = {
    "ask": "ask a question about one video: futurel1 ask clip.mp4 'Imagine the zones after 2 steps.'",
    "world": "write procedural videos with questions about what happens next",
    "curves": "draw the curves of a run as a PNG",
    "curate": "choose the records whose future frames help a model to answer",
}


def _own_command(name: str) -> Callable[..., None]:
    if name == "world":
        from futurel1.worlds.command import world

        return world
    if name == "curate":
        from futurel1.curation.command import curate

        return curate
    from futurel1.curves import curves

    return curves


def overview() -> str:
    """What `futurel1 --help` prints."""
    lines = [f"futurel1 {__version__}: video event prediction by interleaved latent visual reasoning", ""]
    lines += ["usage: futurel1 COMMAND [options]      futurel1 COMMAND --help", ""]
    for title, commands in (("run a Trainer", TRAINER_COMMANDS), ("tools", OWN_COMMANDS)):
        lines += [f"{title}:", *(f"  {name:<10}{text}" for name, text in commands.items()), ""]
    lines += [
        "options of every command that runs a Trainer:",
        "  --config FILE       settings; print all of them with --print_config",
        "  --run_name NAME     name of the run folder under --runs_dir (default: config name and time)",
        "  --resume RUN        fit: continue the run in folder RUN where its last checkpoint was taken;",
        "                      predict: go on with the records that have no prediction yet",
        "  --debug             show tracebacks of errors",
    ]
    return "\n".join(lines)


def resume_arguments(args: Sequence[str]) -> list[str]:
    """Replace ``--resume RUN`` by the run's own configuration and folder and, to go on training, its last checkpoint.

    Args:
        args: command line without the program's name.

    Raises:
        MissingFileError: RUN is no run folder, or has no checkpoint yet.
        ConfigError: ``--resume`` without a value, or together with ``--config``.
    """
    joined = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--resume=") else [arg])]
    if "--resume" not in joined:
        return list(args)
    if joined[0] not in ("fit", "predict"):
        raise ConfigError(
            "--resume continues training or prediction; to evaluate a run, give --model.init_args.init_from RUN"
        )
    place = joined.index("--resume")
    if place + 1 >= len(joined):
        raise ConfigError("--resume needs the folder of a run, such as runs/sft-20260101-120000")
    if any(arg.split("=")[0] in ("--config", "-c", "--ckpt_path") for arg in joined):
        raise ConfigError(
            "--resume takes configuration and checkpoint from the run; leave --config and --ckpt_path out"
        )
    run = Path(joined[place + 1])
    config = run / "config.yaml"
    if not config.is_file():
        raise MissingFileError(f"--resume: {run} is no run folder (it has no config.yaml)")
    command, rest = joined[0], joined[1:place] + joined[place + 2 :]
    again = [command, "--config", str(config), *rest, "--run_dir", str(run)]
    if command == "predict":
        return again
    from futurel1.modules.start import newest_checkpoint

    return [*again, "--ckpt_path", str(newest_checkpoint(run))]


def unique_run_dir(runs_dir: Path, name: str) -> Path:
    """Make a new folder under `runs_dir`; a number is added when the name is taken."""
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


def make_cli(args: list[str] | None = None, *, run: bool = True) -> Any:
    """Build Trainer, model and data from a command line.

    Args:
        args: ``["fit", "--config", ...]``, or options alone when `run` is False; None: the process's own.
        run: run the subcommand; False only instantiates.

    Returns:
        The `LightningCLI`, with `trainer`, `model` and `datamodule`.
    """
    # Lightning 2.6 calls jsonargparse by names that 4.49 renamed; they work until jsonargparse 5, which is excluded.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning asks PyTorch's pytree a question in its old form
        "LightningCLI's args parameter is intended",
        "Experiment logs directory .* exists",  # a resumed run keeps its rows
        "Total length of `list` across ranks is zero",  # no validation split
        "Couldn't infer the batch indices",  # predictions carry their own ids
        "It is recommended to use `self.log.*sync_dist=True`",  # what is logged is already summed over ranks
    ):
        warnings.filterwarnings("ignore", message=message)

    from lightning import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    # Short class names in YAML are looked up among imported subclasses.
    import futurel1.datamodules
    import futurel1.modules  # noqa: F401

    asked = next(iter(sys.argv[1:] if args is None else args), None)
    made: list[Path] = []
    parsed: list[Any] = []

    class ParsedConfig(SaveConfigCallback):
        """Saves the configuration as it was given: without this run's folders, so that it starts a run of its own."""

        def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
            super().__init__(parser, parsed[-1], **options)

    class RunCLI(LightningCLI):
        """LightningCLI with one folder per run."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            # Options of the commands that are not asked for take as long to collect as those of the one that is.
            every = LightningCLI.subcommands()
            return {name: skipped for name, skipped in every.items() if name == asked} or every

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument("--runs_dir", type=str, default="runs", help="folder that holds the run folders")
            parser.add_argument("--run_name", type=str | None, default=None, help="name of the run folder")
            parser.add_argument("--run_dir", type=str | None, default=None, help="use exactly this run folder")

        def before_instantiate_classes(self) -> None:
            config = self.config[self.subcommand] if self.subcommand else self.config
            as_given = config.clone()
            for name in ("run_dir", "run_name", "ckpt_path"):
                if name in as_given:
                    as_given[name] = None
            parsed.append(as_given)
            run_dir = choose_run_dir(config, self.subcommand or "run")
            made.append(run_dir)
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

    from futurel1.modules import JSONLinesWriter

    loggers = [
        {"class_path": "ResumableCSVLogger", "init_args": {"save_dir": RUN_PLACEHOLDER}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": RUN_PLACEHOLDER, "name": "", "version": ""}},
    ]
    try:
        cli = RunCLI(
            LightningModule,
            LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # modules make their own; the model is not there when options are read
            save_config_callback=ParsedConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"logger": loggers, "callbacks": [RichProgressBar()]},
            parser_kwargs={name: {"epilog": EPILOG} for name in RunCLI.subcommands()} if run else {},
            args=args,
            run=run,
        )
    finally:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # nothing came of this run
    if run and cli.trainer.is_global_zero:
        print(f"run folder: {cli.trainer.default_root_dir}")
    return cli


EPILOG = (
    "Before these options: futurel1 fit --resume RUN continues the run in folder RUN from its last checkpoint, "
    "futurel1 predict --resume RUN the predictions in it; --debug shows tracebacks of errors."
)


def choose_run_dir(config: Any, command: str) -> Path:
    """The folder of this run, the same one in all its processes.

    Processes that Lightning starts inherit the choice in their environment. Under torchrun all start alike: the first
    of a machine chooses and leaves the name in a file for the others. Several machines are told by ``--run_dir``.

    Args:
        config: parsed configuration with `runs_dir`, `run_name`, `run_dir` and `config`.
        command: name for runs without a configuration file.

    Raises:
        ConfigError: several machines, and no ``--run_dir``.
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


RUN_PLACEHOLDER = "RUN_DIR"
"""Stands for the run folder in a logger's `save_dir`."""


def _show_own_log() -> None:
    """Show the library's log on standard error, unless the process shows all logs already; Lightning shows its own."""
    logger = logging.getLogger("futurel1")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: command line without the program's name; None: the process's own.

    Raises:
        SystemExit: 1 for an error that a user can act on, after one line on standard error.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    _show_own_log()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    if arguments[0] == "--version":
        print(f"futurel1 {__version__}")
        return
    try:
        if arguments[0] == "ask":
            from futurel1.ask import ask

            ask(arguments[1:])
        elif arguments[0] in OWN_COMMANDS:
            from jsonargparse import auto_cli

            auto_cli(
                _own_command(arguments[0]), args=arguments[1:], as_positional=False, prog=f"futurel1 {arguments[0]}"
            )
        elif arguments[0] in TRAINER_COMMANDS:
            from futurel1.modules.flat_keys import refuse_flat_keys

            arguments = resume_arguments(arguments)
            refuse_flat_keys(arguments)
            if args is None:
                # Processes that a Trainer starts for other devices run this process's command line again.
                sys.argv[1:] = arguments
            make_cli(None if args is None else arguments)
        else:
            raise ConfigError(f"no command {arguments[0]!r}; there are {', '.join((*TRAINER_COMMANDS, *OWN_COMMANDS))}")
    except (FutureL1Error, ValueError, TypeError) as error:
        own = own_error(error)
        if debug or own is None:
            raise
        print(f"futurel1: error: {one_line(own)}", file=sys.stderr)
        raise SystemExit(1) from None


def own_error(error: BaseException) -> FutureL1Error | None:
    """The library's error behind an error; jsonargparse wraps what a constructor raises."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, FutureL1Error):
        seen = seen.__cause__ or seen.__context__
    return seen


def one_line(error: FutureL1Error) -> str:
    """An error's own message; what a loader worker adds (its traceback) is left out."""
    text = str(error).strip()
    last = text.splitlines()[-1] if "Original Traceback" in text else text
    name = f"{type(error).__module__}.{type(error).__name__}: "
    return last.removeprefix(name)


if __name__ == "__main__":
    main()
