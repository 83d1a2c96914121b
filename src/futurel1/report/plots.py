"""Curves of a run as SVG that takes its colours from the page, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from futurel1.curves import LOG_FAMILIES, LOG_RATIO, PANEL_ORDER, SMOOTH_FROM, Curve, running_mean

__all__ = ["Panel", "panels_of"]

WIDTH, HEIGHT = 300.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 22.0
MOST_POINTS = 240
MOST_DOTS = 12
TICKS = 4


@dataclass(frozen=True)
class Line:
    """One stage of a panel.

    Attributes:
        stage: `train`, `val`, `test` or "".
        points: `x,y` pairs of an SVG polyline.
        smooth: the same for the running mean of a long training curve; "" for others.
        dots: centres that are marked, where there are few points.
        last: the last value that is drawn strongly, as text.
    """

    stage: str
    points: str
    smooth: str
    dots: tuple[tuple[str, str], ...]
    last: str


@dataclass(frozen=True)
class Panel:
    """One metric, all stages.

    Attributes:
        name: the metric.
        lines: a line a stage.
        y_ticks: height and label of each.
        x_ticks: position and label of each.
        log: whether the axis of values is logarithmic.
        left_out: values that are not finite.
        described: what the panel shows, for those who do not see it.
    """

    name: str
    lines: tuple[Line, ...]
    y_ticks: tuple[tuple[str, str], ...]
    x_ticks: tuple[tuple[str, str], ...]
    log: bool
    left_out: int
    described: str


def panels_of(families: Mapping[str, Mapping[str, Curve]]) -> list[Panel]:
    """Lay out the curves of a run, the metrics that say most first; metrics without a finite value are left out."""
    names = sorted(families, key=lambda name: (PANEL_ORDER.get(name.split("-")[0], len(PANEL_ORDER)), name))
    return [panel for panel in (_panel(name, families[name]) for name in names) if panel is not None]


def _panel(name: str, stages: Mapping[str, Curve]) -> Panel | None:
    curves = {stage: _thinned(_finite(curve)) for stage, curve in stages.items()}
    curves = {stage: points for stage, points in curves.items() if points}
    if not curves:
        return None
    everything = [point for points in curves.values() for point in points]
    low, high = min(value for _, value in everything), max(value for _, value in everything)
    log = name in LOG_FAMILIES and low > 0 and high >= LOG_RATIO * low
    first, last = min(step for step, _ in everything), max(step for step, _ in everything)
    if log:
        low, high = math.log10(low), math.log10(high)
    margin = 0.06 * (high - low) or max(abs(low) * 0.1, 0.1)
    low, high = low - margin, high + margin

    def x(step: float) -> str:
        share = (step - first) / (last - first) if last > first else 0.5
        return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        share = ((math.log10(value) if log else value) - low) / (high - low)
        return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    def drawn(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x(step)},{y(value)}" for step, value in points)

    lines = []
    for stage, points in curves.items():
        smooth = _smoothed(points) if stage == "train" and len(points) >= SMOOTH_FROM else []
        dots = tuple((x(step), y(value)) for step, value in points) if len(points) <= MOST_DOTS else ()
        lines.append(Line(stage, drawn(points), drawn(smooth), dots, f"{(smooth or points)[-1][1]:.4g}"))
    ticks = [low + margin + (high - low - 2 * margin) * place / (TICKS - 1) for place in range(TICKS)]
    values = [10**tick if log else tick for tick in ticks]
    total = sum(len(curve.values) for curve in stages.values())
    finite = sum(len(_finite(curve)) for curve in stages.values())
    told = [f"{stage or name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for stage, points in curves.items()]
    return Panel(
        name,
        tuple(lines),
        tuple(zip(map(y, values), tick_labels(values), strict=True)),
        tuple((x(step), f"{step:g}") for step in dict.fromkeys((first, last))),
        log,
        total - finite,
        f"{name} over steps {first:g} to {last:g}: {', '.join(told)}",
    )


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with two digits, or up to four where fewer would give different values the same label."""
    labels: list[str] = []
    for digits in (2, 3, 4):
        labels = [f"{value:.{digits}g}" for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def _finite(curve: Curve) -> list[tuple[float, float]]:
    return [pair for pair in zip(curve.steps, curve.values, strict=True) if math.isfinite(pair[1])]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that no line has more than `MOST_POINTS`."""
    if len(points) <= MOST_POINTS:
        return list(points)
    edges = [place * len(points) // MOST_POINTS for place in range(MOST_POINTS + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    means = running_mean(np.array([value for _, value in points]))
    return [(step, float(value)) for (step, _), value in zip(points, means, strict=True)]
