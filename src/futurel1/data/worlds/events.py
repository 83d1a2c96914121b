"""A procedural world of events: shapes that bounce, change colour, open a gate and pass behind a pillar.

A clip has 10 frames and frame i shows step i: its 8-frame pool is exactly frames 1 to 8. A model sees steps 1 to 4 and
is asked what happens in the first, second or third step after that (`hop1` to `hop3`), or, told where a shape is after
four more steps, what happens on the way, or where another shape is when it gets there (`hop5`). The hints are the
frames up to the one asked about, for `hop5` those between.

Rules of the world: a circle, a square and a triangle move on straight lines. Two that touch bounce off each other and
both change colour, red with yellow, green with purple, blue with orange. A gate bars the arena from wall to wall until
a shape bumps into it, which bounces off and leaves it open. The pillar stands in front and stops nobody. Nothing loses
energy.

No text gives an answer away: a question, its options and which of them is right are drawn first, and then a scene that
fits them. Train and test never meet: each has its own seed stream, combinations of colour and form, and layouts of gate
and pillar. Colours change within a split's combinations only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from futurel1.data.worlds.bouncing import (
    COLOURS,
    FORMS,
    LAST_SEEN,
    LETTERS,
    WALLS,
    ZONES,
    Arena,
    Form,
    WorldFiles,
    direction,
    palette,
    signed_distance,
)
from futurel1.data.worlds.collisions import (
    GATE_HALF,
    HIGH,
    LOW,
    NUM_SHAPES,
    NUM_STATES,
    PAIRS,
    PILLAR_HALF,
    RADIUS,
    WALL,
    Layouts,
    States,
    simulate,
    starts_apart,
)
from futurel1.data.worlds.storage import (
    PRETRAINING_KINDS,
    SPLITS,
    Split,
    claim_folder,
    is_complete,
    write_clip,
)
from futurel1.errors import ConfigError
from futurel1.files import write_whole

__all__ = [
    "EventEpisode",
    "EventFiles",
    "EventScene",
    "Layout",
    "layouts_of",
    "make_event_episode",
    "make_event_episodes",
    "make_event_scenes",
    "write_events_world",
]

Kind = Literal["zone", "event", "pair", "gate"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MANIFEST_VERSION = 3  # raise it when the same seed no longer gives the same clips
OBSERVED = (1, 2, 3, 4)  # pool frames, 1-based, and steps
INTERPOLATION = 5  # the `hop` of questions about what happens on the way to a later frame
LATER = 8  # the step that those tell about
ARRIVALS = (2, 3)  # steps after the last observed one in which a shape gets where those about zones tell it to be
STAY_RATE = 0.25  # share of zone questions whose answer is the last seen zone: repeating it is no better than chance
SLOWEST, FASTEST = 0.05, 0.10  # arena sides per step: what a small model can foresee for three steps
ACROSS_THE_GATE = 0.3  # part of their motion across the gate that shapes keep in scenes with a gate that lasts
CANDIDATES = 1024  # scenes simulated at once
MARGIN = 1 / 24  # distance to a zone boundary below which a zone would be a matter of opinion
PILLAR_MARGIN = 1 / 48  # the same for the edge of the pillar
ARRIVAL_MARGIN = 1 / 96  # the same for a shape on its way into a zone, whose steps are hardly longer than MARGIN
SEEN_AT_LEAST = 2  # observed frames in which a shape has to be visible for a question about it

KINDS: tuple[Kind, ...] = ("zone", "event", "pair", "gate")

# What can happen to one shape, by code: bounces off the 4 walls, contacts with the 3 shapes (itself: never), and
GATE, PILLAR, NOTHING = 7, 8, 9
NO_ONE = 3  # the answer, by code, of pair and gate questions when no pair touches and no shape opens the gate

GATE_COLOUR = (232, 232, 236)
PILLAR_COLOUR = (112, 96, 84)
GATE_STUB = 0.06  # what stays of an open gate beside each wall
FORM_SCALE: Mapping[Form, float] = {"circle": 1.0, "square": 0.86, "triangle": 0.98}  # drawn inside the disc that moves


@dataclass(frozen=True)
class Layout:
    """Where the gate and the pillar stand, in sides of the arena.

    Args:
        gate_axis: 0 for an upright gate, which bars the way along x, 1 for a level one.
        gate_at: coordinate of its middle on that axis.
        pillar: middle (x, y) of the pillar.
    """

    gate_axis: int
    gate_at: float
    pillar: tuple[float, float]


GATES = tuple((axis, at) for axis in (0, 1) for at in (0.3, 0.4, 0.6, 0.7))
PILLARS = tuple((x, y) for x in (0.24, 0.5, 0.76) for y in (0.24, 0.5, 0.76))


def layouts_of(split: Split) -> list[Layout]:
    """The layouts that a split draws from: 24 of the 72 are for tests, 48 for training and reinforcement learning.

    Each gate and each pillar occurs in both parts, but no pair of them does.
    """
    return [
        Layout(axis, at, pillar)
        for gate_number, (axis, at) in enumerate(GATES)
        for pillar_number, pillar in enumerate(PILLARS)
        if ((gate_number + pillar_number) % 3 == 0) == (split == "test")
    ]


@dataclass(frozen=True)
class Asked:
    """A question and its answer, drawn before there is a scene.

    Args:
        kind: `zone` asks where a shape is, `event` what happens to it, `pair` which two touch, `gate` which one opens
            the gate.
        hop: step asked about, counted from the last observed one, or `INTERPOLATION`.
        target: number of the shape it is about; a `pair` or `gate` question tells about it in interpolations only.
        colours: number of each shape's colour when last seen.
        choices: codes of the four options in the order shown: zones, what can happen, pairs or shapes.
        right: place of the right one.
        later_zone: number of the zone that an interpolation tells a shape to be in at its end; -1 for other hops.
        told: number of that shape: the target, but in zone questions another one; -1 for other hops.
        arrival: step after the last observed one in which it gets there, in zone questions; -1 for others.
        stays: whether the answer to a zone question is the zone last seen. In an interpolation the target then leaves
            it in the step after the other's arrival: the zone in the last hint is right in the other ones only.
    """

    kind: Kind
    hop: int
    target: int
    colours: tuple[int, ...]
    choices: tuple[int, ...]
    right: int
    later_zone: int
    told: int
    arrival: int
    stays: bool

    @property
    def answer(self) -> int:
        """Code of the right option."""
        return self.choices[self.right]

    @property
    def window(self) -> tuple[int, int]:
        """First and last step that the question is about."""
        if self.hop == INTERPOLATION:
            return LAST_SEEN + 1, LATER
        return (LAST_SEEN + self.hop,) * 2

    @property
    def hints(self) -> tuple[int, ...]:
        """Pool frames (1-based) of the future that lead to the answer."""
        return tuple(range(LAST_SEEN + 1, min(self.window[1], LATER - 1) + 1))

    @property
    def names(self) -> tuple[str, ...]:
        """What the shapes are called: form, and colour when last seen, which stays in the name when it changes."""
        colours = list(COLOURS)
        return tuple(f"{colours[colour]} {form}" for colour, form in zip(self.colours, FORMS, strict=True))

    @property
    def question(self) -> str:
        """The question without its options."""
        name = self.names[self.target]
        if self.hop == INTERPOLATION:
            later = f"the {self.names[self.told]} is in the {ZONES[self.later_zone]} zone"
            told = f"After {LATER - LAST_SEEN} steps {later}. "
            asked = {
                "zone": f"Where is the {name} when it gets there?",
                "event": "What happens to it on the way?",
                "pair": "Which shapes touch in these steps?",
                "gate": "Which shape opens the gate in these steps?",
            }
            return told + asked[self.kind]
        asked = {
            "zone": f"In which zone is the {name} after {in_steps(self.hop)}?",
            "event": f"What happens to the {name} in step {self.hop} from now?",
            "pair": f"Which shapes touch in step {self.hop} from now?",
            "gate": f"Which shape opens the gate in step {self.hop} from now?",
        }
        return asked[self.kind]

    def text(self, choice: int) -> str:
        """An option in words."""
        names = self.names
        if self.kind == "zone":
            return ZONES[choice]
        if self.kind == "event":
            contacts = [f"It touches the {name}" for name in names]
            bounces = [f"It hits the {wall}" for wall in WALLS]
            return [*bounces, *contacts, "It opens the gate", "It goes behind the pillar", "It meets nothing"][choice]
        if choice == NO_ONE:
            return "None of them"
        if self.kind == "gate":
            return f"The {names[choice]}"
        first, second = PAIRS[choice]
        return f"The {names[first]} and the {names[second]}"


@dataclass(frozen=True, kw_only=True)
class EventScene:
    """A clip of the world of events; frames are drawn on demand.

    Shapes are numbered as their forms are: circle, square, triangle.

    Args:
        size: side of the frames in pixels.
        layout: where the gate and the pillar stand.
        last_colours: number of each shape's colour when last seen, in the order of `COLOURS`.
        states: what happens, frame by frame: labels for whatever learns to see.
    """

    size: int
    layout: Layout
    last_colours: tuple[int, ...]
    states: States = field(compare=False, repr=False)

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
        pixels = np.arange(self.size) + 0.5
        frames = np.repeat(Arena(self.size).background()[None], len(chosen), axis=0)
        bars = [self._bar(bool(is_open)) for is_open in self.states.gate_open[chosen]]
        _paint(frames, np.stack(bars), GATE_COLOUR)
        centres, colours = self.positions(chosen), self.colours[chosen]
        for number, form in enumerate(FORMS):  # painter's order: each shape covers those before it
            across = (pixels - centres[:, number, :1])[:, None, :]
            down = (pixels - centres[:, number, 1:])[:, :, None]
            outside = signed_distance(form, across, down, RADIUS * FORM_SCALE[form] * self.size)
            rgb = np.array(list(COLOURS.values()), np.float32)[colours[:, number]]
            _paint(frames, np.clip(0.5 - outside, 0, 1), rgb[:, None, None])
        (x, y), half = self.layout.pillar, PILLAR_HALF
        _paint(frames, _box(self.size, (x - half, x + half), (y - half, y + half)), PILLAR_COLOUR)
        return np.rint(frames).astype(np.uint8)

    def _bar(self, is_open: bool) -> Floats:
        """(size, size) cover of the gate."""
        bar = (self.layout.gate_at - GATE_HALF, self.layout.gate_at + GATE_HALF)
        spans = [(WALL, WALL + GATE_STUB), (1 - WALL - GATE_STUB, 1 - WALL)] if is_open else [(WALL, 1 - WALL)]
        covers = [_box(self.size, *((bar, span) if self.layout.gate_axis == 0 else (span, bar))) for span in spans]
        total: Floats = np.sum(covers, axis=0)
        return total


@dataclass(frozen=True, kw_only=True)
class EventEpisode(EventScene):
    """A scene with one question about its future.

    Args:
        size: as of a scene.
        layout: as of a scene.
        last_colours: as of a scene.
        states: as of a scene.
        split: the split it belongs to.
        number: its number in the split, from 0.
        asked: the question and its answer.
    """

    split: Split
    number: int
    asked: Asked

    @property
    def id(self) -> str:
        """Name of the episode and of its clip, such as `train-00012`."""
        return f"{self.split}-{self.number:05d}"

    @property
    def question_type(self) -> str:
        """FutureBench's name for the depth of the question: `hop1`, `hop2`, `hop3`, or `hop5` for interpolations."""
        return f"hop{self.asked.hop}"

    @property
    def question(self) -> str:
        """The question without its options."""
        return self.asked.question

    @property
    def options(self) -> dict[str, str]:
        """Option letter to option text, in the order shown."""
        return {letter: self.asked.text(choice) for letter, choice in zip(LETTERS, self.asked.choices, strict=True)}

    @property
    def listed_options(self) -> str:
        """The options as they stand behind a question, each on a line of its own."""
        return "".join(f"\n{letter}. {text}" for letter, text in self.options.items())

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.asked.right]

    @property
    def thoughts(self) -> tuple[str, ...]:
        """What to think before each hint, and after the last; coarse words, never coordinates."""
        if self.asked.kind == "zone":
            return tuple(self.caption(step) for step in (LAST_SEEN, *self.asked.hints))
        return (self._now(), *(self._step(step) for step in self.asked.hints))

    def record(self, video: str) -> dict[str, Any]:
        """The episode as a frame-indexed training record, answered by the text of an option.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A record that JSON can hold.
        """
        return {
            **_conversation(self.id, video, self.question + self.listed_options, self.thoughts, self.asked.hints),
            "answer": self.options[self.answer],
            "cot": "",
            "question_type": self.question_type,
            "options": self.options,
            "letter": self.answer,
        }

    def futurebench_record(self, video: str) -> dict[str, Any]:
        """The episode in FutureBench's shape.

        Args:
            video: path of a clip of what is observed alone, for the benchmark shows a video whole.

        Returns:
            A record that JSON can hold.
        """
        return {
            "id": self.id,
            "video_path": video,
            "question_type": self.question_type,
            "qa": {"Question": self.question, "Options": self.options, "Answer": self.answer},
        }

    def open_record(self, video: str) -> dict[str, Any]:
        """A question without options about the same clip, as TwiFF asks: what one shape does, in a sentence.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A frame-indexed record that JSON can hold.
        """
        asked = self.asked
        steps = range(LAST_SEEN + 1, asked.window[1] + 1)
        name = asked.names[asked.target]
        question = f"What happens to the {name} in the next {len(steps)} steps?"
        if len(steps) == 1:
            question = f"What happens to the {name} in the next step?"
        thoughts = (self._look(asked.target), *(self._walk(asked.target, step) for step in steps))
        done = [phrase for step in steps for phrase in self._deeds(asked.target, step)] or ["meets nothing"]
        zone = ZONES[_zones(self.states.positions[steps[-1], asked.target])]
        return {
            **_conversation(f"{self.id}-open", video, question, thoughts, steps),
            "answer": f"It {', then '.join(done)}, and ends in the {zone} zone.",
            "cot": "",
            "question_type": "open",
        }

    def zone(self, shape: int, step: int) -> int:
        """Index into `ZONES` of where a shape is in a step."""
        return int(_zones(self.states.positions[step, shape]))

    def caption(self, step: int) -> str:
        """Where all shapes are in a step: the one that is asked about, then the others in the order of their pairs."""
        pairs = np.asarray(self.asked.colours) % (len(COLOURS) // 2)
        order = sorted(range(NUM_SHAPES), key=lambda shape: (shape != self.asked.target, pairs[shape]))
        return ", ".join(f"{self.asked.names[shape]} {ZONES[self.zone(shape, step)]}" for shape in order)

    def _now(self) -> str:
        """The scene when last seen, as far as the question needs it."""
        if self.asked.kind == "event":
            return self._look(self.asked.target)
        return " ".join(self._look(shape) for shape in range(NUM_SHAPES))

    def _look(self, shape: int) -> str:
        """Where a shape is when last seen, and where it goes."""
        states = self.states
        zone = ZONES[_zones(states.positions[LAST_SEEN, shape])]
        place = f"behind the pillar in the {zone} zone" if states.hidden[LAST_SEEN, shape] else f"in the {zone} zone"
        heading = direction(states.velocities[LAST_SEEN, shape])
        return f"The {self.asked.names[shape]} is {place} and moves {heading}."

    def _step(self, step: int) -> str:
        """What a step brings, as far as the question needs it."""
        states, names, colours = self.states, self.asked.names, list(COLOURS)
        if self.asked.kind == "event":
            return self._walk(self.asked.target, step)
        if self.asked.kind == "gate":
            openers = [f"The {names[shape]} opens the gate." for shape in np.flatnonzero(states.gate_hits[step])]
            return " ".join(openers) or f"The gate {'is open' if states.gate_open[step] else 'stays closed'}."
        turned = [colours[colour] for colour in self.colours[step]]
        meetings = [
            f"The {names[first]} touches the {names[second]}, they turn {turned[first]} and {turned[second]}."
            for first, second in PAIRS
            if states.contacts[step, first, second]
        ]
        return " ".join(meetings) or "No shapes touch."

    def _walk(self, shape: int, step: int) -> str:
        """What one shape does in a step, and where it goes."""
        before, after = _zones(self.states.positions[step - 1 : step + 1, shape])
        zone = f"{'stays in' if before == after else 'moves into'} the {ZONES[after]} zone"
        deeds = self._deeds(shape, step)
        heading = ""
        if self.states.wall_hits[step, shape].any() or self.states.contacts[step, shape].any():
            heading = f", now moving {direction(self.states.velocities[step, shape])}"
        return f"It {' and '.join(filter(None, [', '.join(deeds), zone]))}{heading}."

    def _deeds(self, shape: int, step: int) -> list[str]:
        """The events of one shape in a step, in words."""
        states, names = self.states, self.asked.names
        deeds = [f"hits the {WALLS[wall]}" for wall in np.flatnonzero(states.wall_hits[step, shape])]
        colour = list(COLOURS)[self.colours[step, shape]]
        deeds += [
            f"touches the {names[other]} and turns {colour}" for other in np.flatnonzero(states.contacts[step, shape])
        ]
        if states.gate_hits[step, shape]:
            deeds.append("opens the gate")
        if states.goes_behind()[step, shape]:
            deeds.append("goes behind the pillar")
        return deeds


@dataclass(frozen=True)
class EventFiles(WorldFiles):
    """What `write_events_world` left behind: beside what a `WorldFiles` names, records in other shapes.

    Args:
        futurebench: the test questions in FutureBench's shape, with clips of the observed frames alone.
        train_open: open questions about the training clips.
        test_open: open questions about the test clips.
        observed: the folder of the clips of observed frames.
    """

    futurebench: Path
    train_open: Path
    test_open: Path
    observed: Path


def make_event_episode(
    split: Split, number: int, *, seed: int = 0, size: int = 96, kinds: Sequence[Kind] = KINDS
) -> EventEpisode:
    """Draw one episode; the same arguments always give the same one, and the same states at every size.

    Args:
        split: `train`, `test`, `rl` or `pretrain`.
        number: position in the split, from 0.
        seed: seed of the whole world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        kinds: kinds of question, see `Asked`; interpolations ask for zones only where none asks for events.

    Returns:
        The episode.

    Raises:
        ConfigError: a negative `seed` or `number`, an unknown split or kind, or an impossible `size`.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0 or number < 0:
        raise ConfigError(f"seed={seed}, number={number}: both count from 0")
    Arena(size)
    cells = _cells(kinds)
    block, place = divmod(number, len(cells) * len(LETTERS))
    asked, layout, states = _block(seed, split, block, cells)[place]
    return EventEpisode(
        size=size, layout=layout, last_colours=asked.colours, states=states, split=split, number=number, asked=asked
    )


def make_event_episodes(
    split: Split, count: int, *, seed: int = 0, size: int = 96, kinds: Sequence[Kind] = KINDS
) -> Iterator[EventEpisode]:
    """Episodes 0 to `count` - 1 of a split, drawn one by one; arguments and errors are `make_event_episode`'s."""
    return (make_event_episode(split, number, seed=seed, size=size, kinds=kinds) for number in range(count))


def make_event_scenes(
    rng: np.random.Generator, count: int, *, size: int = 96, split: Split | None = None
) -> list[EventScene]:
    """Draw scenes without questions.

    Args:
        rng: where they are drawn from.
        count: number of scenes.
        size: side of the frames in pixels, a multiple of 32.
        split: take combinations of colour and form, and layouts, of this split; None for all there are.

    Returns:
        The scenes.
    """
    Arena(size)
    every_layout = [*layouts_of("train"), *layouts_of("test")] if split is None else layouts_of(split)
    scenes: list[EventScene] = []
    while len(scenes) < count:
        layouts = [every_layout[number] for number in rng.integers(len(every_layout), size=count)]
        states, apart = _draw_scenes(layouts, rng)
        for number in np.flatnonzero(apart):
            scenes.append(
                EventScene(
                    size=size,
                    layout=layouts[number],
                    last_colours=_apart_colours(rng) if split is None else _draw_colours(split, rng),
                    states=states.scene(int(number)),
                )
            )
    return scenes[:count]


def write_events_world(
    out: Path,
    *,
    train: int,
    test: int,
    rl: int = 0,
    pretrain: int = 0,
    seed: int = 0,
    size: int = 96,
    kinds: Sequence[Kind] = KINDS,
    progress: bool = True,
    overwrite: bool = False,
) -> EventFiles:
    """Write the world as H.264 clips and records, atomically and resumably.

    `out` receives per split `train.jsonl` (frame-indexed, with options) and `train_open.jsonl` (open questions about
    the same clips), their clips in `videos/`, for tests also `futurebench.jsonl` with clips of the observed frames in
    `observed/`, and `world.json` with the settings that clips depend on. A clip takes its name only when it is
    complete, so a later call with the same seed and size keeps every clip that it finds, also with other counts, and
    record files that would not change are left alone. One process may write to a folder at a time.

    Args:
        out: the folder; made if it is not there.
        train: number of training episodes.
        test: number of test episodes.
        rl: number of episodes for reinforcement learning: of the looks and layouts of training, but others.
        pretrain: number of episodes for pretraining, likewise; each gives a record of every kind in
            `futurel1.data.worlds.pretraining`, in `pretrain_describe.jsonl` and so on.
        seed: seed of the world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        kinds: kinds of question, as in `make_event_episode`; clips fit the questions, so other kinds are other clips.
        progress: show a progress bar.
        overwrite: replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: an impossible setting, a folder that holds a world of other settings, or PyAV is not installed.
    """
    wanted: dict[Split, int] = {"train": train, "test": test, "rl": rl, "pretrain": pretrain}
    if min(wanted.values()) < 0 or not any(wanted.values()):
        given = ", ".join(f"{split}={count}" for split, count in wanted.items())
        raise ConfigError(f"{given}: counts start at 0 and one of them has to be positive")
    if seed < 0:
        raise ConfigError(f"seed={seed}: seeds count from 0")
    Arena(size)  # refuses an impossible size before anything is written
    _cells(kinds)
    from futurel1.data.worlds.pretraining import pretraining_records  # it imports this module

    out = Path(out)
    videos, observed = out / "videos", out / "observed"
    settings: dict[str, Any] = {"world": "events", "version": MANIFEST_VERSION, "seed": seed, "size": size}
    claim_folder(out, settings | ({} if tuple(kinds) == KINDS else {"kinds": list(kinds)}), overwrite)
    observed.mkdir(exist_ok=True)

    counts = {split: count for split, count in wanted.items() if count or split in ("train", "test")}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    written = 0
    with Progress(*columns, disable=not progress) as bar:
        drawn = bar.add_task("clips", total=sum(counts.values()))
        for split, count in counts.items():
            names = [f"{split}.jsonl", f"{split}_open.jsonl"]
            if split == "pretrain":
                names = [f"pretrain_{kind}.jsonl" for kind in PRETRAINING_KINDS]
            records: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            if split == "test":
                records["futurebench.jsonl"] = []
            for episode in make_event_episodes(split, count, seed=seed, size=size, kinds=kinds):
                clip, prefix = videos / f"{episode.id}.mp4", observed / f"{episode.id}.mp4"
                if not is_complete(clip):
                    write_clip(clip, episode.render(range(NUM_STATES)))
                    written += 1
                if split == "test":
                    if not is_complete(prefix):
                        write_clip(prefix, episode.render(OBSERVED))
                    records["futurebench.jsonl"].append(episode.futurebench_record(f"{observed.name}/{prefix.name}"))
                if split == "pretrain":
                    for kind, record in pretraining_records(episode, f"{videos.name}/{clip.name}").items():
                        records[f"pretrain_{kind}.jsonl"].append(record)
                else:
                    records[f"{split}.jsonl"].append(episode.record(f"{videos.name}/{clip.name}"))
                    records[f"{split}_open.jsonl"].append(episode.open_record(f"{videos.name}/{clip.name}"))
                bar.advance(drawn)
            for name, entries in records.items():
                _write_records(out / name, entries)
    return EventFiles(
        root=out,
        train=out / "train.jsonl",
        test=out / "test.jsonl",
        rl=out / "rl.jsonl" if rl else None,
        videos=videos,
        written=written,
        kept=sum(counts.values()) - written,
        futurebench=out / "futurebench.jsonl",
        train_open=out / "train_open.jsonl",
        test_open=out / "test_open.jsonl",
        observed=observed,
    )


def _write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines, unless the file holds them already: what others measured of it stays valid."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def _conversation(
    identity: str, video: str, question: str, thoughts: Sequence[str], hints: Sequence[int]
) -> dict[str, Any]:
    """The fields of a frame-indexed record that every kind of question shares."""
    frames = "".join(f"frame_{number}\n<image>\n" for number in OBSERVED)
    numbered = [f"THOUGHT {number}: {text}" for number, text in enumerate(thoughts)]
    return {
        "id": identity,
        "video": video,
        "image": list(OBSERVED),
        "reasoning_image": list(hints),
        "conversations": [
            {"from": "human", "value": frames + question},
            {"from": "gpt", "value": " <image>\n".join(numbered)},
        ],
    }


