"""Loggers that survive a resume."""

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from futurel1.files import replacing
from futurel1.full_disk import told_when_full
from futurel1.json_lines import drop_cut_line

METRICS_FILE = "metrics.csv"


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSVLogger, but a resumed run keeps its earlier rows instead of deleting them.

    :meth:`go_on` says where the run was resumed. Without it, rows from the first newly logged step on are dropped,
    because the resumed run computes them again. Arguments are those of `lightning.pytorch.loggers.CSVLogger`; rows are
    written immediately, so that a killed run keeps them.
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
        self._resumed_at = 0
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
            drop_cut_line(self._file)
            with self._file.open(newline="", encoding="utf-8") as stream:
                experiment.metrics_keys = list(csv.DictReader(stream).fieldnames or [])
            self._continues = bool(experiment.metrics_keys)
        return experiment

    @rank_zero_only
    def go_on(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """Bring the file to the state of a checkpoint.

        Args:
            step: number of optimizer steps at the checkpoint; rows of later steps are dropped.
            row: metrics and `step` of a row that belongs to the checkpoint, and is added unless it is there.
        """
        names = self.experiment.metrics_keys
        if self._continues:
            self._keep_rows(lambda written: int(written["step"]) < step, names)
        self._continues, self._resumed_at = False, step
        if row is None:
            return
        metrics = {name: value for name, value in row.items() if name != "step"}
        if not any(self._is_same(written, metrics, int(row["step"])) for written in self._rows()):
            self.log_metrics(metrics, int(row["step"]))
            self.save()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of a step, in the place of an earlier session's row of the same step and names."""
        experiment = self.experiment
        if step is not None and self._continues:
            self._continues = False
            self._keep_rows(lambda row: int(row["step"]) < step, experiment.metrics_keys)
        elif step is not None and step < self._resumed_at and self._file.is_file():
            self._keep_rows(lambda row: not self._is_same(row, metrics, step), experiment.metrics_keys)
        super().log_metrics(dict(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not written yet."""
        run = self._file.parent
        with told_when_full(
            self._file, f"free some, then `futurel1 fit --resume {run}` goes on from its last checkpoint"
        ):
            super().save()

    def _is_same(self, row: Mapping[str, str], metrics: Mapping[str, Any], step: int) -> bool:
        """Whether a written row is of a step and has these metrics, whatever their values."""
        names = {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name for name in metrics}
        return int(row["step"]) == step and {name for name, value in row.items() if value} - {"step"} == names

    def _rows(self) -> list[dict[str, str]]:
        if not self._file.is_file():
            return []
        with self._file.open(newline="", encoding="utf-8") as stream:
            return [row for row in csv.DictReader(stream) if row.get("step")]

    def _keep_rows(self, wanted: Callable[[dict[str, str]], bool], names: list[str]) -> None:
        rows = self._rows()
        kept = [row for row in rows if wanted(row)]
        if len(kept) == len(rows):
            return
        with replacing(self._file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=names)
            writer.writeheader()
            writer.writerows(kept)
