"""A diagnosis as a table and in words: text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from futurel1.diagnosis.effects import Effect
from futurel1.diagnosis.imagining import Change
from futurel1.diagnosis.probes import Probe
from futurel1.metrics.functional import Difference
from futurel1.models.interventions import Intervention

__all__ = ["DESTRUCTIVE", "Diagnosis"]

DESTRUCTIVE: tuple[Intervention, ...] = ("zero", "mean", "noise", "other", "markers")
"""Interventions that take away what a latent says of its own video."""
LABELS = {
    "none": "own latents", "zero": "zeros", "mean": "mean latent", "noise": "noise", "other": "another video's",
    "markers": "no latents", "oracle": "true future", "swap": "other future",
}  # fmt: skip
ANSWERS = ("latents", "right", "difference (95%)", "moved", "text changed", "other future's answer", "more (95%)")
READ = ("probed", "frames", "position R²", "shuffled", "zone", "shuffled labels", "more (95%)")
IMAGINED = (
    "observed video",
    "spans",
    "nearer to its own future",
    "of the unchanged video",
    "distance",
    "true distance",
)


@dataclass(frozen=True)
class Diagnosis:
    """What was found about a model's latents.

    Attributes:
        model: the model.
        folder: where everything is kept.
        questions: files of the questions.
        effects: the model's own latents first, then each replacement.
        changes: what changes of the observed video do to the imagined frames.
        probes: how well the places of things can be read, and from what.
        left_out: instruments that do not apply, and why.
        verdict: what the numbers say, in sentences.
    """

    model: str
    folder: Path
    questions: tuple[str, ...]
    effects: tuple[Effect, ...]
    changes: tuple[Change, ...]
    probes: tuple[Probe, ...]
    left_out: dict[str, str]
    verdict: tuple[str, ...]

    def tables(self) -> list[tuple[Sequence[str], list[list[str]]]]:
        """Heads and rows of the tables, as text."""
        answers, changes, probes = answer_rows(self.effects), change_rows(self.changes), probe_rows(self.probes)
        tables: list[tuple[Sequence[str], list[list[str]]]] = [(ANSWERS, answers), (IMAGINED, changes), (READ, probes)]
        return [(head, rows) for head, rows in tables if rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; shares are in 0 to 1."""
        return {
            **asdict(self),
            "folder": str(self.folder),
            "tables": [{"head": head, "rows": rows} for head, rows in self.tables()],
        }

    def __str__(self) -> str:
        parts = [plain_table(head, rows) for head, rows in self.tables()]
        parts.append("\n".join(self.verdict))
        parts += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n\n".join(
            [*parts, f"{self.folder}  (diagnosis.md, diagnosis.json; futurel1 report shows the answers)"]
        )

    def markdown(self) -> str:
        """The same as Markdown."""
        parts = [f"# Are the latents used? {self.model}", *(markdown_table(head, rows) for head, rows in self.tables())]
        parts.append("\n".join(f"- {sentence}" for sentence in self.verdict))
        parts += [f"Left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n\n".join(parts) + "\n"


def answer_rows(effects: Sequence[Effect]) -> list[list[str]]:
    """Cells of the table of answers."""
    return [
        [
            LABELS.get(one.name, one.name), f"{one.right} of {one.total} ({100 * one.accuracy:.1f}%)",
            points(one.difference), "-" if one.difference is None else f"{one.moved} of {one.total}",
            "-" if one.difference is None else f"{one.changed_text:.0%}",
            "-" if one.followed is None else f"{one.followed} of {one.total}", points(one.gain),
        ]
        for one in effects
    ]  # fmt: skip


def change_rows(changes: Sequence[Change]) -> list[list[str]]:
    """Cells of the table of imagined frames."""
    return [
        [
            one.name, str(one.spans), f"{one.nearer:.0%}", f"{one.unchanged:.0%}", f"{one.distance:.3f}",
            f"{one.true_distance:.3f}",
        ]
        for one in changes
    ]  # fmt: skip


def probe_rows(probes: Sequence[Probe]) -> list[list[str]]:
    """Cells of the table of probes."""
    return [
        [
            one.name, str(one.vectors), explained(one.position), explained(one.position_shuffled), f"{one.zone:.0%}",
            f"{one.zone_shuffled:.0%}", points(one.gain),
        ]
        for one in probes
    ]  # fmt: skip


def explained(share: float) -> str:
    """An R² with two digits, without a sign at zero."""
    return f"{round(share, 2) + 0.0:.2f}"


def points(difference: Difference | None) -> str:
    """A difference of shares in percentage points, with its interval."""
    if difference is None:
        return "-"
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
