"""How many predictions of a run are right, and what changed since another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.json_lines import read_records
from futurel1.metrics.functional import is_right, wilson_interval

__all__ = ["Score", "Scores", "prediction_files", "scores", "verdict_of"]


@dataclass(frozen=True)
class Score:
    """Right predictions of a run.

    Attributes:
        run: the run folder.
        right: predictions whose answer is the expected one, see `is_right`.
        total: predictions with an expected answer.
        interval: 95% Wilson interval of the accuracy, in percent.
    """

    run: str
    right: int
    total: int
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        share = 100 * self.right / self.total
        return (
            f"{self.right:>4} of {self.total} right: {share:5.1f}% (95% interval {low:.1f} to {high:.1f})  {self.run}"
        )


@dataclass(frozen=True)
class Scores:
    """Scores of a run, and of a baseline on the same questions.

    Attributes:
        run: the run.
        baseline: what it is compared with, if anything.
        gained: questions that the run answers right and the baseline wrong.
        lost: questions that the run answers wrong and the baseline right.
    """

    run: Score
    baseline: Score | None = None
    gained: int = 0
    lost: int = 0

    def __str__(self) -> str:
        if self.baseline is None:
            return str(self.run)
        change = f"{self.gained} questions are answered right that were wrong before, {self.lost} the other way round"
        return f"before: {self.baseline}\nafter:  {self.run}\n{change}"


def scores(run: str | Path, baseline: str | Path | None = None) -> Scores:
    """Count right answers in the predictions of a run, and compare them with those of another run.

    A prediction is right when its answer is the expected one, but for case, punctuation and spaces at its ends.

    Args:
        run: Folder with predictions.jsonl (`futurel1 predict`) or samples.jsonl (`futurel1 test`).
        baseline: Another run on the same questions, such as one of the model before training.

    Returns:
        The scores, with 95% Wilson intervals.

    Raises:
        MissingFileError: A folder without predictions.
        RecordError: A line that is no prediction.
        ConfigError: Predictions without expected answers, or a baseline on other questions.
    """
    after = _right(Path(run))
    if baseline is None:
        return Scores(_score(run, after))
    before = _right(Path(baseline))
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ConfigError(f"{baseline} has predictions of other questions than {run}: {len(odd)} differ, e.g. {odd[0]}")
    gained = sum(after[name] and not before[name] for name in after)
    lost = sum(before[name] and not after[name] for name in after)
    return Scores(_score(run, after), _score(baseline, before), gained, lost)


def _score(run: str | Path, right: dict[str, bool]) -> Score:
    return Score(str(run), sum(right.values()), len(right), wilson_interval(torch.tensor(list(right.values()))))


def _right(run: Path) -> dict[str, bool]:
    """Whether each prediction is right, by the id of its record."""
    files = prediction_files(run)
    if not files:
        raise MissingFileError(f"{run}: no predictions.jsonl; `futurel1 predict` writes it")
    right: dict[str, bool] = {}
    for file in files:
        for number, record in enumerate(read_records(file), start=1):
            if not {"id", "answer", "expected"} <= record.keys():
                raise RecordError(f"{file}, line {number} is no prediction: {str(record)[:80]!r}")
            verdict = verdict_of(record)
            if verdict is not None:
                right[str(record["id"])] = verdict
    if not right:
        raise ConfigError(f"{run}: no prediction has an expected answer, so there is nothing to score")
    return right


def prediction_files(run: Path) -> list[Path]:
    """Files that `predict` wrote into a run folder, one for each rank; else those of `test`."""
    return sorted(run.glob("predictions*.jsonl")) or sorted(run.glob("samples*.jsonl"))


def verdict_of(prediction: Mapping[str, Any]) -> bool | None:
    """Whether a prediction is right; None if its record names no expected answer, or a judge scores it."""
    return None if prediction.get("expected") is None or "score" in prediction else is_right(prediction)
