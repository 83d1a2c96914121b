"""Vectors that probes read are the states of the very tokens that they are named after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from futurel1.diagnosis.decoding import Decoder
from futurel1.diagnosis.probing import future_positions, probes_of
from futurel1.diagnosis.states import imagined_states, response_states, thought_states
from futurel1.errors import RecordError
from futurel1.models import LatentReasoner
from futurel1.models.decoding import Rollout
from futurel1.rollout import SamplingSettings
from futurel1.worlds import write_world
from opening import write_opening

COUNT = 12
SAMPLING = SamplingSettings(max_new_tokens=6, span_budget="fixed", span_latents=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    world = tmp_path_factory.mktemp("world")
    made = write_world(world, train=0, test=0, counterfactual=COUNT, kinds=("zone",), size=64, progress=False)
    (world / "prompt.txt").write_text("Think.")
    return [str(made.counterfactual)]


@pytest.fixture(scope="module")
def decoder(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    reasoner = LatentReasoner.from_pretrained(write_opening(tmp_path_factory.mktemp("opening")))
    prompt = str(Path(files[0]).with_name("prompt.txt"))
    return Decoder(reasoner, "opening", {"system_prompt": prompt, "batch_size": 5}, SAMPLING)


def test_states_are_those_that_chose_the_next_token(
    files: list[str], decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from futurel1.diagnosis import states

    seen: list[tuple[Rollout, torch.Tensor]] = []

    def watched(reasoner: Any, batch: Any, rollout: Rollout) -> torch.Tensor:
        seen.append((rollout, response_states(reasoner, batch, rollout)))
        return seen[-1][1]

    monkeypatch.setattr(states, "response_states", watched)
    found = imagined_states(decoder, files)
    checked = 0
    for rollout, hidden in seen:
        picked = decoder.reasoner.logits(hidden).argmax(dim=-1)
        free = rollout.chosen_mask[:, 1:] & ~rollout.slot_mask[:, 1:] & rollout.response_mask[:, 1:]
        assert torch.equal(picked[:, :-1][free], rollout.responses[:, 1:][free])
        checked += int(free.sum())
    assert checked > COUNT
    assert [len(rollout) for rollout, _ in seen] == [5, 5, 2]
    # the first response opens with START, two latents, END and words
    (rollout, hidden), own = seen[0], [one for one in found if one.question == 0 and one.frame == 0]
    by_source = {one.source: one.vector for one in own}
    np.testing.assert_allclose(by_source["latents"], rollout.latents[0, :2].double().mean(dim=0), rtol=1e-6)
    np.testing.assert_allclose(by_source["end of span"], hidden[0, 3].double(), rtol=1e-6)
    assert {one.question for one in found} == set(range(COUNT))


@pytest.mark.parametrize(
    "text",
    [
        "<reason>now</reason><reason>then</reason><reason>later</reason><answer>A</answer>",
        "<reason>now</reason>\n<reason>then</reason>\n<reason>later</reason>\n<answer>A</answer>\n",
        "<reason>now\nthen\nlater</reason>\n<answer>A</answer>",  # as a model without spans writes them
    ],
)
def test_thoughts_end_with_their_tag_or_line(
    files: list[str], decoder: Decoder, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    tokenizer = decoder.reasoner.tokenizer
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    real = torch.ones_like(ids, dtype=torch.bool)
    states = torch.arange(ids.shape[1], dtype=torch.float32)[None, :, None].expand(1, -1, 4)
    rollout = type("Told", (), {"responses": ids, "response_mask": real, "__len__": lambda self: 1})()
    monkeypatch.setattr("futurel1.diagnosis.states._decoded", lambda decoder, questions: [(7, rollout, states)])
    found = thought_states(decoder, files)
    assert [(one.question, one.frame) for one in found] == [(7, 0), (7, 1)]
    words = [tokenizer.decode([token]) for token in ids[0].tolist()]
    for one, name in zip(found, ("then", "later"), strict=True):
        assert name in "".join(words[int(one.vector[0] + 0.5) - 4 : int(one.vector[0] + 0.5) + 5])
    assert found[0].vector[0] < found[1].vector[0]


def test_probes_are_kept_in_the_folder(
    files: list[str], decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = probes_of(decoder, {"unchanged": files}, tmp_path, None)
    by_name = {one.name: one for one in probes}
    assert by_name.keys() >= {"latents", "end of span", "true frames"}
    records = [json.loads(line) for line in Path(files[0]).read_text().splitlines()]
    assert by_name["true frames"].vectors == sum(len(record["future_positions"]) for record in records)
    monkeypatch.setattr("futurel1.diagnosis.probing.imagined_states", lambda *args: pytest.fail("decoded again"))
    assert probes_of(decoder, {"unchanged": files}, tmp_path, None) == probes


def test_a_text_only_model_without_thoughts_has_no_probe(files: list[str], decoder: Decoder, tmp_path: Path) -> None:
    silent = replace(decoder, model="silent")
    names = [one.name for one in probes_of(decoder, {"unchanged": files}, tmp_path, silent)]
    assert not any("text-only" in name for name in names)


def test_labels_are_checked(files: list[str], tmp_path: Path) -> None:
    record = json.loads(Path(files[0]).read_text().splitlines()[0])
    record["video"] = str(Path(files[0]).parent / record["video"])
    for places, expected in ((None, None), ([[[0.5, 0.25], [1, 0]]], [[[(0.5, 0.25), (1.0, 0.0)]]])):
        (tmp_path / "one.jsonl").write_text(json.dumps(record | {"future_positions": places}) + "\n")
        assert future_positions([str(tmp_path / "one.jsonl")]) == expected
    (tmp_path / "one.jsonl").write_text(json.dumps(record | {"future_positions": [[1, 2]]}) + "\n")
    with pytest.raises(RecordError, match=r"one.jsonl:1, field 'future_positions': lists of pairs"):
        future_positions([str(tmp_path / "one.jsonl")])
