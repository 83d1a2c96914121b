"""Scores of a run's predictions per split, and what interventions on its latents change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from futurel1.errors import ConfigError
from futurel1.metrics.functional import intervention_effect, is_right, wilson_interval
from futurel1.report.runs import Prediction, RunContents
from futurel1.scores import verdict_of

__all__ = ["Effect", "Score", "effects_of", "scores_of"]

ALL = "all"


@dataclass(frozen=True)
class Score:
    """Right answers of a split.

    Attributes:
        split: its name; `all` for everything.
        right: right answers.
        total: answers with a known truth.
        low: lower end of the Wilson 95% interval, in percent.
        high: upper end.
    """

    split: str
    right: int
    total: int
    low: float
    high: float

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.right / self.total


@dataclass(frozen=True)
class Effect:
    """What an intervention changes, over the samples that both runs answered.

    Attributes:
        name: the intervention.
        run: name of its run.
        total: samples in both.
        right: right answers under it.
        low: lower end of the Wilson 95% interval of its accuracy, in percent.
        high: upper end.
        right_to_wrong: samples that it turns from right to wrong.
        wrong_to_right: the other way round.
        changed_text: share of responses whose text differs.
    """

    name: str
    run: str
    total: int
    right: int
    low: float
    high: float
    right_to_wrong: int
    wrong_to_right: int
    changed_text: float

    @property
    def percent(self) -> float:
        """Accuracy under the intervention, in percent."""
        return 100 * self.right / self.total


def scores_of(predictions: Mapping[str, Prediction], splits: Mapping[str, str]) -> list[Score]:
    """Scores of everything, then of each split in order of appearance; none where no truth is known.

    Args:
        predictions: by id.
        splits: split of each id.
    """
    verdicts: dict[str, list[bool]] = {ALL: []}
    for name, prediction in predictions.items():
        verdict = verdict_of(prediction)
        if verdict is not None:
            verdicts[ALL].append(verdict)
            verdicts.setdefault(splits[name], []).append(verdict)
    if len(verdicts) == 2:  # one split is everything
        del verdicts[next(split for split in verdicts if split != ALL)]
    rows = [(ALL, verdicts.pop(ALL)), *sorted(verdicts.items())]
    return [Score(split, sum(right), len(right), *_interval(right)) for split, right in rows if right]


def _interval(right: Sequence[bool]) -> tuple[float, float]:
    low, high = wilson_interval(torch.tensor(right, dtype=torch.float64))
    return round(low, 1), round(high, 1)


def effects_of(run: RunContents, others: Mapping[str, RunContents]) -> list[Effect]:
    """Compare the runs under an intervention with the run itself.

    Args:
        run: the run with its own latents.
        others: runs by intervention.

    Raises:
        ConfigError: a run that answered none of the same samples.
        RecordError: a sample whose expected answer differs.
    """
    found = []
    for name, other in others.items():
        both = [key for key in run.predictions if key in other.predictions]
        if not both:
            raise ConfigError(
                f"--interventions: {other.folder} answered none of the samples of {run.folder}; name runs of the same "
                "records"
            )
        known = [key for key in both if verdict_of(run.predictions[key]) is not None]
        if not known:
            continue
        base, changed = ([_plain(one.predictions[key]) for key in known] for one in (run, other))
        effect = intervention_effect(base, changed)
        right = [is_right(record) for record in changed]
        found.append(
            Effect(
                name, other.name, len(known), sum(right), *_interval(right),
                right_to_wrong=int(effect["right_to_wrong"]), wrong_to_right=int(effect["wrong_to_right"]),
                changed_text=float(effect["changed_text"]),
            )
        )  # fmt: skip
    return found


def _plain(prediction: Prediction) -> dict[str, Any]:
    return {name: prediction.get(name) for name in ("id", "response", "answer", "expected")}


def by_intervention(runs: Sequence[RunContents]) -> dict[str, RunContents]:
    """Runs by the intervention that their configuration names.

    Raises:
        ConfigError: a run without an intervention or predictions, or two of one kind.
    """
    found: dict[str, RunContents] = {}
    for run in runs:
        name = run.intervention
        if name == "none":
            raise ConfigError(
                f"--interventions: {run.folder} fed its own latents (model.init_args.intervention is none in its "
                "config.yaml); name runs that replaced them"
            )
        if name in found:
            raise ConfigError(f"--interventions: {found[name].folder} and {run.folder} are both {name}; drop one")
        if not run.predictions:
            raise ConfigError(f"--interventions: {run.folder} has no predictions*.jsonl and no samples*.jsonl")
        found[name] = run
    return found
