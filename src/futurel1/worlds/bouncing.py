"""A procedural world of one large shape that bounces off walls; questions ask for its zone after the next step.

A model sees steps 3 and 4 and is asked about step 5, which is also the hint (`futurel1.worlds.look` explains steps).
The options always have the same order, so a letter means the same zone in every question, and questions and thoughts
use few words. With two pictures and one decision, a model of a million parameters begins to learn within minutes.

Motion has a closed form (a straight line folded at the walls), so any step is computed without simulating the ones
before it, and the encoded clip and `Episode.render` show the same states.

Train and test are disjoint: each split has its own seed stream and its own combinations of colour and form (`palette`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import SPLITS, Clip, Split, check_episode, check_seed, frame_record, thoughts_text, video_of
from futurel1.worlds.look import (
    COLOURS,
    LAST_SEEN,
    LETTERS,
    ZONES,
    Form,
    background,
    check_frame_size,
    direction,
    in_steps,
    paint,
    palette,
    shape_cover,
    wall_thickness,
    zones_of,
)

__all__ = ["Arena", "BouncingWorld", "Episode", "Shape", "make_episode", "make_episodes"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_VIDEO_FRAMES = 10  # the one length whose 8-frame pool is evenly spaced: frames 1..8
OBSERVED = (3, 4)  # pool frames, 1-based, and steps
HOP = 1  # steps from the last observed frame to the one asked about
SHAPE_SIZE = 0.4  # side of the box that a shape fills, relative to that of the frames
SLOWEST, FASTEST = 0.10, 0.22  # arena sides per step; below one span, so a step has at most one bounce per axis
STAY_RATE = 0.25  # share of questions whose answer is the last seen zone: repeating it is no better than chance
CANDIDATES = 256  # motions sampled at once; about one in twenty fits a question
MANIFEST_VERSION = 1  # raise it when the same seed no longer gives the same clips


@dataclass(frozen=True)
class Arena:
    """The square box that a shape moves in. Lengths are in pixels; x points right, y down.

    Args:
        size: side of the frames in pixels, a multiple of 32.

    Raises:
        ConfigError: `size` is not a positive multiple of 32.
    """

    size: int

    def __post_init__(self) -> None:
        check_frame_size(self.size)

    @property
    def radius(self) -> float:
        """Half the side of the box that every form fills, in pixels."""
        return self.size * SHAPE_SIZE / 2

    @property
    def low(self) -> float:
        """Smallest coordinate that a centre can have, in pixels."""
        return wall_thickness(self.size) + self.radius

    @property
    def span(self) -> float:
        """Distance between the smallest and the largest coordinate of a centre, in pixels."""
        return self.size - 2 * self.low

    @property
    def margin(self) -> float:
        """Distance to a zone boundary below which the zone would be ambiguous, in pixels."""
        return self.size / 24

    def laps(self, start: Floats, velocity: Floats, steps: Floats) -> Floats:
        """Distance travelled along each axis, unfolded, in spans: passing a whole number is a bounce.

        Args:
            start: (..., 2) centres at step 0, in pixels.
            velocity: (..., 2) pixels per step.
            steps: (N,) times in steps.

        Returns:
            (N, ..., 2) laps.
        """
        times = steps.reshape(-1, *([1] * start.ndim))
        return (start - self.low + velocity * times) / self.span

    def positions(self, laps: Floats) -> Floats:
        """Centres in pixels, same shape as `laps`: the unfolded path, folded at the walls."""
        return self.low + self.span * (1 - np.abs(laps % 2 - 1))

    def headings(self, laps: Floats, velocity: Floats) -> Floats:
        """Velocity after the bounces so far, in pixels per step, same shape as `laps`."""
        return np.where(np.floor(laps) % 2 == 0, velocity, -velocity)

    def clear_of_boundaries(self, positions: Floats) -> Bools:
        """Whether (..., 2) centres are at least `margin` away from both zone boundaries."""
        clear: Bools = np.all(np.abs(positions - self.size / 2) >= self.margin, axis=-1)
        return clear


@dataclass(frozen=True)
class Shape:
    """A moving shape.

    Args:
        form: its form.
        colour: a name in `COLOURS`.
        start: centre (x, y) at step 0, in pixels.
        velocity: (x, y) at step 0, in pixels per step.
    """

    form: Form
    colour: str
    start: tuple[float, float]
    velocity: tuple[float, float]

    @property
    def name(self) -> str:
        """Its name in questions, such as `red circle`."""
        return f"{self.colour} {self.form}"


@dataclass(frozen=True)
class Episode:
    """A clip of the bouncing world with one question about its future; frames are rendered on demand.

    Args:
        split: its split.
        number: its number in the split, from 0.
        arena: the box that the shape moves in.
        shape: the moving shape.
    """

    split: Split
    number: int
    arena: Arena
    shape: Shape

    @property
    def id(self) -> str:
        """Name of the episode and of its clip, such as `train-00012`."""
        return f"{self.split}-{self.number:05d}"

    @property
    def hints(self) -> tuple[int, ...]:
        """Future pool frames (1-based) that lead to the answer."""
        return tuple(range(LAST_SEEN + 1, LAST_SEEN + 1 + HOP))

    @property
    def question(self) -> str:
        """The question without its options."""
        return f"In which zone is the {self.shape.name} after {in_steps(HOP)}?"

    @property
    def options(self) -> dict[str, str]:
        """Option letter to option text, in the order shown."""
        return dict(zip(LETTERS, ZONES, strict=True))

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return LETTERS[self._zones()[-1]]

    @property
    def thoughts(self) -> tuple[str, ...]:
        """Thoughts before each hint and after the last: zones, and the direction when last seen."""
        heading = self.arena.headings(self._laps([LAST_SEEN]), np.array(self.shape.velocity))[0]
        now, *ahead = (ZONES[zone] for zone in self._zones())
        return (f"{now}, moves {direction(heading)}", *ahead)

    def positions(self, steps: Sequence[float] = range(1, 9)) -> Floats:
        """Centres of the shape.

        Args:
            steps: N times in steps, fractions allowed; the default is the 8-frame pool.

        Returns:
            (N, 2) pixels, x before y.
        """
        return self.arena.positions(self._laps(steps))

    def render(self, steps: Sequence[float] = range(1, 9)) -> NDArray[np.uint8]:
        """Draw the world, with smooth edges.

        Args:
            steps: N times in steps, fractions allowed; the default is the 8-frame pool.

        Returns:
            (N, size, size, 3) RGB frames.
        """
        size = self.arena.size
        centres = self.positions(steps)
        frames = np.repeat(background(size)[None], len(centres), axis=0)
        cover = shape_cover(self.shape.form, centres, self.arena.radius, size)
        paint(frames, cover, COLOURS[self.shape.colour])
        return np.rint(frames).astype(np.uint8)

    def record(self, video: str) -> dict[str, Any]:
        """The episode as a frame-indexed record, answered by a letter.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A record that JSON can hold.
        """
        listed = "".join(f"\n{letter}. {text}" for letter, text in self.options.items())
        return frame_record(
            self.id,
            video,
            observed=OBSERVED,
            hints=self.hints,
            question=self.question + listed,
            response=thoughts_text(self.thoughts),
            answer=self.answer,
            question_type=f"hop{HOP}",
            options=self.options,
            letter=self.answer,
        )

    def _laps(self, steps: Sequence[float]) -> Floats:
        """(N, 2) laps at N times in steps."""
        start, velocity = np.array(self.shape.start), np.array(self.shape.velocity)
        return self.arena.laps(start, velocity, np.asarray(steps, np.float64))

    def _zones(self) -> list[int]:
        """Zones of the shape when last seen and in each hint, as indices into `ZONES`."""
        zones: list[int] = zones_of(self.positions([LAST_SEEN, *self.hints]), self.arena.size).tolist()
        return zones


def make_episode(split: Split, number: int, *, seed: int = 0, size: int = 96) -> Episode:
    """Sample one episode; the same arguments always give the same one.

    Every block of 4 consecutive numbers has each answer once, in random order. The answer (the zone, and whether it
    changes) is sampled first, and then a motion that fits it, so that the wording of a question reveals nothing about
    its answer.

    Args:
        split: `train`, `test` or `rl`.
        number: position in the split, from 0.
        seed: seed of the whole world, from 0.
        size: side of the frames in pixels, a multiple of 32.

    Returns:
        The episode.

    Raises:
        ConfigError: a negative `seed` or `number`, an unknown split, or an impossible `size`.
    """
    check_episode(split, number, seed)
    arena = Arena(size)
    split_id = SPLITS.index(split)
    rng = np.random.default_rng(np.random.SeedSequence([seed, split_id, number]))
    block = np.random.SeedSequence([seed, split_id, number // len(ZONES)], spawn_key=(1,))
    wanted = int(np.random.default_rng(block).permutation(len(ZONES))[number % len(ZONES)])
    stays = bool(rng.random() < STAY_RATE)
    combinations = palette(split)
    colour, form = combinations[rng.permutation(len(combinations))[0]]
    start, velocity = _sample_motion(arena, rng, wanted, stays)
    return Episode(split, number, arena, Shape(form, colour, start, velocity))


def make_episodes(split: Split, count: int, *, seed: int = 0, size: int = 96) -> Iterator[Episode]:
    """Yield episodes 0 to `count` - 1 of a split lazily; arguments and errors are those of `make_episode`."""
    return (make_episode(split, number, seed=seed, size=size) for number in range(count))


@dataclass(frozen=True)
class BouncingWorld:
    """The bouncing world as `futurel1.worlds.write_clips` writes it.

    Args:
        seed: seed of the world, from 0.
        size: side of the frames in pixels, a multiple of 32.

    Raises:
        ConfigError: a negative seed, or an impossible size.
    """

    seed: int = 0
    size: int = 96

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_frame_size(self.size)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of this world."""
        return ("train", "test", "rl")

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the clips depend on."""
        return {
            "world": "bouncing",
            "version": MANIFEST_VERSION,
            "seed": self.seed,
            "size": self.size,
            "task": "next_zone",
        }

    def record_files(self, split: Split) -> tuple[str, ...]:
        """Names of the record files of a split."""
        return (f"{split}.jsonl",)

    def clips(self, split: Split, count: int) -> Iterator[Clip]:
        """The first clips of a split, each with its record."""
        for episode in make_episodes(split, count, seed=self.seed, size=self.size):
            record = episode.record(video_of(episode.id))
            yield Clip(episode.id, partial(episode.render, range(NUM_VIDEO_FRAMES)), {f"{split}.jsonl": record})


def _sample_motion(
    arena: Arena, rng: np.random.Generator, wanted: int, stays: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Sample a start (pixels) and a velocity (pixels per step) of a shape that ends in zone `wanted`."""
    while True:
        start = rng.uniform(arena.low, arena.low + arena.span, (CANDIDATES, 2))
        speed = rng.uniform(SLOWEST, FASTEST, (CANDIDATES, 1)) * arena.size
        angle = rng.uniform(0, 2 * np.pi, CANDIDATES)
        velocity = speed * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        fitting = np.flatnonzero(_reaches_zone(arena, start, velocity, wanted, stays))
        if len(fitting):
            (x, y), (right, down) = start[fitting[0]].tolist(), velocity[fitting[0]].tolist()
            return (x, y), (right, down)


def _reaches_zone(arena: Arena, start: Floats, velocity: Floats, wanted: int, stays: bool) -> Bools:
    """(M,) whether each motion ends in zone `wanted`, and was in that zone when last seen if and only if `stays`."""
    steps = np.arange(LAST_SEEN, LAST_SEEN + HOP + 1, dtype=np.float64)
    positions = arena.positions(arena.laps(start, velocity, steps))
    zones = zones_of(positions, arena.size)
    clear: Bools = np.all(arena.clear_of_boundaries(positions), axis=0)
    fits: Bools = clear & (zones[-1] == wanted) & ((zones[0] == wanted) == stays)
    return fits
