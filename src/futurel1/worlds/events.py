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
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import Clip, Split, check_episode, check_seed, observed_of, video_of
from futurel1.worlds.collisions import NUM_STATES
from futurel1.worlds.event_episodes import EventEpisode
from futurel1.worlds.event_forks import Fork, make_forks
from futurel1.worlds.event_questions import KINDS, OBSERVED, Kind, question_cells, sample_block
from futurel1.worlds.event_scenes import make_event_scenes
from futurel1.worlds.look import COLOURS, LETTERS, check_frame_size
from futurel1.worlds.pretraining import pretraining_records
from futurel1.worlds.protocols import CodeReading, Scene
from futurel1.worlds.scene_code import CODE_SIZE, read_code
from futurel1.worlds.storage import CHANGES, PRETRAINING_KINDS

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
class EventsWorld:
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
    def splits(self) -> tuple[Split, ...]:
        """The splits of this world."""
        return ("train", "test", "rl", "pretrain", "counterfactual")

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the clips depend on."""
        settings = {"world": "events", "version": MANIFEST_VERSION, "seed": self.seed, "size": self.size}
        return settings if tuple(self.kinds) == KINDS else settings | {"kinds": list(self.kinds)}

    def record_files(self, split: Split) -> tuple[str, ...]:
        """Names of the record files of a split."""
        if split == "pretrain":
            return tuple(f"pretrain_{kind}.jsonl" for kind in PRETRAINING_KINDS)
        if split == "counterfactual":
            return ("counterfactual.jsonl", *(f"counterfactual_{change}.jsonl" for change in CHANGES))
        names = (f"{split}.jsonl", f"{split}_open.jsonl")
        return (*names, "futurebench.jsonl") if split == "test" else names

    def clips(self, split: Split, count: int) -> Iterator[Clip]:
        """The first clips of a split, each with its records."""
        if split == "counterfactual":
            yield from map(_forked_clip, make_forks(count, seed=self.seed, size=self.size, kinds=self.kinds))
            return
        for episode in make_event_episodes(split, count, seed=self.seed, size=self.size, kinds=self.kinds):
            yield Clip(
                episode.id,
                partial(episode.render, range(NUM_STATES)),
                self._records(episode),
                partial(episode.render, OBSERVED) if split == "test" else None,
            )

    @property
    def code_size(self) -> int:
        """Numbers of a code, see `futurel1.worlds.scene_code`."""
        return CODE_SIZE

    @property
    def num_steps(self) -> int:
        """Frames of a clip."""
        return NUM_STATES

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

    def _records(self, episode: EventEpisode) -> dict[str, dict[str, Any]]:
        """Records of a clip, by the name of their file."""
        split, video = episode.split, video_of(episode.id)
        if split == "pretrain":
            records = pretraining_records(episode, video)
            return {f"pretrain_{kind}.jsonl": record for kind, record in records.items()}
        records = {f"{split}.jsonl": episode.record(video), f"{split}_open.jsonl": episode.open_record(video)}
        if split == "test":
            records["futurebench.jsonl"] = episode.futurebench_record(observed_of(episode.id))
        return records


def _forked_clip(fork: Fork) -> Clip:
    """A clip with its other future and its changes, and the records of all."""
    every = (fork.other, *fork.changed)
    return Clip(
        fork.episode.id,
        partial(fork.episode.render, range(NUM_STATES)),
        {
            "counterfactual.jsonl": _forked_record(fork.episode, fork.other),
            **{f"counterfactual_{one.variant}.jsonl": _forked_record(one, fork.episode) for one in fork.changed},
        },
        variants={one.id: partial(one.render, range(NUM_STATES)) for one in every},
        causal=True,
    )


def _forked_record(episode: EventEpisode, other: EventEpisode) -> dict[str, Any]:
    """The record of an episode that names the future of another one as its counterfactual."""
    counterfactual = {
        "video": video_of(other.id), "reasoning_image": list(other.asked.hints), "answer": other.options[other.answer],
    }  # fmt: skip
    # A colour never leaves its pair and no two shapes share one, so that a frame alone tells the order of the shapes.
    order = np.argsort(np.asarray(episode.last_colours) % (len(COLOURS) // 2))
    places = episode.states.positions[list(episode.asked.hints)][:, order]
    return {
        **episode.record(video_of(episode.id)),
        "counterfactual": counterfactual,
        "future_positions": places.round(4).tolist(),
    }
