from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report_runs import prediction, write_run

from futurel1.errors import ConfigError
from futurel1.metrics.functional import wilson_interval
from futurel1.report.runs import RunContents
from futurel1.report.scores import by_intervention, effects_of, scores_of, verdict_of


def test_scores_of_all_and_of_each_split() -> None:
    told = {str(n): {"answer": "A", "expected": "A" if n < 3 else "B"} for n in range(5)}
    told["5"] = {"answer": "A", "expected": None}
    splits = {"0": "hop1", "1": "hop2", "2": "hop2", "3": "hop2", "4": "hop1", "5": "hop1"}
    scores = scores_of(told, splits)
    assert [(score.split, score.right, score.total) for score in scores] == [
        ("all", 3, 5),
        ("hop1", 1, 2),
        ("hop2", 2, 3),
    ]
    low, high = wilson_interval(torch.tensor([1.0, 1, 1, 0, 0]))
    assert (scores[0].low, scores[0].high) == (round(low, 1), round(high, 1))
    assert scores[0].percent == 60
    assert verdict_of(told["5"]) is None


def test_one_split_is_everything_and_no_truth_is_no_score() -> None:
    known = {"1": {"answer": "up.", "expected": "Up"}}
    assert [(score.split, score.right) for score in scores_of(known, {"1": "hop1"})] == [("all", 1)]
    assert scores_of({"1": {"answer": "A", "expected": None}}, {"1": "hop1"}) == []
    assert verdict_of({"answer": "A", "expected": "A", "score": [3, 4]}) is None  # a judge scores it


def test_what_an_intervention_changes(run: RunContents, zeros: RunContents) -> None:
    (effect,) = effects_of(run, {"zero": zeros})
    assert (effect.name, effect.run, effect.total) == ("zero", "zero", 4)
    assert (effect.right, effect.right_to_wrong, effect.wrong_to_right) == (2, 2, 1)
    assert effect.changed_text == 1.0


def test_runs_that_do_not_belong_together(run: RunContents, zeros: RunContents, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fed its own latents"):
        by_intervention([run])
    with pytest.raises(ConfigError, match="are both zero"):
        by_intervention([zeros, zeros])
    empty = write_run(tmp_path / "empty", [], tmp_path, "mean")
    with pytest.raises(ConfigError, match=r"has no predictions\*\.jsonl"):
        by_intervention([empty])
    strangers = write_run(tmp_path / "other", [prediction(99, "A", "A", [])], tmp_path, "other")
    assert by_intervention([zeros, strangers]) == {"zero": zeros, "other": strangers}
    with pytest.raises(ConfigError, match="answered none of the samples"):
        effects_of(run, {"other": strangers})
