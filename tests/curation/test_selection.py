"""Which candidates are kept: against brute force, in any order, in bounded memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.curation import ProbeResult, ProbeTable, Report, Thresholds, select
from futurel1.errors import ConfigError

ROLLOUTS = 8
results = st.lists(
    st.tuples(
        st.sampled_from(["probed", "probed", "probed", "no_hints", "failed", "skipped"]),
        st.integers(0, ROLLOUTS),
        st.integers(0, ROLLOUTS),
        st.integers(1, 6),
    ),
    max_size=40,
)
limits = st.builds(
    Thresholds, st.integers(0, ROLLOUTS), st.integers(-ROLLOUTS, ROLLOUTS), st.none() | st.integers(0, 12)
)


def filled(found: list[tuple[str, int, int, int]], seed: int = 0) -> ProbeTable:
    """A table with these results, put in random order, some of them after a failed attempt."""
    draw = random.Random(seed)
    table = ProbeTable(len(found))
    puts = []
    for number, (status, base, hint, hints) in enumerate(found):
        attempt = draw.randint(1, 3)
        puts += [ProbeResult(number, f"r:{number + 1}", "failed", attempt=before) for before in range(1, attempt)]
        if status in ("no_hints", "skipped"):
            hints = 0
        if status != "probed":
            base = hint = 0
        puts.append(ProbeResult(number, f"r:{number + 1}", status, hints, base, hint, attempt))  # type: ignore[arg-type]
    draw.shuffle(puts)
    for result in puts:
        table.put(result)
    return table


@given(results, limits, st.integers(0, 9))
def test_selection_is_what_brute_force_finds(
    found: list[tuple[str, int, int, int]], limits: Thresholds, seed: int
) -> None:
    table = filled(found, seed)
    selection = select(table, limits)
    good = []
    for number, (status, base, hint, _) in enumerate(found):
        if status == "probed" and base <= limits.max_base and hint - base >= limits.min_gain:
            good.append((-(hint - base), number))
    ranked = [number for _, number in sorted(good)]
    kept = ranked if limits.top is None else ranked[: limits.top]
    assert selection.chosen.tolist() == kept
    counts = selection.counts()
    assert counts["chosen"] == len(kept)
    assert counts["beyond_top"] == len(ranked) - len(kept)
    probed = [item for item in found if item[0] == "probed"]
    assert counts["easy"] == sum(base > limits.max_base for _, base, _, _ in probed)
    assert counts["unhelpful"] == len(probed) - len(ranked) - counts["easy"]
    for status in ("no_hints", "failed", "skipped"):
        assert counts[status] == sum(item[0] == status for item in found)
    assert sum(counts.values()) == len(found)


@given(results, limits)
def test_report_adds_up(found: list[tuple[str, int, int, int]], limits: Thresholds) -> None:
    table = filled(found)
    report = Report.of(table, select(table, limits), limits, ROLLOUTS)
    probed = [item for item in found if item[0] == "probed"]
    for counts, value_of in ((report.gains, lambda item: item[2] - item[1]), (report.hints, lambda item: item[3])):
        assert {value: number for value, (number, _) in counts.items()} == {
            value: sum(value_of(item) == value for item in probed) for value in sorted(map(value_of, probed))
        }
        assert list(counts) == sorted(counts)
        assert sum(chosen for _, chosen in counts.values()) == report.outcomes["chosen"]
    assert sum(report.outcomes.values()) == len(found)
    written = [line.split() for line in report.text().splitlines()]
    assert written[0] == [str(len(found)), "candidates"]
    shares = [int(words[0]) for words in written[1:] if len(words) > 2 and words[1].endswith("%")]
    assert sum(shares) == len(found)


def test_thresholds_are_those_of_the_paper_unless_told() -> None:
    table = filled([("probed", 6, 8, 1), ("probed", 7, 8, 1), ("probed", 5, 6, 1), ("probed", 0, 8, 2)], seed=3)
    assert select(table, Thresholds()).chosen.tolist() == [3, 0]
    assert select(table, Thresholds(max_base=7, min_gain=1)).chosen.tolist() == [3, 0, 1, 2]
    assert select(table, Thresholds(max_base=5, min_gain=1, top=1)).chosen.tolist() == [3]
    assert select(table, Thresholds(top=0)).counts()["beyond_top"] == 2
    with pytest.raises(ConfigError, match="must not be negative"):
        Thresholds(top=-1)


def test_memory_stays_bounded_however_many_candidates() -> None:
    number = 200_000
    draw = random.Random(0)
    tracemalloc.start()
    try:
        table = ProbeTable(number)
        for place in range(number):
            base, hint = draw.randint(0, 8), draw.randint(0, 8)
            table.put(ProbeResult(place, f"records.jsonl:{place + 1}", "probed", 1, base, hint))
        kept = tracemalloc.get_traced_memory()[0]
        selection = select(table, Thresholds(top=1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(selection.chosen) == 1000
    assert (selection.gains[selection.chosen] == 8).all()
    assert kept < 10 * number
    assert peak < 60 * number


def test_shards_share_out_whole_batches_without_gap() -> None:
    table = ProbeTable(53)
    table.put(ProbeResult(7, "r:8", "probed"))
    table.put(ProbeResult(8, "r:9", "failed"))
    for count in (1, 2, 3, 7, 60):
        parts = [table.todo(index, count, block=4).tolist() for index in range(count)]
        assert [number for part in parts for number in part] == [number for number in range(53) if number not in (7, 8)]
        blocks = [{number // 4 for number in part} for part in parts]
        assert sum(map(len, blocks)) == len(set().union(*blocks))
    assert table.todo(0, 1, retry_failed=True).tolist() == [number for number in range(53) if number != 7]


def test_picture_is_drawn_from_nothing_too(tmp_path: Path) -> None:
    for found in ([], [("probed", 1, 5, 1), ("skipped", 0, 0, 0)]):
        table = filled(found)
        Report.of(table, select(table, Thresholds()), Thresholds(), ROLLOUTS).draw(tmp_path / "report.png")
        assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
