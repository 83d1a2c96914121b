"""Analysis of imagined latents: `python -m experiments.miniature.latents --model MODEL --test RUN ...`.

Latents that a model was fed while it answered the test questions are compared with features of true frames, by the
cosine of span means: with the future frames of all test questions, to see how often a span is nearest to its own frame,
and with those of training clips, to see what was imagined. They are also decoded by the inverse of the code that the
tiny backbone's tower was trained on, to see how many of them contain the answer.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.miniature.records import per_split, read_lines
from futurel1.data import open_records
from futurel1.data.chat import ChatEncoder
from futurel1.models import LatentBank, LatentReasoner
from futurel1.modules import TowerPretrainModule
from futurel1.worlds import read_code
from futurel1.worlds.look import COLOURS, ZONES

BATCH = 32
FRAME_TOKENS = 64
"""Most visual tokens of a frame; a frame of the world has fewer."""
SHOWN = ("hop2", "hop3", "hop5")
"""Splits from which the first two samples are shown."""


@dataclass(frozen=True)
class Frames:
    """Future frames in a file of records.

    Attributes:
        features: (F, H) mean feature of each frame.
        record: (F,) number of its record, from 0.
        hint: (F,) number of the frame among its record's hints, from 0.
    """

    features: Tensor
    record: Tensor
    hint: Tensor


@torch.no_grad()
def future_frames(reasoner: LatentReasoner, records: Path, most: int | None = None) -> Frames:
    """Encode the hint frames of records at their own size, as for the targets of latents."""
    encoder = ChatEncoder(reasoner.processor, max_latent_tokens=FRAME_TOKENS)
    source = open_records(str(records))
    number = len(source) if most is None else min(most, len(source))
    device = reasoner.device
    features: list[Tensor] = []
    record: list[int] = []
    hint: list[int] = []
    for start in range(0, number, BATCH):
        samples = [encoder.encode(source.sample(place)) for place in range(start, min(start + BATCH, number))]
        pixels, grids = [], []
        for place, sample in enumerate(samples, start):
            if sample.hint_pixel_values is None or sample.hint_grid_thw is None:
                continue
            pixels.append(sample.hint_pixel_values)
            grids.append(sample.hint_grid_thw)
            record += [place] * len(sample.hint_grid_thw)
            hint += range(len(sample.hint_grid_thw))
        if pixels:
            seen = reasoner.encode_hints(torch.cat(pixels).to(device), torch.cat(grids).to(device))
            means = [rows.mean(dim=0) for rows in torch.split(seen.embeds.float(), list(seen.counts))]
            features += means
    return Frames(torch.stack(features).cpu(), torch.tensor(record), torch.tensor(hint))


@dataclass(frozen=True)
class ImaginedSpans:
    """Non-empty spans of a set of responses.

    Attributes:
        means: (S, H) mean latent of each span.
        record: (S,) number of its record, from 0.
        hint: (S,) number of the span within its response, from 0.
    """

    means: Tensor
    record: Tensor
    hint: Tensor


def imagined_spans(bank: LatentBank, predictions: Sequence[Mapping[str, Any]]) -> ImaginedSpans:
    """Cut the latents of a bank into spans.

    Args:
        bank: latents of the responses.
        predictions: records of `futurel1 predict`, in the order of the questions.
    """
    rows = {name: row for row, name in enumerate(bank.ids)}
    means, record, hint = [], [], []
    for place, prediction in enumerate(predictions):
        spans = prediction["spans"]
        own = bank.latents[rows[prediction["id"]]].float()
        for number, (length, end) in enumerate(zip(spans, accumulate(spans), strict=True)):
            if length:
                means.append(own[end - length : end].mean(dim=0))
                record.append(place)
                hint.append(number)
    stacked = torch.stack(means) if means else torch.zeros(0, bank.width)
    return ImaginedSpans(stacked, torch.tensor(record), torch.tensor(hint))


def cosines(spans: Tensor, frames: Tensor) -> Tensor:
    """Cosines (S, F) of spans (S, H) and frames (F, H)."""
    return F.normalize(spans, dim=-1) @ F.normalize(frames, dim=-1).T


def retrieval(spans: ImaginedSpans, frames: Frames) -> dict[str, float | int | None]:
    """Compute how often a span is nearest to its own true frame among all frames.

    Spans beyond the number of true frames have no frame of their own and are left out.
    """
    places = {(int(r), int(h)): place for place, (r, h) in enumerate(zip(frames.record, frames.hint, strict=True))}
    pairs = [
        (span, places[int(r), int(h)])
        for span, (r, h) in enumerate(zip(spans.record, spans.hint, strict=True))
        if (int(r), int(h)) in places
    ]
    numbers: dict[str, float | int | None] = {
        "spans": len(spans.means), "compared": len(pairs), "frames": len(frames.features),
        "chance": round(1 / len(frames.features), 6), "retrieval": None, "cosine": None, "cosine_others": None,
    }  # fmt: skip
    if pairs:
        span, own = torch.tensor(pairs).T
        similarity = cosines(spans.means[span], frames.features)
        to_own = similarity.gather(1, own[:, None])[:, 0]
        others = (similarity.sum(dim=1) - to_own) / max(1, similarity.shape[1] - 1)
        numbers["retrieval"] = round(float((similarity.argmax(dim=1) == own).float().mean()), 6)
        numbers["cosine"] = round(float(to_own.mean()), 4)
        numbers["cosine_others"] = round(float(others.mean()), 4)
    return numbers


def strip(
    spans: ImaginedSpans,
    frames: Frames,
    questions: Sequence[Mapping[str, Any]],
    training: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Six questions with the training frame nearest to each imagined span; frames are numbered in the 8-frame pool."""
    shown = []
    for name in SHOWN:
        of_split = [place for place, question in enumerate(questions) if question["question_type"] == name]
        for place in of_split[:2]:
            own = spans.means[spans.record == place]
            nearest = cosines(own, frames.features).argmax(dim=1).tolist()
            found = [(training[int(frames.record[frame])], int(frames.hint[frame])) for frame in nearest]
            question = questions[place]
            shown.append(
                {
                    "id": question["id"],
                    "split": name,
                    "observed": question["image"],
                    "future": question["reasoning_image"],
                    "nearest": [[record["id"], record["reasoning_image"][hint]] for record, hint in found],
                }
            )
    return shown


