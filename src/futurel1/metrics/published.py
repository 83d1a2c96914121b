"""Published results of the benchmarks, and tables with our rows below them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from futurel1.errors import ConfigError

__all__ = [
    "FUTUREBENCH",
    "PAPER",
    "SPANS_PER_RESPONSE",
    "THROUGHPUT",
    "TWIFFBENCH",
    "Benchmark",
    "Column",
    "PublishedRow",
    "PublishedTable",
    "TableFormat",
    "comparison_table",
]

Benchmark = Literal["futurebench", "twiffbench", "throughput"]
TableFormat = Literal["markdown", "latex"]

PAPER = "Future-L1, arXiv 2606.05769"
"""Source of all rows, including those of other models."""


@dataclass(frozen=True)
class Column:
    """One value of a table.

    Args:
        key: name of the value in the result of a metric's `compute()`, without the protocol.
        heading: the paper's name for the value.
        digits: number of decimals in the paper.
        ours: whether our metric measures the value.
    """

    key: str
    heading: str
    digits: int
    ours: bool = True


@dataclass(frozen=True)
class PublishedRow:
    """Published values of one model.

    Args:
        model: name as published.
        values: one per column of the table, None where nothing was published.
        source: publication with the values.
    """

    model: str
    values: tuple[float | None, ...]
    source: str = PAPER


@dataclass(frozen=True)
class PublishedTable:
    """Published rows and their columns."""

    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]


def _average_only(model: str, average: float) -> PublishedRow:
    return PublishedRow(model, (None, None, None, None, average))


FUTUREBENCH = PublishedTable(
    (
        Column("hop1", "1-Hop", 1),
        Column("hop2", "2-Hop", 1),
        Column("hop3", "3-Hop", 1),
        Column("hop5", "Interp.", 1),
        Column("accuracy", "avg", 1),
    ),
    (
        PublishedRow("GPT-4o", (61.9, 61.7, 72.1, 51.6, 59.0)),
        PublishedRow("GPT-5", (59.6, 57.3, 62.6, 55.6, 57.9)),
        PublishedRow("Qwen3-VL-30B-A3B", (65.3, 70.5, 76.1, 62.2, 66.9)),
        PublishedRow("Video-R1 7B", (67.6, 65.3, 61.2, 61.8, 63.3)),
        PublishedRow("Video-o3 7B", (68.2, 73.6, 63.2, 69.7, 68.9)),
        PublishedRow("NEP 7B", (66.2, 69.9, 63.7, 68.1, 67.3)),
        PublishedRow("Video-CoE 7B", (80.9, 83.9, 71.6, 71.4, 75.0)),
        _average_only("LVR", 21.0),
        _average_only("Monet", 47.9),
        _average_only("SwimBird", 62.8),
        PublishedRow("Qwen3-VL-8B zero-shot", (64.2, 65.8, 66.2, 55.8, 61.0)),
        PublishedRow("text-only SFT, same 50K", (67.6, 66.8, 68.2, 62.0, 65.0)),
        _average_only("text-only SFT + GRPO", 77.7),
        _average_only("text-only SFT + DAPO", 76.3),
        PublishedRow("Future-L1-SFT on random 50K", (67.6, 68.9, 70.1, 67.7, 68.4)),
        PublishedRow("Future-L1-SFT", (70.5, 73.1, 77.6, 72.2, 73.2)),
        _average_only("Future-L1-SFT + GRPO", 82.8),
        _average_only("Future-L1-SFT + DePO", 81.1),
        _average_only("Future-L1-SFT + DAPO", 83.8),
        _average_only("Future-L1-SFT + DAPO + R_ctr", 84.5),
        _average_only("Future-L1-SFT + DAPO + R_div", 84.8),
        PublishedRow("Future-L1-RL", (83.2, 86.5, 86.6, 85.1, 85.4)),
    ),
)
"""Accuracy in percent, 32 frames, greedy; seeds and intervals were not published."""

TWIFFBENCH = PublishedTable(
    (Column("cot", "CoT", 2), Column("answer", "answer", 2), Column("average", "avg", 2)),
    (
        PublishedRow("zero-shot", (2.75, 2.14, 2.44)),
        PublishedRow("TwiFF-2.7M", (2.95, 2.62, 2.79)),
        PublishedRow("Future-L1-SFT", (2.62, 2.42, 2.52)),
        PublishedRow("Future-L1-RL", (3.11, 2.97, 3.04)),
    ),
)
"""Judged scores, 0-5."""

THROUGHPUT = PublishedTable(
    (
        Column("tokens_per_sample", "tokens", 1),
        Column("seconds_per_sample", "seconds", 2),
        Column("accuracy_per_second", "accuracy per second", 1, ours=False),
    ),
    (
        PublishedRow("Video-R1", (398.5, 3.28, 19.3)),
        PublishedRow("Video-o3", (348.6, 25.90, 2.7)),
        PublishedRow("Qwen3-VL-8B", (288.8, 1.18, 51.7)),
        PublishedRow("Future-L1-SFT", (205.3, 0.96, 76.1)),
        PublishedRow("Future-L1-RL", (195.3, 0.91, 93.8)),
    ),
)
"""Inference on FutureBench, on the paper's hardware: seconds are comparable only with each other."""

