"""Settings that depend on other stages, and the numbers that are kept of a run."""

from __future__ import annotations

from pathlib import Path

from experiments.proof.results import Places
from experiments.proof.stages import Stage
from experiments.proof.work import fit_metrics, scaled_steps, thinned


def test_steps_without_hints(tmp_path: Path) -> None:
    places = Places.under(tmp_path)
    (places.runs / "records-text").mkdir(parents=True)
    (places.runs / "records-text" / "numbers.json").write_text('{"tokens": 100, "tokens_with_hints": 125}')
    stage = Stage("sft-text-s0", "sft", 0, ("records-text",), {"set": {"trainer.max_steps": 600}})
    assert scaled_steps(stage, places) == 750


def test_logged_values_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    lines = [
        "step,train/loss,val/ce,val/accuracy,reward/correct",
        "0,3.0,,,0.1",
        "1,1.0,2.0,0.5,0.3",
        "2,2.0,3.0,0.4,nan",
    ]
    file.write_text("\n".join(lines) + "\n")
    found = fit_metrics(file, with_curve=True)
    assert found["steps"] == 3
    assert found["last"] == {"train/loss": 2.0, "val/ce": 3.0, "val/accuracy": 0.4, "reward/correct": 0.3}
    assert found["best"] == {"train/loss": 1.0, "val/ce": 2.0, "val/accuracy": 0.5, "reward/correct": 0.3}
    assert found["curve"] == [[0, 0.1], [1, 0.3]]


def test_curves_keep_their_ends() -> None:
    points = thinned(list(range(500)), 60)
    assert len(points) == 60
    assert (points[0], points[-1]) == (0, 499)
    assert points == sorted(set(points))
    assert thinned([1, 2, 3], 60) == [1, 2, 3]
