"""The second page in small: another world and another plan, the same engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fabricated import ATARI, ROOT

from experiments.proof.__main__ import main
from experiments.proof.results import Places
from experiments.proof.stages import build_stages, load_plan, plan_file


def test_the_plan_has_what_its_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = load_plan(plan_file("atari"))
    stages = build_stages(plan)
    assert stages["world"].options["task"] == stages["counterfactual"].options["task"] == "atari"
    assert stages["sft-latent-s1"].needs[0] == "records-sampled-s1"  # others for every seed
    assert stages["sft-text-s1"].needs[0] == "records-text-s1"
    assert stages["records-text-s1"].needs[0] == "records-sampled-s1"
    assert not {"probe", "curate"} & stages.keys()
    primary = plan["comparisons"][0]
    assert primary[:2] == ["sft-latent", "sft-text"]
    assert primary[2].endswith("(primary endpoint)")


@pytest.mark.slow
def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ale_py", reason="needs the extra atari")
    monkeypatch.chdir(ROOT)
    whole = yaml.safe_load(ATARI.read_text())
    whole["rows"] = {run: whole["rows"][run] for run in ("backbone", "sft-text", "sft-latent")}
    whole |= {"comparisons": whole["comparisons"][:1], "controls": ["sft-latent"], "interventions": ["zero"]}
    whole["diagnose"]["runs"] = {"sft-latent": {"text_only": "sft-text"}}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(whole))
    main([str(file), "--quick", "--root", str(tmp_path)])
    places = Places.under(tmp_path, "atari")
    results = {file.stem: json.loads(file.read_text()) for file in places.results.glob("*.json")}
    assert set(results) == set(build_stages(load_plan(file, quick=True)))
    diagnosis = results["diagnose-sft-latent-s0"]["metrics"]
    assert {"oracle", "swap"} <= diagnosis["effects"].keys()
    assert diagnosis["changes"].keys() == {"moved", "recoloured"}  # no game runs backwards
    assert "true frames" in diagnosis["probes"]
    page = places.page.read_text()
    assert page.startswith("# The paper's table in small, on Atari games\n")
    assert "| latent SFT - text-only SFT (primary endpoint) |" in page
    assert not {"## Curation", "## Ablations", "## The paper"} & set(page.splitlines())
    assert "![observed frames, nearest training frames, true future frames](atari/imagined.png)" in page
    assert (places.figures / "imagined.png").is_file()
