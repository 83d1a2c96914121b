"""Stops a Trainer by Ctrl-C or SIGTERM where nothing is lost: after an optimizer step, or after a batch."""

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn

from futurel1 import interrupts
from futurel1.interrupts import Stopped, StoppedAtOnce

__all__ = ["StopInOrder"]

logger = logging.getLogger(__name__)
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""The checkpoint that a stopped run leaves, in its folder."""


class StopInOrder(Callback):
    """Leaves at the first good place after Ctrl-C or SIGTERM, on all ranks together.

    `fit` finishes the optimizer step that it is in (not only a micro-batch of it), writes `checkpoints/last.ckpt` and
    leaves. During validation, and while rollouts are collected, it leaves after the current batch: the weights are
    still those of the last step, and so is the checkpoint; an unfinished validation is done again when the run is
    resumed. If no step is left, the run ends as always. `predict`, `test` and `validate` leave after the current batch.

    It has to be the last of the Trainer's callbacks, see :meth:`attach`. It replaces Lightning's handling of SIGTERM,
    which stops without a checkpoint and, on several ranks, communicates within the signal's handler; SLURM's requeue
    signal stays Lightning's.

    Args:
        on_progress: called with words for what was finished.
    """

    def __init__(self, on_progress: Callable[[str], None] = lambda done: None) -> None:
        self._on_progress = on_progress
        self._step = 0
        self._batches, self._left = 0, 0.0
        self._loops: dict[str, Any] | None = None  # of the last step of this session
        self._epoch = 0
        self._validation_due = False
        self._saving = False

    @classmethod
    def attach(cls, trainer: Trainer, on_progress: Callable[[str], None] = lambda done: None) -> "StopInOrder":
        """Append the callback to a Trainer's, and keep Lightning from handling SIGTERM."""
        callback = cls(on_progress)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        callbacks.append(callback)
        trainer._signal_connector._sigterm_notifier_fn = _nothing  # type: ignore[assignment,method-assign]
        return callback

    # ------------------------------------------------------------------ from when on it waits

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Pass the first signal on to the processes that this one started."""

        def listener(signum: int) -> None:
            launcher: Any = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(SIGTERM)
            if interrupts.is_deferred() and trainer.is_global_zero:
                text = (
                    f"\nfuturel1: {Signals(signum).name}: stopping after this step or batch; once more stops at once\n"
                )
                os.write(2, text.encode())

        interrupts.listen(listener)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of a step from here on."""
        self._step, self._loops = trainer.global_step, None
        interrupts.defer()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of a batch from here on."""
        self._begin_batches(trainer, trainer.num_predict_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of a batch from here on."""
        self._begin_batches(trainer, trainer.num_test_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of a batch from here on."""
        self._begin_batches(trainer, trainer.num_val_batches)

    def _begin_batches(self, trainer: Trainer, batches: Any) -> None:
        """Count batches from here on; ranks may have different numbers of them, so they do not agree after each."""
        total = sum(batches) if isinstance(batches, list) else batches
        self._batches, self._left = 0, total
        interrupts.defer(not trainer.sanity_checking)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait no longer."""
        interrupts.defer(False)

    # ------------------------------------------------------------------ where it leaves

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Note the state after an optimizer step, and leave if a signal has come."""
        if trainer.global_step == self._step:
            return  # inside an accumulation window
        self._step = trainer.global_step
        self._on_progress(f"{self._step} step{'s' * (self._step != 1)}")
        loop: Any = trainer.fit_loop
        self._loops, self._epoch = copy.deepcopy(loop.state_dict()), trainer.current_epoch
        self._validation_due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        signum = self._agreed(trainer)
        if signum is None:
            return
        if self._is_last_step(trainer):
            self._save(trainer)  # perhaps there is no time for what is left
            return
        # The row of this step, which Lightning writes after this hook.
        trainer._logger_connector.update_train_step_metrics()
        raise Stopped(signum)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Leave if a signal has come, except after the last step of a training."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        several = trainer.world_size > 1  # ranks leave a training together, after its next step
        if not (fitting and (several or trainer.sanity_checking or self._is_last_step(trainer))):
            self._leave_after_batch(trainer, "" if fitting else "validated")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation is done."""
        self._validation_due = False

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Leave if a signal has come."""
        self._leave_after_batch(trainer, "tested")

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Leave if a signal has come; the batch is written already."""
        self._leave_after_batch(trainer, "predicted")

    def _leave_after_batch(self, trainer: Trainer, what: str) -> None:
        self._batches += 1
        self._left -= 1
        if what:
            # What comes after the last batch, such as a judge's verdicts, has no better place to stop.
            interrupts.defer(self._left > 0)
            self._on_progress(f"{self._batches} {what} batch{'es' * (self._batches != 1)}")
        signum = interrupts.requested()
        if signum is not None:
            raise Stopped(signum)

    @staticmethod
    def _agreed(trainer: Trainer) -> int | None:
        """The signal that any rank got; every rank has to call this."""
        strategy: Any = trainer.strategy
        signum = interrupts.requested()
        if not strategy.reduce_boolean_decision(signum is not None, all=False):
            return None
        return SIGTERM if strategy.reduce_boolean_decision(signum == SIGTERM, all=False) else SIGINT

    @staticmethod
    def _is_last_step(trainer: Trainer) -> bool:
        """Whether no optimizer step is left to do."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        epochs = trainer.max_epochs
        last_epoch = epochs not in (None, -1) and trainer.current_epoch + 1 >= int(epochs or 0)
        by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        return by_steps or trainer.should_stop or (last_epoch and progress.is_last_batch)

    # ------------------------------------------------------------------ the checkpoint

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the state after the last optimizer step, unless the stop was to be at once."""
        if isinstance(exception, Stopped) and not isinstance(exception, StoppedAtOnce):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self._loops is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            return
        file = Path(trainer.default_root_dir) / LAST_CHECKPOINT
        if not self._validation_due and any(self._has_saved(callback, file) for callback in _checkpoints(trainer)):
            return
        self._saving = True
        try:
            trainer.save_checkpoint(file)
        finally:
            self._saving = False
        self._loops = None

    def _has_saved(self, callback: ModelCheckpoint, file: Path) -> bool:
        """Whether a callback has written a whole checkpoint of this step into the folder of `file`."""
        saved = Path(callback._last_checkpoint_saved)
        same_step = callback._last_global_step_saved == self._step
        return same_step and not callback.save_weights_only and saved.parent.resolve() == file.parent.resolve()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the checkpoint of a stop the progress at the end of its step, wherever the run was stopped."""
        if not self._saving or self._loops is None:
            return
        loops = self._loops
        if self._validation_due:
            _mark_validation_as_begun(loops)
        checkpoint["loops"]["fit_loop"] = loops
        checkpoint["epoch"] = self._epoch
        folder = (Path(trainer.default_root_dir) / LAST_CHECKPOINT).parent
        for callback in _checkpoints(trainer):
            state = checkpoint["callbacks"].get(callback.state_key)
            if state and callback.save_last and Path(str(callback.dirpath)).resolve() == folder.resolve():
                state["last_model_path"] = str(Path(str(callback.dirpath)) / LAST_CHECKPOINT.name)


def _nothing(signum: int, frame: Any) -> None:
    """What Lightning does about SIGTERM: nothing; it calls the handler that was there before it as well."""


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _mark_validation_as_begun(loops: dict[str, Any]) -> None:
    """Change the progress after a batch so that a resume validates before it trains on."""
    training, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    for counts in (training["total"], training["current"]):
        counts["completed"] += 1
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["is_last_batch"] = False
    for name in ("ready", "started"):
        validation["total"][name] += 1
