"""Training curves as one picture, from the metrics that Lightning's CSVLogger writes into a run folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError, MissingFileError
from futurel1.files import replacing, writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "Curves", "Ends", "curves", "read_curves", "running_mean"]

METRICS_FILE = "metrics.csv"
STAGES = ("train", "val", "test")
STAGE_COLOURS = {"train": "#2a6fbb", "val": "#d1601f", "test": "#3b8c4d", "": "#555b66"}
AXIS_LABELS = {
    "loss": "total loss",
    "ce": "cross entropy (nats per token)",
    "latent": "latent alignment loss",
    "cosine": "cosine similarity",
    "retrieval": "retrieval (share right)",
    "accuracy": "accuracy (share right)",
    "kl": "KL (nats per token)",
    "entropy": "entropy (nats per token)",
    "reward": "reward",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}
PANEL_ORDER = {name: position for position, name in enumerate(AXIS_LABELS)}
LOG_FAMILIES = {"loss", "ce", "latent", "kl", "grad_norm"}
LOG_RATIO = 5  # use a log axis if the largest value is at least this many times the smallest
SMOOTH_FROM = 60  # number of points from which a running mean is drawn over the raw values
MARK_UP_TO = 40  # number of points up to which each is marked
COLUMNS = 3
PANEL = (4.0, 2.9)  # width and height of a panel with its labels, inches
MARGINS = {"left": 0.95, "right": 0.15, "bottom": 0.6, "top": 0.35}  # of a panel, around its axes; inches
TITLE = 0.5  # height of the line above all panels, inches
INK, MUTED, GRID = "#22262e", "#666d7a", "#e3e6eb"


@dataclass
class Curve:
    """One metric over a run: optimizer steps and values, in the order logged."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class Ends(NamedTuple):
    """How a curve began and ended: means over its first and its last twentieth, if it is long.

    Attributes:
        first: mean of the first values.
        last: mean of the last values.
        points: number of values that each is the mean of.
    """

    first: float
    last: float
    points: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarize a curve; of a short one, the first and the last value."""
        points = max(1, len(values) // 20) if len(values) >= SMOOTH_FROM else 1
        return cls(float(np.mean(values[:points])), float(np.mean(values[-points:])), points)


@dataclass(frozen=True)
class Curves:
    """Result of drawing the curves of a run.

    Attributes:
        picture: the PNG.
        values: metric to how it began and ended.
    """

    picture: Path
    values: dict[str, Ends]

    def __str__(self) -> str:
        lines = [f"{'metric':<28}{'first':>12}{'last':>12}  each is"]
        for name, (first, last, points) in self.values.items():
            each = "one value" if points == 1 else f"the mean of {points} batches"
            lines.append(f"{name:<28}{first:>12.4g}{last:>12.4g}  {each}")
        return "\n".join([*lines, str(self.picture)])


def curves(run: str | Path, out: str | Path | None = None) -> Curves:
    """Draw the training curves of a run as a PNG: one panel per metric, training and validation together.

    Values that are not finite are left out and counted in the panel. Loss-like metrics get a logarithmic axis if their
    values span a large enough range. Long training curves are drawn faintly under their running mean.

    Args:
        run: Run folder, searched for metrics.csv (the newest, if there are several), or such a file.
        out: PNG to write; by default curves.png in the run folder.

    Returns:
        The picture, and the first and last value of each metric.

    Raises:
        MissingFileError: The run folder does not exist, or holds no file named `metrics.csv`.
        ConfigError: The file has no rows, no `step` column, no metrics or an unreadable value; or matplotlib is not
            installed.
    """
    run = Path(run)
    families = read_curves(run)
    folder = run if run.is_dir() else run.parent
    target = Path(out) if out is not None else folder / "curves.png"
    with writable(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _draw(families, folder.resolve().name, target)
    values = {
        f"{stage}/{family}" if stage else family: Ends.of(curve.values)
        for family, stages in families.items()
        for stage, curve in stages.items()
    }
    return Curves(target, values)


def read_curves(run: Path) -> dict[str, dict[str, Curve]]:
    """Read the metrics of a run.

    Args:
        run: run folder, searched for metrics.csv (the newest, if there are several), or such a file.

    Returns:
        Family (such as `loss`) to stage (`train`, `val`, `test` or none) to curve.

    Raises:
        MissingFileError: there is no such folder, or nothing in it is named `metrics.csv`.
        ConfigError: the file has no rows, no `step` column, no metrics or an unreadable value.
    """
    return _read_families(_find_metrics(run))


def _find_metrics(run: Path) -> Path:
    """The newest metrics file of a run."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise MissingFileError(f"run={run}: no such folder; name a run folder that `futurel1 fit` made")
    found = sorted(run.rglob(METRICS_FILE), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingFileError(
            f"{run}: no {METRICS_FILE} in it or below; it is written by Lightning's CSVLogger, add it to trainer.logger"
        )
    return found[-1]


def _read_families(path: Path) -> dict[str, dict[str, Curve]]:
    """Read the curves, by family (such as `loss`) and stage (`train`, `val`, `test` or none)."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        rows = list(reader)
    if not rows:
        raise ConfigError(f"{path}: no rows yet; the CSVLogger writes them every `flush_logs_every_n_steps` steps")
    if "step" not in names:
        raise ConfigError(f"{path}: no `step` column among {', '.join(names)}; is it a file of Lightning's CSVLogger?")

    families: dict[str, dict[str, Curve]] = {}
    for name in names:
        # With on_step and on_epoch Lightning logs a metric twice; the curve over steps has all the information.
        if name in ("step", "epoch") or (name.endswith("_epoch") and f"{name.removesuffix('_epoch')}_step" in names):
            continue
        curve = Curve()
        for line, row in enumerate(rows, start=2):
            if row[name]:
                curve.steps.append(_number(row["step"], path, line, "step"))
                curve.values.append(_number(row[name], path, line, name))
        if curve.values:
            stage, _, rest = name.partition("/")
            family, stage = (rest, stage) if stage in STAGES and rest else (name, "")
            family = family.removesuffix("_step").removesuffix("_epoch")
            families.setdefault(family, {})[stage] = curve
    if not families:
        raise ConfigError(f"{path}: no metric has a value; columns are {', '.join(names)}")
    return families


def _number(text: str | None, path: Path, line: int, column: str) -> float:
    """Convert a cell to a number."""
    try:
        return float(text or "")
    except ValueError as error:
        raise ConfigError(f"{path}, line {line}, column {column}: {text!r} is not a number") from error


def _draw(families: dict[str, dict[str, Curve]], title: str, target: Path) -> None:
    """Lay out the panels and write the PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("curves need matplotlib, which is not installed: pip install 'futurel1[demo]'") from error

    names = sorted(families, key=lambda name: (PANEL_ORDER.get(name.split("-")[0], len(PANEL_ORDER)), name))
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    width, height = PANEL[0] * columns, PANEL[1] * rows + TITLE
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, y=1 - TITLE / 2 / height, va="center")
    # Fixed margins, because a layout engine would lay out all text twice more, and a run of RL has sixty panels.
    across, down = MARGINS["left"] + MARGINS["right"], MARGINS["bottom"] + MARGINS["top"]
    figure.subplots_adjust(
        left=MARGINS["left"] / width,
        right=1 - MARGINS["right"] / width,
        bottom=MARGINS["bottom"] / height,
        top=1 - (TITLE + MARGINS["top"]) / height,
        wspace=across / (PANEL[0] - across),
        hspace=down / (PANEL[1] - down),
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_panel(panel, name, families[name])
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    with replacing(target) as partial:
        figure.savefig(partial, format="png")


def _draw_panel(panel: Axes, name: str, stages: dict[str, Curve]) -> None:
    """Draw one metric family, with each stage in its colour."""
    from matplotlib.ticker import LogLocator

    finite_values = []
    left_out = 0
    for stage in (*STAGES, ""):
        if stage not in stages:
            continue
        steps, values = np.array(stages[stage].steps), np.array(stages[stage].values)
        finite = np.isfinite(values)
        left_out += int((~finite).sum())
        steps, values = steps[finite], values[finite]
        finite_values.append(values)
        colour = STAGE_COLOURS[stage]
        smooth = stage == "train" and len(values) >= SMOOTH_FROM
        marker = "o" if (stage != "train" and len(values) <= MARK_UP_TO) or len(values) == 1 else ""
        if smooth:
            panel.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
            values = running_mean(values)
        panel.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=stage or None)

    everything = np.concatenate(finite_values)
    if name in LOG_FAMILIES and len(everything) and 0 < LOG_RATIO * everything.min() <= everything.max():
        panel.set_yscale("log", subs=[])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_title(name, fontsize=10.5, color=INK, loc="left")
    panel.set_xlabel("optimizer step", fontsize=8.5, color=MUTED)
    panel.set_ylabel(AXIS_LABELS.get(name.split("-")[0], name), fontsize=8.5, color=MUTED)
    panel.tick_params(labelsize=8, colors=MUTED, which="both", labelbottom=True)
    panel.grid(True, color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GRID)
    if any(stages):
        panel.legend(fontsize=8, frameon=False, labelcolor=INK)
    if left_out:
        panel.text(
            0.02, 0.03, f"{left_out} not finite, left out", transform=panel.transAxes, fontsize=8, color="#b3261e"
        )


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean over a twentieth of the curve; the window is truncated at both ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, after_last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    mean: NDArray[np.float64] = (total[after_last] - total[first]) / (after_last - first)
    return mean
