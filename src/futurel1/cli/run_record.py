"""What a run writes about itself, and what it leaves behind if it fails before its first step."""

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from futurel1.files import write_whole
from futurel1.json_lines import json_line

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
RESUMES_FILE = "resumes.jsonl"
"""One line per `--resume` that went on: when, from which checkpoint and step, and which settings it changed."""


class RunRecord(SaveConfigCallback):
    """Writes `config.yaml` at the first batch, when checkpoint and data have been found to fit.

    The file has the configuration as given, without the folders of this run, so that it can start a new run. If the
    run continues another, settings that differ from its file are logged and appended to `resumes.jsonl`.

    Args:
        parser: parser of the command.
        config: configuration of this run.
        as_given: configuration without the folders of this run.
        begun: called after the first optimizer step of `fit`, or the first batch of another command.
        options: those of Lightning's callback.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Any, *, as_given: Any, begun: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(parser, as_given, **options)
        self._begun = begun
        self._changes: dict[str, tuple[Any, Any]] | None = None  # None before the first batch
        self._recorded = False
        self._first_step = 0
        self._start = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Write the configuration at the first training batch."""
        self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the first optimizer step."""
        if trainer.global_step > self._first_step:
            self._begin(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note a checkpoint, which is a reason to keep the folder."""
        self._begin(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Write the configuration at the first batch of `validate`."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._write(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the first batch of `validate`."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._begin(trainer)

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Write the configuration at the first batch of `test`."""
        self._write(trainer)

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the first batch of `test`."""
        self._begin(trainer)

    def on_predict_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Write the configuration at the first batch of `predict`."""
        self._write(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the first batch of `predict`."""
        self._begin(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note a run that had nothing left to do."""
        self._begin(trainer)

    def _write(self, trainer: Any) -> None:
        if self._changes is not None:
            return
        self._changes, self._first_step = {}, trainer.global_step
        if not trainer.is_global_zero:
            return
        file = Path(trainer.default_root_dir) / CONFIG_FILE
        text = self.parser.dump(self.config, skip_none=False)
        if self._start and file.is_file():
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            self._changes = changed_settings(before, yaml.safe_load(text))
        write_whole(file, text)

    def _begin(self, trainer: Any) -> None:
        if self._recorded:
            return
        self._write(trainer)
        self._recorded = True
        self._begun()
        if not (self._start and trainer.is_global_zero):
            return
        changes = self._changes or {}
        for name, (before, now) in changes.items():
            logger.info("this resume changes %s: %s -> %s", name, before, now)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "checkpoint": self._start,
            "step": self._first_step,
            "changes": {name: list(pair) for name, pair in changes.items()},
        }
        with (Path(trainer.default_root_dir) / RESUMES_FILE).open("ab") as stream:
            stream.write(json_line(line, default=str))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note which checkpoint the run goes on from."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._start = Path(str(trainer.ckpt_path)).name


def changed_settings(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two configurations.

    Args:
        before: a configuration as nested dictionaries and lists.
        now: another one.

    Returns:
        By dotted name, the value before and now; None where there is none.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    names = [*new, *(name for name in old if name not in new)]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
