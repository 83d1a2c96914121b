"""Which stages run, in which order, and what happens when one is killed or fails."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import MINIATURE, ROOT, fabricate

from experiments.proof.quick import write_opening
from experiments.proof.results import Bench, Places, write_json
from experiments.proof.run import chosen, run_stages
from experiments.proof.stages import Stage, build_stages, load_plan
from processes import FORKED, wait_until


def test_only_what_is_missing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    bench = Bench(build_stages(load_plan(MINIATURE)), Places.under(tmp_path))
    assert chosen(bench, []) == list(bench.stages)
    fabricate(bench)
    assert chosen(bench, []) == []
    assert chosen(bench, [], again=True) == list(bench.stages)
    bench.places.result("test-sft-text-s0").unlink()
    # Results came with the repository, what was made did not: it is made anew where something starts from it.
    needed = ["world", "split", "probe", "curate", "records-text", "sft-text-s0", "test-sft-text-s0"]
    assert chosen(bench, []) == needed
    for name in needed[:-1]:
        note = {"digest": bench.digests[name], "finished": True}
        write_json(bench.places.runs / name / "stage.json", note)
    assert chosen(bench, []) == ["test-sft-text-s0"]
    assert chosen(bench, ["test-rl-*"]) == []
    with pytest.raises(SystemExit, match="no such stage"):
        chosen(bench, ["nothing"])


@pytest.mark.campaign
@pytest.mark.slow
def test_killed_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 ends the training process with its parent, and the same command continues it from its checkpoint."""
    monkeypatch.chdir(ROOT)
    plan = load_plan(MINIATURE, quick=True)
    plan["backbone"] = write_opening(tmp_path / "backbone")
    run_stages(Bench(build_stages(plan), Places.under(tmp_path), in_process=True), ["curate"])
    often = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 5, "save_last": True}}
    plan["sft"]["set"] |= {
        "trainer.max_steps": 15,
        "trainer.val_check_interval": 15,
        "trainer.callbacks": [often, {"class_path": "HuggingFaceExport"}],
    }
    bench = Bench(build_stages(plan), Places.under(tmp_path))
    first = FORKED.Process(target=run_stages, args=(bench, ["sft-latent-s0"]))
    first.start()
    run, result = tmp_path / "runs" / "sft-latent-s0", tmp_path / "results" / "sft-latent-s0.json"
    log = tmp_path / "runs" / "logs" / "sft-latent-s0.log"
    wait_until(lambda: list(run.glob("checkpoints/*.ckpt")), first, log)
    first.kill()
    first.join()
    assert not result.is_file()
    run_stages(replace(bench, in_process=True), ["sft-latent-s0"])
    made = json.loads(result.read_text())
    assert made["resumed"]
    assert made["metrics"]["steps"] == 15
    assert "--resume" in log.read_text()
    assert not (run / "checkpoints").exists()


def test_a_failed_stage_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stage = Stage("world", "world", None, (), {"train": 1, "test": 1, "size": 33})
    bench = Bench({"world": stage}, Places.under(tmp_path), in_process=True)
    with pytest.raises(SystemExit, match=r"(?s)size.*33.*world failed"):
        run_stages(bench)
    assert not bench.places.result("world").is_file()


def test_two_jobs_start_a_stage_after_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = {"world": (), "left": ("world",), "right": ("world",), "end": ("left", "right"), "other": ()}
    stages = {name: Stage(name, "split", None, of) for name, of in needs.items()}
    together = threading.Barrier(2, timeout=300)
    ended: list[str] = []

    def run_stage(stage: Stage, digest: str, bench: Bench, jobs: int) -> float:
        assert jobs == 2
        assert set(stage.needs) <= set(ended)
        if stage.name in ("left", "right"):
            together.wait()  # one alone would wait in vain
        ended.append(stage.name)
        return 61.0

    monkeypatch.setattr("experiments.proof.run.run_stage", run_stage)
    bench = Bench(stages, Places.under(tmp_path))
    assert run_stages(bench, jobs=2)
    assert sorted(ended) == sorted(stages)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said if line.startswith("[")][-1] == "end"
    assert sum("1:01" in line for line in said) == len(stages)
    assert not run_stages(bench, minutes=0)
    assert capsys.readouterr().out.startswith("5 stages are left")
    with pytest.raises(ValueError, match="2 jobs in one process"):
        run_stages(replace(bench, in_process=True), jobs=2)


def test_a_failed_stage_beside_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {name: Stage(name, "split", None, ()) for name in ("bad", "good", "next")}
    ended: list[str] = []

    def run_stage(stage: Stage, digest: str, bench: Bench, jobs: int) -> float:
        if stage.name == "bad":
            raise SystemExit("bad failed")
        time.sleep(0.5)
        ended.append(stage.name)
        return 0.0

    monkeypatch.setattr("experiments.proof.run.run_stage", run_stage)
    with pytest.raises(SystemExit, match="bad failed"):
        run_stages(Bench(stages, Places.under(tmp_path)), jobs=2)
    assert ended == ["good"]
