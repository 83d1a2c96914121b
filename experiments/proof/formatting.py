"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.proof.statistics import Mean, seed_mean
from futurel1.metrics.functional import Difference

HEADINGS = {"hop1": "1 hop", "hop2": "2 hops", "hop3": "3 hops", "hop5": "interpolation", "all": "average"}


def over(found: Iterable[Mapping[str, Any]], number: Callable[[Mapping[str, Any]], Any], digits: int = 1) -> str:
    """Format the mean of a number over seeds, with its 95% interval; a dash without any."""
    values = [value for value in map(number, found) if value is not None]
    return mean_text(seed_mean(values), digits) if values else "-"


def mean_text(mean: Mean, digits: int) -> str:
    """Format a mean over seeds with its interval."""
    interval = "" if mean.half is None else f" ± {mean.half:.{digits}f}"
    return f"{round(mean.value, digits) + 0.0:.{digits}f}{interval}"  # no sign at zero


def points(difference: Difference | None) -> str:
    """Format a difference of shares in percentage points, with its interval."""
    if difference is None:
        return "-"
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def p_text(value: float) -> str:
    """Format a p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))
