"""A run folder of the tiny backbone on four clips, with latents whose neighbours are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import prediction, write_run

from futurel1.models import LatentBank, LatentReasoner
from futurel1.report.gallery import Gallery
from futurel1.report.pictures import Thumbnails
from futurel1.report.records import RunRecords
from futurel1.report.runs import RunContents
from futurel1.runs import load_reasoner
from futurel1.worlds import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips with questions about zones."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=0, test=4, kinds=("zone",), size=64, progress=False)
    return folder


@pytest.fixture(scope="session")
def tiny() -> LatentReasoner:
    """The tiny backbone."""
    return load_reasoner("tiny", device="cpu")


@pytest.fixture(scope="session")
def run(world: Path, tiny: LatentReasoner, tmp_path_factory: pytest.TempPathFactory) -> RunContents:
    """A run whose first span of every sample is its true frame's feature; the first sample has two latents a span."""
    expected = [json.loads(line)["letter"] for line in (world / "test.jsonl").read_text().splitlines()]
    answers = [expected[0], expected[1], "A" if expected[2] != "A" else "B", expected[3]]
    spans = [[2], [1], [1], []]
    lines = [prediction(n + 1, answers[n], expected[n], spans[n]) for n in range(4)]
    made = write_run(tmp_path_factory.mktemp("runs") / "base", lines, world / "test.jsonl")
    gallery = Gallery(Thumbnails(64), RunRecords(made).sampling, tiny)
    records = RunRecords(made)
    latents = []
    for line in lines:
        frames = gallery.add(records.view(line["id"]))
        features = gallery.features
        assert features is not None
        latents.append(features[frames.future[0]].expand(sum(line["spans"]), -1))
    LatentBank.from_responses([line["id"] for line in lines], latents).save(made.folder / "latents.safetensors")
    return RunContents(made.folder)


@pytest.fixture(scope="session")
def zeros(run: RunContents, world: Path) -> RunContents:
    """The same samples under the intervention `zero`: the first two are answered wrong, the third right."""
    lines = []
    for number, line in enumerate(run.predictions.values()):
        wrong = "A" if line["expected"] != "A" else "B"
        answer = [wrong, wrong, line["expected"], line["answer"]][number]
        lines.append(prediction(number + 1, answer, line["expected"], line["spans"], "It stays."))
    return write_run(run.folder.parent / "zero", lines, world / "test.jsonl", "zero")
