"""Callbacks for the Hugging Face export and for written predictions."""

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
from futurel1.full_disk import told_when_full
from futurel1.json_lines import drop_cut_line, json_line, written_ids
from futurel1.modules.training_run import training_run
from futurel1.runs import EXPORT_FOLDER

logger = logging.getLogger(__name__)


class HuggingFaceExport(Callback):
    """Writes the model in Hugging Face format beside the Lightning checkpoints when training ends.

    The model card (`README.md`) lists the run's settings, its data and the metrics that were logged last.

    A run that was killed between its last checkpoint and the export is only exported when resumed, not trained.

    Args:
        every_n_steps: also export every n optimizer steps; None: only at the end.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self._exported = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset: nothing of this run is exported yet."""
        self._exported = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Export every `every_n_steps` optimizer steps."""
        step = trainer.global_step
        if self.every_n_steps and step and step % self.every_n_steps == 0 and step != self._exported:
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the final weights."""
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export a run that was resumed after its last step: it does not train, so `on_train_end` is not called."""
        if trainer.global_step != self._exported:
            self._export(trainer, pl_module)

    def _export(self, trainer: Any, pl_module: Any) -> None:
        self._exported = trainer.global_step
        if trainer.fast_dev_run:
            return  # it leaves nothing behind
        run = Path(trainer.default_root_dir)
        whole = f"the run's checkpoints are whole; free some, then `futurel1 fit --resume {run}` repeats the export"
        with told_when_full(run / EXPORT_FOLDER, whole):
            pl_module.export(run / EXPORT_FOLDER, training=training_run(trainer, pl_module))


class JSONLinesWriter(BasePredictionWriter):
    """Writes the records that `predict_step` returns to `predictions.jsonl` in the run folder, one per line.

    Lines are synced to disk after every batch. A killed run continues where it stopped: if the data module has
    `skip_finished`, it skips records that already have a complete line. Each rank writes its own file; rank 0's has no
    suffix.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find finished records; start with an empty file if the data module cannot skip them."""
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
        """Refuse to continue with records or settings other than those of the written predictions."""
        note = Path(trainer.default_root_dir) / "predictions.settings.json"
        data = trainer.datamodule
        files = [(file.place, file.size, file.version) for file in data.dataset("predict").source.files]
        settings: dict[str, Any] = {"records": files}
        engine = getattr(module, "engine", None)
        for name, value in module.hparams.items():
            if name == "engine":  # its address and limits do not change predictions
                value = engine and engine.identity()
            parts = {f".{key}": of for key, of in value.items()} if isinstance(value, dict) else {"": value}
            settings |= {f"model.{name}{key}": of for key, of in parts.items()}
        for name, value in data.hparams.items():
            if name not in ("batch_size", "num_workers"):  # these do not change predictions
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
        """File that this rank writes."""
        suffix = f"-rank{trainer.global_rank}" if trainer.global_rank else ""
        return Path(trainer.default_root_dir) / f"predictions{suffix}.jsonl"

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any,
        batch_indices: Sequence[int] | None, batch: Any, batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Append one batch and sync it to disk."""
        file = self.file(trainer)
        going_on = f"earlier lines are whole; free some, then `futurel1 predict --resume {file.parent}` goes on"
        with told_when_full(file, going_on), file.open("ab") as stream:
            stream.write(b"".join(map(json_line, prediction)))
            stream.flush()
            os.fsync(stream.fileno())
