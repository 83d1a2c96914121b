"""`futurel1 fit`, `validate`, `test` and `predict`: Trainer, model and data from a command line."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from futurel1.cli.config_places import check_config_files
from futurel1.cli.run_folder import RUN_PLACEHOLDER, RunFolder, resume_arguments
from futurel1.cli.run_lock import writing_run
from futurel1.launch import Launch
from futurel1.shipped_configs import resolve_config_options

TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "evaluate on the validation records",
    "test": "evaluate on the test records",
    "predict": "write one line per record to predictions.jsonl",
}
_EXAMPLES = {
    "fit": "futurel1 fit --config configs/tiny/sft.yaml --run_name first; futurel1 fit --resume runs/first",
    "validate": "futurel1 validate --config configs/tiny/sft.yaml --model.init_args.init_from runs/first",
    "test": "futurel1 test --config configs/tiny/sft.yaml --model.init_args.init_from runs/first",
    "predict": "futurel1 predict --config configs/tiny/sft.yaml --model.init_args.init_from runs/first",
}
_EPILOG = (
    "--resume RUN continues the training (fit) or the predictions (predict) of the run in folder RUN; --debug shows "
    "tracebacks of errors."
)
_EXPECTED = (
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning uses an outdated call of PyTorch's pytree
    "LightningCLI's args parameter is intended",
    "Experiment logs directory .* exists",  # a resumed run keeps its rows
    "Total length of `list` across ranks is zero",  # no validation split
    "Checkpoint directory .* exists and is not empty",  # likewise
    "Couldn't infer the batch indices",  # predictions carry their own ids
)
"""Warnings about intended behaviour, which are suppressed."""
_LOGGERS = (
    {"class_path": "ResumableCSVLogger", "init_args": {"save_dir": RUN_PLACEHOLDER}},
    {"class_path": "TensorBoardLogger", "init_args": {"save_dir": RUN_PLACEHOLDER, "name": "", "version": ""}},
)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    """Whether Lightning tells something of the run, not of products that could be installed."""
    return "Tip: For seamless" not in record.getMessage()


def run_trainer(command: str, args: Sequence[str], *, resume: str | None = None, own_process: bool = False) -> None:
    """Run a command that runs a Trainer.

    Args:
        command: key of `TRAINER_COMMANDS`.
        args: its options.
        resume: run folder to continue.
        own_process: whether this is the command of the whole process, which processes that a Trainer starts for other
            devices must repeat.
    """
    from futurel1.cli.flat_keys import refuse_flat_keys

    with ExitStack() as held:
        if resume is not None and (Path(resume) / "config.yaml").is_file():
            held.enter_context(writing_run(Path(resume), Launch.detect()))  # before its newest checkpoint is looked for
        given = args if resume is None else resume_arguments(command, args, resume)
        arguments = [command, *resolve_config_options(given)]
        refuse_flat_keys(arguments)
        if own_process:
            sys.argv[1:] = arguments
            if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
                # Batches differ in length; without this the allocator loses several GB between tensors. It is read at
                # the first allocation on a GPU.
                os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        make_cli(arguments, resumed=resume is not None)


def make_cli(args: list[str] | None = None, *, run: bool = True, resumed: bool = False) -> Any:
    """Build Trainer, model and data from a command line.

    Args:
        args: ``["fit", "--config", ...]``, or only options if `run` is False; None: those of the process.
        run: run the subcommand; False only instantiates.
        resumed: whether `--run_dir` names a run that goes on.

    Returns:
        The `LightningCLI`, with `trainer`, `model` and `datamodule`.
    """
    # Lightning 2.6 uses names that jsonargparse 4.49 renamed; they work until jsonargparse 5, which is excluded.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)

    from lightning import LightningDataModule, LightningModule, Trainer

    # Short class names in YAML are looked up among imported subclasses, so all of them must be imported.
    import futurel1.datamodules  # noqa: F401
    from futurel1.cli.run_cli import RunCLI
    from futurel1.cli.run_record import RunRecord
    from futurel1.modules import StepProgressBar

    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)

    given = sys.argv[1:] if args is None else args
    check_config_files(given)
    asked = next(iter(given), None)
    shown = [asked] if asked in TRAINER_COMMANDS else list(TRAINER_COMMANDS)
    strict = {"exit_on_error": False, "allow_abbrev": False}
    epilogs = {name: {"epilog": f"{_EPILOG} Example: {_EXAMPLES[name]}", **strict} for name in shown}
    made: list[RunFolder] = []
    held = ExitStack()
    try:
        cli = RunCLI(
            LightningModule,
            LightningDataModule,
            asked=asked,
            made=made,
            resumed=resumed,
            held=held,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # modules make their own; the model does not exist yet during parsing
            save_config_callback=RunRecord,
            trainer_defaults={"logger": list(_LOGGERS), "callbacks": [StepProgressBar()]},
            parser_kwargs={**strict, **epilogs} if run else strict,
            args=args,
            run=run,
        )
    finally:
        held.close()
        for folder in made:
            folder.close()
    if run and cli.trainer.is_global_zero:
        temporary = any(folder.temporary for folder in made)
        print("fast_dev_run: nothing was kept" if temporary else f"run folder: {cli.trainer.default_root_dir}")
    return cli