def in_steps(count: int) -> str:
    """A number of steps in words."""
    return f"{count} step{'s' if count > 1 else ''}"


def _partner(colours: Ints) -> Ints:
    """What colours change into, and back: three places on, which never leaves the combinations of a split."""
    return (colours + len(COLOURS) // 2) % len(COLOURS)


def _zones(positions: Floats) -> Ints:
    """Index into `ZONES` of (..., 2) centres in sides of the arena."""
    beyond = positions >= 0.5
    return 2 * beyond[..., 1].astype(np.int64) + beyond[..., 0]


def _box(size: int, across: tuple[float, float], down: tuple[float, float]) -> Floats:
    """(size, size) share of every pixel that a rectangle, given in sides of the arena, covers."""
    edges = np.arange(size)
    x, y = (
        np.clip(np.minimum(edges + 1, high * size) - np.maximum(edges, low * size), 0, 1)
        for low, high in (across, down)
    )
    cover: Floats = y[:, None] * x[None]
    return cover


def _paint(frames: NDArray[np.float32], cover: Floats, rgb: object) -> None:
    """Blend a colour over (N, size, size, 3) frames in place, where `cover`, broadcast against them, is above 0."""
    frames += cover[..., None].astype(np.float32) * (np.asarray(rgb, np.float32) - frames)


# ------------------------------------------------------------------------------------------ questions, then scenes


def _cells(kinds: Sequence[Kind]) -> tuple[tuple[int, Kind], ...]:
    """Hop and kind of the questions of a block of consecutive episodes, each of them asked once with each letter."""
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ConfigError(f"kinds={list(kinds)}: choose some of {', '.join(KINDS)}, each once")
    return tuple(
        # What happens on the way tells more than where a shape is then.
        (hop, "event" if hop == INTERPOLATION and kind == "zone" and "event" in kinds else kind)
        for hop in (1, 2, 3, INTERPOLATION)
        for kind in kinds
    )


@lru_cache(maxsize=4)
def _block(
    seed: int, split: Split, block: int, cells: tuple[tuple[int, Kind], ...]
) -> tuple[tuple[Asked, Layout, States], ...]:
    """Questions of a block of consecutive numbers, each with a scene of its own that fits it."""
    words = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), block], spawn_key=(1,)))
    scenes = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), block], spawn_key=(2,)))
    order = words.permutation(len(cells) * len(LETTERS)).tolist()
    questions = [_ask(split, cells[cell // len(LETTERS)], cell % len(LETTERS), words) for cell in order]
    layouts = layouts_of(split)
    found: dict[int, tuple[Asked, Layout, States]] = {}
    while len(found) < len(questions):
        numbers = scenes.integers(len(layouts), size=CANDIDATES)
        states, apart = _draw_scenes([layouts[number] for number in numbers], scenes)
        edge_free = _off_the_pillars_edge(states, [layouts[number] for number in numbers])
        unused = apart
        # Discs are alike, so every way to name them makes another scene of the same simulation.
        for order in permutations(range(NUM_SHAPES)):
            named, clear = states.reordered(order), edge_free[..., order]
            for place, asked in enumerate(questions):
                if place not in found:
                    fitting = np.flatnonzero(unused & _fits(asked, named, clear))
                    if len(fitting):
                        scene = int(fitting[0])
                        unused[scene] = False
                        found[place] = (asked, layouts[numbers[scene]], named.scene(scene))
    return tuple(found[place] for place in range(len(questions)))


def _ask(split: Split, cell: tuple[int, Kind], right: int, rng: np.random.Generator) -> Asked:
    """Draw a question and four options, of which the one at `right` is right; nothing else decides that."""
    hop, kind = cell
    target = int(rng.integers(NUM_SHAPES))
    later_zone = int(rng.integers(len(ZONES))) if hop == INTERPOLATION else -1
    if kind == "event":
        others = [len(WALLS) + shape for shape in range(NUM_SHAPES) if shape != target]
        # Within four steps a shape that ends in a zone hardly comes from the walls opposite.
        walls = range(len(WALLS)) if later_zone < 0 else (later_zone % 2, 2 + later_zone // 2)
        possible = [*walls, *others, GATE, PILLAR, NOTHING]
    else:
        possible = list(range(4))
    colours = _draw_colours(split, rng)
    choices = tuple(rng.permutation(possible)[: len(LETTERS)].tolist())
    stays = bool(rng.random() < STAY_RATE)
    told = target if hop == INTERPOLATION else -1
    arrival = -1
    if hop == INTERPOLATION and kind == "zone":
        told = (target + int(rng.integers(1, NUM_SHAPES))) % NUM_SHAPES
        arrival = ARRIVALS[0] if stays else ARRIVALS[1]
    return Asked(
        kind=kind,
        hop=hop,
        target=target,
        colours=colours,
        choices=choices,
        right=right,
        later_zone=later_zone,
        told=told,
        arrival=arrival,
        stays=stays,
    )


def _draw_colours(split: Split, rng: np.random.Generator) -> tuple[int, ...]:
    """A colour for each form, such that no two shapes have the same colour now or after changes."""
    allowed = {(list(COLOURS).index(colour), form) for colour, form in palette(split)}
    while True:
        drawn = _apart_colours(rng)
        if all((colour, form) in allowed for colour, form in zip(drawn, FORMS, strict=True)):
            return drawn


def _apart_colours(rng: np.random.Generator) -> tuple[int, ...]:
    """Three colours, no two of them equal or what the other changes into."""
    half = len(COLOURS) // 2
    drawn: list[int] = (rng.permutation(half) + half * rng.integers(2, size=half)).tolist()
    return tuple(drawn)


def _draw_scenes(layouts: Sequence[Layout], rng: np.random.Generator) -> tuple[States, Bools]:
    """Simulate a random start for every layout; the second value tells which starts are possible."""
    standing = Layouts(
        gate_axis=np.array([layout.gate_axis for layout in layouts]),
        gate_at=np.array([layout.gate_at for layout in layouts]),
        pillar=np.array([layout.pillar for layout in layouts]),
    )
    shape = (len(layouts), NUM_SHAPES)
    start = rng.uniform(LOW, HIGH, (*shape, 2))
    angle = rng.uniform(0, 2 * np.pi, shape)
    heading = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    # In half of the scenes all move along the gate rather than across, so that it is often closed when last seen.
    across = np.arange(2) == standing.gate_axis[::2, None]
    heading[::2] *= np.where(across, ACROSS_THE_GATE, 1)[:, None]
    heading /= np.linalg.norm(heading, axis=-1, keepdims=True)
    velocity = rng.uniform(SLOWEST, FASTEST, (*shape, 1)) * heading
    return simulate(start, velocity, standing), starts_apart(start, standing)


def _off_the_pillars_edge(states: States, layouts: Sequence[Layout]) -> Bools:
    """(B, T, N) whether it is beyond dispute that a shape is behind the pillar, or that it is not."""
    pillars = np.array([layout.pillar for layout in layouts])
    beyond = np.abs(states.positions - pillars[:, None, None]).max(axis=-1) - PILLAR_HALF
    clear: Bools = np.abs(beyond) >= PILLAR_MARGIN
    return clear


def _outcomes(asked: Asked, states: States, first: int, last: int) -> Bools:
    """(B, codes) which answers, by code, are true of the steps from `first` to `last`."""
    steps, target = slice(first, last + 1), asked.target
    if asked.kind == "zone":
        step = LAST_SEEN + asked.arrival if asked.hop == INTERPOLATION else last
        there: Bools = _zones(states.positions[:, step, target])[:, None] == np.arange(len(ZONES))
        return there
    if asked.kind == "event":
        alone = np.stack([states.gate_hits[:, steps, target], states.goes_behind()[:, steps, target]], axis=-1)
        happened = np.concatenate(
            [states.wall_hits[:, steps, target], states.contacts[:, steps, target], alone], axis=-1
        )
    elif asked.kind == "pair":
        happened = np.stack([states.contacts[:, steps, one, other] for one, other in PAIRS], axis=-1)
    else:
        happened = states.gate_hits[:, steps]
    found = np.any(happened, axis=1, keepdims=True)[:, 0]
    return np.concatenate([found, ~np.any(found, axis=1, keepdims=True)], axis=1)


def arrivals(there: Bools) -> Bools:
    """(..., K) whether a shape is somewhere for the first time in a step and stays, from (..., 1 + K) where it is."""
    steps = range(1, there.shape[-1])
    return np.stack([~there[..., :step].any(axis=-1) & there[..., step:].all(axis=-1) for step in steps], axis=-1)


def _fits(asked: Asked, states: States, edge_free: Bools) -> Bools:
    """(B,) in which scenes the right option is true, beyond dispute, and the other three are not."""
    first, last = asked.window
    target = asked.target
    involved = list(range(NUM_SHAPES))
    if asked.kind in ("zone", "event"):
        involved = sorted({target, asked.told} - {-1})

    true = _outcomes(asked, states, first, last)[:, list(asked.choices)]
    fits: Bools = true[:, asked.right] & (true.sum(axis=1) == 1)
    nothing = {"event": NOTHING, "pair": NO_ONE, "gate": NO_ONE}.get(asked.kind, asked.answer)
    if asked.hop == INTERPOLATION and asked.answer != nothing:
        fits &= _outcomes(asked, states, first, last - 1)[:, asked.answer]  # hints lie between, so the event does too

    fits &= states.clear_cut[:, LAST_SEEN : last + 2, involved].all(axis=(1, 2))
    times_seen: Ints = np.sum(~states.hidden[:, OBSERVED][..., involved], axis=1)
    fits &= np.min(times_seen, axis=1) >= SEEN_AT_LEAST
    if asked.kind == "gate":
        fits &= ~states.gate_open[:, first - 1] & ~states.gate_open[:, LAST_SEEN]
    if asked.kind == "event":
        fits &= edge_free[:, first - 1 : last + 1, target].all(axis=1)

    # Zones are told at the start and the end, and in zone questions of one shape all the way.
    in_words = [LAST_SEEN, last]
    if asked.kind == "zone":
        fits &= (_zones(states.positions[:, LAST_SEEN, target]) == asked.answer) == asked.stays
        in_words = list(range(LAST_SEEN, last + 1))
    if asked.arrival >= 0:
        arrival = LAST_SEEN + asked.arrival
        in_words = [LAST_SEEN, arrival]
        fits &= (np.abs(states.positions[:, LATER, asked.told] - 0.5) >= MARGIN).all(axis=1)
        crossing = np.abs(states.positions[:, arrival - 1 : arrival + 1, asked.told] - 0.5)
        fits &= (crossing >= ARRIVAL_MARGIN).all(axis=(1, 2))
        there = _zones(states.positions[:, LAST_SEEN : LATER + 1, asked.told]) == asked.later_zone
        fits &= arrivals(there)[:, asked.arrival - 1]
        if asked.stays:
            fits &= _zones(states.positions[:, arrival + 1, target]) != asked.answer
    elif asked.later_zone >= 0:
        fits &= _zones(states.positions[:, LATER, asked.told]) == asked.later_zone
    fits &= (np.abs(states.positions[:, in_words, target] - 0.5) >= MARGIN).all(axis=(1, 2))
    return fits
