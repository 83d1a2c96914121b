"""The whole of it in small: every kind of stage, every row, the page, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from fabricated import MINIATURE, ROOT

from experiments.proof.__main__ import main
from experiments.proof.figures import _rendered
from experiments.proof.records import read_lines
from experiments.proof.results import Places
from experiments.proof.stages import build_stages, load_plan
from experiments.proof.work import GROUPS
from futurel1.data.frames import read_frames


@pytest.mark.slow
def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    whole = yaml.safe_load(MINIATURE.read_text())
    whole["ablations"] = {title: dict(list(runs.items())[:2]) for title, runs in list(whole["ablations"].items())[2:4]}
    dropped = ("sft-text-random", "rl-text-dapo", "rl-grpo")
    whole["rows"] = {name: label for name, label in whole["rows"].items() if name not in dropped}
    whole["diagnose"]["runs"] = {"sft-latent": whole["diagnose"]["runs"]["sft-latent"]}
    whole["comparisons"] = [pair for pair in whole["comparisons"] if set(pair[:2]) <= set(whole["rows"])]
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(whole))
    command = [str(file), "--quick", "--root", str(tmp_path)]
    # Somewhere in the middle the time is up; the same command then goes on.
    main([*command, "--only", "sft-latent-s0", "--minutes", "0"])
    assert "stages are left" in capsys.readouterr().out
    main(command)
    plan, places = load_plan(file, quick=True), Places.under(tmp_path, "miniature")
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
    diagnosis = results["diagnose-sft-latent-s0"]["metrics"]
    assert diagnosis["questions"] == len(diagnosis["effects"]["swap"]["first"].split()) == 10
    assert {"latents", "true frames"} <= diagnosis["probes"].keys()
    assert [len(diagnosis[table]) for table in ("effects", "changes")] == [8, 3]
    strip = results["retrieval-sft-latent-s0"]["metrics"]["strip"]
    assert {sample["split"] for sample in strip} == {"hop2", "hop3", "hop5"}
    assert all(len(sample["nearest"]) == 1 and sample["nearest"][0][0].startswith("train-") for sample in strip)
    records = {record["id"]: record for record in read_lines(places.runs / "world" / "test.jsonl")}
    clips = _rendered({sample["id"] for sample in strip}, plan["world"])
    for sample in strip:  # pictures show the clips of the questions
        record = records[sample["id"]]
        shown = read_frames(places.runs / "world" / record["video"], range(8))
        for frame in (*sample["observed"], *sample["future"]):
            drawn = clips[sample["id"]][frame].astype(int)
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
    page = places.page.read_text()
    assert all(f"| {label} | 1 |" in page for label in plan["rows"].values())
    assert all((places.figures / f"{name}.png").is_file() for name in ("accuracy", "imagined"))

    capsys.readouterr()
    main(command)  # nothing is left
    assert "expected" not in capsys.readouterr().out
    main([*command, "--list"])
    assert f"{len(results)} of {len(results)} stages are done" in capsys.readouterr().out
