"""Files of a run, known again to a resumed run that was moved, killed or reconfigured."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from futurel1.modules.loggers import ResumableCSVLogger
from futurel1.modules.whole_checkpoints import write_whole_checkpoints

__all__ = ["ResumedFiles"]

KEY = "futurel1_files"
"""Entry of a checkpoint: the metrics that were not written yet, and the files that `ModelCheckpoint` had."""


class ResumedFiles(Callback):
    """Lets a resumed run go on with the files of its folder as if it had not been interrupted.

    Metrics: Lightning writes a step's row after the step's checkpoint. The checkpoint holds the row, and a run that was
    killed between the two gets it back; rows of later steps, which come again, are dropped.

    Checkpoints: `ModelCheckpoint` forgets its files if the run folder was moved or is given by another path, or if its
    own settings changed; it keeps the file that the run was resumed from for good, and one that it was killed before
    removing. Here it knows them again, so that `save_top_k` holds over resumes and `last.ckpt` keeps its name.

    It has to be behind all other callbacks, see :meth:`attach`.
    """

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._metrics_brought = False
        self._kept: dict[str, set[str]] = {}
        self._orphans: list[Path] = []

    @classmethod
    def attach(cls, trainer: Trainer) -> "ResumedFiles":
        """Append the callback to a Trainer's, and have checkpoints written beside their places."""
        callback = cls()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        callbacks.append(callback)
        write_whole_checkpoints(trainer)
        return callback

    # ------------------------------------------------------------------ saving

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the row of metrics that is written afterwards, and the files that are left if the run dies now."""
        files: dict[str, list[str]] = {}
        for callback in _model_checkpoints(trainer):
            state = checkpoint["callbacks"].get(callback.state_key)
            if state and callback.save_top_k != -1:
                now = {Path(path).name for path in _paths(state)}
                files[callback.state_key] = sorted(now | self._kept.get(callback.state_key, set()))
                self._kept[callback.state_key] = now
        checkpoint[KEY] = {"row": _row_to_come(trainer), "files": files}

    # ------------------------------------------------------------------ resuming

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct what `ModelCheckpoint` is about to load."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._resumed = checkpoint.get(KEY, {"row": None, "files": {}})
        self._metrics_brought = False
        states = checkpoint["callbacks"]
        callbacks = _model_checkpoints(trainer)
        used = {callback.state_key for callback in callbacks}
        for callback in callbacks:
            key = callback.state_key if callback.state_key in states else _former_key(callback, states, used)
            if key is None:
                continue
            state = states[callback.state_key] = moved_state(states[key], callback)
            if callback.save_top_k != -1:
                held = {Path(path).name for path in _paths(state)}
                left = {*self._resumed["files"].get(key, ()), *_versions_of_last(callback)} - held
                self._kept[callback.state_key] = held | left
                self._orphans += [Path(str(callback.dirpath)) / name for name in sorted(left)]
        if not any(callback.save_last for callback in callbacks):  # a stopped run left one, which nothing replaces
            self._orphans += {Path(str(callback.dirpath)) / "last.ckpt" for callback in callbacks}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the metrics to the step of the checkpoint."""
        self._bring_metrics(trainer, trainer.global_step)
        if self._resumed is not None:
            trainer.ckpt_path = None  # Lightning never removes the file that it resumed from

    def _bring_metrics(self, trainer: Trainer, step: int) -> None:
        """Drop rows from a step on, and add that of the checkpoint if it was not written."""
        if self._resumed is None or self._metrics_brought:
            return
        self._metrics_brought = True
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.go_on(step, self._resumed["row"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Remove old files as soon as there is a new checkpoint."""
        self._remove_orphans(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the last step, if nothing was left to train; remove old files, if nothing was saved before."""
        self._bring_metrics(trainer, trainer.global_step + 1)  # whatever was logged after the last step stays
        self._remove_orphans(trainer)

    def _remove_orphans(self, trainer: Trainer) -> None:
        if not self._orphans or not any(callback._last_checkpoint_saved for callback in _model_checkpoints(trainer)):
            return
        for file in self._orphans:
            trainer.strategy.remove_checkpoint(file)
        self._orphans = []


def moved_state(state: Mapping[str, Any], callback: ModelCheckpoint) -> dict[str, Any]:
    """The state of a `ModelCheckpoint` whose files are in its present folder now, without files that are gone.

    Args:
        state: as its `state_dict` returned it.
        callback: the callback that will load it, after its `setup`.
    """
    folder = Path(str(callback.dirpath))

    def present(path: str) -> str:
        file = folder / Path(path).name
        return str(file) if path and os.path.lexists(file) else ""

    last = folder / f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}"
    changed = {name: present(state.get(name) or "") for name in ("best_model_path", "kth_best_model_path")}
    return {
        **state,
        **changed,
        "best_k_models": {present(path): score for path, score in state["best_k_models"].items() if present(path)},
        "last_model_path": str(last) if os.path.lexists(last) else present(state.get("last_model_path") or ""),
        "dirpath": callback.dirpath,
    }


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _paths(state: Mapping[str, Any]) -> list[str]:
    """All files that a state names."""
    single = (state["best_model_path"], state["kth_best_model_path"], state["last_model_path"])
    return [str(path) for path in (*state["best_k_models"], *single) if path]


def _former_key(callback: ModelCheckpoint, states: Mapping[str, Any], used: set[str]) -> str | None:
    """The state of the same callback with other intervals; None unless there is exactly one."""
    kind = f"{type(callback).__qualname__}{{"
    found = [
        key
        for key, state in states.items()
        if key not in used
        and key.startswith(kind)
        and state.get("monitor") == callback.monitor
        and f"'mode': {callback.mode!r}" in key
    ]
    return found[0] if len(found) == 1 else None


def _versions_of_last(callback: ModelCheckpoint) -> list[str]:
    """`last-v1.ckpt` and so on, of runs that were resumed before this callback existed."""
    if not callback.save_last:
        return []
    pattern = f"{callback.CHECKPOINT_NAME_LAST}-v[0-9]*{callback.FILE_EXTENSION}"
    return [path.name for path in Path(str(callback.dirpath)).glob(pattern)]


def _row_to_come(trainer: Any) -> dict[str, float] | None:
    """The metrics that Lightning logs at the end of the current batch, with their step; None if there are none."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    in_batch = trainer.training and progress.processed > progress.completed
    connector = trainer._logger_connector
    if not in_batch or trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return None
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    step = values.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped)
    return {"epoch": trainer.current_epoch, **values, "step": int(step)} if values else None
