"""Training mixtures: the share of each source in an epoch, and which of its records an epoch has."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from futurel1.errors import ConfigError

__all__ = ["Mixture", "MixtureSource", "RecordPaths", "WeightedRecords", "positions", "shard_order", "weighted_paths"]


class WeightedRecords(TypedDict):
    """Records with a weight in a mixture.

    Attributes:
        path: file, folder, pattern, address or list of them.
        weight: share of the samples of an epoch, relative to the weights of the other sources; above 0.
    """

    path: str | list[str]
    weight: float


RecordPaths = str | list[str | WeightedRecords]
"""Names of records for training: with weights for all of them, or for none."""


@dataclass(frozen=True)
class MixtureSource:
    """One source of a mixture.

    Attributes:
        name: its paths.
        records: numbers of its records among those of all sources.
        weight: its weight.
    """

    name: str
    records: range
    weight: float


def weighted_paths(paths: Sequence[Any]) -> list[tuple[list[Any], float]] | None:
    """The paths of each source and its weight; None if no path has a weight.

    Raises:
        ConfigError: only some paths have a weight, or an entry is not a path and a weight above 0.
    """
    entries = [entry for entry in paths if isinstance(entry, Mapping)]
    if not entries:
        return None
    if len(entries) < len(paths):
        plain = next(path for path in paths if not isinstance(path, Mapping))
        raise ConfigError(f"{plain}: no weight, beside records with one; write {{path: .., weight: ..}} for each")
    found = []
    for entry in entries:
        path, weight = entry.get("path"), entry.get("weight")
        if set(entry) != {"path", "weight"} or not path:
            raise ConfigError(f"{dict(entry)}: not the path and the weight of records; write {{path: .., weight: ..}}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ConfigError(f"{path}: weight {weight!r} is not a number above 0; leave records that get none out")
        found.append((list(path) if isinstance(path, list | tuple) else [path], float(weight)))
    return found


def positions(records: range, numbers: Sequence[int] | None) -> range:
    """Where some records stand in a split.

    Args:
        records: numbers of the records.
        numbers: ascending numbers of the records of the split; None: all.
    """
    return (
        records if numbers is None else range(bisect_left(numbers, records.start), bisect_left(numbers, records.stop))
    )


def shard_order(shards: Sequence[range], window: int, generator: random.Random) -> list[int]:
    """An order of records that reads few shards at a time: shards at random, so many of them shuffled together.

    Args:
        shards: numbers of the records of each shard.
        window: shards whose records are shuffled together.
        generator: source of the order.
    """
    places = list(range(len(shards)))
    generator.shuffle(places)
    order: list[int] = []
    for start in range(0, len(places), window):
        numbers = [number for place in places[start : start + window] for number in shards[place]]
        generator.shuffle(numbers)
        order += numbers
    return order


class Mixture:
    """Draws the records of each epoch from several sources.

    An epoch has as many samples as there are records in all. Each source has its share of them, rounded such that they
    add up. A source is passed through again and again, each time in another order, and every epoch goes on where the
    one before stopped: no record of a source is drawn again before all others of it were drawn as often.

    Args:
        sources: the sources; their records are all records of the data set.
        seed: seed of the orders.
        numbers: ascending numbers of the records that belong to the split; None: all.

    Attributes:
        names: names of the sources.
        weights: their weights.
        sizes: records of each source.
        counts: samples of each source in an epoch.

    Raises:
        ConfigError: a source has no records in the split, or its share is less than one sample.
    """

    def __init__(self, sources: Sequence[MixtureSource], *, seed: int, numbers: Sequence[int] | None = None) -> None:
        self.names = tuple(source.name for source in sources)
        self.weights = tuple(source.weight for source in sources)
        self._seed = seed
        self._records = [positions(source.records, numbers) for source in sources]
        self.sizes = tuple(map(len, self._records))
        self.counts = _shares(self.weights, sum(self.sizes))
        for name, size, count, weight in zip(self.names, self.sizes, self.counts, self.weights, strict=True):
            if not size or not count:
                what = "no record in this split" if not size else f"weight {weight:g} is less than one sample an epoch"
                raise ConfigError(f"{name}: {what}; leave it out, or give it more")

    def __len__(self) -> int:
        return sum(self.sizes)

    def draw(self, epoch: int, shuffle: bool = True) -> list[int]:
        """Records of an epoch, source after source.

        Args:
            epoch: number of the epoch, from 0.
            shuffle: another order in every pass through a source; False: the order of the records.
        """
        drawn: list[int] = []
        for number, (records, count) in enumerate(zip(self._records, self.counts, strict=True)):
            first, size = epoch * count, len(records)
            for place in range(first // size, (first + count - 1) // size + 1):
                order = list(records)
                if shuffle:
                    random.Random(f"{self._seed}:source {number}:{place}").shuffle(order)
                begin = place * size
                drawn += order[max(first - begin, 0) : first + count - begin]
        return drawn

    def __str__(self) -> str:
        parts = zip(self.names, self.counts, self.sizes, self.weights, strict=True)
        return "; ".join(
            f"{name}: {count} of {len(self)} samples an epoch ({count / len(self):.1%}) from {size} records, weight "
            f"{weight:g}"
            for name, count, size, weight in parts
        )


def _shares(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Divide a number by weights, by largest remainders; of equal ones the first."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    remainders = sorted(range(len(weights)), key=lambda place: (counts[place] - exact[place], place))
    for place in remainders[: total - sum(counts)]:
        counts[place] += 1
    return tuple(counts)
