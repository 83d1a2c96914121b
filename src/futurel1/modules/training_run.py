"""What the model card of an export says about its run, and what a checkpoint has to keep for it."""

from collections.abc import Mapping
from typing import Any

from lightning import LightningModule

from futurel1.models import TrainingRun

__all__ = ["noted_run", "run_note", "training_run"]

KEY = "training_run"
"""Entry of a checkpoint: names of module and data, and the metrics that were logged last."""


def training_run(trainer: Any, module: LightningModule) -> TrainingRun:
    """A run as its model card tells it."""
    note = run_note(trainer, module)
    data = getattr(trainer, "datamodule", None)
    settings = {} if data is None else data.hparams
    return TrainingRun(note["module"], trainer.global_step, module.hparams, _data(note, settings), note["metrics"])


def run_note(trainer: Any, module: LightningModule) -> dict[str, Any]:
    """What a checkpoint keeps of it, besides steps and settings, which Lightning does."""
    data = getattr(trainer, "datamodule", None)
    return {
        "module": type(module).__name__,
        "data": None if data is None else type(data).__name__,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def noted_run(checkpoint: Mapping[str, Any]) -> TrainingRun:
    """The run of a checkpoint.

    Args:
        checkpoint: what a Trainer saved; one of version 0.1 does not name its module.
    """
    note = checkpoint.get(KEY, {"module": "LightningModule", "data": None, "metrics": {}})
    data = _data(note, checkpoint.get("datamodule_hyper_parameters", {}))
    settings = checkpoint["hyper_parameters"]
    return TrainingRun(note["module"], int(checkpoint["global_step"]), settings, data, note["metrics"])


def _data(note: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {} if note["data"] is None else {"class": note["data"], **settings}
