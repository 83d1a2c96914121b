"""Counterfactuals of the world of events: one question about clips that differ in one thing.

Each episode has another future: the same observed frames, then a push to one shape in the last observed state, after
which another option is right. And it has three changes to what is observed, about which the same question is asked:

* `reversed`: the observed frames in reverse order, and how the world goes on from there;
* `moved`: the shape that is asked about starts elsewhere, so that another option is right;
* `recoloured`: the pillar, whose colour no question mentions, has another one; everything else is the same.

Questions are about one to three steps: those that state a later zone would state something false of a changed clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count as numbers

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError
from futurel1.worlds.clips import SPLITS, check_seed
from futurel1.worlds.collisions import HIGH, LOW, NUM_SHAPES, NUM_STATES, States, continued, simulate, starts_apart
from futurel1.worlds.episodes import Fork
from futurel1.worlds.event_episodes import EventEpisode
from futurel1.worlds.event_questions import (
    KINDS,
    NO_ONE,
    NOTHING,
    Asked,
    Kind,
    fitting,
    question_cells,
    sample_block,
)
from futurel1.worlds.event_scenes import FASTEST, SLOWEST, arenas
from futurel1.worlds.look import LAST_SEEN, LETTERS, check_frame_size, zones_of
from futurel1.worlds.questions import INTERPOLATION

__all__ = ["make_forks"]

Floats = NDArray[np.float64]

CANDIDATES = 512  # other futures or starts simulated at once
ROUNDS = 8  # times that many before an episode counts as one without
OTHER_PILLAR = (84, 104, 120)


def make_forks(count: int, *, seed: int = 0, size: int = 96, kinds: Sequence[Kind] = KINDS) -> Iterator[Fork]:
    """Yield the first episodes of the split `counterfactual` that have all counterfactuals.

    The same arguments give the same ones, and a larger `count` only adds to them; numbers of episodes have gaps.

    Args:
        count: how many.
        seed: seed of the whole world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        kinds: kinds of question, see `Asked`.

    Raises:
        ConfigError: a negative `count` or `seed`, an unknown kind, or an impossible `size`.
    """
    check_seed(seed)
    check_frame_size(size)
    if count < 0:
        raise ConfigError(f"count={count}: a number from 0")
    cells = tuple(cell for cell in question_cells(kinds) if cell[0] != INTERPOLATION)
    found = 0
    for number in numbers():
        if found == count:
            return
        block, place = divmod(number, len(cells) * len(LETTERS))
        asked, layout, states = sample_block(seed, "counterfactual", block, cells)[place]
        episode = EventEpisode(
            size=size, layout=layout, last_colours=asked.colours, states=states, split="counterfactual", number=number,
            asked=asked,
        )  # fmt: skip
        rng = np.random.default_rng(
            np.random.SeedSequence([seed, SPLITS.index("counterfactual"), number], spawn_key=(3,))
        )
        fork = _fork(episode, rng)
        if fork is not None:
            found += 1
            yield fork


def _fork(episode: EventEpisode, rng: np.random.Generator) -> Fork | None:
    """All counterfactuals of an episode; None if one of them cannot be found."""
    back = _reversed(episode)
    other = None if back is None else _other_future(episode, rng)
    moved = None if other is None else _moved(episode, rng)
    if back is None or other is None or moved is None:
        return None
    recoloured = replace(episode, pillar_colour=OTHER_PILLAR, variant="recoloured")
    return Fork(episode, other, (back, moved, recoloured))


def _other_future(episode: EventEpisode, rng: np.random.Generator) -> EventEpisode | None:
    """The same observed frames, and a future in which another option is right."""
    states, asked = episode.states, episode.asked
    for _ in range(ROUNDS):
        velocity = np.repeat(states.velocities[LAST_SEEN][None], CANDIDATES, axis=0)
        pushed = np.full(CANDIDATES, asked.target)
        if asked.kind in ("pair", "gate"):  # which are about all shapes
            pushed = rng.integers(NUM_SHAPES, size=CANDIDATES)
        velocity[np.arange(CANDIDATES), pushed] = _velocities(CANDIDATES, rng)
        futures = continued(states, LAST_SEEN, velocity, arenas([episode.layout] * CANDIDATES))
        found = _with_an_answer(episode, "other", futures, _other_options(asked, states, rng))
        if found is not None:
            return found
    return None


def _moved(episode: EventEpisode, rng: np.random.Generator) -> EventEpisode | None:
    """The shape that is asked about starts elsewhere, and another option is right."""
    states, asked = episode.states, episode.asked
    for _ in range(ROUNDS):
        start, velocity = (
            np.repeat(first[None], CANDIDATES, axis=0) for first in (states.positions[0], states.velocities[0])
        )
        start[:, asked.target] = rng.uniform(LOW, HIGH, (CANDIDATES, 2))
        velocity[:, asked.target] = _velocities(CANDIDATES, rng)
        possible = np.flatnonzero(starts_apart(start, arenas([episode.layout] * CANDIDATES)))
        scenes = simulate(start[possible], velocity[possible], arenas([episode.layout] * len(possible)))
        found = _with_an_answer(episode, "moved", scenes, _other_options(asked, states, rng))
        if found is not None:
            return found
    return None


def _reversed(episode: EventEpisode) -> EventEpisode | None:
    """Frames 1 to 4 in reverse order, and how the world goes on; None if that would not be a clip of this world.

    A gate never closes, so it must not open while the frames are shown; and names of shapes hold for the first frame.
    """
    states, last = episode.states, LAST_SEEN + 1
    changes = states.flips[1] - states.flips[LAST_SEEN]
    if states.gate_open[1] != states.gate_open[last] or (changes % 2).any():
        return None
    back = slice(last, 0, -1)
    frames, events = (np.zeros((NUM_STATES, *one.shape[1:]), one.dtype) for one in (states.positions, states.contacts))
    frames[:last] = states.positions[back]
    speeds = np.zeros_like(frames)
    speeds[:last] = -states.velocities[back]
    events[1:last] = states.contacts[last:1:-1]
    hits = np.zeros((NUM_STATES, *states.wall_hits.shape[1:]), bool)
    hits[1:last] = states.wall_hits[last:1:-1]
    clear = np.ones((NUM_STATES, NUM_SHAPES), bool)
    clear[1:last] = states.clear_cut[last:1:-1]
    hidden = np.zeros((NUM_STATES, NUM_SHAPES), bool)
    hidden[:last] = states.hidden[back]
    shown = States(
        positions=frames, velocities=speeds, hidden=hidden,
        gate_open=np.full(NUM_STATES, states.gate_open[last]), wall_hits=hits, contacts=events,
        gate_hits=np.zeros((NUM_STATES, NUM_SHAPES), bool), clear_cut=clear,
        flips=np.pad(states.flips[last] - states.flips[back], ((0, NUM_STATES - last), (0, 0))),
    )  # fmt: skip
    scenes = continued(shown, LAST_SEEN, shown.velocities[LAST_SEEN][None], arenas([episode.layout]))
    return _with_an_answer(episode, "reversed", scenes, range(len(LETTERS)))


def _with_an_answer(episode: EventEpisode, variant: str, scenes: States, options: Sequence[int]) -> EventEpisode | None:
    """The episode with the first scene in which one of the options is right; earlier options come first."""
    asked = episode.asked
    for right in options:
        zone = zones_of(scenes.positions[:, LAST_SEEN, asked.target])
        for stays in (False, True):
            answered = replace(asked, right=right, stays=stays)
            fits = fitting(answered, scenes, episode.layout)
            if asked.kind == "zone":
                fits &= (zone == answered.answer) == stays
            if fits.any():
                states = scenes.scene(int(np.flatnonzero(fits)[0]))
                return replace(episode, asked=answered, states=states, variant=variant)
    return None


def _other_options(asked: Asked, states: States, rng: np.random.Generator) -> list[int]:
    """Numbers of the options that are not right, in random order, but last the one that needs no imagination.

    That is the zone last seen, or that nothing happens: a model that reads no latent often says so.
    """
    idle = {"event": NOTHING, "pair": NO_ONE, "gate": NO_ONE}.get(
        asked.kind, int(zones_of(states.positions[LAST_SEEN, asked.target]))
    )
    others = [option for option in rng.permutation(len(LETTERS)).tolist() if option != asked.right]
    return sorted(others, key=lambda option: asked.choices[option] == idle)


def _velocities(count: int, rng: np.random.Generator) -> Floats:
    """(count, 2) velocities, as scenes start with."""
    angle = rng.uniform(0, 2 * np.pi, count)
    speed = rng.uniform(SLOWEST, FASTEST, count)
    velocities: Floats = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return velocities
