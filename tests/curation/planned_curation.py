"""Candidates of small pictures, and a model that answers them as it is told."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from futurel1.curation import (
    CandidateDataset,
    ProbeFolder,
    Prober,
    ProbeTable,
    Report,
    Share,
    Thresholds,
    choose,
    probe,
)
from futurel1.data import PromptBatch, RecordSource, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.engines import OwnLoop
from futurel1.models.transcript import Transcript
from futurel1.rewards import AccuracyReward

OBSERVED, HINTS = 2, (1, 2, 1, 3)


def write_records(folder: Path, number: int = 26) -> Path:
    """Path-based records of two observed frames and one to three hints; each fifth has none, the last is a chat."""
    (folder / "pictures").mkdir(parents=True)
    for shade in range(6):
        Image.new("RGB", (32, 32), (40 * shade, 0, 255 - 40 * shade)).save(folder / "pictures" / f"{shade}.png")
    lines: list[dict[str, Any]] = []
    for place in range(number - 1):
        hints = 0 if place % 5 == 4 else HINTS[place % len(HINTS)]
        said = [("human", "<image>" * OBSERVED + f"What is next, {place}?"), ("gpt", "It moves. " + "<image>" * hints)]
        lines.append(
            {
                "image": [f"pictures/{shade}.png" for shade in range(OBSERVED)],
                "reasoning_image": [f"pictures/{OBSERVED + shade}.png" for shade in range(hints)],
                "conversations": [{"from": speaker, "value": text} for speaker, text in said],
                "answer": "B",
                "note": f"größer \N{SNOWMAN} {place}",
            }
        )
    chat = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "This."}]
    lines.append({"messages": chat, "images": ["pictures/0.png"]})
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def planned(sample: str, rollouts: int = 8) -> tuple[int, int]:
    """How often a record is to be answered right, without hints and with them."""
    draw = random.Random(sample)
    return draw.randint(0, rollouts), draw.randint(rollouts // 2, rollouts)


class PlannedResponses:
    """Answers as `planned`: the first so many of a prompt's responses are right. Counts what it was asked."""

    def __init__(self, image_token: int, *, rollouts: int = 8, wrong: str = "C", fail_after: int | None = None) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self._image_token, self._rollouts, self._wrong, self._fail_after = image_token, rollouts, wrong, fail_after

    def __call__(self, prompts: Iterable[PromptBatch]) -> Iterator[list[Transcript]]:
        return map(self._answer, prompts)

    def _answer(self, prompt: PromptBatch) -> list[Transcript]:
        if self._fail_after is not None and len(self.asked) >= self._fail_after:
            raise KeyboardInterrupt
        texts = []
        for name, ids in zip(prompt.sample_ids, prompt.input_ids, strict=True):
            pictures = int((ids == self._image_token).sum())  # a picture of 32 x 32 is one token
            self.asked[name, pictures] += 1
            right = planned(name, self._rollouts)[pictures > OBSERVED]
            texts += [f"<answer>{'B' if place < right else self._wrong}</answer>" for place in range(self._rollouts)]
        return said(texts)


def said(texts: Sequence[str]) -> list[Transcript]:
    """Responses with these texts."""
    return [Transcript(text, text, (), len(text), "eos") for text in texts]


class Bench:
    """A curation of some records, with planned responses."""

    def __init__(self, records: str | Path | Sequence[Path], encoder: ChatEncoder, out: Path) -> None:
        self.source: RecordSource = open_records(records)  # type: ignore[arg-type]
        self.encoder = encoder
        self.out = out
        self.folder = ProbeFolder(out, self.source.id, len(self.source))
        self.folder.settle({"rollouts": 8})
        image_token = int(encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
        self.responses = partial(PlannedResponses, image_token)
        self.respond = self.responses()

    def run(self, shard: str = "0/1", *, judge: Any = None, on_error: Any = "skip", **options: Any) -> ProbeTable:
        prober = Prober(OwnLoop(self.respond, self.encoder), AccuracyReward(judge))
        candidates = CandidateDataset(self.source, self.encoder, on_error=on_error)
        share = Share.parse(shard, {})
        return probe(candidates, prober, self.folder, share, **{"batch_size": 3, **options})

    def merge(self, **thresholds: Any) -> Report:
        return choose(self.source, self.folder, Thresholds(**thresholds))

    def lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for file in sorted(self.out.glob("probes-*.jsonl")) for line in file.open(encoding="utf-8")
        ]

    def outputs(self) -> dict[str, bytes]:
        return {name: (self.out / name).read_bytes() for name in ("curated.jsonl", "report.txt", "report.png")}
