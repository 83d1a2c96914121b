"""A procedural world of coloured shapes that bounce off the walls, written as frame-indexed training records.

Time is counted in *steps*. A clip has 10 frames and frame i shows step i, because the 8-frame pool of a 10-frame video
is exactly frames 1 to 8: pool frame n (1-based) is step n, and steps 0 and 9 only surround them. A model sees steps
1 to 4 and is asked about step 4 + hop; the hints are steps 5 to 4 + hop.

Motion has a closed form (a straight line folded at the walls), so any step is computed without simulating the ones
before it, and the encoded clip and `Episode.render` show the same states.

Train and test never meet: each split has its own seed stream, and its own combinations of colour and form (`palette`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from futurel1.data.worlds.storage import SPLITS, Split, claim_folder, is_complete, write_clip
from futurel1.errors import ConfigError
from futurel1.files import write_whole

__all__ = ["Arena", "Episode", "Shape", "WorldFiles", "make_episode", "make_episodes", "palette", "write_world"]

Form = Literal["circle", "square", "triangle"]
Kind = Literal["zone", "wall"]
TaskName = Literal["mixed", "next_zone"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FORMS: tuple[Form, ...] = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 54, 54),
    "green": (56, 186, 78),
    "blue": (64, 108, 240),
    "yellow": (240, 214, 60),
    "purple": (168, 76, 208),
    "orange": (244, 140, 40),
}
BACKGROUND = (24, 26, 32)
ZONE_LINE = (58, 62, 72)
WALL = (150, 154, 164)

ZONES = ("top left", "top right", "bottom left", "bottom right")
WALLS = ("left wall", "right wall", "top wall", "bottom wall")
LETTERS = "ABCD"

NUM_VIDEO_FRAMES = 10  # the one length whose 8-frame pool is evenly spaced: frames 1..8
LAST_SEEN = 4  # the last observed step
SLOWEST, FASTEST = 0.10, 0.22  # arena sides per step; below one span, so a step has at most one bounce per axis
STAY_RATE = 0.25  # share of zone questions whose answer is the last seen zone: repeating it is no better than chance
WALL_QUESTION_EVERY = 4
CANDIDATES = 256  # motions drawn at once; about one in twenty fits a question


MANIFEST_VERSION = 1  # raise it when the same seed no longer gives the same clips


@dataclass(frozen=True)
class Task:
    """What a world shows and asks.

    Args:
        observed: pool frames (1-based) that are shown with a question, up to frame 4.
        num_shapes: shapes in a clip.
        shape_size: side of the box that a shape fills, relative to that of the frames.
        hops: steps between the last observed frame and what is asked; each is asked equally often.
        walls: whether every fourth question is about a wall; else all are about zones.
        shuffled: whether options stand in random order; else a letter means the same zone in every question.
        brief: questions and thoughts of a few words, so that a sequence is short.
    """

    observed: tuple[int, ...] = (1, 2, 3, 4)
    num_shapes: int = 2
    shape_size: float = 1 / 6
    hops: tuple[int, ...] = (1, 2, 3)
    walls: bool = True
    shuffled: bool = True
    brief: bool = False


TASKS: dict[TaskName, Task] = {
    "mixed": Task(),
    # what a model of a million parameters begins to learn within minutes: four pictures' worth of tokens, one decision
    "next_zone": Task(
        observed=(3, 4), num_shapes=1, shape_size=0.4, hops=(1,), walls=False, shuffled=False, brief=True
    ),
}


@dataclass(frozen=True)
class Arena:
    """The square box that shapes move in; lengths are pixels, x runs right and y runs down.

    Args:
        size: side of the frames in pixels, a multiple of 32.
        shape_size: side of the box that every form fills, relative to that of the frames.

    Raises:
        ConfigError: `size` is not a positive multiple of 32.
    """

    size: int
    shape_size: float = 1 / 6

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ConfigError(f"size={self.size}: frames need a side that is a positive multiple of 32, such as 96")

    @property
    def radius(self) -> float:
        """Half the side of the box that every form fills, in pixels."""
        return self.size * self.shape_size / 2

    @property
    def wall(self) -> int:
        """Thickness of the walls in pixels."""
        return max(1, self.size // 48)

    @property
    def low(self) -> float:
        """Smallest coordinate that a centre can have, in pixels."""
        return self.wall + self.radius

    @property
    def span(self) -> float:
        """Distance between the smallest and the largest coordinate of a centre, in pixels."""
        return self.size - 2 * self.low

    @property
    def margin(self) -> float:
        """Distance to a zone boundary below which a zone would be a matter of opinion, in pixels."""
        return self.size / 24

    def laps(self, start: Floats, velocity: Floats, steps: Floats) -> Floats:
        """Way travelled along each axis, unfolded, in spans: every whole number passed is one bounce.

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
        """Centres in pixels, same shape as `laps`: the unfolded way, folded at the walls."""
        return self.low + self.span * (1 - np.abs(laps % 2 - 1))

    def headings(self, laps: Floats, velocity: Floats) -> Floats:
        """Velocity after the bounces so far, in pixels per step, same shape as `laps`."""
        return np.where(np.floor(laps) % 2 == 0, velocity, -velocity)

    def zones(self, positions: Floats) -> Ints:
        """Index into `ZONES` of (..., 2) centres."""
        beyond = positions >= self.size / 2
        return 2 * beyond[..., 1].astype(np.int64) + beyond[..., 0]

    def clear_of_boundaries(self, positions: Floats) -> Bools:
        """Whether (..., 2) centres are at least `margin` away from both zone boundaries."""
        clear: Bools = np.all(np.abs(positions - self.size / 2) >= self.margin, axis=-1)
        return clear

    def background(self) -> NDArray[np.float32]:
        """An empty arena, (size, size, 3): walls at the edge and a cross between the four zones."""
        image = np.empty((self.size, self.size, 3), np.float32)
        image[:] = BACKGROUND
        middle = slice(self.size // 2 - 1, self.size // 2 + 1)
        image[middle, :] = image[:, middle] = ZONE_LINE
        inside = np.zeros((self.size, self.size), bool)
        inside[self.wall : -self.wall, self.wall : -self.wall] = True
        image[~inside] = WALL
        return image


@dataclass(frozen=True)
class Shape:
    """One moving shape.

    Args:
        form: what it looks like.
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
        """What questions call it, such as `red circle`."""
        return f"{self.colour} {self.form}"


@dataclass(frozen=True)
class Episode:
    """A clip of the bouncing world with one question about its future; frames are drawn on demand.

    Args:
        split: the split it belongs to.
        number: its number in the split, from 0.
        arena: the box it happens in.
        shapes: the shapes, from the farthest to the nearest; the question is about the last one.
        kind: `zone` asks where the shape will be after `hop` steps, `wall` which wall it hits next (in step `hop`).
        hop: steps between the last observed frame and what is asked, 1 to 3.
        question: the question without its options.
        options: option letter to option text, in the order shown.
        answer: the letter of the right option.
        thoughts: what to think before each hint, and after the last: `hop` + 1 texts, never with coordinates.
        observed: pool frames (1-based) that are shown with the question.
    """

    split: Split
    number: int
    arena: Arena
    shapes: tuple[Shape, ...]
    kind: Kind
    hop: int
    question: str
    options: Mapping[str, str]
    answer: str
    thoughts: tuple[str, ...]
    observed: tuple[int, ...] = TASKS["mixed"].observed

    @property
    def id(self) -> str:
        """Name of the episode and of its clip, such as `train-00012`."""
        return f"{self.split}-{self.number:05d}"

    @property
    def target(self) -> Shape:
        """The shape that the question is about."""
        return self.shapes[-1]

    @property
    def hints(self) -> tuple[int, ...]:
        """Pool frames (1-based) of the future that lead to the answer."""
        return tuple(range(LAST_SEEN + 1, LAST_SEEN + 1 + self.hop))

    def positions(self, steps: Sequence[float] = range(1, 9)) -> Floats:
        """Centres of the shapes.

        Args:
            steps: N times in steps, fractions allowed; the default is the 8-frame pool.

        Returns:
            (N, shapes, 2) pixels, x before y.
        """
        start = np.array([shape.start for shape in self.shapes])
        velocity = np.array([shape.velocity for shape in self.shapes])
        return self.arena.positions(self.arena.laps(start, velocity, np.asarray(steps, np.float64)))

    def render(self, steps: Sequence[float] = range(1, 9)) -> NDArray[np.uint8]:
        """Draw the world, with smooth edges.

        Args:
            steps: N times in steps, fractions allowed; the default is the 8-frame pool.

        Returns:
            (N, size, size, 3) RGB frames.
        """
        centres = self.positions(steps)
        pixels = np.arange(self.arena.size) + 0.5
        frames = np.repeat(self.arena.background()[None], len(centres), axis=0)
        for number, shape in enumerate(self.shapes):  # painter's order: each shape covers those before it
            across = (pixels - centres[:, number, :1])[:, None, :]
            down = (pixels - centres[:, number, 1:])[:, :, None]
            outside = signed_distance(shape.form, across, down, self.arena.radius)
            cover = np.clip(0.5 - outside, 0, 1)[..., None].astype(np.float32)
            frames += cover * (np.array(COLOURS[shape.colour], np.float32) - frames)
        return np.rint(frames).astype(np.uint8)

    def record(self, video: str) -> dict[str, Any]:
        """The episode as a frame-indexed record.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A record that JSON can hold.
        """
        frames = "".join(f"frame_{number}\n<image>\n" for number in self.observed)
        options = "".join(f"\n{letter}. {text}" for letter, text in self.options.items())
        thoughts = [f"THOUGHT {number}: {text}" for number, text in enumerate(self.thoughts)]
        return {
            "id": self.id,
            "video": video,
            "image": list(self.observed),
            "reasoning_image": list(self.hints),
            "conversations": [
                {"from": "human", "value": f"{frames}{self.question}{options}"},
                {"from": "gpt", "value": " <image>\n".join(thoughts)},
            ],
            "answer": self.answer,
            "cot": "",
            "question_type": f"hop{self.hop}",
            "options": dict(self.options),
            "letter": self.answer,
        }


@dataclass(frozen=True)
class WorldFiles:
    """What `write_world` left behind.

    Args:
        root: the folder.
        train: records of the training split.
        test: records of the test split.
        rl: records of the split for reinforcement learning; None where none were asked for.
        videos: the folder of the clips.
        written: clips encoded by this call.
        kept: clips that were already there.
    """

    root: Path
    train: Path
    test: Path
    rl: Path | None
    videos: Path
    written: int
    kept: int


def palette(split: Split) -> list[tuple[str, Form]]:
    """The combinations of colour and form that a split draws from.

    Colour c and form f go to the test split when c and f + 1 agree modulo 3 (6 of the 18), else to the training split.
    So each colour and each form occurs in both splits, but no combination does.

    Args:
        split: `train` or `test`.

    Returns:
        (colour, form) pairs.
    """
    return [
        (colour, form)
        for form_number, form in enumerate(FORMS)
        for colour_number, colour in enumerate(COLOURS)
        if (colour_number % 3 == (form_number + 1) % 3) == (split == "test")
    ]


def signed_distance(form: Form, across: Floats, down: Floats, radius: float) -> Floats:
    """Distance of points to the outline of a form in pixels, negative inside.

    Every form fills the same box, so that all of them visibly touch a wall when they bounce off it.

    Args:
        form: the form.
        across: x of the points relative to the centre, in pixels.
        down: y of the points relative to the centre, in pixels, broadcast against `across`.
        radius: half the side of the box, in pixels.

    Returns:
        Distances in the broadcast shape.
    """
    if form == "circle":
        distance: Floats = np.hypot(across, down) - radius
    elif form == "square":
        distance = np.maximum(np.abs(across), np.abs(down)) - radius
    else:
        # An isosceles triangle on its base: a leg falls two pixels for each one across, so its normal is (2, -1) / √5.
        leg = (2 * np.abs(across) - down - radius) / np.sqrt(5)
        distance = np.maximum(leg, down - radius)
    return distance


def make_episode(split: Split, number: int, *, seed: int = 0, size: int = 96, task: TaskName = "mixed") -> Episode:
    """Draw one episode; the same arguments always give the same one.

    Every block of 12 consecutive numbers holds each pair of hop and answer letter once, in random order, and every
    fourth number asks about a wall. What is asked for (the zone or wall, and whether the zone changes) is drawn first
    and a motion that fits it second, so that the wording of a question says nothing about its answer.

    Args:
        split: `train` or `test`.
        number: position in the split, from 0.
        seed: seed of the whole world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        task: what is shown and asked, a name in `TASKS`.

    Returns:
        The episode.

    Raises:
        ConfigError: a negative `seed` or `number`, an unknown split or task, or an impossible `size`.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0 or number < 0:
        raise ConfigError(f"seed={seed}, number={number}: both count from 0")
    if task not in TASKS:
        raise ConfigError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    asks = TASKS[task]
    arena = Arena(size, asks.shape_size)
    split_id = SPLITS.index(split)
    rng = np.random.default_rng(np.random.SeedSequence([seed, split_id, number]))

    cells = len(LETTERS) * len(asks.hops)
    block = np.random.SeedSequence([seed, split_id, number // cells], spawn_key=(1,))
    cell = int(np.random.default_rng(block).permutation(cells)[number % cells])
    letter_number, hop_number = divmod(cell, len(asks.hops))
    hop = asks.hops[hop_number]
    about_wall = asks.walls and number % WALL_QUESTION_EVERY == WALL_QUESTION_EVERY - 1
    kind: Kind = "wall" if about_wall else "zone"

    wanted = int(rng.integers(4)) if asks.shuffled else letter_number
    stays = bool(rng.random() < STAY_RATE)
    fits: Callable[[Floats, Floats], Bools] = (
        (lambda start, velocity: _reaches_zone(arena, start, velocity, hop, wanted, stays))
        if kind == "zone"
        else (lambda start, velocity: _hits_wall(arena, start, velocity, hop, wanted))
    )
    shapes = _draw_shapes(arena, rng, palette(split), asks.num_shapes, fits)
    name = shapes[-1].name
    question = "" if asks.brief else f"The {name} keeps moving and bounces off the walls. "
    question += (
        f"In which zone is the {name} after {hop} step{'s' if hop > 1 else ''}?"
        if kind == "zone"
        else f"Which wall does the {name} hit next?"
    )
    texts = ZONES if kind == "zone" else WALLS
    order = list(range(4))
    if asks.shuffled:
        others = iter(rng.permutation([index for index in range(4) if index != wanted]))
        order = [wanted if position == letter_number else int(next(others)) for position in range(4)]
    return Episode(
        split=split,
        number=number,
        arena=arena,
        shapes=shapes,
        kind=kind,
        hop=hop,
        question=question,
        options={letter: texts[index] for letter, index in zip(LETTERS, order, strict=True)},
        answer=LETTERS[letter_number],
        thoughts=_think(arena, shapes[-1], hop, "" if asks.brief else texts[wanted]),
        observed=asks.observed,
    )


def make_episodes(
    split: Split, count: int, *, seed: int = 0, size: int = 96, task: TaskName = "mixed"
) -> Iterator[Episode]:
    """Episodes 0 to `count` - 1 of a split, drawn one by one; arguments and errors are those of `make_episode`."""
    return (make_episode(split, number, seed=seed, size=size, task=task) for number in range(count))


def write_world(
    out: Path,
    *,
    train: int,
    test: int,
    rl: int = 0,
    seed: int = 0,
    size: int = 96,
    task: TaskName = "mixed",
    progress: bool = True,
    overwrite: bool = False,
) -> WorldFiles:
    """Write the world as H.264 clips and frame-indexed records, atomically and resumably.

    `out` receives `train.jsonl`, `test.jsonl`, `videos/{train,test}-00000.mp4` and so on, and `world.json` with the
    settings that clips depend on. A clip takes its name only when it is complete, so a later call with the same seed
    and size keeps every clip that it finds, also with other counts. One process may write to a folder at a time.

    Args:
        out: the folder; made if it is not there.
        train: number of training episodes.
        test: number of test episodes.
        rl: number of episodes for reinforcement learning: of the looks of the training split, but others.
        seed: seed of the world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        task: what is shown and asked, a name in `TASKS`.
        progress: show a progress bar.
        overwrite: replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: an impossible setting, a folder that holds a world of other settings, or PyAV is not installed.
    """
    if min(train, test, rl) < 0 or train + test + rl == 0:
        raise ConfigError(f"train={train}, test={test}, rl={rl}: counts start at 0 and one of them has to be positive")
    if seed < 0:
        raise ConfigError(f"seed={seed}: seeds count from 0")
    if task not in TASKS:
        raise ConfigError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    Arena(size)  # refuses an impossible size before anything is written
    out = Path(out)
    videos = out / "videos"
    settings = {"world": "bouncing", "version": MANIFEST_VERSION, "seed": seed, "size": size}
    if task != "mixed":  # worlds written before there were tasks are of this one
        settings["task"] = task
    claim_folder(out, settings, overwrite)

    counts: dict[Split, int] = {"train": train, "test": test}
    if rl:
        counts["rl"] = rl
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    written = 0
    with Progress(*columns, disable=not progress) as bar:
        drawn = bar.add_task("clips", total=sum(counts.values()))
        for split, count in counts.items():
            lines = []
            for episode in make_episodes(split, count, seed=seed, size=size, task=task):
                clip = videos / f"{episode.id}.mp4"
                if not is_complete(clip):
                    write_clip(clip, episode.render(range(NUM_VIDEO_FRAMES)))
                    written += 1
                lines.append(json.dumps(episode.record(f"{videos.name}/{clip.name}")) + "\n")
                bar.advance(drawn)
            write_whole(out / f"{split}.jsonl", "".join(lines))
    return WorldFiles(
        root=out,
        train=out / "train.jsonl",
        test=out / "test.jsonl",
        rl=out / "rl.jsonl" if rl else None,
        videos=videos,
        written=written,
        kept=sum(counts.values()) - written,
    )


def _draw_shapes(
    arena: Arena,
    rng: np.random.Generator,
    combinations: Sequence[tuple[str, Form]],
    num_shapes: int,
    fits: Callable[[Floats, Floats], Bools],
) -> tuple[Shape, ...]:
    """Shapes of different colours; the last one, on top, moves as `fits(start, velocity)` demands."""
    looks: list[tuple[str, Form]] = []
    for index in rng.permutation(len(combinations)):
        if len(looks) < num_shapes and combinations[index][0] not in [colour for colour, _ in looks]:
            looks.append(combinations[index])
    motions = [_draw_motion(arena, rng, None) for _ in looks[:-1]] + [_draw_motion(arena, rng, fits)]
    return tuple(
        Shape(form=form, colour=colour, start=start, velocity=velocity)
        for (colour, form), (start, velocity) in zip(looks, motions, strict=True)
    )


def _draw_motion(
    arena: Arena, rng: np.random.Generator, fits: Callable[[Floats, Floats], Bools] | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Start (pixels) and velocity (pixels per step) of a shape; re-drawn until `fits`, where given, accepts it."""
    while True:
        start = rng.uniform(arena.low, arena.low + arena.span, (CANDIDATES, 2))
        speed = rng.uniform(SLOWEST, FASTEST, (CANDIDATES, 1)) * arena.size
        angle = rng.uniform(0, 2 * np.pi, CANDIDATES)
        velocity = speed * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        accepted = np.ones(CANDIDATES, bool) if fits is None else fits(start, velocity)
        if accepted.any():
            (x, y), (right, down) = start[accepted][0].tolist(), velocity[accepted][0].tolist()
            return (x, y), (right, down)


def _asked_laps(arena: Arena, start: Floats, velocity: Floats, hop: int) -> Floats:
    """(hop + 1, ..., 2) laps at the last observed step and each step up to the one asked for."""
    return arena.laps(start, velocity, np.arange(LAST_SEEN, LAST_SEEN + hop + 1, dtype=np.float64))


def _reaches_zone(arena: Arena, start: Floats, velocity: Floats, hop: int, wanted: int, stays: bool) -> Bools:
    """Which of (M, 2) motions end in zone `wanted`, having been there when last seen exactly if `stays`."""
    positions = arena.positions(_asked_laps(arena, start, velocity, hop))
    zones = arena.zones(positions)
    clear: Bools = np.all(arena.clear_of_boundaries(positions), axis=0)
    fits: Bools = clear & (zones[-1] == wanted) & ((zones[0] == wanted) == stays)
    return fits


def _hits_wall(arena: Arena, start: Floats, velocity: Floats, hop: int, wanted: int) -> Bools:
    """Which of (M, 2) motions hit wall `wanted` first, in step `hop`, well between two frames and before any other."""
    laps = _asked_laps(arena, start, velocity, hop)
    way = np.where(velocity > 0, np.ceil(laps[0]) - laps[0], laps[0] - np.floor(laps[0]))
    times = way * arena.span / np.abs(velocity)
    axis = times.argmin(axis=1)
    first, second = times.min(axis=1), times.max(axis=1)
    forward = np.take_along_axis(arena.headings(laps[0], velocity), axis[:, None], axis=1)[:, 0] > 0
    clear: Bools = np.all(arena.clear_of_boundaries(arena.positions(laps)), axis=0)
    in_step = (first > hop - 0.9) & (first < hop - 0.1)
    fits: Bools = clear & in_step & (second > first + 0.25) & (2 * axis + forward == wanted)
    return fits


def _think(arena: Arena, shape: Shape, hop: int, answer: str) -> tuple[str, ...]:
    """Coarse words for the state when last seen and for each step after it; the last text ends with the answer.

    Without an answer the words are zones alone, and the direction when last seen.
    """
    velocity = np.array(shape.velocity)
    laps = _asked_laps(arena, np.array(shape.start), velocity, hop)
    zones = arena.zones(arena.positions(laps))
    headings = arena.headings(laps, velocity)
    bounced = np.floor(laps[1:]) != np.floor(laps[:-1])
    if not answer:
        names = [ZONES[zone] for zone in zones]
        return (f"{names[0]}, moves {direction(headings[0])}", *names[1:])

    thoughts = [f"The {shape.name} is in the {ZONES[zones[0]]} zone and moves {direction(headings[0])}."]
    for step in range(1, hop + 1):
        stays = zones[step] == zones[step - 1]
        move = f"{'stays in' if stays else 'moves into'} the {ZONES[zones[step]]} zone"
        walls = [WALLS[2 * axis + int(headings[step - 1, axis] > 0)] for axis in np.flatnonzero(bounced[step - 1])]
        if walls:
            hit = " and the ".join(walls)
            thoughts.append(f"It bounces off the {hit}, {move} and now moves {direction(headings[step])}.")
        else:
            thoughts.append(f"It {move}.")
    thoughts[-1] += f" So the answer is {answer}."
    return tuple(thoughts)


def direction(heading: Floats) -> str:
    """One of eight directions in words, for an (x, y) heading."""
    x, y = heading
    narrow = np.tan(np.pi / 8)  # half of a 45 degree sector
    words = []
    if abs(y) > narrow * abs(x):
        words.append("down" if y > 0 else "up")
    if abs(x) > narrow * abs(y):
        words.append("right" if x > 0 else "left")
    return " and ".join(words)
