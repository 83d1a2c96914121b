"""Batches in order, and errors of workers."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from futurel1.data.fetching import fetch
from futurel1.errors import RecordError


class Squares(Dataset[int]):
    """Squares; the record number 7 cannot be read."""

    def __getitem__(self, number: int) -> int:
        if number == 7:
            raise RecordError("a.jsonl: record 7: bad,\nsee its second line")
        return number**2


class Bulk(Squares):
    def __getitems__(self, numbers: list[int]) -> list[Any]:
        return [tuple(self[number] for number in numbers)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order(num_workers: int) -> None:
    batches = [[1, 2], [3], [], [4, 5, 6]]
    assert list(fetch(Squares(), batches, list, num_workers=num_workers)) == [[1, 4], [9], [], [16, 25, 36]]
    assert list(fetch(Bulk(), batches, list, num_workers=num_workers)) == [[(1, 4)], [(9,)], [()], [(16, 25, 36)]]


def test_workers_of_an_abandoned_iterator_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage in a reference cycle, as Lightning leaves its iterators: the queues of the workers must outlive it."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 60)  # how long ends are waited for
    cycle: list[Any] = [fetch(Squares(), [[1], [2], [3]], list, num_workers=1)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    began = time.monotonic()
    gc.collect()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_arrives_as_it_was_raised_when_its_batch_is_due(num_workers: int) -> None:
    batches = fetch(Squares(), [[1], [7], [2]], list, num_workers=num_workers)
    assert next(batches) == [1]
    with pytest.raises(RecordError) as error:
        next(batches)
    assert str(error.value) == "a.jsonl: record 7: bad,\nsee its second line"
    notes = "".join(getattr(error.value, "__notes__", []))
    assert ("in __getitem__" in notes) == (num_workers > 0)  # the worker's traceback


class Signalled(Squares):
    """Items whose worker gets the signals of its process group."""

    def __getitem__(self, number: int) -> int:
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        return super().__getitem__(number)


def test_workers_finish_their_batches_whatever_signal_the_group_gets() -> None:
    assert list(fetch(Signalled(), [[1], [2], [3]], list, num_workers=1)) == [[1], [4], [9]]


class Noted:
    """Batches of one record that note which signals are blocked when a loader begins, just before its workers."""

    def __init__(self) -> None:
        self.blocked: set[int] = set()

    def __iter__(self) -> Iterator[list[int]]:
        self.blocked = set(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return iter([[1], [2]])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_signals_wait_while_workers_start(num_workers: int) -> None:
    batches, before = Noted(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for _ in fetch(Squares(), batches, list, num_workers=num_workers):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert ({signal.SIGINT, signal.SIGTERM} <= batches.blocked) == (num_workers > 0)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        list(fetch(Squares(), [[1]], lambda items: items[0] / 0, num_workers=0))


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(fetch(Squares(), [[1], [2]], list, num_workers=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # type: ignore[index]
