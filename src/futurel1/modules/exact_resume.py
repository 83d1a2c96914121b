"""Base of modules whose runs resume to the weights of an uninterrupted run, wherever the checkpoint was taken."""

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from futurel1.errors import CheckpointError
from futurel1.modules.held_signals import HeldSignals
from futurel1.modules.optimization import apply_settings
from futurel1.modules.position import (
    Position,
    position_state,
    put_counters_right,
    saved_position,
    validate_before_the_end,
)
from futurel1.modules.whole_checkpoints import WholeCheckpoints
from futurel1.rollout.collector import gather

RandomState = dict[str, Tensor]


class ExactResumeModule(LightningModule):
    """Resumes at the end of the last optimizer step, whatever the Trainer and its callbacks are.

    A checkpoint may be taken anywhere: at the end of an epoch, between the micro-batches of an optimizer step, during
    validation. It has the weights after the last optimizer step. This class remembers where that step ended in the
    data, and the random state at that point. When the checkpoint is loaded, it changes Lightning's loop counters to
    that place, so micro-batches that came after the step are computed again. The random state is set to the remembered
    one at the first micro-batch of every step, so validation and loaders do not change random numbers of training.

    Subclasses that override one of these hooks call the base class's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._position = Position()
        self._random: RandomState | None = None
        self._step_begins = True
        self._resumed = False
        self._updating = False
        self._signals = HeldSignals()
        self._optimizer_settings: list[dict[str, Any]] = []  # of each group; `configure_optimizers` sets them

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks of every run: checkpoints appear whole, or not at all."""
        return [WholeCheckpoints()]

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the position, and the random states of all ranks.

        Raises:
            CheckpointError: the optimizer failed in the middle of an update.
        """
        if self._updating:
            raise CheckpointError(
                f"no checkpoint is saved: the optimizer failed in the middle of step {self.global_step + 1}, so some "
                "weights are those before the step and some those after; resume from the checkpoint before"
            )
        checkpoint["position"] = position_state(self._current_position())
        checkpoint["random_states"] = gather(self._random or self._random_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the loop counters of a checkpoint to resume from right, and restore the random state."""
        trainer = getattr(self, "_trainer", None)
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or "loops" not in checkpoint:
            return
        self._position = saved_position(checkpoint, trainer.accumulate_grad_batches)
        put_counters_right(checkpoint, self._position)
        if not self._position.validated:
            validate_before_the_end(trainer)
        states = checkpoint.get("random_states", [{"cpu": checkpoint.get("torch_rng_state", torch.get_rng_state())}])
        self._random = states[self.global_rank] if self.global_rank < len(states) else None
        self._resumed = True

    def _current_position(self) -> Position:
        """The position, with what came after the last optimizer step."""
        position = self._position
        fit: Any = self.trainer.fit_loop
        if position.last and fit.epoch_progress.current.processed > position.epoch:
            return position.next_epoch()
        return position

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Begin at the position of the checkpoint, or without one at that of the Trainer, with this module's settings.

        Rates, decay and schedule are those that were given now, not those that the checkpoint stores.
        """
        for config in self.trainer.lr_scheduler_configs:
            if self._optimizer_settings:
                schedule: Any = config.scheduler
                apply_settings(schedule, self._optimizer_settings)
        loop = self.trainer.fit_loop.epoch_loop
        progress = loop.batch_progress
        if not self._resumed:
            self._position = Position(self.current_epoch, 0, progress.total.ready)
            self._random = None
        # A resumed Trainer counts one step more when it passes a validation that is due, done or not.
        passes = loop.restarting and loop._should_check_val_fx(self.trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        loop._batches_that_stepped = self.global_step - int(passes and not loop._should_accumulate())
        self._random = self._random or self._random_state()
        self._set_random_state(self._random)  # also for loaders that sample, before the first micro-batch
        self._step_begins, self._updating = True, False
        self.zero_grad()  # gradients of micro-batches that are computed again

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """At the first micro-batch of an optimizer step, set the random state to that after the step before."""
        if not self._step_begins:
            return
        self._step_begins = False
        if self._random is not None:
            self._set_random_state(self._random)
        if self._resumed:
            self._resumed = False
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    # It has forgotten the step that it was resumed from, and would save that in every micro-batch.
                    callback._last_global_step_saved = self.global_step

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip gradients; what follows is the update of the weights, which no signal may interrupt."""
        super().configure_gradient_clipping(*args, **kwargs)
        self._signals.hold()
        self._updating = True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take an optimizer step, and remember where it ended."""
        try:
            super().optimizer_step(*args, **kwargs)
        except BaseException:
            self._signals.release()
            raise
        fit: Any = self.trainer.fit_loop
        progress = fit.epoch_loop.batch_progress
        self._position = Position(
            fit.epoch_progress.current.processed,
            progress.current.ready,
            progress.total.ready,
            last=fit.epoch_loop._num_ready_batches_reached(),
            validated=False,
        )
        self._random = self._random_state()
        self._step_begins, self._updating = True, False

    def lr_scheduler_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the schedule on; the step is whole now, so signals that came meanwhile are handled."""
        super().lr_scheduler_step(*args, **kwargs)
        self._signals.release()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Handle signals that came during a step without a schedule."""
        self._signals.release()

    def on_validation_epoch_end(self) -> None:
        """Remember that the validation of this place is done."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._position = Position(**{**position_state(self._position), "validated": True})

    def on_validation_end(self) -> None:
        """Set the random state to that after the last step, for loaders that sample."""
        if self._step_begins and self._random is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._set_random_state(self._random)

    def on_train_end(self) -> None:
        """Let every :class:`ModelCheckpoint` save the last step, whatever its intervals are."""
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                _save_last_step(self.trainer, callback)

    def teardown(self, stage: str) -> None:
        """Forget the checkpoint, which a run that was finished has not used."""
        self._resumed = False

    # ------------------------------------------------------------------ random numbers

    def _random_state(self) -> RandomState:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _set_random_state(self, state: RandomState) -> None:
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)


def _save_last_step(trainer: Any, callback: ModelCheckpoint) -> None:
    """Save the last step as a callback is configured; one that keeps only the best by a metric keeps those."""
    if callback._should_skip_saving_checkpoint(trainer):
        return
    candidates = callback._monitor_candidates(trainer)
    if callback.monitor is None:
        callback._save_topk_checkpoint(trainer, candidates)
    elif callback.save_last == "link":
        callback._last_checkpoint_saved = ""  # an earlier step's: write a file in place of a link to it
    callback._save_last_checkpoint(trainer, candidates)
