"""The whole of it in small: every kind of stage, every row, the page, and interruptions."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from experiments.miniature.__main__ import main
from experiments.miniature.figures import _frame
from experiments.miniature.latents import (
    Frames,
    ImaginedSpans,
    answers_held,
    asked_about,
    imagined_spans,
    retrieval,
)
from experiments.miniature.quick import write_opening
from experiments.miniature.records import read_lines
from experiments.miniature.run import Bench, run_stages
from experiments.miniature.stages import Stage, build_stages, load_plan
from experiments.miniature.work import GROUPS, Places, scaled_steps
from futurel1.data.frames import read_frames
from futurel1.models import LatentBank
from futurel1.worlds import make_event_episode, make_event_episodes, scene_code
from processes import FORKED, wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    whole = yaml.safe_load((ROOT / "experiments" / "miniature" / "plan.yaml").read_text())
    whole["ablations"] = {title: dict(list(runs.items())[:2]) for title, runs in list(whole["ablations"].items())[2:4]}
    dropped = ("sft-text-random", "rl-text-dapo", "rl-grpo")
    whole["rows"] = {name: label for name, label in whole["rows"].items() if name not in dropped}
    whole["comparisons"] = [pair for pair in whole["comparisons"] if set(pair[:2]) <= set(whole["rows"])]
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(whole))
    command = ["--quick", "--root", str(tmp_path), "--plan", str(file)]
    # Somewhere in the middle the time is up; the same command then goes on.
    main([*command, "--only", "sft-latent-s0", "--minutes", "0"])
    assert "stages are left" in capsys.readouterr().out
    main(command)
    plan, places = load_plan(file, quick=True), Places.under(tmp_path)
    results = {file.stem: json.loads(file.read_text()) for file in places.results.glob("*.json")}
    assert set(results) == set(build_stages(plan))
    assert max(file.stat().st_size for file in places.results.glob("*.json")) < 10_000

    questions = plan["world"]["test"]
    for name, result in results.items():
        assert result["digest"]
        assert result["machine"]["torch"]
        if result["kind"] == "test":
            assert len(result["metrics"]["correct"]) == questions
            assert result["metrics"]["spans"]["all"] == 1, name  # this backbone opens a span, and cannot do more
    numbers = results["records-text"]["metrics"]
    assert numbers["tokens_with_hints"] > numbers["tokens"] > 0
    steps = round(2 * numbers["tokens_with_hints"] / numbers["tokens"])
    assert results["sft-text-s0"]["config"]["steps"] == results["sft-text-s0"]["metrics"]["steps"] == steps
    assert results["sft-latent-s0"]["metrics"]["steps"] == 2
    assert results["test-sft-L2-s0"]["metrics"]["latents"]["all"] == 2
    assert results["records-random-s0"]["metrics"]["records"] == results["curate"]["metrics"]["records"]["all"] == 8
    probed = results["probe"]["metrics"]
    assert probed["base"] == probed["hint"] == dict.fromkeys(("all", *GROUPS), 0)  # random weights
    assert probed["candidates"]["mismatched"] == 6  # 0.4 of 16
    controls = results["controls-rl-la_dapo-s0"]["metrics"]
    assert list(controls) == plan["interventions"]
    assert all(effect["n"] == questions for effect in controls.values())
    assert results["retrieval-sft-latent-s0"]["metrics"]["compared"] == questions
    strip = results["retrieval-sft-latent-s0"]["metrics"]["strip"]
    assert {sample["split"] for sample in strip} == {"hop2", "hop3", "hop5"}
    assert all(len(sample["nearest"]) == 1 and sample["nearest"][0][0].startswith("train-") for sample in strip)
    records = {record["id"]: record for record in read_lines(places.runs / "world" / "test.jsonl")}
    for sample in strip:  # pictures show the clips of the questions
        record = records[sample["id"]]
        shown = read_frames(places.runs / "world" / record["video"], range(8))
        for frame in (*sample["observed"], *sample["future"]):
            drawn = _frame(sample["id"], frame, plan["world"]).astype(int)
            apart = [float(abs(np.asarray(picture, dtype=int) - drawn).mean()) for picture in shown]
            assert int(np.argmin(apart)) == frame, (sample["id"], apart)
            assert apart[frame] < 6  # H.264 costs up to 4 grey levels at 32 pixels; other scenes are about 20 apart
    assert len(results["rl-la_dapo-s0"]["metrics"]["curve"]) == 2
    weights = {
        name: (places.runs / f"{name}-s0" / "config.yaml").read_text().partition("weights:")[2][:60]
        for name in ("rl-dapo", "rl-contrastive", "rl-diversity")
    }
    assert "contrastive: 0.0" in weights["rl-dapo"]
    assert "diversity: 0.0" in weights["rl-dapo"]
    assert "contrastive" not in weights["rl-contrastive"]
    assert "diversity" not in weights["rl-diversity"]
    page = places.document.read_text()
    assert all(f"| {label} | 1 |" in page for label in plan["rows"].values())
    assert all((places.document.parent / "miniature" / f"{name}.png").is_file() for name in ("accuracy", "imagined"))

    capsys.readouterr()
    main(command)  # nothing is left
    assert "expected" not in capsys.readouterr().out
    main([*command, "--list"])
    assert f"{len(results)} of {len(results)} stages are done" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 ends the training process with its parent, and the same command continues it from its checkpoint."""
    monkeypatch.chdir(ROOT)
    plan = load_plan(quick=True)
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


