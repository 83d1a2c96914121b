"""What is counted, and how it is told."""

from __future__ import annotations

import pytest

from futurel1.checking import Problem, Spread
from futurel1.checking.report import _counts, _listed
from futurel1.errors import MediaError


def test_a_spread_is_of_all_numbers() -> None:
    assert Spread.of(range(1, 102)) == Spread(1, 51, 96, 101)
    assert Spread.of([]) is None


@pytest.mark.parametrize(("number", "more"), [(20, ""), (23, "  and 3 more; --json lists all")])
def test_the_first_twenty_of_a_kind_are_listed(number: int, more: str) -> None:
    few = Problem.of("val", "b.jsonl:1", MediaError("b.jsonl, record 1, field 'video': cut"))
    many = [Problem.of("train", f"a.jsonl:{place}", KeyError(place)) for place in range(number)]
    lines = _listed([few, *many])
    assert lines[1] == f"{number} x KeyError"
    assert sum(line.startswith("  train: ") for line in lines) == 20
    assert (more in lines) or not more
    assert lines[-2:] == ["1 x MediaError, field 'video'", "  val: b.jsonl, record 1, field 'video': cut"]


def test_the_most_frequent_come_first() -> None:
    counts = {f"{number} x {number}": number for number in range(1, 23)}
    lines = _counts("sizes", counts)
    assert lines[0] == "sizes:"
    assert lines[1].split() == ["22", "22", "x", "22"]
    assert lines[-1] == "  and 2 more"
    assert _counts("sizes", {}) == []
