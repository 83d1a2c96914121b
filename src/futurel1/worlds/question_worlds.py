"""Worlds whose clips have a question each, as `futurel1.worlds.write_clips` writes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from futurel1.worlds.clips import Clip, Split, observed_of, video_of
from futurel1.worlds.episodes import Fork, QuestionEpisode
from futurel1.worlds.look import NUM_STEPS
from futurel1.worlds.pretraining import pretraining_records
from futurel1.worlds.questions import OBSERVED
from futurel1.worlds.storage import CHANGES, PRETRAINING_KINDS

__all__ = ["QuestionWorld"]

Episode = TypeVar("Episode", bound=QuestionEpisode)


class QuestionWorld(ABC, Generic[Episode]):
    """Clips and records of a world with the five splits.

    A split has frame-indexed records with options (`train.jsonl`). Test questions are also written in FutureBench's
    form (`futurebench.jsonl`), with clips of the observed frames. The split `pretrain` has the records of
    `futurel1.worlds.pretraining` instead, one file per kind (`pretrain_describe.jsonl`). The split `counterfactual` has
    a question per clip with both futures, and the same questions about changed clips.
    """

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of this world."""
        return ("train", "test", "rl", "pretrain", "counterfactual")

    @property
    def changes(self) -> tuple[str, ...]:
        """Changes to the observed frames of the split `counterfactual`."""
        return CHANGES

    @property
    def num_steps(self) -> int:
        """Frames of a clip."""
        return NUM_STEPS

    @abstractmethod
    def episode(self, split: Split, number: int) -> Episode:
        """An episode of a split, by its number from 0."""

    def episodes(self, split: Split, count: int) -> Iterator[Episode]:
        """Yield the first episodes of a split lazily."""
        return (self.episode(split, number) for number in range(count))

    @abstractmethod
    def forks(self, count: int) -> Iterator[Fork]:
        """Yield the first episodes of the split `counterfactual` lazily."""

    def record_files(self, split: Split) -> tuple[str, ...]:
        """Names of the record files of a split."""
        if split == "pretrain":
            return tuple(f"pretrain_{kind}.jsonl" for kind in PRETRAINING_KINDS)
        if split == "counterfactual":
            return ("counterfactual.jsonl", *(f"counterfactual_{change}.jsonl" for change in self.changes))
        return (f"{split}.jsonl", "futurebench.jsonl") if split == "test" else (f"{split}.jsonl",)

    def records(self, episode: Episode) -> dict[str, dict[str, Any]]:
        """Records of a clip, by the name of their file."""
        split, video = episode.split, video_of(episode.id)
        if split == "pretrain":
            records = pretraining_records(episode, video)
            return {f"pretrain_{kind}.jsonl": record for kind, record in records.items()}
        records = {f"{split}.jsonl": episode.record(video)}
        if split == "test":
            records["futurebench.jsonl"] = episode.futurebench_record(observed_of(episode.id))
        return records

    def clips(self, split: Split, count: int) -> Iterator[Clip]:
        """The first clips of a split, each with its records."""
        if split == "counterfactual":
            yield from map(_forked_clip, self.forks(count))
            return
        for episode in self.episodes(split, count):
            yield Clip(
                episode.id,
                partial(episode.render, range(NUM_STEPS)),
                self.records(episode),
                partial(episode.render, OBSERVED) if split == "test" else None,
            )


def _forked_clip(fork: Fork) -> Clip:
    """A clip with its other future and its changes, and the records of all."""
    every = (fork.other, *fork.changed)
    return Clip(
        fork.episode.id,
        partial(fork.episode.render, range(NUM_STEPS)),
        {
            "counterfactual.jsonl": fork.episode.forked_record(fork.other),
            **{f"counterfactual_{one.variant}.jsonl": one.forked_record(fork.episode) for one in fork.changed},
        },
        variants={one.id: partial(one.render, range(NUM_STEPS)) for one in every},
        causal=True,
    )