def test_two_jobs_start_a_stage_after_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"world": (), "left": ("world",), "right": ("world",), "end": ("left", "right"), "other": ()}
    stages = {name: Stage(name, "split", None, of) for name, of in needs.items()}
    together = threading.Barrier(2, timeout=60)
    ended: list[str] = []
    asked: list[str] = []

    def run_stage(stage: Stage, digest: str, bench: Bench, jobs: int) -> float:
        assert jobs == 2
        assert set(stage.needs) <= set(ended)
        if stage.name in ("left", "right"):
            together.wait()  # one alone would wait in vain
        ended.append(stage.name)
        return 61.0

    monkeypatch.setattr("experiments.miniature.run.run_stage", run_stage)
    bench = Bench(stages, Places.under(tmp_path))
    assert run_stages(bench, jobs=2, say=lambda *text, **_: asked.append(" ".join(text)))
    assert sorted(ended) == sorted(stages)
    assert [line.split()[1] for line in asked if line.startswith("[")][-1] == "end"
    assert sum("1:01" in line for line in asked) == len(stages)
    assert not run_stages(bench, minutes=0, say=lambda *text, **_: asked.append(" ".join(text)))
    assert asked[-1].startswith("5 stages are left")
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

    monkeypatch.setattr("experiments.miniature.run.run_stage", run_stage)
    with pytest.raises(SystemExit, match="bad failed"):
        run_stages(Bench(stages, Places.under(tmp_path)), jobs=2)
    assert ended == ["good"]


def test_steps_without_hints(tmp_path: Path) -> None:
    places = Places.under(tmp_path)
    (places.runs / "records-text").mkdir(parents=True)
    (places.runs / "records-text" / "numbers.json").write_text('{"tokens": 100, "tokens_with_hints": 125}')
    stage = Stage("sft-text-s0", "sft", 0, ("records-text",), {"set": {"trainer.max_steps": 600}})
    assert scaled_steps(stage, places) == 750


def test_spans_are_cut_as_they_were_decoded() -> None:
    rows = torch.eye(4)
    bank = LatentBank.from_responses(["t:1", "t:2"], [rows[:3], rows[3:]])
    spans = imagined_spans(bank, [{"id": "t:1", "spans": [2, 0, 1]}, {"id": "t:2", "spans": [1]}])
    assert spans.record.tolist() == [0, 0, 1]
    assert spans.hint.tolist() == [0, 2, 0]
    half = 0.5  # mean of two
    assert torch.allclose(spans.means, torch.tensor([[half, half, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))


def test_retrieval_counts_own_frames() -> None:
    frames = Frames(torch.eye(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))
    means = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    # The second span should show the second frame, and shows the first; the last one has no frame of its own.
    spans = ImaginedSpans(means, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    found = retrieval(spans, frames)
    assert (found["spans"], found["compared"], found["frames"]) == (4, 3, 3)
    assert found["retrieval"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["cosine"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["cosine_others"] == pytest.approx(1 / 6, abs=1e-3)


def test_answers_are_read_from_the_frame_that_is_asked_about() -> None:
    episodes = list(make_event_episodes("train", 32, kinds=("zone",)))
    questions = [episode.record("clip.mp4") for episode in episodes]
    rows = [(number, hint) for number, episode in enumerate(episodes) for hint in range(len(episode.asked.hints))]
    codes = np.concatenate([scene_code(episode, episode.asked.hints) for episode in episodes])
    record, hint = torch.tensor(rows).T
    of = Frames(torch.zeros(len(rows), 1), record, hint)
    for question, episode in zip(questions, episodes, strict=True):
        asked = episode.asked
        step = asked.arrival if asked.hop == 5 else asked.hop
        pair = asked.colours[asked.target] % 3
        assert asked_about(question) == (step - 1, pair)
    held = answers_held(torch.from_numpy(codes), of, questions)
    visible = [
        not episode.states.hidden[4 + asked_about(question)[0] + 1, episode.asked.target]
        for question, episode in zip(questions, episodes, strict=True)
    ]
    assert [value for value, seen in zip(held, visible, strict=True) if seen] == [True] * sum(visible)
    shifted = Frames(of.features, record, hint + 3)  # frames that nobody asks about
    assert answers_held(torch.from_numpy(codes), shifted, questions) == [None] * len(questions)
    wrong = torch.from_numpy(codes).view(len(rows), -1).flip(0)
    assert answers_held(wrong, of, questions).count(True) < len(questions) * 0.7
    with pytest.raises(ValueError, match="does not ask for a zone"):
        asked_about(make_event_episode("train", 0).record("clip.mp4") | {"conversations": [{"value": "What?"}] * 2})
