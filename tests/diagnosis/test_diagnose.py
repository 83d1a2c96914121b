"""`futurel1 diagnose` end to end, on a model that opens spans and knows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from futurel1.cli import main
from futurel1.diagnosis import Diagnosis, diagnose
from futurel1.errors import ConfigError, MissingFileError
from futurel1.models import LatentBank
from futurel1.modules import LatentPredictor
from futurel1.worlds import write_world
from opening import write_opening

COUNT = 3
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "num_workers": 0, "device": "cpu", "batch_size": COUNT}
KINDS = ("zero", "mean", "noise", "other", "markers", "oracle", "swap")
CHANGES = ("reversed", "moved", "recoloured")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose validation records are of the world of events."""
    folder = tmp_path_factory.mktemp("run")
    world = folder / "data"
    write_world(world, train=0, test=2, kinds=("zone",), size=64, progress=False)
    write_opening(folder / "huggingface")
    (world / "prompt.txt").write_text("Think.")
    settings = {
        "val": str(world / "test.jsonl"), "system_prompt": str(world / "prompt.txt"), "batch_size": 8,
        "data_root": str(world),
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps({"data": {"init_args": settings}}))
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> Diagnosis:
    return diagnose(str(run), count=COUNT, **OPTIONS)


def test_everything_that_applies_is_measured(run: Path, found: Diagnosis) -> None:
    assert found.folder == run / "diagnosis"
    assert found.questions == (str(found.folder / "world" / "counterfactual.jsonl"),)
    assert [effect.name for effect in found.effects] == ["none", *KINDS]
    assert {effect.total for effect in found.effects} == {COUNT}
    assert all(effect.followed is not None for effect in found.effects)
    assert [change.name for change in found.changes] == list(CHANGES)
    assert found.changes[2].true_distance < found.changes[1].true_distance  # another pillar, against another scene
    assert found.left_out == {"probes": "they need at least 10 questions"}
    assert found.probes == ()


def test_the_folder_holds_runs_and_the_result(found: Diagnosis) -> None:
    for name in (".", *KINDS, *CHANGES):
        lines = (found.folder / name / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == COUNT, name
    assert len(LatentBank.load(found.folder)) == COUNT
    told = json.loads((found.folder / "diagnosis.json").read_text())
    assert [effect["name"] for effect in told["effects"]] == ["none", *KINDS]
    assert (found.folder / "diagnosis.md").read_text() == found.markdown()
    assert (found.folder / "diagnosis.txt").read_text() == f"{found}\n"


def test_a_call_that_was_interrupted_goes_on(run: Path, found: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    honest = LatentPredictor.predict_step

    def watched(self: LatentPredictor, batch: Any, batch_idx: int) -> Any:
        asked.extend(batch.sample_ids)
        return honest(self, batch, batch_idx)

    monkeypatch.setattr(LatentPredictor, "predict_step", watched)
    cut = found.folder / "swap" / "predictions.jsonl"
    cut.write_bytes(cut.read_bytes()[:-9])
    again = diagnose(str(run), count=COUNT, **OPTIONS)
    assert asked == [f"counterfactual.jsonl:{COUNT}"]
    assert again == found


def test_the_report_shows_it(found: Diagnosis, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(found.folder), "--neighbours", "0"])
    page = (found.folder / "report.html").read_text()
    assert "Diagnosis: are the latents used?" in page
    assert found.verdict[0].split(":")[0] in page
    told = capsys.readouterr().out
    assert all(f"latents: {kind}" in told for kind in KINDS)


def test_questions_of_ones_own_have_what_applies_to_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = str(run / "data" / "test.jsonl")
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    main(["diagnose", str(run), "--data", f"[{questions}]", "--out", str(tmp_path), *options, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [effect["name"] for effect in told["effects"]] == ["none", *KINDS[:-1]]
    assert told["left_out"].keys() == {"swap", "input to latent", "probes"}


def test_what_cannot_be_diagnosed_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a folder to write to with --out"):
        diagnose("tiny")
    (tmp_path / "config.yaml").write_text("data: {}\n")
    with pytest.raises(MissingFileError, match="no test or validation records"):
        diagnose(str(tmp_path))
