"""Batches are read before it is their turn, and given out in order all the same."""

from collections.abc import Iterator

import pytest

from futurel1.data import LookAhead
from futurel1.errors import RecordError


class Counting:
    """Numbers from 0 on; notes how many were read, and fails at one of them if told to."""

    batch_size = 1

    def __init__(self, length: int, fails_at: int = -1) -> None:
        self.length, self.fails_at, self.read = length, fails_at, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for number in range(self.length):
            if number == self.fails_at:
                raise RecordError(f"record {number} is damaged")
            self.read = number + 1
            yield number


def test_what_is_read_ahead_is_given_out_once_and_in_order() -> None:
    source = Counting(6)
    loader = LookAhead(source)
    assert (len(loader), loader.batch_size) == (6, 1)
    turns = iter(loader)
    assert (next(turns), source.read) == (0, 1)
    ahead = loader.ahead()
    assert [next(ahead), next(ahead), next(ahead), source.read] == [0, 1, 2, 3]
    assert [next(turns), next(turns), next(turns), source.read] == [1, 2, 3, 4]
    assert [next(ahead), next(ahead), source.read] == [3, 4, 5]
    assert list(turns) == [4, 5]
    assert list(ahead) == [5]
    assert list(loader) == list(range(6))  # the next pass


def test_reading_ahead_ends_at_a_limit_and_skips_what_nobody_asked_for() -> None:
    source = Counting(6)
    loader = LookAhead(source)
    turns = iter(loader)
    next(turns)
    ahead = loader.ahead(4)
    assert next(ahead) == 0
    assert [next(turns), next(turns)] == [1, 2]
    assert list(ahead) == [2, 3]
    assert source.read == 4
    assert list(turns) == [3, 4, 5]


def test_an_error_waits_for_its_turn() -> None:
    loader = LookAhead(Counting(6, fails_at=3))
    turns = iter(loader)
    assert next(turns) == 0
    assert list(loader.ahead()) == [0, 1, 2]
    assert [next(turns), next(turns)] == [1, 2]
    with pytest.raises(RecordError, match="record 3 is damaged"):
        next(turns)
