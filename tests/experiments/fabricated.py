"""Result files without the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.proof.records import SPLITS
from experiments.proof.results import Bench, write_json
from experiments.proof.stages import Stage

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "experiments" / "miniature" / "plan.yaml"
ATARI = ROOT / "experiments" / "atari" / "plan.yaml"
QUESTIONS = 128
LEVELS = {
    "backbone": 0.2, "sft-text-random": 0.3, "sft-text": 0.45, "sft-latent": 0.55, "sft-random": 0.5,
    "rl-text-dapo": 0.58, "rl-grpo": 0.66, "rl-dapo": 0.68, "rl-contrastive": 0.69, "rl-diversity": 0.7,
    "rl-la_dapo": 0.72,
}  # fmt: skip
MACHINE = {"cpu": "a processor", "cores": 2, "gpu": None, "torch": "2.15", "transformers": "5.23"}


def fabricate(bench: Bench, names: list[str] | None = None) -> None:
    """Write results of stages, all of them by default, as if they had been run."""
    digests = bench.digests
    for number, name in enumerate(bench.stages if names is None else names):
        stage = bench.stages[name]
        rng = np.random.default_rng(number)
        result = {
            "stage": name, "kind": stage.kind, "seed": stage.seed, "digest": digests[name], "commit": "abc",
            "dirty": False, "machine": MACHINE, "started": "", "seconds": 60.0, "metrics": metrics(stage, rng),
        }  # fmt: skip
        write_json(bench.places.result(name), result)


def metrics(stage: Stage, rng: np.random.Generator) -> dict[str, Any]:
    if stage.kind == "test":
        return test_metrics(stage, rng)
    if stage.kind == "controls":
        return {kind: effect(rng) for kind in stage.options["interventions"]}
    if stage.kind == "diagnose":
        return diagnosis(rng)
    if stage.kind == "retrieval":
        numbers = {
            "spans": 300,
            "compared": 290,
            "frames": 300,
            "chance": 1 / 300,
            "retrieval": 0.2 + 0.1 * rng.random(),
        }
        shares = {"spans_show": 0.8, "spans_hold": 0.5, "frames_show": 1.0, "frames_hold": 0.9}
        held = {name: dict.fromkeys((*SPLITS, "all"), value) for name, value in shares.items()}
        return {**numbers, **held, "cosine": 0.8, "cosine_others": 0.5, "strip": strip()}
    if stage.kind == "probe":
        groups = dict.fromkeys(SPLITS, 100)
        return {
            "candidates": {"all": 500, "mismatched": 100, **groups},
            "base": {"all": 0.25, "mismatched": 0.2, **dict.fromkeys(SPLITS, 0.25)},
            "hint": {"all": 0.75, "mismatched": 0.1, **dict.fromkeys(SPLITS)},
        }
    if stage.kind == "curate":
        return {"records": {"all": 103, "mismatched": 3, **dict.fromkeys(SPLITS, 25)}}
    if stage.kind == "rl":
        curve = 0.5 + 0.25 * (1 - np.exp(-np.arange(60) / 25)) + 0.03 * rng.standard_normal(60)
        return {"curve": [[step, round(float(value), 4)] for step, value in enumerate(curve)]}
    return {"records": 100}


def test_metrics(stage: Stage, rng: np.random.Generator) -> dict[str, Any]:
    run = stage.name.removeprefix("test-").rpartition("-s")[0] or "backbone"
    level = LEVELS.get(run, 0.6)
    correct = rng.random(QUESTIONS) < level + 0.03 * rng.standard_normal()
    by_split = {name: float(correct[place::4].mean()) for place, name in enumerate(SPLITS)}
    deep = 0.0 if "text" in run or run == "backbone" else 1.0
    spans = {name: deep * (place + 1 + 0.1 * float(rng.random())) for place, name in enumerate(SPLITS)}
    return {
        "accuracy": {**by_split, "all": float(correct.mean())},
        "spans": {**spans, "all": sum(spans.values()) / 4},
        "latents": {**spans, "all": sum(spans.values()) / 4},
        "tokens": 80.0, "unanswered": 32 if run == "backbone" else 0, "cut": 0, "seconds_per_sample": 0.01,
        "correct": "".join("01"[int(value)] for value in correct),
    }  # fmt: skip


def effect(rng: np.random.Generator) -> dict[str, Any]:
    correct = rng.random(QUESTIONS) < 0.4
    return {
        "accuracy": float(correct.mean()), "drop": 0.15 + 0.02 * float(rng.random()), "right_to_wrong": 30,
        "wrong_to_right": 9, "changed_text": 0.6, "n": QUESTIONS, "correct": "".join("01"[int(v)] for v in correct),
    }  # fmt: skip


def diagnosis(rng: np.random.Generator) -> dict[str, Any]:
    """A model that follows what it is fed, and imagines what the video shows; with zeros it follows half as often."""
    shares = {"none": (0.6, 0.2), "zero": (0.3, 0.5), "markers": (0.1, 0.1), "oracle": (0.9, 0.1), "swap": (0.1, 0.9)}
    effects = {name: {"total": 40, **_values(rng, share, ("right", "followed"))} for name, share in shares.items()}
    changes = {
        name: {"spans": 80, "distance": 0.4, "true_distance": 0.5, **_values(rng, (0.9, 0.1), ("nearer", "unchanged"))}
        for name in ("reversed", "moved")
    }
    for change in changes.values():
        change["first"] = "- " + change["first"].partition(" ")[2]  # no span for the first question
    probes = {
        "latents": {"vectors": 160, "position": 0.7, "position_shuffled": 0.0}
        | _values(rng, (0.8, 0.3), ("zone", "zone_shuffled"))
    }
    return {
        "questions": 40, "effects": effects, "changes": changes, "probes": probes,
        "left_out": {},
    }  # fmt: skip


def _values(rng: np.random.Generator, shares: tuple[float, float], names: tuple[str, str]) -> dict[str, Any]:
    marks = [rng.random(40) < share for share in shares]
    counted = [int(own.sum()) if names[0] == "right" else float(own.mean()) for own in marks]
    texts = [" ".join(str(int(mark)) for mark in own) for own in marks]
    return {**dict(zip(names, counted, strict=True)), "first": texts[0], "second": texts[1]}


def strip() -> list[dict[str, Any]]:
    future = {"hop2": [5, 6], "hop3": [5, 6, 7], "hop5": [5, 6, 7]}
    return [
        {
            "id": f"test-{number:05d}", "split": split, "observed": [1, 2, 3, 4], "future": future[split],
            "nearest": [[f"train-{number + place:05d}", frame] for place, frame in enumerate(future[split])],
        }
        for number, split in enumerate(("hop2", "hop2", "hop3", "hop3", "hop5", "hop5"))
    ]  # fmt: skip
