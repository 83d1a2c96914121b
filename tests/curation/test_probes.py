"""The two prompts of a candidate, and how right responses are counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from planned_curation import OBSERVED, Bench, planned, said
from torch import Tensor

from futurel1.curation import Candidate, CandidateDataset, Prober, ProbeResult, with_hints
from futurel1.data import (
    Frame,
    PromptBatch,
    Sample,
    Turn,
    frame_pool,
    open_records,
    probe_video,
    read_frames,
    read_image,
)
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched
from futurel1.data.prompts import PromptCollator
from futurel1.engines import Decoding, OwnLoop, SampledResponses
from futurel1.errors import RecordError
from futurel1.models import LatentReasoner
from futurel1.models.transcript import Transcript
from futurel1.rewards import Judge, Verdict
from futurel1.rollout import SamplingSettings


def pixels(encoder: ChatEncoder, pictures: Sequence[Image.Image]) -> Tensor:
    found = encoder.processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    return torch.as_tensor(found)


def candidate(file: Path, encoder: ChatEncoder, number: int = 0) -> Candidate:
    made = CandidateDataset(open_records(file), encoder)[number]
    assert isinstance(made, Candidate)
    return made


def text(encoder: ChatEncoder, ids: Tensor) -> str:
    written: str = encoder.processor.tokenizer.decode(ids)
    return written.replace("<|image_pad|>", "")


def test_probes_of_a_clip_show_exactly_the_observed_frames_and_then_the_hints(
    clips_world: Path, encoder: ChatEncoder
) -> None:
    file = clips_world / "train.jsonl"
    for number, line in enumerate(file.read_text().splitlines()):
        record = json.loads(line)
        made = candidate(file, encoder, number)
        clip = clips_world / record["video"]
        pool = frame_pool(probe_video(clip).num_frames)
        observed, hints = record["image"], record["reasoning_image"]
        assert made.hints == len(hints)
        for encoded, shown in ((made.base, observed), (made.hint, observed + hints)):
            pictures = read_frames(clip, [pool[index - 1] for index in shown])
            assert encoded.pixel_values is not None
            assert torch.equal(encoded.pixel_values, pixels(encoder, pictures))
            frames = "".join(f"frame_{index}<|vision_start|><|vision_end|>" for index in shown)
            question = record["conversations"][0]["value"].rpartition("<image>\n")[2]
            assert text(encoder, encoded.input_ids).endswith(
                f"user\n{frames}{question}<|im_end|>\n<|im_start|>assistant\n"
            )
            assert encoded.hint_pixel_values is None
        assert (made.answer, made.base.sample_id) == (record["answer"], f"train.jsonl:{number + 1}")


def test_probes_of_a_record_of_pictures(records: Path, encoder: ChatEncoder) -> None:
    for number, hints in ((0, 1), (1, 2), (3, 3)):
        made = candidate(records, encoder, number)
        pictures = [read_image(records.parent / "pictures" / f"{shade}.png") for shade in range(OBSERVED + hints)]
        assert made.base.pixel_values is not None
        assert made.hint.pixel_values is not None
        assert torch.equal(made.base.pixel_values, pixels(encoder, pictures[:OBSERVED]))
        assert torch.equal(made.hint.pixel_values, pixels(encoder, pictures))
        assert "frame_" not in text(encoder, made.hint.input_ids)


def test_probes_of_the_upstream_shape(clips_world: Path, encoder: ChatEncoder, tmp_path: Path) -> None:
    clip = next((clips_world / "videos").glob("train-*.mp4"))
    record = {
        "video": str(clip),
        "question": "What next?",
        "answer": "It moves. <rimage> It turns. <rimage> <ans>B</ans>",
        "question_images_index": [1, 2],
        "reasoning_images_index": [4, 7],
    }
    (tmp_path / "up.jsonl").write_text(json.dumps(record))
    made = candidate(tmp_path / "up.jsonl", encoder)
    pool = frame_pool(probe_video(clip).num_frames)
    shown = read_frames(clip, [pool[index - 1] for index in (1, 2, 4, 7)])
    assert made.hint.pixel_values is not None
    assert made.base.pixel_values is not None
    assert torch.equal(made.hint.pixel_values, pixels(encoder, shown))
    assert torch.equal(made.base.pixel_values, pixels(encoder, shown[:2]))
    assert (made.answer, made.hints) == ("B", 2)


def test_labels_of_pictures_count_on() -> None:
    one, two, three = (Frame(Path(f"{name}.png"), None) for name in "abc")
    prompt = Sample("r:1", (Turn("user", ("Look.\nframe_5", one, "What next?")),), None, {})
    shown = with_hints(prompt, [two, three]).turns[0].parts
    assert shown == ("Look.\nframe_5", one, "frame_6", two, "frame_7", three, "What next?")


def test_records_without_hints_and_broken_ones(records: Path, encoder: ChatEncoder, tmp_path: Path) -> None:
    source = open_records(records)
    made = CandidateDataset(source, encoder)
    assert made[4] == ProbeResult(4, "records.jsonl:5", "no_hints")
    assert made[len(source) - 1] == ProbeResult(25, "records.jsonl:26", "no_hints")
    broken = json.loads(records.read_text().splitlines()[0])
    broken["reasoning_image"] = [str(tmp_path / "gone.png")]
    broken["image"] = [str(records.parent / path) for path in broken["image"]]
    (tmp_path / "broken.jsonl").write_text(json.dumps(broken) + '\n{"image": [')
    source = open_records(tmp_path / "broken.jsonl")
    skipping = CandidateDataset(source, encoder, on_error="skip")
    for number, reason in ((0, "gone.png"), (1, "not valid JSON")):
        result = skipping[number]
        assert isinstance(result, ProbeResult)
        assert (result.status, reason in result.reason) == ("skipped", True)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        CandidateDataset(source, encoder)[0]
    with pytest.raises(RecordError, match="not valid JSON"):
        CandidateDataset(source, encoder)[1]


def test_right_responses_are_counted_per_candidate_and_probe(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.run()
    table = made.folder.table()
    for number in range(len(made.source)):
        if table.hints[number]:
            assert (table.base[number], table.hint[number]) == planned(made.source.id(number))
    assert set(made.respond.asked.values()) == {1}
    assert len(made.respond.asked) == 2 * 20


class HalfDeafJudge:
    """Says yes to "moved"; gives no verdict on questions that end in 3."""

    def judge_answers(self, items: Sequence[Any]) -> list[Verdict]:
        deaf = [item.question.endswith("3?") for item in items]
        return [
            Verdict("answer", None if gone else True, failed=gone, reason="", attempts=1, cached=False) for gone in deaf
        ]


def test_judge_decides_what_the_rule_cannot_and_its_failures_are_no_errors(bench: Callable[..., Bench]) -> None:
    made = bench()
    table = made.run(judge=HalfDeafJudge())
    lost = [number for number in (3, 13, 23) if sum(planned(made.source.id(number))) < 16]
    assert lost
    status = [made.lines()[number]["status"] for number in range(len(made.source))]
    assert [number for number, what in enumerate(status) if what == "failed"] == lost
    others = [number for number, what in enumerate(status) if what == "probed"]
    assert {int(count) for number in others for count in (table.base[number], table.hint[number])} == {8}
    report = made.merge(max_base=8, min_gain=0)
    assert report.outcomes["failed"] == len(lost)
    assert report.outcomes["unhelpful"] == report.outcomes["easy"] == 0

    before = dict(made.respond.asked)
    again = made.run(judge=HalfDeafJudge())
    assert made.respond.asked == before
    assert (again.status == table.status).all()
    made.run(retry_failed=True)  # by the rule alone, as if the judge had come back and said no
    table = made.folder.table()
    for number in lost:
        assert (table.base[number], table.hint[number]) == planned(made.source.id(number))
        assert table.attempt[number] == 2
    assert sum(made.respond.asked.values()) == sum(before.values()) + 2 * len(lost)
    assert made.merge().outcomes["failed"] == 0


def test_a_dead_judge_marks_candidates_failed(bench: Callable[..., Bench]) -> None:
    made = bench()
    dead = Judge("http://127.0.0.1:9/v1", "none", api_key_env=None, max_attempts=1, max_failure_rate=1.0)
    made.run("0/3", judge=dead)
    found = {line["status"] for line in made.lines() if line["hints"]}
    assert found == {"failed"}
    assert "no verdict on" in next(line["reason"] for line in made.lines() if line["hints"])


def test_rollouts_do_not_depend_on_the_batch(clips_world: Path, encoder: ChatEncoder) -> None:
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    respond = SampledResponses(reasoner, Decoding(SamplingSettings(max_new_tokens=8, seed=5), num_branches=3))
    made = [candidate(clips_world / "train.jsonl", encoder, number) for number in (0, 1, 5)]
    collate = PromptCollator(encoder.pad_token_id)
    for probe in ("base", "hint"):
        samples = [getattr(one, probe) for one in made]
        (together,) = respond([collate([Fetched(samples, [])])])
        alone = [text for texts in respond(collate([Fetched([sample], [])]) for sample in samples) for text in texts]
        assert together == alone
        assert len({response.text for response in together}) > 3
        samples = [replace(sample, sample_id=f"other {sample.sample_id}") for sample in samples]
        assert next(respond([collate([Fetched(samples, [])])])) != together


def test_the_prober_keeps_the_order_of_a_batch(records: Path, encoder: ChatEncoder) -> None:
    known = ProbeResult(4, "records.jsonl:5", "no_hints")
    one, two = candidate(records, encoder, 0), candidate(records, encoder, 1)

    def respond(prompts: Iterable[PromptBatch]) -> Iterator[list[Transcript]]:
        ahead = list(prompts)  # a queue reads some batches before it answers the first
        return (said(["<answer>B</answer>", "no"] * len(prompt)) for prompt in ahead)

    prober = Prober(OwnLoop(respond, encoder))
    blocks = list(prober.run([known, two, known, one], [[0], [0, 1, 2, 3], [0], [2], [3], [0]]))
    assert [[result.number for result in block] for block in blocks] == [[4], [4, 1, 4, 0], [4], [4], [0], [4]]
    assert blocks[2] == [known]
    assert list(prober.run([known], [[0]])) == [[known]]
    assert blocks[4][0] == ProbeResult(0, "records.jsonl:1", "probed", hints=1, base=1, hint=1)
