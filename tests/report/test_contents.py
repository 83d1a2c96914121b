from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import write_run

from futurel1.models import LatentReasoner
from futurel1.report.contents import Contents, assemble, groups_of
from futurel1.report.records import RunRecords
from futurel1.report.runs import RunContents


@pytest.fixture(scope="module")
def contents(run: RunContents, zeros: RunContents, tiny: LatentReasoner) -> Contents:
    return assemble(run, {"zero": zeros}, RunRecords(run), tiny, samples=0, neighbours=2, thumbnail=64)


def test_samples_hold_both_answers_and_what_flipped(contents: Contents, run: RunContents) -> None:
    assert [sample.id for sample in contents.samples] == list(run.predictions)
    assert [sample.flipped for sample in contents.samples] == [("zero",), ("zero",), ("zero",), ()]
    first = contents.samples[0]
    assert set(first.told) == {"none", "zero"}
    assert (first.told["none"].right, first.told["zero"].right) == (True, False)
    assert "It moves." in [piece.text for piece in first.told["none"].pieces]
    assert "It stays." in [piece.text for piece in first.told["zero"].pieces]
    assert first.question.startswith(("In which zone", "After"))
    assert set(first.options) == set("ABCD")
    assert len(first.shown) == 4
    assert max(shown.frame for sample in contents.samples for shown in sample.shown) < len(contents.frames)


def test_spans_are_nearest_to_the_frames_they_were_made_of(contents: Contents) -> None:
    spans = [span for sample in contents.samples for span in sample.spans]
    assert [span.latents for span in spans] == [2, 1, 1]
    assert contents.retrieval is not None
    assert (contents.retrieval.spans, contents.retrieval.cosine) == (3, pytest.approx(1, abs=1e-4))
    for span in spans:
        assert span.near is not None
        assert span.near.true is not None
        assert span.near.true.rank == 1
        assert span.near.own[0] == span.near.true.near
        assert len(span.near.others) == 2
        assert span.scene == span.true_scene  # the decoder reads both alike
    assert contents.gallery == 16


def test_without_a_model_frames_are_shown_and_nothing_is_compared(run: RunContents) -> None:
    contents = assemble(run, {}, RunRecords(run), None, samples=2, neighbours=2, thumbnail=64)
    assert [sample.id for sample in contents.samples] == ["test.jsonl:1", "test.jsonl:3"]
    assert contents.answered == 4
    assert contents.scores[0].total == 4  # of all, not only of those shown
    assert [(span.latents, span.near) for span in contents.samples[0].spans] == [(2, None)]


def test_latents_of_another_branch_than_the_one_that_is_shown_are_not_compared(
    run: RunContents, world: Path, tiny: LatentReasoner, tmp_path: Path
) -> None:
    voted = write_run(tmp_path / "voted", list(run.predictions.values()), world / "test.jsonl")
    config = json.loads(voted.config_text)
    config["model"]["init_args"]["num_branches"] = 4
    (voted.folder / "config.yaml").write_text(json.dumps(config))
    (voted.folder / "latents.safetensors").write_bytes((run.folder / "latents.safetensors").read_bytes())
    again = RunContents(voted.folder)
    contents = assemble(again, {}, RunRecords(again), tiny, samples=1, neighbours=2, thumbnail=64)
    assert [span.near for span in contents.samples[0].spans] == [None]


def test_rollouts_are_grouped_by_batch_and_prompt() -> None:
    line = {"id": "rl:1", "prompt": "Where?", "response": "x [imagined frame 1: 2 latents]", "answer": "A"}
    lines = [
        {"rollout_batch": batch, "prompt_index": 3, **line, "finish_reason": "eos", "reward": 1.5, "format": reward}
        for batch, reward in ((0, 1.0), (0, None), (10, 0.0))
    ]
    groups = groups_of(lines)
    assert [(group.batch, group.id, len(group.rollouts)) for group in groups] == [(0, "rl:1", 2), (10, "rl:1", 1)]
    assert [rollout.numbers for rollout in groups[0].rollouts] == [
        {"reward": 1.5, "format": 1.0}, {"reward": 1.5, "format": None}
    ]  # fmt: skip
    assert [piece.kind for piece in groups[0].rollouts[0].pieces] == ["text", "span"]
