"""Diagnoses (`futurel1 diagnose`) of one run over seeds: what is kept of each, and the tables of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.proof.formatting import markdown, over, points
from experiments.proof.results import Results
from experiments.proof.stages import Plan
from experiments.proof.statistics import paired_difference
from futurel1.diagnosis.results import DESTRUCTIVE, LABELS
from futurel1.metrics.functional import Difference

Metrics = Mapping[str, Any]
TABLES = ("effects", "changes", "probes")
MISSING = "-"
"""Stands for a question without a value."""


# ------------------------------------------------------------------------------------------------------------- kept


def diagnosis_metrics(folder: Path) -> dict[str, Any]:
    """What is kept of a diagnosis: its numbers, and the values of every question.

    Args:
        folder: the folder of the diagnosis.
    """
    found = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    total = found["effects"][0]["total"]
    kept: dict[str, Any] = {name: {one["name"]: _kept(one, total) for one in found[name]} for name in TABLES}
    return {"questions": total, **kept, "left_out": found["left_out"]}


def _kept(one: Metrics, total: int) -> dict[str, Any]:
    """The plain numbers of one row, and for every question, in order, both of its values."""
    values = {number: pair for number, *pair in one["per_question"]}
    sides = [[values[number][side] if number in values else None for number in range(total)] for side in (0, 1)]
    numbers = {name: value for name, value in one.items() if isinstance(value, int | float)}
    return {**numbers, "first": _written(sides[0]), "second": _written(sides[1])}


def _written(values: Sequence[float | None]) -> str:
    return " ".join(MISSING if value is None else f"{float(value):.3g}" for value in values)


def _read(texts: Sequence[str]) -> NDArray[np.float64]:
    """(S, Q) values of S seeds, NaN where a question has none."""
    return np.array([[np.nan if word == MISSING else float(word) for word in text.split(" ")] for text in texts])


# ------------------------------------------------------------------------------------------------------------ tables


def diagnoses_of(results: Results, plan: Plan, run: str) -> list[Metrics]:
    """Diagnoses of a run, one per seed that has one."""
    names = [f"diagnose-{run}-s{seed}" for seed in plan["seeds"]]
    return [results[name]["metrics"] for name in names if name in results]


def compared(pairs: Sequence[tuple[str, str]]) -> Difference | None:
    """Difference of two rows of values over seeds and questions; None if no question has all of them.

    Args:
        pairs: for each seed, the values of all questions on both sides.
    """
    if not pairs:
        return None
    first, second = (_read([pair[side] for pair in pairs]) for side in (0, 1))
    known = ~np.isnan(first - second).any(axis=0)
    return paired_difference(first[:, known], second[:, known]) if known.sum() > 1 else None


def _rows(found: Sequence[Metrics], table: str, name: str) -> list[Metrics]:
    """A row of a table, for each seed that has it."""
    return [one[table][name] for one in found if name in one[table]]


def _names(found: Sequence[Metrics], table: str) -> list[str]:
    """Names of the rows that any seed has, in their order."""
    return list(dict.fromkeys(name for one in found for name in one[table]))


def diagnosis_tables(found: Sequence[Metrics]) -> list[str]:
    """Paragraphs of the page about the diagnoses of one run.

    Args:
        found: one per seed.
    """
    parts = [answer_table(found), followed_line(found), change_table(found), probe_table(found)]
    return [part for part in parts if part]


def answer_table(found: Sequence[Metrics]) -> str:
    """Right answers, and answers of the other future, by what the model is fed."""
    rows = []
    for name in _names(found, "effects"):
        own = _rows(found, "effects", name)
        before = [one["effects"]["none"] for one in found if name in one["effects"]]
        cells = [LABELS.get(name, name), str(len(own)), over(own, lambda one: 100 * one["right"] / one["total"])]
        cells.append(_difference(own, before, "first") if name != "none" else "-")
        if any("followed" in one for one in own):
            cells.append(over(own, lambda one: 100 * one["followed"] / one["total"]))
            cells.append(_difference(own, before, "second") if name != "none" else "-")
        else:
            cells += ["-", "-"]
        rows.append(cells)
    return markdown(["fed", "seeds", "right, %", "difference", "other future's answer, %", "difference"], rows)


def _difference(own: Sequence[Metrics], other: Sequence[Metrics], side: str) -> str:
    return points(compared([(one[side], two[side]) for one, two in zip(own, other, strict=True)]))


def followed_line(found: Sequence[Metrics]) -> str:
    """The other future against the replacement without content that gives most of its answers."""
    swapped = [one["effects"] for one in found if "swap" in one["effects"]]
    kinds = [kind for kind in DESTRUCTIVE if swapped and all(kind in effects for effects in swapped)]
    if not kinds:
        return ""
    most = max(kinds, key=lambda kind: sum(effects[kind]["followed"] for effects in swapped))
    more = compared([(effects["swap"]["second"], effects[most]["second"]) for effects in swapped])
    said = f"Fed the other future, not {LABELS[most]}, the model gives that future's answer more often"
    return f"{said}: {points(more)} points."


def change_table(found: Sequence[Metrics]) -> str:
    """Whether imagined frames move with the observed video; empty without changed videos."""
    rows = []
    for name in _names(found, "changes"):
        own = _rows(found, "changes", name)
        cells = [name, str(len(own)), over(own, lambda one: one["spans"], 0)]
        cells += [over(own, lambda one: 100 * one["nearer"]), over(own, lambda one: 100 * one["unchanged"])]
        cells.append(points(compared([(one["first"], one["second"]) for one in own])))
        cells += [over(own, lambda one: one["distance"], 3), over(own, lambda one: one["true_distance"], 3)]
        rows.append(cells)
    columns = ["nearer to its own future, %", "of the unchanged video, %", "difference", "distance", "true distance"]
    return markdown(["observed video", "seeds", "spans", *columns], rows) if rows else ""


def probe_table(found: Sequence[Metrics]) -> str:
    """From what the places of things can be read; empty without probes."""
    rows = []
    for name in _names(found, "probes"):
        own = _rows(found, "probes", name)
        cells = [name, str(len(own)), over(own, lambda one: one["vectors"], 0)]
        cells += [over(own, lambda one: one["position"], 2), over(own, lambda one: one["position_shuffled"], 2)]
        cells += [over(own, lambda one: 100 * one["zone"]), over(own, lambda one: 100 * one["zone_shuffled"])]
        cells.append(points(compared([(one["first"], one["second"]) for one in own])))
        rows.append(cells)
    columns = ["frames", "position R²", "shuffled", "zone, %", "shuffled labels, %", "difference"]
    return markdown(["probed", "seeds", *columns], rows) if rows else ""
