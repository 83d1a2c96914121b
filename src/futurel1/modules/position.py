"""Where a run stands between two optimizer steps, and a checkpoint's loop counters put right for that place."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_LOOP = "epoch_loop."
_OPTIMIZER = f"{_LOOP}automatic_optimization.optim_progress"


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps.

    Attributes:
        epoch: number of the epoch, counted from 0.
        batches: batches of this epoch that finished optimizer steps have used.
        total_batches: the same over all epochs.
        last: whether these are all batches of the epoch, and only its end is left: validation and hooks.
        validated: whether a validation that is due at this place has been done.
    """

    epoch: int = 0
    batches: int = 0
    total_batches: int = 0
    last: bool = False
    validated: bool = True

    def next_epoch(self) -> "Position":
        """The start of the next epoch."""
        return Position(self.epoch + 1, total_batches=self.total_batches)


def saved_position(checkpoint: Mapping[str, Any], window: int) -> Position:
    """The position of a checkpoint; from Lightning's counters if futurel1 0.1 wrote it.

    Args:
        checkpoint: a checkpoint, not of weights alone.
        window: batches per optimizer step.
    """
    if "position" in checkpoint:
        return Position(**checkpoint["position"])
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["current"], loops[f"{_LOOP}batch_progress"]
    done, total, last = batches["current"]["processed"], batches["total"]["processed"], batches["is_last_batch"]
    if epochs["processed"] == epochs["ready"] and (last or not done):
        return Position(epochs["processed"], total_batches=total)
    epoch = min(epochs["processed"], epochs["ready"] - 1)
    beyond = 0 if last else done % window
    return Position(max(0, epoch), done - beyond, total - beyond, last, validated=not done)


def put_counters_right(checkpoint: Mapping[str, Any], position: Position) -> None:
    """Change the loop counters of a checkpoint to those of its position.

    Lightning's own depend on the hook that saved the checkpoint, and on what that run was itself resumed from; it
    guesses from them what is left to do, and counts an epoch too few after some resumes (2.6.6).
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batches, step = position.epoch, position.batches, checkpoint["global_step"]
    begun = epoch + (batches > 0)
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loops["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    loops[f"{_LOOP}batch_progress"] = {
        "total": dict.fromkeys(epochs, position.total_batches),
        "current": dict.fromkeys(epochs, batches),
        "is_last_batch": position.last,
    }
    loops[f"{_LOOP}state_dict"] = {"_batches_that_stepped": step}
    # A validation that stopped in its first batch: Lightning begins it again, if one is due here.
    begun = 0 if position.validated else 1
    stopped = {"ready": begun, "started": begun, "processed": 0, "completed": 0}
    loops[f"{_LOOP}val_loop.batch_progress"] = {"total": stopped, "current": dict(stopped), "is_last_batch": False}
    optimizer = loops[_OPTIMIZER]["optimizer"]
    optimizer["step"]["total"] = {"ready": step, "completed": step}
    for counted in (optimizer["step"], optimizer["zero_grad"]):
        if not batches:
            counted["current"] = dict.fromkeys(counted["current"], 0)
        for part in counted.values():
            part.update(dict.fromkeys(part, part["completed"]))


def validate_before_the_end(trainer: Any) -> None:
    """Have a resumed Trainer do a validation that is due at its last step, which it otherwise skips with the training.

    Lightning leaves a loop that has no step left before it looks whether a validation was cut (2.6.6). The limit of
    steps is one more here from where the loop first asks for its end to where it begins the epoch that was cut; there
    it validates, takes no step, and goes on as after any last step.

    Args:
        trainer: a Trainer that resumes from a checkpoint without this validation.
    """
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    setup_data, limit = type(fit).setup_data, loop.max_steps

    def before_the_first_look() -> None:
        setup_data(fit)
        if not loop.restarting:
            return  # the module asks how long the training is; the Trainer has not loaded its counters
        del fit.setup_data
        no_step_left = limit != -1 and loop.global_step >= limit
        if fit.max_batches and no_step_left and loop._should_check_val_fx(fit._data_fetcher):
            loop.max_steps = loop.global_step + 1
            fit.setup_data = before_the_epoch

    def before_the_epoch() -> None:
        loop.max_steps = limit
        del fit.setup_data
        setup_data(fit)

    fit.setup_data = before_the_first_look


def position_state(position: Position) -> dict[str, Any]:
    """Plain values for a checkpoint."""
    return asdict(position)
