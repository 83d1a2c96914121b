from __future__ import annotations

import json
from pathlib import Path

import pytest

from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.report.runs import RunContents, evenly

LINE = {"id": "a.jsonl:2", "response": "x", "answer": "A", "spans": []}


def lines(*records: object) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def test_predictions_of_all_ranks_in_the_order_of_records(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(lines({**LINE, "id": "old:1"}))
    (tmp_path / "predictions.jsonl").write_text(
        lines({**LINE, "id": "a.jsonl:10"}, LINE) + '{"id": "a.jsonl:11", "resp'
    )
    (tmp_path / "predictions-rank1.jsonl").write_text(lines({**LINE, "id": "a.jsonl:9"}))
    assert list(RunContents(tmp_path).predictions) == ["a.jsonl:2", "a.jsonl:9", "a.jsonl:10"]


def test_samples_of_a_test_where_nothing_was_predicted(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(lines(LINE))
    (tmp_path / "results.json").write_text('{"accuracy": 0.5, "cosine": null}')
    run = RunContents(tmp_path)
    assert list(run.predictions) == ["a.jsonl:2"]
    assert run.results == {"accuracy": 0.5, "cosine": None}


def test_an_empty_run_has_nothing(tmp_path: Path) -> None:
    run = RunContents(tmp_path)
    assert (run.predictions, run.rollouts, run.results, run.latents, run.curves) == ({}, [], {}, None, None)
    assert (run.config, run.model, run.intervention) == ({}, None, "none")


def test_settings_by_dotted_names(tmp_path: Path) -> None:
    text = "model:\n  init_args:\n    backbone: tiny\n    intervention: zero\ndata: null\n"
    (tmp_path / "config.yaml").write_text(text)
    run = RunContents(tmp_path)
    assert (run.model, run.intervention, run.config_text) == ("tiny", "zero", text)
    assert run.setting("data.init_args.predict") is None


def test_curves_of_the_run_that_the_model_comes_from(tmp_path: Path) -> None:
    trained, decoded = tmp_path / "trained", tmp_path / "decoded"
    trained.mkdir()
    decoded.mkdir()
    (trained / "metrics.csv").write_text("step,train/loss\n0,2.0\n1,1.0\n")
    (decoded / "config.yaml").write_text(f"model: {{init_args: {{init_from: {trained}}}}}\n")
    found = RunContents(decoded).curves
    assert found is not None
    assert (found[0], found[1]["loss"]["train"].values) == (trained, [2.0, 1.0])
    (decoded / "metrics.csv").write_text("step,test/accuracy\n0,0.5\n")
    own = RunContents(decoded).curves
    assert own is not None
    assert own[0] == decoded


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("predictions.jsonl", lines({"id": "1", "response": ""}), "predictions.jsonl, line 1 has no answer, spans"),
        ("predictions.jsonl", lines(LINE) + "{\n", "line 2 is no JSON"),
        ("predictions.jsonl", "[1]\n", "line 1 is no record but list"),
        ("results.json", "[1]", "holds no scores but list"),
        ("results.json", "{", "is no JSON"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    run = RunContents(tmp_path)
    with pytest.raises(RecordError, match=told):
        _ = run.predictions if name.startswith("pred") else run.results


@pytest.mark.parametrize(("text", "told"), [("a: [", "is no YAML"), ("- 1", "holds no settings but list")])
def test_a_configuration_that_is_none(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        _ = RunContents(tmp_path).config


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        RunContents(tmp_path / "nowhere")


def test_samples_are_spread_evenly() -> None:
    assert list(evenly(10, 0)) == list(evenly(10, 10)) == list(range(10))
    assert list(evenly(10, 4)) == [0, 2, 5, 7]
