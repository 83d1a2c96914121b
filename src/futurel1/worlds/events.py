"""A procedural world of events: shapes that bounce, change colour, open a gate and pass behind a pillar.

A clip has 10 frames and frame i shows step i: its 8-frame pool is exactly frames 1 to 8. A model sees steps 1 to 4 and
is asked what happens in the first, second or third step after that (`hop1` to `hop3`). A `hop5` question states where a
shape is after four more steps, and asks what happens on the way, or where another shape is when the first one gets
there. The hints are the frames up to the one asked about; for `hop5`, the frames in between.

Rules of the world: a circle, a square and a triangle move on straight lines. Two shapes that touch bounce off each
other and both change colour, red with yellow, green with purple, blue with orange. A gate bars the arena from wall to
wall until a shape bumps into it; the shape bounces off, and the gate is open from then on. The pillar is in front of
everything and stops no shape. No energy is lost.

No text reveals an answer: a question, its options and the right one are sampled first, and then a scene that fits them.
Train and test are disjoint: each has its own seed stream, combinations of colour and form, and layouts of gate and
pillar. Colours only change within the combinations of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import Split, check_episode, check_seed, video_of
from futurel1.worlds.episodes import Fork
from futurel1.worlds.event_episodes import EventEpisode
from futurel1.worlds.event_forks import make_forks
from futurel1.worlds.event_questions import KINDS, Kind, question_cells, sample_block
from futurel1.worlds.event_scenes import make_event_scenes
from futurel1.worlds.look import COLOURS, LETTERS, check_frame_size
from futurel1.worlds.protocols import CodeReading, Scene
from futurel1.worlds.question_worlds import QuestionWorld
from futurel1.worlds.scene_code import CODE_SIZE, read_code

__all__ = ["EventsWorld", "make_event_episode", "make_event_episodes"]

MANIFEST_VERSION = 3  # raise it when the same seed no longer gives the same clips


def make_event_episode(
    split: Split, number: int, *, seed: int = 0, size: int = 96, kinds: Sequence[Kind] = KINDS
) -> EventEpisode:
    """Sample one episode; the same arguments always give the same one, and the same states at every size.

    Args:
        split: `train`, `test`, `rl` or `pretrain`.
        number: position in the split, from 0.
        seed: seed of the whole world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        kinds: kinds of question, see `Asked`; interpolations ask for zones only if events are not among the kinds.

    Returns:
        The episode.

    Raises:
        ConfigError: a negative `seed` or `number`, an unknown split or kind, or an impossible `size`.
    """
    check_episode(split, number, seed)
    check_frame_size(size)
    cells = question_cells(kinds)
    block, place = divmod(number, len(cells) * len(LETTERS))
    asked, layout, states = sample_block(seed, split, block, cells)[place]
    return EventEpisode(
        size=size, layout=layout, last_colours=asked.colours, states=states, split=split, number=number, asked=asked
    )


def make_event_episodes(
    split: Split, count: int, *, seed: int = 0, size: int = 96, kinds: Sequence[Kind] = KINDS
) -> Iterator[EventEpisode]:
    """Yield episodes 0 to `count` - 1 of a split lazily; arguments and errors are `make_event_episode`'s."""
    return (make_event_episode(split, number, seed=seed, size=size, kinds=kinds) for number in range(count))


@dataclass(frozen=True)
class EventsWorld(QuestionWorld[EventEpisode]):
    """The world of events as `futurel1.worlds.write_clips` writes it, and as pretraining makes it in memory.

    A split has frame-indexed records with options (`train.jsonl`) and open questions about the same clips
    (`train_open.jsonl`). Test questions are also written in FutureBench's form (`futurebench.jsonl`), with clips of
    the observed frames. The split `pretrain` has the records of `futurel1.worlds.pretraining` instead, one file per
    kind (`pretrain_describe.jsonl`). The split `counterfactual` has a question per clip with both futures, and the same
    questions about changed clips, see `futurel1.worlds.event_forks`.

    Args:
        seed: seed of the world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        kinds: kinds of question, as in `make_event_episode`; other kinds give other clips, since scenes fit questions.

    Raises:
        ConfigError: a negative seed, or an impossible size or choice of kinds.
    """

    seed: int = 0
    size: int = 96
    kinds: Sequence[Kind] = KINDS

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_frame_size(self.size)
        question_cells(self.kinds)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the clips depend on."""
        settings = {"world": "events", "version": MANIFEST_VERSION, "seed": self.seed, "size": self.size}
        return settings if tuple(self.kinds) == KINDS else settings | {"kinds": list(self.kinds)}

    def record_files(self, split: Split) -> tuple[str, ...]:
        """Names of the record files of a split."""
        names = super().record_files(split)
        return names if split in ("pretrain", "counterfactual") else (*names, f"{split}_open.jsonl")

    def episode(self, split: Split, number: int) -> EventEpisode:
        """An episode of a split."""
        return make_event_episode(split, number, seed=self.seed, size=self.size, kinds=self.kinds)

    def forks(self, count: int) -> Iterator[Fork]:
        """The first episodes of the split `counterfactual`."""
        return make_forks(count, seed=self.seed, size=self.size, kinds=self.kinds)

    @property
    def code_size(self) -> int:
        """Numbers of a code, see `futurel1.worlds.scene_code`."""
        return CODE_SIZE

    def scenes(
        self, rng: np.random.Generator, count: int, *, split: Split | None = None, size: int | None = None
    ) -> Sequence[Scene]:
        """Clips without questions, as `make_event_scenes` samples them; neither seed nor kinds matter to them."""
        return make_event_scenes(rng, count, size=self.size if size is None else size, split=split)

    def read_code(self, code: NDArray[np.float32]) -> CodeReading:
        """Places of the three shapes, in the order of their pairs of colours, and which colour of its pair each has."""
        return read_code(code)

    def colours(self, reading: CodeReading) -> NDArray[np.uint8]:
        """(T, 3, 3) RGB colours of the shapes."""
        pairs = np.arange(reading.classes.shape[-1])
        every = np.array(list(COLOURS.values()), np.uint8)
        found: NDArray[np.uint8] = every[pairs + len(COLOURS) // 2 * reading.classes.clip(0)]
        return found

    def records(self, episode: EventEpisode) -> dict[str, dict[str, Any]]:
        """Records of a clip, by the name of their file."""
        records = super().records(episode)
        if episode.split not in ("pretrain", "counterfactual"):
            records[f"{episode.split}_open.jsonl"] = episode.open_record(video_of(episode.id))
        return records
