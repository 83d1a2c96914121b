"""Fetch batches of a dataset by record number, in worker processes or in this one."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from futurel1.errors import FutureL1Error
from futurel1.interrupts import ignore_in_worker, starting_workers

Numbers = Sequence[int]
Collate = Callable[[list[Any]], Any]
_STARTED: set[Any] = set()
"""Iterators in use. Lightning leaves an iterator where it stopped asking, in a reference cycle. If the garbage
collector found the queues of its workers with it, it would close them first, and wait five seconds for the workers."""


def fetch(
    dataset: Dataset[Any], batches: Iterable[Numbers], collate: Collate, *, num_workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Yield the batches in order, without touching the global random state.

    A plain `DataLoader` replaces the message of a worker's error with a traceback. Here a library error arrives as it
    was raised, with the worker's traceback as a note.

    Args:
        dataset: items by number, or lists of them (`__getitems__`).
        batches: the numbers of each batch.
        collate: makes a batch of a list of items, in the worker.
        num_workers: worker processes; 0: this process does the work.
        pin_memory: copy tensors to page-locked memory.

    Raises:
        FutureL1Error: `dataset` or `collate` raised it; it is raised here when its batch is due.
    """
    loader: DataLoader[Any] = DataLoader(
        Batches(dataset, collate),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=ignore_in_worker,
    )
    with starting_workers() if num_workers else nullcontext():
        loaded = iter(loader)
    _STARTED.add(loaded)
    try:
        for batch in loaded:
            if isinstance(batch, FutureL1Error):
                raise batch
            yield batch
    finally:
        _STARTED.discard(loaded)


class Batches(Dataset[Any]):
    """Batches by their record numbers; a library error is returned in place of its batch.

    Args:
        dataset: items by number, or lists of them (`__getitems__`).
        collate: makes a batch of a list of items.
    """

    def __init__(self, dataset: Dataset[Any], collate: Collate) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, numbers: Any) -> Any:
        fetch_all = getattr(self.dataset, "__getitems__", None)
        try:
            return self.collate(fetch_all(numbers) if fetch_all else [self.dataset[number] for number in numbers])
        except FutureL1Error as error:
            if get_worker_info() is not None:
                error.add_note("".join(traceback.format_exception(error)))
            return error


def _unchanged(batch: Any) -> Any:
    return batch
