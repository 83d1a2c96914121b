"""The figures of a page, made from result files only: frames of its world are rendered again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.proof.formatting import HEADINGS
from experiments.proof.results import Results, metrics_of_tests, splits_asked
from experiments.proof.stages import Plan, seeds_of
from experiments.proof.statistics import seed_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from futurel1.worlds.question_worlds import QuestionWorld

COLOURS = ("#2a6fbb", "#d1601f", "#3b8c4d", "#8450a8", "#b3261e", "#1b8a8f", "#8a6d1b", "#555b66")
INK, MUTED, GRID, PLAIN = "#22262e", "#666d7a", "#e3e6eb", "#9aa3b0"
CHANCE = 25.0
POOL_FRAMES = 8
SMOOTH = 5
"""Number of points that a reward curve is averaged over."""


def draw_all(results: Results, plan: Plan, folder: Path) -> list[str]:
    """Draw every figure that has results.

    Returns:
        Names of the PNG files in `folder`, without their extension.
    """
    drawers = {"accuracy": _accuracy, "rewards": _rewards, "spans": _spans, "imagined": _imagined}
    drawn = []
    for name, draw in drawers.items():
        figure = draw(results, plan)
        if figure is not None:
            figure.savefig(folder / f"{name}.png", format="png")
            drawn.append(name)
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)  # its results are no longer current
    return drawn


def _figure(width: float, height: float, *, by_hand: bool = False) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = None if by_hand else ConstrainedLayoutEngine()
    figure = Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=MUTED)
    axes.set_ylabel(y, fontsize=9, color=MUTED)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)


def _accuracy(results: Results, plan: Plan) -> Figure | None:
    """Average accuracy of each row, with its interval and the value of each seed."""
    rows = {run: metrics_of_tests(results, plan, run) for run in plan["rows"]}
    if not any(rows.values()):
        return None
    figure = _figure(8, 0.42 * len(rows) + 1.1)
    axes = figure.subplots()
    for place, found in enumerate(rows.values()):
        values = [100 * test["accuracy"]["all"] for test in found]
        if not values:
            continue
        mean = seed_mean(values)
        axes.barh(place, mean.value, height=0.66, color=COLOURS[0], alpha=0.85)
        if mean.half is not None:
            axes.errorbar(mean.value, place, xerr=mean.half, color=INK, linewidth=1.2, capsize=3)
        axes.plot(values, [place] * len(values), "o", color="white", markeredgecolor=INK, markersize=3.5)
        end = max(*values, mean.value + (mean.half or 0))
        axes.annotate(
            f"{mean.value:.1f}", (min(end, 100), place), xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.axvline(CHANCE, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate("chance", (CHANCE, -0.6), xytext=(3, 0), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(rows)), [plan["rows"][run] for run in rows])
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set_xlim(0, 105)
    _style(axes, "Accuracy on the test questions", "percent right; mean, 95% interval over seeds, each seed", "")
    axes.grid(False, axis="y")
    return figure


def _rewards(results: Results, plan: Plan) -> Figure | None:
    """Share of correct rollouts during training, for every row that is a run of reinforcement learning."""
    runs = {run: label for run, label in plan["rows"].items() if run.startswith("rl-")}
    curves = {run: [results[name]["metrics"]["curve"] for name in _fits(run, plan) if name in results] for run in runs}
    curves = {run: [curve for curve in found if curve] for run, found in curves.items()}
    if not any(curves.values()):
        return None
    figure = _figure(8, 4.9)
    axes = figure.subplots()
    for colour, (run, found) in zip(COLOURS, curves.items(), strict=False):
        if not found:
            continue
        common = sorted(set.intersection(*({step for step, _ in curve} for curve in found)))
        for curve in found:
            axes.plot(*np.array(curve).T, color=colour, linewidth=0.6, alpha=0.25)
        mean = np.mean([[value for step, value in curve if step in set(common)] for curve in found], axis=0)
        axes.plot(common, _smooth(mean), color=colour, linewidth=1.9, label=f"{runs[run]}, {_seeds(found)}")
    _style(axes, "Right rollouts while training", "optimizer step", "share right, before filtering")
    figure.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="outside lower center", ncols=2)
    return figure


def _fits(run: str, plan: Plan) -> list[str]:
    return [f"{run}-s{seed}" for seed in seeds_of(run, plan)]


def _seeds(found: Sequence[object]) -> str:
    return f"{len(found)} seed{'' if len(found) == 1 else 's'}"


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean, over fewer points at the ends."""
    window = np.ones(min(SMOOTH, len(values)))
    counts = np.convolve(np.ones(len(values)), window, "same")
    smooth: NDArray[np.float64] = np.convolve(values, window, "same") / counts
    return smooth


