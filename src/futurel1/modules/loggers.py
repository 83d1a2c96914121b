"""Loggers that survive a resume."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from futurel1.files import replacing
from futurel1.full_disk import told_when_full

METRICS_FILE = "metrics.csv"


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSVLogger, but a resumed run keeps its earlier rows instead of deleting them.

    Rows from the first newly logged step on are dropped, because the resumed run computes them again. Arguments are
    those of `lightning.pytorch.loggers.CSVLogger`; rows are written immediately, so that a killed run keeps them.
    """

    def __init__(
        self,
        save_dir: str,
        name: str | None = "",
        version: int | str | None = "",
        prefix: str = "",
        flush_logs_every_n_steps: int = 1,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)
        self._continues = False
        self._file = Path(self.log_dir) / METRICS_FILE

    @property
    def experiment(self) -> Any:
        """Lightning's writer; its constructor deletes the file, so the file is moved aside meanwhile."""
        if self._experiment is not None or getattr(rank_zero_only, "rank", 0) != 0:
            return super().experiment
        aside = self._file.with_suffix(".csv.kept")
        if self._file.is_file():
            os.replace(self._file, aside)
        experiment = super().experiment
        if aside.is_file():  # perhaps left by a process that was killed at this point
            os.replace(aside, self._file)
            with self._file.open(newline="", encoding="utf-8") as stream:
                experiment.metrics_keys = list(csv.DictReader(stream).fieldnames or [])
            self._continues = bool(experiment.metrics_keys)
        return experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of a step; the first call drops the rows that will be computed again."""
        experiment = self.experiment
        if self._continues and step is not None:
            self._continues = False
            self._drop_rows_from(step, experiment.metrics_keys)
        super().log_metrics(dict(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not written yet."""
        run = self._file.parent
        with told_when_full(
            self._file, f"free some, then `futurel1 fit --resume {run}` goes on from its last checkpoint"
        ):
            super().save()

    def _drop_rows_from(self, step: int, names: list[str]) -> None:
        with self._file.open(newline="", encoding="utf-8") as stream:
            kept = [row for row in csv.DictReader(stream) if row.get("step") and int(row["step"]) < step]
        with replacing(self._file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=names)
            writer.writeheader()
            writer.writerows(kept)
