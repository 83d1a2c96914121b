"""Work of a stage: the commands that it runs and the numbers in its result."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.proof.diagnoses import diagnosis_metrics
from experiments.proof.records import MISMATCHED, SPLITS, group_of, mean, per_split, read_lines
from experiments.proof.results import Places
from experiments.proof.stages import BACKBONE, CONFIGS, SHIPPED, Stage

Point = TypeVar("Point")
Command = tuple[str, list[str]]
"""A module with a `main`, and its arguments."""

CLI = "futurel1.cli"
GROUPS = (*SPLITS, MISMATCHED)
"""Groups of candidates: by split those with their own clip, and all others."""
NEEDS_LATENTS = ("mean", "noise", "other")
CURVE_POINTS = 60
CURVE = "reward/correct"
LOWER_IS_BETTER = ("loss", "ce", "latent", "kl", "grad_norm", "gap", "seconds")


# --------------------------------------------------------------------------------------------------------- commands


def commands(stage: Stage, places: Places) -> list[Command]:
    """The commands of a stage; its inputs must exist."""
    return {
        "world": _world, "split": _split, "probe": _probe, "curate": _curate, "records": _records, "sft": _sft,
        "rl": _rl, "test": _test, "controls": _controls, "retrieval": _retrieval, "diagnose": _diagnose,
    }[stage.kind](stage, places)  # fmt: skip


def _options(options: Mapping[str, Any]) -> list[str]:
    """Build command-line options; values that are not strings are written as JSON."""
    return [
        word
        for name, value in options.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def _world(stage: Stage, places: Places) -> list[Command]:
    out = str(places.runs / stage.name)
    return [(CLI, ["world", *_options({"out": out, "task": "events", **stage.options})])]


def _split(stage: Stage, places: Places) -> list[Command]:
    records = places.runs / "world" / "train.jsonl"
    options = {"records": str(records), "out": str(places.runs / stage.name), **stage.options}
    return [("experiments.proof.records", ["split", *_options(options)])]


def _probe(stage: Stage, places: Places) -> list[Command]:
    model = stage.options["backbone"] if stage.options["model"] == BACKBONE else str(places.runs / stage.needs[1])
    records = str(places.runs / "split" / "candidates.jsonl")
    options = {"out": str(places.runs / stage.name), "model": model, **stage.options["set"]}
    return [(CLI, ["curate", records, *_options(options)])]


def _curate(stage: Stage, places: Places) -> list[Command]:
    # `curate` writes its choice to the folder of the probes; `finish` copies it to this stage's folder, equally deep.
    records = str(places.runs / "split" / "candidates.jsonl")
    thresholds = {f"thresholds.{name}": value for name, value in stage.options.items()}
    options = {"out": str(places.runs / stage.needs[0]), "mode": "merge", **thresholds}
    return [(CLI, ["curate", records, *_options(options)])]


def _records(stage: Stage, places: Places) -> list[Command]:
    out = str(places.runs / stage.name)
    if stage.options.get("text"):
        options = {
            "records": str(record_file(stage.needs[0], places)),
            "validation": str(places.runs / "split" / "validation.jsonl"),
            "backbone": stage.options["backbone"],
            "sft": str(CONFIGS / "sft.yaml"),
            "out": out,
        }
        return [("experiments.proof.records", ["text", *_options(options)])]
    count = stage.options["draw"]
    if isinstance(count, str):
        count = len(read_lines(record_file(count, places)))
    candidates = str(places.runs / "split" / "candidates.jsonl")
    clean = stage.options.get("clean", False)
    options = {"records": candidates, "count": count, "seed": stage.seed, "clean": clean, "out": out}
    return [("experiments.proof.records", ["draw", *_options(options)])]


def record_file(stage: str, places: Places) -> Path:
    """File of training records that a stage made."""
    return places.runs / stage / ("curated.jsonl" if stage.startswith("curate") else "records.jsonl")


def _fit(stage: Stage, places: Places, options: Mapping[str, Any]) -> list[Command]:
    run = places.runs / stage.name
    if (run / "config.yaml").is_file() and list((run / "checkpoints").glob("*.ckpt")):
        return [(CLI, ["fit", "--resume", str(run)])]
    given = {
        "config": str(stage.config_file),
        "run_dir": str(run),
        "seed_everything": stage.seed,
        "model.init_args.backbone": stage.options["backbone"],
        "data.init_args.seed": stage.seed,
        **options,
        **stage.options["set"],
    }
    return [(CLI, ["fit", *_options(given)])]


def _sft(stage: Stage, places: Places) -> list[Command]:
    source = stage.needs[0]
    validation = places.runs / source / "validation.jsonl"  # exists only for records without hints
    if not validation.is_file():
        validation = places.runs / "split" / "validation.jsonl"
    options = {"data.init_args.train": str(record_file(source, places)), "data.init_args.val": str(validation)}
    command = _fit(stage, places, options)
    if stage.options["same_tokens"] and "--resume" not in command[0][1]:
        command[0][1].extend(["--trainer.max_steps", str(scaled_steps(stage, places))])
    return command


def scaled_steps(stage: Stage, places: Places) -> int:
    """Optimizer steps after which records without hints have trained as many tokens as those with hints."""
    numbers = json.loads((places.runs / stage.needs[0] / "numbers.json").read_text(encoding="utf-8"))
    steps: int = stage.options["set"]["trainer.max_steps"]
    scale: float = numbers["tokens_with_hints"] / numbers["tokens"]
    return round(steps * scale)


def _rl(stage: Stage, places: Places) -> list[Command]:
    options = {
        "model.init_args.init_from": str(places.runs / stage.needs[0]),
        "model.init_args.sampling.seed": stage.seed,
        "data.init_args.train": str(places.runs / "world" / "rl.jsonl"),
        "data.init_args.val": str(places.runs / "split" / "validation.jsonl"),
    }
    return _fit(stage, places, options)


def question_file(stage: Stage, places: Places) -> Path:
    """File of records that a test asks about."""
    test = stage.options["records"] == "test"
    return places.runs / ("world/test.jsonl" if test else "split/validation.jsonl")


def _predict(stage: Stage, places: Places, run: str | None, folder: Path, extra: Mapping[str, Any]) -> Command:
    options = {
        "config": str(stage.config_file),
        "run_dir": str(folder),
        "model.init_args.backbone": stage.options["backbone"],
        "data.init_args.predict": str(question_file(stage, places)),
        **({} if run is None else {"model.init_args.init_from": str(places.runs / run)}),
        **stage.options["set"],
        **extra,
    }
    return CLI, ["predict", *_options(options)]


def _test(stage: Stage, places: Places) -> list[Command]:
    run = None if stage.seed is None else stage.needs[0]
    extra = {"model.init_args.save_latents": stage.options["save_latents"]}
    return [_predict(stage, places, run, places.runs / stage.name, extra)]


def _controls(stage: Stage, places: Places) -> list[Command]:
    test, run = stage.needs[0], stage.needs[1]
    imagined = any(sum(line["spans"]) for line in read_lines(places.runs / test / "predictions.jsonl"))
    made = []
    for kind in stage.options["interventions"]:
        if kind in NEEDS_LATENTS and not imagined:
            continue  # there are no latents to average or exchange
        extra = {"model.init_args.intervention": kind}
        if kind in NEEDS_LATENTS:
            extra["model.init_args.latent_bank"] = str(places.runs / test)
        made.append(_predict(stage, places, run, places.runs / stage.name / kind, extra))
    return made


def _retrieval(stage: Stage, places: Places) -> list[Command]:
    test, run = stage.needs[0], stage.needs[1]
    options = {
        "model": str(places.runs / run / "huggingface"),
        "test": str(places.runs / test),
        "questions": str(question_file(stage, places)),
        "training": str(places.runs / "world" / "train.jsonl"),
        "train": stage.options["train"],
        "codes": stage.options["backbone"] == SHIPPED,
        "out": str(places.runs / stage.name / "retrieval.json"),
    }
    return [("experiments.proof.latents", _options(options))]


def _diagnose(stage: Stage, places: Places) -> list[Command]:
    run, asked, *text_only = (str(places.runs / name) for name in stage.needs)
    options = {"data": [f"{asked}/counterfactual.jsonl"], "out": str(places.runs / stage.name), **stage.options["set"]}
    if text_only:
        options["text_only"] = text_only[0]
    return [(CLI, ["diagnose", run, *_options(options)])]


# ---------------------------------------------------------------------------------------------------------- results


def finish(stage: Stage, places: Places) -> dict[str, Any]:
    """The result numbers of a stage whose commands have ended."""
    folder = places.runs / stage.name
    if stage.kind == "world":
        asked = [name for name in ("train", "test", "rl", "counterfactual") if stage.options.get(name)]
        return {name: len(read_lines(folder / f"{name}.jsonl")) for name in asked}
    if stage.kind == "probe":
        return _probed(folder, places.runs / "split" / "candidates.jsonl", stage.options["set"]["rollouts"])
    if stage.kind == "curate":
        for name in ("curated.jsonl", "report.txt", "report.png"):
            shutil.copy(places.runs / stage.needs[0] / name, folder / name)
        return _curated(read_lines(folder / "curated.jsonl"))
    if stage.kind in ("split", "records"):
        numbers: dict[str, Any] = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
        return numbers
    if stage.kind in ("sft", "rl"):
        return fit_metrics(folder / "metrics.csv", with_curve=stage.kind == "rl")
    if stage.kind == "test":
        return answers(folder, question_file(stage, places))
    if stage.kind == "controls":
        return control_metrics(stage, places)
    if stage.kind == "diagnose":
        return diagnosis_metrics(folder)
    retrieval: dict[str, Any] = json.loads((folder / "retrieval.json").read_text(encoding="utf-8"))
    return retrieval


def _probed(folder: Path, candidates: Path, rollouts: int) -> dict[str, Any]:
    """Number of candidates, and share of correct responses without and with hints, by group.

    The groups are the splits, for candidates with their own clip, and the candidates with another's clip.
    """
    from futurel1.curation.results import PROBED, ProbeFolder
    from futurel1.data import open_records

    source = open_records(candidates)
    probes = ProbeFolder(folder, source.id, len(source))
    probes.settings()  # sets the digest that every line must match
    table = probes.table()
    probed = (table.status == PROBED).nonzero()[0]
    records = read_lines(candidates)
    groups = [group_of(records[number]) for number in probed]
    means = {
        name: per_split((getattr(table, name)[probed] / rollouts).tolist(), groups, GROUPS) for name in ("base", "hint")
    }
    return {"candidates": _counted(groups), **means}


def _curated(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not records:
        raise SystemExit("no candidate was chosen: hints help this model nowhere; change probe or curate in the plan")
    gain = round(mean(record["gain"] for record in records), 3)
    return {"records": _counted([group_of(record) for record in records]), "gain": gain}


def _counted(groups: Sequence[str]) -> dict[str, int]:
    return {"all": len(groups), **{name: groups.count(name) for name in GROUPS}}


def fit_metrics(file: Path, *, with_curve: bool) -> dict[str, Any]:
    """Last and best logged values of a run; with a curve, the share of correct rollouts over the steps."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    logged: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, text in row.items():
            if text and name not in ("step", "epoch") and math.isfinite(float(text)):
                logged.setdefault(name, []).append((int(row["step"]), float(text)))
    best = {}
    for name, points in logged.items():
        lower = name.split("/")[-1] in LOWER_IS_BETTER
        if name.startswith(("val/", "reward/")) or name in ("train/loss", "train/ce", "train/latent"):
            best[name] = _short((min if lower else max)(value for _, value in points))
    metrics: dict[str, Any] = {
        "steps": max((int(row["step"]) for row in rows), default=-1) + 1,
        "last": {name: _short(points[-1][1]) for name, points in logged.items()},
        "best": best,
    }
    if with_curve:
        metrics["curve"] = [[step, round(value, 4)] for step, value in thinned(logged.get(CURVE, []), CURVE_POINTS)]
    return metrics


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, evenly spaced, including the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _predictions(folder: Path, questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = read_lines(folder / "predictions.jsonl")
    lines.sort(key=lambda line: int(str(line["id"]).rpartition(":")[2]))
    if len(lines) != len(questions):
        raise SystemExit(f"{folder} has {len(lines)} predictions for {len(questions)} questions")
    return lines


def right(prediction: Mapping[str, Any]) -> bool:
    """Whether a prediction is the expected letter."""
    return bool(prediction["answer"] == prediction["expected"])


def answers(folder: Path, file: Path) -> dict[str, Any]:
    """Accuracy and use of tokens and latents per split, and correctness of each question in order."""
    questions = read_lines(file)
    lines = _predictions(folder, questions)
    correct = [right(line) for line in lines]
    splits = [question["question_type"] for question in questions]

    return {
        "accuracy": per_split(correct, splits),
        "spans": per_split([len(line["spans"]) for line in lines], splits),
        "latents": per_split([sum(line["spans"]) for line in lines], splits),
        "tokens": round(mean(line["tokens"] for line in lines), 3),
        "unanswered": sum(not line["answer"] for line in lines),
        "cut": sum(line["finish_reason"] == "length" for line in lines),
        "seconds_per_sample": round(mean(line["seconds"] for line in lines), 5),
        "correct": "".join("01"[value] for value in correct),
    }


def control_metrics(stage: Stage, places: Places) -> dict[str, Any]:
    """Effect of each intervention on the answers; None for interventions that need latents if there are none."""
    from futurel1.metrics.functional import intervention_effect

    questions = read_lines(question_file(stage, places))
    base = _predictions(places.runs / stage.needs[0], questions)
    found: dict[str, Any] = {}
    for kind in stage.options["interventions"]:
        folder = places.runs / stage.name / kind
        if not (folder / "predictions.jsonl").is_file():
            found[kind] = None
            continue
        changed = _predictions(folder, questions)
        effect = {name: round(value, 6) for name, value in intervention_effect(base, changed).items()}
        found[kind] = {**effect, "correct": "".join("01"[right(line)] for line in changed)}
    return found


def _short(value: float) -> float:
    return float(f"{value:.5g}")