SPANS_PER_RESPONSE: Mapping[str, float] = {"hop1": 1.79, "hop2": 2.18, "hop3": 2.52}
"""Mean latent spans per response of Future-L1 by split of FutureBench (`PAPER`)."""

_TABLES: Mapping[Benchmark, PublishedTable] = {
    "futurebench": FUTUREBENCH,
    "twiffbench": TWIFFBENCH,
    "throughput": THROUGHPUT,
}
_COUNTS: Mapping[Benchmark, str | None] = {"futurebench": "unanswered", "twiffbench": "failures", "throughput": None}
"""Counts that our rows show beside the paper's columns; there are no published values."""


def comparison_table(
    ours: Mapping[str, Tensor | float],
    benchmark: Benchmark,
    format: TableFormat = "markdown",
    label: str = "ours",
) -> str:
    """The published rows of a benchmark with ours at the end.

    Args:
        ours: result of `compute()` of the benchmark's metric. For FutureBench each protocol in it gets its own row,
            with the 95% interval of the average and the number of unanswered questions.
        benchmark: name of the table.
        format: ``"markdown"``, or ``"latex"``: a `tabular` for the booktabs package.
        label: name of our row.

    Returns:
        The table, ending with a line break; ``-`` for missing values.

    Raises:
        ConfigError: an unknown benchmark or format, or values missing in `ours`.
    """
    if benchmark not in _TABLES:
        raise ConfigError(f"benchmark must be one of {get_args(Benchmark)}, got {benchmark!r}")
    if format not in get_args(TableFormat):
        raise ConfigError(f"format must be one of {get_args(TableFormat)}, got {format!r}")
    columns, rows = _TABLES[benchmark].columns, _TABLES[benchmark].rows
    headings = ["model", *(column.heading for column in columns), *_extra_headings(benchmark)]
    blank = ["-"] * len(_extra_headings(benchmark))
    published = [
        [row.model, *(_number(value, column.digits) for value, column in zip(row.values, columns, strict=True)), *blank]
        for row in rows
    ]
    own = _our_rows({key: float(value) for key, value in ours.items()}, benchmark, label)
    return _markdown(headings, published + own) if format == "markdown" else _latex(headings, published, own)


def _extra_headings(benchmark: Benchmark) -> list[str]:
    interval = ["95% interval"] if benchmark == "futurebench" else []
    count = _COUNTS[benchmark]
    return interval if count is None else [*interval, count]


def _our_rows(ours: Mapping[str, float], benchmark: Benchmark, label: str) -> list[list[str]]:
    if benchmark != "futurebench":
        return [[label, *_our_values(ours, benchmark, prefix="")]]
    protocols = [key.removesuffix("/accuracy") for key in ours if key.endswith("/accuracy")]
    if not protocols:
        raise ConfigError(f"no '<protocol>/accuracy' among our FutureBench values; there are {sorted(ours)}")
    return [[f"{label} ({name})", *_our_values(ours, benchmark, prefix=f"{name}/")] for name in protocols]


def _our_values(ours: Mapping[str, float], benchmark: Benchmark, prefix: str) -> list[str]:
    """Our values in the order of the headings."""
    columns, count = _TABLES[benchmark].columns, _COUNTS[benchmark]
    ends = [f"{prefix}accuracy_low", f"{prefix}accuracy_high"] if benchmark == "futurebench" else []
    counted = [] if count is None else [f"{prefix}{count}"]
    needed = [prefix + column.key for column in columns if column.ours] + ends + counted
    missing = [key for key in needed if key not in ours]
    if missing:
        raise ConfigError(f"our {benchmark} values lack {missing}; there are {sorted(ours)}")
    values = [_number(ours.get(prefix + column.key), column.digits) for column in columns]
    interval = [" to ".join(_number(ours[key], 1) for key in ends)] if ends else []
    return values + interval + [_number(ours[key], 0) for key in counted]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in [headings, *rows]]
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])


def _latex(headings: list[str], published: list[list[str]], own: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return " & ".join(_latex_text(cell) for cell in cells) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            line(headings),
            r"\midrule",
            *map(line, published),
            r"\midrule",
            *map(line, own),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
    return "".join(special.get(character, character) for character in text)