def asked_about(question: Mapping[str, Any]) -> tuple[int, int]:
    """What a zone question asks about: the number of a hint frame, from 0, and the colour pair of the shape."""
    said = str(question["conversations"][0]["value"]).rpartition("<image>\n")[2]
    asked = re.match(r"In which zone is the (.+) after (\d) steps?\?", said)
    if asked:
        return int(asked[2]) - 1, _pair(asked[1])
    told = re.match(r"After \d steps the (.+) is in the (.+) zone\. Where is the (.+) when it gets there\?", said)
    if told is None:
        raise ValueError(f"{question['id']} does not ask for a zone: {said!r}")
    thoughts = str(question["conversations"][1]["value"]).split("<image>")
    there = [f"{told[1]} {told[2]}" in thought for thought in thoughts]
    return there.index(True) - 1, _pair(told[3])


def _pair(name: str) -> int:
    return list(COLOURS).index(name.split()[0]) % (len(COLOURS) // 2)


def answers_held(
    codes: Tensor, of: ImaginedSpans | Frames, questions: Sequence[Mapping[str, Any]]
) -> list[bool | None]:
    """Whether the shape is in the right zone in the frame that each question asks about; None if that frame is missing.

    Args:
        codes: (S, CODE_SIZE) scene codes of spans or frames.
        of: the spans or frames that the codes belong to.
        questions: the questions.
    """
    positions = read_code(codes.numpy()).positions
    places = {(int(r), int(h)): place for place, (r, h) in enumerate(zip(of.record, of.hint, strict=True))}
    held: list[bool | None] = []
    for number, question in enumerate(questions):
        hint, pair = asked_about(question)
        place = places.get((number, hint))
        if place is None:
            held.append(None)
            continue
        x, y = positions[place, pair] >= 0.5
        held.append(ZONES[2 * int(y) + int(x)] == question["answer"])
    return held


def main(args: Sequence[str] | None = None) -> None:
    """Compare the latents of a test with true frames, and write the numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.miniature.latents", description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the exported model")
    parser.add_argument("--test", type=Path, required=True, help="run folder of its predictions, with latents")
    parser.add_argument("--questions", type=Path, required=True, help="records that were asked")
    parser.add_argument("--training", type=Path, required=True, help="training records")
    parser.add_argument("--train", type=int, required=True, help="how many of them")
    parser.add_argument("--codes", type=json.loads, default=False, help="features are scene codes: read them as such")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reasoner = LatentReasoner.from_pretrained(options.model).to(device)
    predictions = read_predictions(options.test / "predictions.jsonl")
    spans = imagined_spans(LatentBank.load(options.test), predictions)
    frames = future_frames(reasoner, options.questions)
    questions = read_lines(options.questions)
    found: dict[str, Any] = dict(retrieval(spans, frames))
    if options.codes:
        tower = TowerPretrainModule(text_width=reasoner.hidden_size)
        tower.configure_model()
        splits = [question["question_type"] for question in questions]
        for name, of, features in (("spans", spans, spans.means), ("frames", frames, frames.features)):
            held = answers_held(tower.codes(features), of, questions)
            shown = [one is not None for one in held]
            found[f"{name}_show"] = per_split(shown, splits)
            found[f"{name}_hold"] = per_split(
                [bool(one) for one in compress(held, shown)], list(compress(splits, shown))
            )
    training = future_frames(reasoner, options.training, options.train)
    found["strip"] = strip(spans, training, questions, read_lines(options.training))
    options.out.write_text(json.dumps(found), encoding="utf-8")


def read_predictions(file: Path) -> list[dict[str, Any]]:
    """Predictions for one file of questions, in the order of the questions."""
    return sorted(read_lines(file), key=lambda line: int(str(line["id"]).rpartition(":")[2]))


if __name__ == "__main__":
    main()