def _spans(results: Results, plan: Plan) -> Figure | None:
    """Spans per response by depth of the question, for rows with spans."""
    rows = {run: metrics_of_tests(results, plan, run) for run in plan["rows"]}
    rows = {run: found for run, found in rows.items() if found and any(test["spans"]["all"] for test in found)}
    if not rows:
        return None
    figure = _figure(8, 3.8)
    axes = figure.subplots()
    width, splits = 0.8 / len(rows), splits_asked(results, plan)
    for number, (run, found) in enumerate(rows.items()):
        for place, split in enumerate(splits):
            values = [test["spans"][split] for test in found if test["spans"][split] is not None]
            if not values:
                continue
            mean = seed_mean(values)
            at = place + (number - (len(rows) - 1) / 2) * width
            label = plan["rows"][run] if place == 0 else None
            axes.bar(at, mean.value, width=0.9 * width, color=COLOURS[number % len(COLOURS)], label=label)
            if mean.half is not None:
                axes.errorbar(at, mean.value, yerr=mean.half, color=INK, linewidth=0.9, capsize=2)
    axes.set_xticks(range(len(splits)), [HEADINGS[split] for split in splits])
    _style(axes, "Imagined frames per response", "", "spans; mean, 95% interval over seeds")
    axes.grid(False, axis="x")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, labelcolor=INK, loc="outside right upper")
    return figure


def _imagined(results: Results, plan: Plan) -> Figure | None:
    """Six questions: observed frames, the training frame nearest to each imagined one, and true future frames."""
    names = [f"retrieval-{run}-s{seed}" for run in reversed(plan["controls"]) for seed in plan["seeds"]]
    name = next((name for name in names if name in results and results[name]["metrics"]["strip"]), None)
    if name is None:
        return None
    samples: Sequence[Mapping[str, Any]] = results[name]["metrics"]["strip"]
    rows = [
        (
            [(str(sample["id"]), frame) for frame in sample["observed"]],
            [(str(episode), frame) for episode, frame in sample["nearest"]],
            [(str(sample["id"]), frame) for frame in sample["future"]],
        )
        for sample in samples
    ]
    clips = _rendered({episode for row in rows for cells in row for episode, _ in cells}, plan["world"])
    groups = {"observed": 4, "imagined: nearest training frames": 3, "true future": 3}
    widths = [1.0] * 4 + [0.25] + [1.0] * 3 + [0.25] + [1.0] * 3
    firsts = (0, 5, 9)
    figure = _figure(10.4, len(samples) + 0.4, by_hand=True)  # a layout engine would widen columns for their titles
    grid = figure.subplots(len(samples), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    top = 1 - 0.38 / (len(samples) + 0.4)
    figure.subplots_adjust(left=0.075, right=0.997, bottom=0.01, top=top, wspace=0.06, hspace=0.08)
    for axes in grid.ravel():
        axes.set_axis_off()
    for row, (sample, cells) in enumerate(zip(samples, rows, strict=True)):
        for first, most, shown in zip(firsts, groups.values(), cells, strict=True):
            for column, (episode, frame) in enumerate(shown[:most]):
                grid[row, first + column].imshow(clips[episode][frame])
        grid[row, 0].text(
            -0.1, 0.5, f"{sample['split']}\n{sample['id']}", transform=grid[row, 0].transAxes, ha="right", va="center",
            fontsize=8, color=MUTED,
        )  # fmt: skip
    for first, title in zip(firsts, groups, strict=True):
        grid[0, first].set_title(title, fontsize=10, color=INK, loc="left")
    figure.text(0.997, 0.985, name.removeprefix("retrieval-"), fontsize=8, color=MUTED, ha="right", va="top")
    return figure


def _rendered(names: set[str], options: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Frames of clips by name, as they were rendered for the clips; frame n is number n of the 8-frame pool.

    Args:
        names: names of clips, such as `train-00012`.
        options: those of `futurel1 world`.
    """
    world = _world_of(options)
    found = {}
    for name in names:
        split, _, number = name.rpartition("-")
        found[name] = world.episode(split, int(number)).render(range(POOL_FRAMES + 1))  # type: ignore[arg-type]
    return found


def _world_of(options: Mapping[str, Any]) -> QuestionWorld[Any]:
    from futurel1.worlds import AtariWorld, EventsWorld

    kind = AtariWorld if options.get("task") == "atari" else EventsWorld
    return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})
