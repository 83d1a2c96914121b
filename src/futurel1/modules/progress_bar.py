"""A progress bar that counts optimizer steps, which are what ends a run."""

import logging
import math
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

logger = logging.getLogger(__name__)


def total_steps(trainer: Trainer) -> float:
    """Optimizer steps of a whole run, earlier sessions included: the fewer of `max_steps` and of `max_epochs` epochs.

    Args:
        trainer: a Trainer whose training has begun.

    Returns:
        The number, infinite if nothing but the user ends the run.
    """
    steps = float("inf") if trainer.max_steps == -1 else float(trainer.max_steps)
    if trainer.max_epochs not in (None, -1):
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        steps = min(steps, float(per_epoch) * int(trainer.max_epochs or 0))
    return steps


class StepProgressBar(RichProgressBar):
    """Lightning's rich progress bar, but training is one bar of optimizer steps, whatever the number of epochs.

    A resumed run starts at its step. Validation, test and prediction count batches. Where the output is no terminal,
    such as in the log of a cluster, a line now and then takes the place of the bar.

    Args:
        every_n_seconds: time between two such lines.
        options: those of `lightning.pytorch.callbacks.RichProgressBar`.
    """

    def __init__(self, every_n_seconds: float = 60.0, **options: Any) -> None:
        super().__init__(**options)
        self._console_options = dict(options.get("console_kwargs") or {})
        self.every_n_seconds = every_n_seconds
        self._draws = True
        self._told = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether a bar is drawn."""
        return self._draws and super().is_enabled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether there is a terminal, or a notebook."""
        super().setup(trainer, pl_module, stage)
        console = Console(**self._console_options)
        self._draws = console.is_terminal or console.is_jupyter
        self._told = time.monotonic()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, bar, count with its unit, time, and speed."""
        described, bar, _, elapsed, _ = super().configure_columns(trainer)
        return [described, bar, _Count(), elapsed, _Speed()]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics that modules show, without the version of a logger, which is no metric."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of the run; it goes on through all epochs."""
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the optimizer steps that are done."""
        self._begin(trainer)  # a run that was resumed within an epoch has no start of an epoch
        if self.is_enabled and self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, completed=trainer.global_step)
            self._update_metrics(trainer, pl_module)
            self.refresh()
        metrics = (f"{name} {value:.3f}" for name, value in trainer.progress_bar_metrics.items())
        self._tell("step", trainer.global_step, total_steps(trainer), *metrics)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Show the batches that are done."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if not trainer.sanity_checking:
            self._tell("validation batch", batch_idx + 1, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Show the batches that are done."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._tell("test batch", batch_idx + 1, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Show the batches that are done."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._tell("prediction batch", batch_idx + 1, trainer.num_predict_batches[dataloader_idx])

    def _begin(self, trainer: Trainer) -> None:
        if self.is_enabled and self.progress is not None and self.train_progress_bar_id is None:
            self.train_progress_bar_id = self.progress.add_task(
                "Training", total=total_steps(trainer), completed=trainer.global_step, unit="step"
            )

    def _tell(self, unit: str, done: int, total: float, *metrics: str) -> None:
        """Log a line where no bar is drawn, unless one was logged a moment ago."""
        if self._draws or not super().is_enabled or time.monotonic() - self._told < self.every_n_seconds:
            return
        self._told = time.monotonic()
        logger.info("%s", ", ".join((f"{unit} {_count(done, total)}", *metrics)))


def _unit(task: Task) -> str:
    return str(task.fields.get("unit", "batch"))


def _count(done: float, total: float | None) -> str:
    return f"{done:.0f}/{total:.0f}" if total is not None and math.isfinite(total) else f"{done:.0f}"


class _Count(ProgressColumn):
    """What is done of all, with its unit."""

    def render(self, task: Task) -> Text:
        return Text(f"{_unit(task)} {_count(task.completed, task.total)}")


class _Speed(ProgressColumn):
    """Steps or batches per second; seconds for each where they are slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text()
        unit = _unit(task)
        return Text(
            f"{speed:.1f} {unit}{'es' if unit == 'batch' else 's'}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
        )
