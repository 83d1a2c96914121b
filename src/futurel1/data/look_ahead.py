"""A loader whose next batches can be read before it is their turn."""

import math
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["LookAhead"]

Batch = TypeVar("Batch")
Yielded = TypeVar("Yielded", covariant=True)


class Loader(Protocol[Yielded]):
    """A loader that knows its number of batches and their size, such as PyTorch's `DataLoader`."""

    @property
    def batch_size(self) -> int | None:
        """Most rows of a batch."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Yielded]: ...


class LookAhead(Generic[Batch]):
    """Gives out the batches of a loader one by one, and shows those that come next to who asks.

    An error of the loader is raised when it is the turn of its batch, so that work on earlier ones is not lost.

    Args:
        loader: the loader.
    """

    def __init__(self, loader: Loader[Batch]) -> None:
        self.loader = loader

    @property
    def batch_size(self) -> int | None:
        """Most rows of a batch."""
        return self.loader.batch_size

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self._rest = iter(self.loader)
        self._given = 0
        self._waiting: deque[Batch] = deque()
        self._end: Exception | None = None
        while self._waiting or self._read_next():
            self._given, self._current = self._given + 1, self._waiting.popleft()
            yield self._current
        if self._end is not None and not isinstance(self._end, StopIteration):
            raise self._end

    def ahead(self, most: float = math.inf) -> Iterator[Batch]:
        """The batch that was given out last, and those after it; each is still given out when it is its turn.

        A batch that was given out before it was asked for here is left out, unless it is the last one.

        Args:
            most: number of batches, from the first one of the loader, after which none is read.
        """
        place = self._given - 1
        while place < most:
            if place == self._given - 1:
                yield self._current
            elif place < self._given + len(self._waiting) or self._read_next():
                yield self._waiting[place - self._given]
            else:
                return
            place = max(place + 1, self._given - 1)

    def _read_next(self) -> bool:
        """Read a batch; False at the end, or where the loader failed."""
        if self._end is not None:
            return False
        try:
            self._waiting.append(next(self._rest))
        except Exception as end:  # raised when it is its turn
            self._end = end
            return False
        return True
