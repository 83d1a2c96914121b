"""Callbacks that every run wants: the Hugging Face export and written predictions."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback

from futurel1.errors import ConfigError
from futurel1.files import write_whole
from futurel1.json_lines import drop_cut_line, json_line, written_ids
from futurel1.models import TrainingRun
from futurel1.runs import EXPORT_FOLDER

logger = logging.getLogger(__name__)


class HuggingFaceExport(Callback):
    """Writes the model in Hugging Face format beside the Lightning checkpoints, when training ends.

    The model card (`README.md`) tells the run's settings, its data and the metrics that it logged last.

    A run that was killed between its last checkpoint and the export is not trained when resumed, but exported.

    Args:
        every_n_steps: also every so many optimizer steps; None: at the end only.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self._exported = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew: nothing of this run is exported yet."""
        self._exported = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Export when enough optimizer steps have passed."""
        step = trainer.global_step
        if self.every_n_steps and step and step % self.every_n_steps == 0 and step != self._exported:
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the final weights."""
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export what was resumed after its last step: it is not trained, so training does not end."""
        if trainer.global_step != self._exported:
            self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: Any) -> None:
        self._exported = trainer.global_step
        pl_module.export(Path(trainer.default_root_dir) / EXPORT_FOLDER, training=_training(trainer, pl_module))


def _training(trainer: Any, module: LightningModule) -> TrainingRun:
    """A run as its model card tells it."""
    data = getattr(trainer, "datamodule", None)
    return TrainingRun(
        module=type(module).__name__,
        steps=trainer.global_step,
        settings=module.hparams,
        data={} if data is None else {"class": type(data).__name__, **data.hparams},
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
    )


class JSONLinesWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, one record a line, to `predictions.jsonl` in the run folder.

    Lines go to the disk batch by batch. A run that was killed goes on where it stopped: records that have a line
    already are left out, where the data module can do that (`skip_finished`); a line that was cut off is written anew.
    Each rank writes its own file; rank 0's has no suffix.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take stock of what is there; start an empty file where nothing can be skipped."""
        if stage != "predict":
            return
        file = self.file(trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        skip_finished = getattr(getattr(trainer, "datamodule", None), "skip_finished", None)
        if skip_finished is None:
            file.write_text("")
            return
        if trainer.global_rank == 0:
            for written in file.parent.glob("predictions*.jsonl"):
                drop_cut_line(written)
        finished = {name for written in sorted(file.parent.glob("predictions*.jsonl")) for name in written_ids(written)}
        self._check_settings(trainer, pl_module, bool(finished))
        skip_finished(finished)
        if finished:
            logger.info("%d records have a prediction already", len(finished))

    def _check_settings(self, trainer: Any, module: Any, going_on: bool) -> None:
        """Refuse to go on with other records or another way of decoding than what is written was made with."""
        note = Path(trainer.default_root_dir) / "predictions.settings.json"
        data = trainer.datamodule
        files = [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in data.dataset("predict").source.files
        ]
        settings: dict[str, Any] = {"records": files}
        for name, value in module.hparams.items():
            parts = {f".{key}": of for key, of in value.items()} if isinstance(value, dict) else {"": value}
            settings |= {f"model.{name}{key}": of for key, of in parts.items()}
        for name, value in data.hparams.items():
            if name not in ("batch_size", "num_workers"):  # they change no prediction
                settings[f"data.{name}"] = value
        now = json.loads(json.dumps(settings, default=str))
        if going_on and note.is_file():
            before = json.loads(note.read_text(encoding="utf-8"))
            odd = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
            if odd:
                raise ConfigError(
                    f"{note.parent} holds predictions made with other settings ({', '.join(odd)} differ); start a new "
                    "run folder, or restore them"
                )
        if trainer.global_rank == 0:
            write_whole(note, json.dumps(now, indent=2) + "\n")

    def file(self, trainer: Trainer) -> Path:
        """Where this rank writes."""
        suffix = f"-rank{trainer.global_rank}" if trainer.global_rank else ""
        return Path(trainer.default_root_dir) / f"predictions{suffix}.jsonl"

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any,
        batch_indices: Sequence[int] | None, batch: Any, batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Append one batch and hand it to the disk."""
        with self.file(trainer).open("ab") as stream:
            stream.write(b"".join(map(json_line, prediction)))
            stream.flush()
            os.fsync(stream.fileno())
