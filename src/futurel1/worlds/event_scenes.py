"""Scenes of the world of events: gate, pillar, three coloured shapes, events and frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import Split
from futurel1.worlds.collisions import (
    GATE_HALF,
    HIGH,
    LOW,
    NUM_SHAPES,
    PILLAR_HALF,
    RADIUS,
    WALL,
    Layouts,
    States,
    simulate,
    starts_apart,
)
from futurel1.worlds.event_layouts import GATES, PILLARS, Layout, layouts_of
from futurel1.worlds.look import (
    COLOURS,
    FORMS,
    LAST_SEEN,
    Form,
    background,
    check_frame_size,
    paint,
    palette,
    shape_cover,
)
from futurel1.worlds.position_bins import soft_bins
from futurel1.worlds.scene_code import BINS, FORM_WEIGHT

__all__ = [
    "EventScene",
    "arenas",
    "make_event_scenes",
    "sample_colours",
    "sample_scenes",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SLOWEST, FASTEST = 0.05, 0.10  # arena sides per step: slow enough for a small model to predict three steps
ACROSS_THE_GATE = 0.3  # share of the motion across the gate that shapes keep in scenes whose gate should stay closed

GATE_COLOUR = (232, 232, 236)
PILLAR_COLOUR = (112, 96, 84)
GATE_STUB = 0.06  # length of an open gate that remains at each wall
FORM_SCALE: Mapping[Form, float] = {"circle": 1.0, "square": 0.86, "triangle": 0.98}  # relative to the moving disc


@dataclass(frozen=True, kw_only=True)
class EventScene:
    """A clip of the world of events; frames are rendered on demand.

    Shapes are numbered like their forms: circle, square, triangle.

    Args:
        size: side of the frames in pixels.
        layout: positions of gate and pillar.
        last_colours: number of each shape's colour when last seen, in the order of `COLOURS`.
        states: states and events frame by frame, usable as labels of what a frame shows.
        pillar_colour: RGB levels of the pillar.
    """

    size: int
    layout: Layout
    last_colours: tuple[int, ...]
    states: States = field(compare=False, repr=False)
    pillar_colour: tuple[int, int, int] = PILLAR_COLOUR

    @property
    def colours(self) -> Ints:
        """(frames, shapes) numbers of the colours, in the order of `COLOURS`."""
        last_seen = np.array(self.last_colours)
        changed = (self.states.flips - self.states.flips[LAST_SEEN]) % 2
        return np.where(changed == 1, _partner(last_seen), last_seen)

    def positions(self, steps: Sequence[int] = range(1, 9)) -> Floats:
        """(N, shapes, 2) centres in pixels at N steps from 0 to 9; the default is the 8-frame pool."""
        return self.states.positions[list(steps)] * self.size

    def render(self, steps: Sequence[int] = range(1, 9)) -> NDArray[np.uint8]:
        """Draw the world, with smooth edges.

        Args:
            steps: N steps from 0 to 9; the default is the 8-frame pool.

        Returns:
            (N, size, size, 3) RGB frames.
        """
        chosen = list(steps)
        frames = np.repeat(background(self.size)[None], len(chosen), axis=0)
        bars = [self._bar(bool(is_open)) for is_open in self.states.gate_open[chosen]]
        paint(frames, np.stack(bars), GATE_COLOUR)
        centres, colours = self.positions(chosen), self.colours[chosen]
        for number, form in enumerate(FORMS):  # painter's order: each shape covers the ones before it
            cover = shape_cover(form, centres[:, number], RADIUS * FORM_SCALE[form] * self.size, self.size)
            rgb = np.array(list(COLOURS.values()), np.float32)[colours[:, number]]
            paint(frames, cover, rgb[:, None, None])
        (x, y), half = self.layout.pillar, PILLAR_HALF
        paint(frames, _box(self.size, (x - half, x + half), (y - half, y + half)), self.pillar_colour)
        return np.rint(frames).astype(np.uint8)

    def code(self, steps: Sequence[int]) -> NDArray[np.float32]:
        """What frames show, as `futurel1.worlds.scene_code` explains.

        Args:
            steps: T steps from 0 to 9.

        Returns:
            (T, CODE_SIZE), entries from 0 to 1.
        """
        chosen, half = list(steps), len(COLOURS) // 2
        by_pair = np.argsort(np.array(self.last_colours) % half)
        positions = self.states.positions[chosen][:, by_pair]
        colours = self.colours[chosen][:, by_pair]
        visible = ~self.states.hidden[chosen][:, by_pair]
        frames = len(chosen)

        bins = soft_bins(positions, BINS)
        forms = np.broadcast_to(FORM_WEIGHT * np.eye(len(FORMS))[by_pair], (frames, NUM_SHAPES, len(FORMS)))
        shapes = np.concatenate([bins, np.eye(2)[colours // half], forms], axis=-1) * visible[..., None]

        gate = np.zeros((frames, len(GATES) + 1))
        gate[:, GATES.index((self.layout.gate_axis, self.layout.gate_at))] = 1
        gate[:, -1] = self.states.gate_open[chosen]
        pillar = np.zeros((frames, len(PILLARS)))
        pillar[:, PILLARS.index(self.layout.pillar)] = 1
        return np.concatenate([shapes.reshape(frames, -1), gate, pillar], axis=-1).astype(np.float32)

    def _bar(self, is_open: bool) -> Floats:
        """(size, size) cover of the gate."""
        bar = (self.layout.gate_at - GATE_HALF, self.layout.gate_at + GATE_HALF)
        spans = [(WALL, WALL + GATE_STUB), (1 - WALL - GATE_STUB, 1 - WALL)] if is_open else [(WALL, 1 - WALL)]
        covers = [_box(self.size, *((bar, span) if self.layout.gate_axis == 0 else (span, bar))) for span in spans]
        total: Floats = np.sum(covers, axis=0)
        return total


def make_event_scenes(
    rng: np.random.Generator, count: int, *, size: int = 96, split: Split | None = None
) -> list[EventScene]:
    """Sample scenes without questions.

    Args:
        rng: the only source of randomness.
        count: number of scenes.
        size: side of the frames in pixels, a multiple of 32.
        split: use the combinations of colour and form, and the layouts, of this split; None: use all.

    Returns:
        The scenes.
    """
    check_frame_size(size)
    if not count:
        return []
    every_layout = [*layouts_of("train"), *layouts_of("test")] if split is None else layouts_of(split)
    layouts: list[Layout] = []
    colours: list[tuple[int, ...]] = []
    starts: list[tuple[Floats, Floats]] = []
    while len(layouts) < count:
        drawn = [every_layout[number] for number in rng.integers(len(every_layout), size=count)]
        possible, start, velocity = sample_starts(drawn, rng)
        layouts += [drawn[number] for number in possible]
        colours += [_apart_colours(rng) if split is None else sample_colours(split, rng) for _ in possible]
        starts.append((start, velocity))
    start, velocity = (np.concatenate(parts)[:count] for parts in zip(*starts, strict=True))
    states = simulate(start, velocity, arenas(layouts[:count]))  # at once: few scenes take as long as hundreds
    return [
        EventScene(size=size, layout=layouts[number], last_colours=colours[number], states=states.scene(number))
        for number in range(count)
    ]


def sample_colours(split: Split, rng: np.random.Generator) -> tuple[int, ...]:
    """A colour for each form; no two shapes can ever have the same colour, even after changes."""
    allowed = {(list(COLOURS).index(colour), form) for colour, form in palette(split)}
    while True:
        colours = _apart_colours(rng)
        if all((colour, form) in allowed for colour, form in zip(colours, FORMS, strict=True)):
            return colours


def _apart_colours(rng: np.random.Generator) -> tuple[int, ...]:
    """Three colours, none of them equal to another one or to its partner."""
    half = len(COLOURS) // 2
    colours: list[int] = (rng.permutation(half) + half * rng.integers(2, size=half)).tolist()
    return tuple(colours)


def sample_scenes(layouts: Sequence[Layout], rng: np.random.Generator) -> tuple[Ints, States]:
    """Sample a random start for every layout and simulate the possible ones; return their numbers and their states."""
    possible, start, velocity = sample_starts(layouts, rng)
    return possible, simulate(start, velocity, arenas([layouts[number] for number in possible]))


def sample_starts(layouts: Sequence[Layout], rng: np.random.Generator) -> tuple[Ints, Floats, Floats]:
    """Sample a random start for every layout; return numbers, centres and velocities of the possible ones."""
    gates = arenas(layouts)
    shape = (len(layouts), NUM_SHAPES)
    start = rng.uniform(LOW, HIGH, (*shape, 2))
    angle = rng.uniform(0, 2 * np.pi, shape)
    heading = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    # In half of the scenes all shapes move along the gate rather than across it, so that it is often still closed when
    # last seen.
    across = np.arange(2) == gates.gate_axis[::2, None]
    heading[::2] *= np.where(across, ACROSS_THE_GATE, 1)[:, None]
    heading /= np.linalg.norm(heading, axis=-1, keepdims=True)
    velocity = rng.uniform(SLOWEST, FASTEST, (*shape, 1)) * heading
    possible = np.flatnonzero(starts_apart(start, gates))
    return possible, start[possible], velocity[possible]


def arenas(layouts: Sequence[Layout]) -> Layouts:
    """The gates and pillars of B layouts, for :func:`~futurel1.worlds.collisions.simulate`."""
    return Layouts(
        gate_axis=np.array([layout.gate_axis for layout in layouts], np.int64),
        gate_at=np.array([layout.gate_at for layout in layouts], np.float64),
        pillar=np.array([layout.pillar for layout in layouts], np.float64).reshape(-1, 2),
    )


def _partner(colours: Ints) -> Ints:
    """The colour that each colour changes into and back: three places on, which stays within a split's combinations."""
    return (colours + len(COLOURS) // 2) % len(COLOURS)


def _box(size: int, across: tuple[float, float], down: tuple[float, float]) -> Floats:
    """(size, size) share of every pixel covered by a rectangle, which is given in sides of the arena."""
    edges = np.arange(size)
    x, y = (
        np.clip(np.minimum(edges + 1, high * size) - np.maximum(edges, low * size), 0, 1)
        for low, high in (across, down)
    )
    cover: Floats = y[:, None] * x[None]
    return cover
