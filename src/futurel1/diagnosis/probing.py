"""Probes of a model on questions whose records say where things will be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from futurel1.diagnosis.decoding import Decoder, future_means, open_questions
from futurel1.diagnosis.probes import LEAST_QUESTIONS, Probe, probe
from futurel1.diagnosis.states import FrameVector, imagined_states, thought_states
from futurel1.errors import ConfigError, RecordError
from futurel1.files import write_whole
from futurel1.metrics.functional import Difference

__all__ = ["future_positions", "probes_of"]

PROBES_FILE = "probes.json"
FIELD = "future_positions"
TRUE_FRAMES = "true frames"

Positions = list[list[list[tuple[float, float]]]]


def future_positions(questions: Sequence[str]) -> Positions | None:
    """Of every question and each of its future frames, the (x, y) of things; None if a record does not tell.

    Raises:
        RecordError: a field `future_positions` that holds no lists of pairs of numbers.
    """
    source = open_questions(questions)
    found: Positions = []
    for number in range(len(source)):
        places = source.raw(number).raw.get(FIELD)
        if places is None:
            return None
        try:
            found.append([[(float(x), float(y)) for x, y in frame] for frame in places])
        except (TypeError, ValueError) as error:
            raise RecordError(f"{source.id(number)}, field '{FIELD}': lists of pairs are expected ({error})") from error
    return found


def probes_of(
    decoder: Decoder, files: Mapping[str, Sequence[str]], folder: Path, text_only: Decoder | None
) -> list[Probe]:
    """Probe everything that could hold a future frame; the result is kept in the folder, and read from there.

    Args:
        decoder: the model.
        files: by name, files of the same questions about the same or changed videos, line by line.
        folder: where `probes.json` is kept.
        text_only: a model without latents, whose thoughts are probed too; None: no such model.

    Raises:
        ConfigError: too few questions, or a model without thoughts.
    """
    kept = folder / PROBES_FILE
    about = {
        "files": {name: list(names) for name, names in files.items()}, "text_only": text_only and text_only.model,
        "numbers": [field.name for field in fields(Probe)],
    }  # fmt: skip
    if kept.is_file():
        told = json.loads(kept.read_text(encoding="utf-8"))
        if told["about"] == about:
            return [_kept(one) for one in told["probes"]]
    vectors: dict[str, list[FrameVector]] = {}
    labels: dict[str, list[list[tuple[float, float]]]] = {}
    for names in files.values():
        positions = future_positions(names) or []
        found = imagined_states(decoder, names) + _true_frames(decoder, names)
        found += [] if text_only is None else thought_states(text_only, names)
        for one in found:
            if one.frame < len(positions[one.question]):
                vectors.setdefault(one.source, []).append(one)
                labels.setdefault(one.source, []).append(positions[one.question][one.frame])
    probes = [_probed(source, own, labels[source]) for source, own in vectors.items()]
    write_whole(kept, json.dumps({"about": about, "probes": [asdict(one) for one in probes]}, indent=2) + "\n")
    return probes


def _kept(one: dict[str, Any]) -> Probe:
    """A probe as it was written."""
    each = tuple((number, zone, shuffled) for number, zone, shuffled in one["per_question"])
    return Probe(**{**one, "gain": Difference(**one["gain"]), "per_question": each})


def _true_frames(decoder: Decoder, questions: Sequence[str]) -> list[FrameVector]:
    """Features of the true frames: what a perfect latent would hold."""
    means = future_means(decoder.reasoner, questions, "true")
    return [
        FrameVector(TRUE_FRAMES, question, number, frame.double().numpy())
        for question, frames in enumerate(means)
        for number, frame in enumerate(frames)
    ]


def _probed(source: str, vectors: Sequence[FrameVector], labels: Sequence[Sequence[tuple[float, float]]]) -> Probe:
    if len({one.question for one in vectors}) < LEAST_QUESTIONS:
        raise ConfigError(f"{source}: too few questions have one to probe; give more, or another model")
    return probe(
        source,
        np.stack([one.vector for one in vectors]),
        np.array(labels),
        np.array([one.question for one in vectors]),
    )
