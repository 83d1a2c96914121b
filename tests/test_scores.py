"""Right answers of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.scores import scores


def write(run: Path, answers: dict[str, tuple[str, str | None]], file: str = "predictions.jsonl") -> Path:
    run.mkdir(exist_ok=True)
    lines = [json.dumps({"id": name, "answer": said, "expected": true}) for name, (said, true) in answers.items()]
    (run / file).write_text("\n".join(lines) + "\n")
    return run


def test_right_answers_with_their_interval(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"a": ("B", "B"), "b": ("A", "B"), "c": ("", "A"), "d": ("left", None)})
    write(run, {"e": ("red", "red")}, "predictions-rank1.jsonl")
    found = scores(run)
    assert (found.run.right, found.run.total) == (2, 4)
    assert found.run.interval == pytest.approx((15.0, 85.0), abs=0.05)  # Wilson, by hand
    assert "2 of 4 right:  50.0% (95% interval 15.0 to 85.0)" in str(found)


def test_right_is_what_it_is_elsewhere(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"a": ("Top left.", "top left"), "b": ("", ""), "c": ("B", "A")})
    line = json.dumps({"id": "d", "answer": "a\u2028b", "expected": "a b"}, ensure_ascii=False)
    judged = json.dumps({"id": "e", "answer": "x", "expected": "x", "score": 2})
    with (run / "predictions.jsonl").open("a") as stream:
        stream.write(f'{line}\n{judged}\n{{"id": "cut')
    found = scores(run)
    assert (found.run.right, found.run.total) == (2, 4)  # of "d" the line separator is a blank, a judge scores "e"


def test_a_baseline_on_the_same_questions(tmp_path: Path) -> None:
    before = write(tmp_path / "before", {"a": ("A", "B"), "b": ("B", "B"), "c": ("A", "C")})
    after = write(tmp_path / "after", {"a": ("B", "B"), "b": ("A", "B"), "c": ("C", "C")}, "samples.jsonl")
    found = scores(after, before)
    assert found.baseline is not None
    assert (found.baseline.right, found.run.right, found.gained, found.lost) == (1, 2, 2, 1)
    assert str(found).splitlines()[2].startswith("2 questions are answered right that were wrong before, 1 the other")


def test_what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no predictions\.jsonl"):
        scores(tmp_path)
    one = write(tmp_path / "one", {"a": ("A", "A")})
    other = write(tmp_path / "other", {"b": ("A", "A")})
    with pytest.raises(ConfigError, match=r"of other questions than .* 2 differ, e\.g\. a"):
        scores(one, other)
    with pytest.raises(ConfigError, match="nothing to score"):
        scores(write(tmp_path / "open", {"a": ("A", None)}))
    (one / "predictions.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(RecordError, match="line 1 is no prediction"):
        scores(one)
