"""`futurel1 curate`: what it writes, refuses and goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from range_server import serving

from futurel1.cli import main
from futurel1.data import open_records
from futurel1.data.remote import shown
from leaving import leave_half
from processes import Command


def options(world: Path, out: Path, *more: str, records: Path | str | None = None) -> list[str]:
    return [
        "curate", str(records or world / "train.jsonl"), "--out", str(out), "--prompts.system_prompt",
        str(world / "prompt.txt"), "--rollouts", "2", "--sampling.max_new_tokens", "12", "--batch_size", "1",
        "--prompts.num_workers", "0", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(clips_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curation in one go."""
    out = tmp_path_factory.mktemp("curations") / "whole"
    main(options(clips_world, out, "--thresholds.min_gain", "0"))
    return out


def read_lines(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in sorted(out.glob("probes-*.jsonl")) for line in file.open() if line.endswith("\n")
    ]


def test_shards_and_ranks_from_the_command_line(
    clips_world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole.parent / "parts"
    main(options(clips_world, out, "--shard", "1/2"))
    assert "4 of 8 candidates are left to others" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(options(clips_world, out, "--mode", "merge"))
    assert "4 of 8 candidates are not probed yet" in capsys.readouterr().err
    for name, value in {"JOB_ID": "7", "STEP_ID": "0", "NTASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for rank in ("1", "0"):  # as srun tells its tasks
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setenv("SLURM_LOCALID", rank)
        main(options(clips_world, out, "--shard", "0/2"))
    monkeypatch.undo()
    files = [file.name for file in sorted(out.glob("probes-*"))]
    assert files == ["probes-00000-of-00004.jsonl", "probes-00001-of-00002.jsonl", "probes-00001-of-00004.jsonl"]
    assert (out / "curated.jsonl").read_text() == ""  # nothing gains 2 of 2 from random weights

    main(["curate", str(clips_world / "train.jsonl"), "--out", str(out), "--mode=merge", "--thresholds.min_gain=0"])
    for name in ("curated.jsonl", "report.txt", "report.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert "8  candidates" in capsys.readouterr().out
    assert len((out / "curated.jsonl").read_text().splitlines()) == 8


def test_remote_candidates_get_the_results_of_local_ones(
    clips_world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    with serving(clips_world) as server:
        given = f"{server.url}/train.jsonl"
        main(options(clips_world, out, "--thresholds.min_gain", "0", records=given))
        results = [[{**line, "settings": None} for line in read_lines(folder)] for folder in (whole, out)]
        assert results[0] == results[1]
        [[place, version]] = json.loads((out / "settings.json").read_text())["records"]
        assert place == given
        assert version
        chosen = open_records(out / "curated.jsonl", data_root=server.url)
        assert len(chosen) == 8
        expected = {f"{server.url}/{json.loads(line)['video']}" for line in (clips_world / "train.jsonl").open()}
        assert {shown(sample.hints[0].path) for sample in chosen} == expected


def test_refusals_of_the_command_line(clips_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"global_step": 1}, tmp_path / "run" / "checkpoints" / "last.ckpt")

    def refused(*more: str, records: Path | None = None) -> str:
        with pytest.raises(SystemExit):
            main(options(clips_world, out, *more, records=records))
        return capsys.readouterr().err

    assert "holds no probes" in refused("--mode", "merge")
    assert "--shard is i/n" in refused("--shard", "2/2")
    assert "no such folder" in refused("--prompts.data_root", str(tmp_path / "gone"))
    assert "outside data_root" in refused("--prompts.data_root", str(tmp_path))
    assert "batch_size is at least 1" in refused("--batch_size", "0")
    assert "rollouts must be from 1" in refused("--rollouts", "0")
    assert "leave --shard 1/2 out" in refused("--mode", "merge", "--shard", "1/2")
    assert "temperature must be above 0" in refused("--sampling.temperature", "0")
    assert "max_new_tokens must be at least 1" in refused("--sampling.max_new_tokens", "0")
    assert "--device tpu-x" in refused("--device", "tpu-x")
    inside = str(clips_world / "curated")
    assert "would be read as records" in refused("--out", inside, records=clips_world)
    assert "last.ckpt does not say which model its run started from" in refused("--model", str(tmp_path / "run"))
    assert "none of" not in refused(records=tmp_path / "gone.jsonl")
    main(options(clips_world, out, "--shard", "0/8"))
    assert "(seed differ)" in refused("--sampling.seed", "1")
    judge = ["--judge", "Judge", "--judge.base_url", "http://127.0.0.1:9/v1", "--judge.model", "m"]
    assert "(judge differ)" in refused(*judge, "--judge.api_key_env", "null")
    assert "(repetition_limit differ)" in refused("--repetition_limit", "1")
    assert "repetition_limit must be between 0 and 1" in refused("--repetition_limit", "1.5")
    (clips_world / "fewer.jsonl").write_text((clips_world / "train.jsonl").read_text().splitlines()[0])
    assert "(records differ)" in refused(records=clips_world / "fewer.jsonl")
    assert "holds probes of other records" in refused("--mode", "merge", records=clips_world / "fewer.jsonl")


@pytest.mark.slow
def test_a_killed_process_goes_on_without_repeating_or_losing_a_candidate(
    clips_world: Path, whole: Path, tmp_path: Path
) -> None:
    out = whole.parent / "killed"
    killed = Command(options(clips_world, out, "--thresholds.min_gain", "0"), tmp_path / "killed.log")
    killed.kill_when(lambda: out.is_dir() and len(read_lines(out)) >= 2)
    before = read_lines(out)
    leave_half(out / "report.png")
    assert 2 <= len(before) < 8
    assert not (out / "curated.jsonl").exists()
    main(options(clips_world, out, "--thresholds.min_gain", "0"))
    after = read_lines(out)
    assert after[: len(before)] == before
    assert [line["number"] for line in after] == list(range(8))
    assert after == read_lines(whole)
    for name in ("curated.jsonl", "report.txt", "report.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
