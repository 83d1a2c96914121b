from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import write_run

from futurel1.cli import main
from futurel1.errors import ConfigError
from futurel1.report import report
from futurel1.report.runs import RunContents


def test_the_command_writes_a_page_and_prints_its_numbers(
    run: RunContents, zeros: RunContents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "page.html"
    others = f"[{zeros.folder}]"
    main(["report", str(run.folder), "--interventions", others, "--out", str(page), "--device", "cpu"])
    told = capsys.readouterr().out
    assert "3 of 4     right   75.0%" in told
    assert (
        "latents: zero       2 of 4     right   50.0%  (2 right to wrong, 1 wrong to right, 100% of texts changed)"
        in told
    )
    assert "imagined frames: 100.0% of 3 are nearest to their true frame" in told
    assert f"{page}  (4 of 4 samples, 0 groups of rollouts, 0 curves" in told
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "http://www.w3.org/2000/svg" in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 1  # http-equiv


def test_a_run_of_reinforcement_learning_needs_no_data(tmp_path: Path) -> None:
    line = {"rollout_batch": 0, "prompt_index": 1, "id": "a:1", "prompt": "?", "response": "x", "reward": 1.0}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,2.0\n1,1.0\n")
    made = report(tmp_path)
    assert (made.samples, made.groups, made.curves) == (0, 1, 1)
    assert made.page == tmp_path / "report.html"
    assert made.size == made.page.stat().st_size


def test_runs_that_cannot_be_shown(run: RunContents, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to show"):
        report(tmp_path)
    with pytest.raises(ConfigError, match="count from 0"):
        report(run.folder, samples=-1)
    bare = write_run(tmp_path / "bare", list(run.predictions.values()), world / "test.jsonl")
    config = json.loads(bare.config_text)
    del config["model"]
    (bare.folder / "config.yaml").write_text(json.dumps(config))
    (bare.folder / "latents.safetensors").write_bytes((run.folder / "latents.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="names no model"):
        report(bare.folder)
