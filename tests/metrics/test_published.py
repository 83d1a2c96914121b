"""Published numbers, and tables that show ours beside them."""

import pytest
import torch

from futurel1.errors import ConfigError
from futurel1.metrics import FutureBenchAccuracy, TwiFFBenchScore, comparison_table
from futurel1.metrics.published import FUTUREBENCH, PAPER, THROUGHPUT, TWIFFBENCH

SPLIT_SIZES = (173, 193, 201, 489)


def test_rows_fit_their_columns_and_name_their_source():
    for table in (FUTUREBENCH, TWIFFBENCH, THROUGHPUT):
        assert all(len(row.values) == len(table.columns) and row.source == PAPER for row in table.rows)
        assert len({row.model for row in table.rows}) == len(table.rows)


def test_published_averages_are_micro_averages():
    whole = [row for row in FUTUREBENCH.rows if row.values[0] is not None]
    assert len(whole) == 12
    for row in whole:
        micro = sum(value * size for value, size in zip(row.values[:4], SPLIT_SIZES, strict=True)) / sum(SPLIT_SIZES)
        # Video-CoE's published average lies 0.3 below that of its own splits.
        assert row.values[4] == pytest.approx(micro, abs=0.3 if row.model == "Video-CoE 7B" else 0.1)


def test_twiffbench_averages_are_means_of_both_scores():
    for row in TWIFFBENCH.rows:
        cot, answer, average = row.values
        assert average == pytest.approx((cot + answer) / 2, abs=0.0051)


TWIFF_MARKDOWN = """\
| model | CoT | answer | avg | failures |
| --- | ---: | ---: | ---: | ---: |
| zero-shot | 2.75 | 2.14 | 2.44 | - |
| TwiFF-2.7M | 2.95 | 2.62 | 2.79 | - |
| Future-L1-SFT | 2.62 | 2.42 | 2.52 | - |
| Future-L1-RL | 3.11 | 2.97 | 3.04 | - |
| ours | 2.50 | 3.50 | 3.00 | 1 |
"""


def test_twiffbench_table():
    metric = TwiFFBenchScore()
    metric.update([[2, 3], [3, 4], None])
    assert comparison_table(metric.compute(), benchmark="twiffbench") == TWIFF_MARKDOWN


THROUGHPUT_LATEX = r"""\begin{tabular}{lrrr}
\toprule
model & tokens & seconds & accuracy per second \\
\midrule
Video-R1 & 398.5 & 3.28 & 19.3 \\
Video-o3 & 348.6 & 25.90 & 2.7 \\
Qwen3-VL-8B & 288.8 & 1.18 & 51.7 \\
Future-L1-SFT & 205.3 & 0.96 & 76.1 \\
Future-L1-RL & 195.3 & 0.91 & 93.8 \\
\midrule
8B\_seed0 \& 1 & 200.0 & 1.50 & - \\
\bottomrule
\end{tabular}
"""


def test_throughput_table_in_latex():
    ours = {"tokens_per_sample": 200, "seconds_per_sample": torch.tensor(1.5), "samples": 3}
    assert comparison_table(ours, "throughput", format="latex", label="8B_seed0 & 1") == THROUGHPUT_LATEX


def test_futurebench_table_has_a_row_per_protocol():
    metric = FutureBenchAccuracy()
    answers = ["<answer>B</answer>", "<answer>Answer: C</answer>", "no idea", "<answer>A</answer>"]
    metric.update(answers, ["B", "C", "D", "A"], ["hop1", "hop1", "hop5", "hop2"])
    scores = metric.compute()
    lines = comparison_table(scores, "futurebench", label="tiny|sft").splitlines()
    assert len(lines) == 2 + len(FUTUREBENCH.rows) + 2
    assert lines[0] == "| model | 1-Hop | 2-Hop | 3-Hop | Interp. | avg | 95% interval | unanswered |"
    assert lines[2] == "| GPT-4o | 61.9 | 61.7 | 72.1 | 51.6 | 59.0 | - | - |"
    assert lines[9] == "| LVR | - | - | - | - | 21.0 | - | - |"
    assert lines[-3] == "| Future-L1-RL | 83.2 | 86.5 | 86.6 | 85.1 | 85.4 | - | - |"
    assert lines[-2] == r"| tiny\|sft (paper) | 50.0 | 100.0 | - | 0.0 | 50.0 | 15.0 to 85.0 | 1 |"
    assert lines[-1] == r"| tiny\|sft (strict) | 100.0 | 100.0 | - | 0.0 | 75.0 | 30.1 to 95.4 | 1 |"
    latex = comparison_table(scores, "futurebench", format="latex")
    assert r"Future-L1-SFT + DAPO + R\_ctr & - & - & - & - & 84.5 & - & - \\" in latex
    assert r"95\% interval" in latex


@pytest.mark.parametrize(
    ("ours", "options", "message"),
    [
        ({}, {"benchmark": "mmlu"}, r"benchmark must be one of .*'futurebench'.* got 'mmlu'"),
        ({}, {"benchmark": "twiffbench", "format": "html"}, r"format must be one of .* got 'html'"),
        ({"cot": 1.0}, {"benchmark": "twiffbench"}, r"lack \['answer', 'average', 'failures'\]; there are \['cot'\]"),
        ({"cot": 1.0}, {"benchmark": "futurebench"}, r"no '<protocol>/accuracy' among"),
        ({"paper/accuracy": 1.0}, {"benchmark": "futurebench"}, r"lack \['paper/hop1',"),
    ],
)
def test_what_cannot_be_shown_is_an_error(ours, options, message):
    with pytest.raises(ConfigError, match=message):
        comparison_table(ours, **options)
