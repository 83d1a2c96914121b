"""Counts of a curation, as text and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from futurel1.curation.results import PROBED, ProbeTable
from futurel1.curation.selection import OUTCOMES, Outcome, Selection, Thresholds
from futurel1.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Report"]

CHOSEN_COLOUR, OTHER_COLOUR, INK = "#2a6fbb", "#c3cad4", "#22262e"


@dataclass(frozen=True)
class Report:
    """Counts of a curation.

    Attributes:
        rollouts: responses per probe.
        thresholds: the thresholds of the selection.
        outcomes: number of candidates per outcome; the numbers add up to all candidates.
        gains: (candidates probed, candidates chosen) per gain, ascending.
        hints: the same per number of hint frames.
    """

    rollouts: int
    thresholds: Thresholds
    outcomes: dict[Outcome, int]
    gains: dict[int, tuple[int, int]]
    hints: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, table: ProbeTable, selection: Selection, thresholds: Thresholds, rollouts: int) -> Report:
        """Count the outcomes of a selection."""
        probed = table.status == PROBED
        chosen = selection.outcomes == OUTCOMES.index("chosen")
        return cls(
            rollouts,
            thresholds,
            selection.counts(),
            _per_value(selection.gains, probed, chosen),
            _per_value(table.hints, probed, chosen),
        )

    def text(self) -> str:
        """The report as text."""
        limits = self.thresholds
        words: dict[Outcome, str] = {
            "open": "not probed yet",
            "chosen": "chosen",
            "beyond_top": f"dropped: good, but beyond the first {limits.top}",
            "easy": f"dropped: easy, more than {limits.max_base} of {self.rollouts} right without hints",
            "unhelpful": f"dropped: unhelpful, hints add fewer than {limits.min_gain}",
            "no_hints": "dropped: no hint frames",
            "failed": "dropped: failed, no verdict of the judge",
            "skipped": "dropped: skipped, the record cannot be read",
        }
        total = sum(self.outcomes.values())
        lines = [f"{total:>10}  candidates"]
        for outcome, count in self.outcomes.items():
            if count or outcome not in ("open", "beyond_top"):
                lines.append(f"{count:>10}  {count / max(1, total):>6.1%}  {words[outcome]}")
        for title, counts in (("gain", self.gains), ("hints", self.hints)):
            lines += ["", f"{title:>10}{'probed':>10}{'chosen':>10}"]
            lines += [f"{value:>10}{probed:>10}{chosen:>10}" for value, (probed, chosen) in counts.items()]
        return "\n".join(lines) + "\n"

    def draw(self, target: Path | BinaryIO) -> None:
        """Write the report as a PNG.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(figsize=(12.5, 3.6), dpi=150, layout=ConstrainedLayoutEngine(wspace=0.06), facecolor="white")
        FigureCanvasAgg(figure)
        outcomes, gains, hints = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 0.8))
        present = {name: count for name, count in self.outcomes.items() if count or name != "open"}
        colours = [CHOSEN_COLOUR if name == "chosen" else OTHER_COLOUR for name in present]
        bars = outcomes.barh([name.replace("_", " ") for name in present], list(present.values()), color=colours)
        outcomes.bar_label(bars, fontsize=8, padding=3, color=INK)
        outcomes.invert_yaxis()
        outcomes.margins(x=0.18)
        _dress(outcomes, f"outcome of {sum(self.outcomes.values())} candidates", "candidates", "")
        _draw_counts(gains, self.gains)
        gains.legend(fontsize=8, frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        _dress(gains, "visual gain", f"right of {self.rollouts} with hints, minus without", "candidates")
        _draw_counts(hints, self.hints)
        _dress(hints, "hint frames", "hint frames of a candidate", "candidates")
        figure.savefig(target, format="png")


def require_matplotlib() -> None:
    """Fail before the work starts if matplotlib, which the report needs at the end, is missing."""
    if find_spec("matplotlib") is None:
        raise ConfigError("the report needs matplotlib, which is not installed: pip install 'futurel1[demo]'")


def _per_value(
    values: NDArray[Any], probed: NDArray[np.bool_], chosen: NDArray[np.bool_]
) -> dict[int, tuple[int, int]]:
    """Count probed and chosen candidates per value."""
    found, place = np.unique(values[probed], return_inverse=True)
    kept = np.bincount(place[chosen[probed]], minlength=len(found))
    return {
        int(value): (int(number), int(some))
        for value, number, some in zip(found, np.bincount(place, minlength=len(found)), kept, strict=True)
    }


def _draw_counts(panel: Axes, counts: dict[int, tuple[int, int]]) -> None:
    from matplotlib.ticker import MaxNLocator

    values = list(counts)
    panel.bar(values, [probed for probed, _ in counts.values()], color=OTHER_COLOUR, label="probed")
    panel.bar(values, [chosen for _, chosen in counts.values()], color=CHOSEN_COLOUR, label="chosen")
    panel.set_xlim(min(values, default=0) - 1, max(values, default=0) + 1)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))


def _dress(panel: Axes, title: str, x_label: str, y_label: str) -> None:
    panel.set_title(title, fontsize=10.5, color=INK, loc="left")
    panel.set_xlabel(x_label, fontsize=8.5, color=INK)
    panel.set_ylabel(y_label, fontsize=8.5, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
