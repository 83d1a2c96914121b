"""Latents of a test beside true frames: `python -m experiments.proof.latents --model MODEL --test RUN ...`.

`futurel1 diagnose` fits probes, which say whether the places of all things in a future frame can be read by a linear
map. Here nothing is fitted, and the questions are those of the test, so that the numbers stand beside its accuracy:

* how often a span is nearest, by the cosine of means, to its own true frame among the future frames of all questions;
* whether the one thing that a question asks about is in the right zone in the frame that it asks about, read by the
  inverse of the scene code that the shipped backbone's tower was trained on;
* which training frames are nearest to the spans of a few questions, for the pictures.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.proof.records import per_split, read_lines
from futurel1.diagnosis.decoding import future_means
from futurel1.diagnosis.imagining import span_means
from futurel1.models import LatentBank, LatentReasoner
from futurel1.modules import TowerPretrainModule
from futurel1.worlds import read_code
from futurel1.worlds.look import COLOURS, ZONES

SHOWN = ("hop2", "hop3", "hop5")
"""Splits from which the first two samples are shown."""
Spans = Sequence[Mapping[int, Tensor]]
"""For each question, (H,) vectors by the number of a span or of a future frame."""


def cosines(spans: Tensor, frames: Tensor) -> Tensor:
    """Cosines (S, F) of spans (S, H) and frames (F, H)."""
    return F.normalize(spans, dim=-1) @ F.normalize(frames, dim=-1).T


def retrieval(spans: Spans, frames: Sequence[Tensor]) -> dict[str, float | int | None]:
    """Compute how often a span is nearest to its own true frame among all frames.

    Spans beyond the number of true frames have no frame of their own and are left out.

    Args:
        spans: Q questions with the mean latent of each span.
        frames: the (M, H) features of the M future frames of each question.
    """
    gallery = torch.cat(list(frames))
    starts = torch.tensor([0, *(len(own) for own in frames)]).cumsum(0).tolist()
    pairs = [
        (vector, starts[question] + number)
        for question, own in enumerate(spans)
        for number, vector in own.items()
        if number < len(frames[question])
    ]
    numbers: dict[str, float | int | None] = {
        "spans": sum(map(len, spans)), "compared": len(pairs), "frames": len(gallery),
        "chance": round(1 / len(gallery), 6), "retrieval": None, "cosine": None, "cosine_others": None,
    }  # fmt: skip
    if pairs:
        own = torch.tensor([place for _, place in pairs])
        similarity = cosines(torch.stack([vector for vector, _ in pairs]), gallery)
        to_own = similarity.gather(1, own[:, None])[:, 0]
        others = (similarity.sum(dim=1) - to_own) / max(1, similarity.shape[1] - 1)
        numbers["retrieval"] = round(float((similarity.argmax(dim=1) == own).float().mean()), 6)
        numbers["cosine"] = round(float(to_own.mean()), 4)
        numbers["cosine_others"] = round(float(others.mean()), 4)
    return numbers


def strip(
    spans: Spans,
    frames: Sequence[Tensor],
    questions: Sequence[Mapping[str, Any]],
    training: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Six questions with the training frame nearest to each imagined span; frames are numbered in the 8-frame pool."""
    gallery = torch.cat(list(frames))
    names = [
        [record["id"], pool_frame]
        for record, _ in zip(training, frames, strict=False)
        for pool_frame in record["reasoning_image"]
    ]
    shown = []
    for name in SHOWN:
        of_split = [place for place, question in enumerate(questions) if question["question_type"] == name]
        for place in of_split[:2]:
            own = list(spans[place].values())
            nearest = cosines(torch.stack(own), gallery).argmax(dim=1).tolist() if own else []
            question = questions[place]
            shown.append(
                {
                    "id": question["id"],
                    "split": name,
                    "observed": question["image"],
                    "future": question["reasoning_image"],
                    "nearest": [names[frame] for frame in nearest],
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


def answers_held(codes: Spans, questions: Sequence[Mapping[str, Any]]) -> list[bool | None]:
    """Whether the shape is in the right zone in the frame that each question asks about; None if that frame is missing.

    Args:
        codes: for each question, the (CODE_SIZE,) scene code of each span or frame.
        questions: the questions.
    """
    held: list[bool | None] = []
    for question, own in zip(questions, codes, strict=True):
        hint, pair = asked_about(question)
        if hint not in own:
            held.append(None)
            continue
        x, y = read_code(own[hint][None].numpy()).positions[0, pair] >= 0.5
        held.append(ZONES[2 * int(y) + int(x)] == question["answer"])
    return held


def shares_held(
    reasoner: LatentReasoner, vectors: Mapping[str, Spans], questions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Per split, the share of questions whose frame is there, and the share of these whose frame holds the answer."""
    tower = TowerPretrainModule(text_width=reasoner.hidden_size)
    tower.configure_model()
    splits = [question["question_type"] for question in questions]
    found = {}
    for name, own in vectors.items():
        codes = [{number: tower.codes(vector[None])[0] for number, vector in one.items()} for one in own]
        held = answers_held(codes, questions)
        shown = [one is not None for one in held]
        found[f"{name}_show"] = per_split(shown, splits)
        found[f"{name}_hold"] = per_split([bool(one) for one in compress(held, shown)], list(compress(splits, shown)))
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Compare the latents of a test with true frames, and write the numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.proof.latents", description=__doc__)
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
    spans = span_means(LatentBank.load(options.test), read_predictions(options.test / "predictions.jsonl"))
    frames = future_means(reasoner, [str(options.questions)], "true")
    questions = read_lines(options.questions)
    found: dict[str, Any] = dict(retrieval(spans, frames))
    if options.codes:
        found |= shares_held(reasoner, {"spans": spans, "frames": [dict(enumerate(own)) for own in frames]}, questions)
    training = future_means(reasoner, [str(options.training)], "true", options.train)
    found["strip"] = strip(spans, training, questions, read_lines(options.training))
    options.out.write_text(json.dumps(found), encoding="utf-8")


def read_predictions(file: Path) -> list[dict[str, Any]]:
    """Predictions for one file of questions, in the order of the questions."""
    return sorted(read_lines(file), key=lambda line: int(str(line["id"]).rpartition(":")[2]))


if __name__ == "__main__":
    main()
