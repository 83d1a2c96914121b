"""Counterfactuals of the world of Atari games: one question about clips that differ in one thing.

Each episode has another future: the same observed frames, then a ball whose velocity was turned in the console's
memory, after which another option is right. And it has two changes to what is observed, about which the same question
is asked:

* `moved`: the ball is elsewhere from the first frame on, so that another option is right;
* `recoloured`: Pong's background or Breakout's walls have another colour; everything else is the same.

Observed frames in reverse order are left out: the console has no state from which they come about, since the paddles
move by rules of their own and bricks do not come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count as numbers

import numpy as np

from futurel1.worlds.atari_emulation import FRAMES_PER_STEP
from futurel1.worlds.atari_episodes import AtariEpisode
from futurel1.worlds.atari_questions import AtariQuestion, Cell, fits, put_to_fit, sample_atari_block
from futurel1.worlds.atari_scenes import Excerpt
from futurel1.worlds.clips import SPLITS
from futurel1.worlds.episodes import Fork
from futurel1.worlds.look import LAST_SEEN, LETTERS

__all__ = ["ATARI_CHANGES", "make_atari_forks"]

ATARI_CHANGES = ("moved", "recoloured")
TURNS = ((-1, 1), (1, -1), (-1, -1))
TRIES = 4  # to move the ball for each answer


def make_atari_forks(count: int, *, seed: int, size: int, cells: tuple[Cell, ...]) -> Iterator[Fork]:
    """Yield the first episodes of the split `counterfactual` that have all counterfactuals; numbers have gaps.

    Args:
        count: how many; a larger one only adds to them.
        seed: seed of the whole world.
        size: side of the frames in pixels.
        cells: questions of a block.
    """
    found = 0
    for number in numbers():
        if found == count:
            return
        block, place = divmod(number, len(cells) * len(LETTERS))
        asked, excerpt = sample_atari_block(seed, "counterfactual", block, cells)[place]
        episode = AtariEpisode(size=size, excerpt=excerpt, split="counterfactual", number=number, asked=asked)
        entropy = [seed, SPLITS.index("counterfactual"), number]
        rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(3,)))
        other = _other_future(episode, rng)
        moved = None if other is None else _moved(episode, rng)
        if other is not None and moved is not None:
            found += 1
            yield Fork(episode, other, (moved, replace(episode, recoloured=True, variant="recoloured")))


def _other_future(episode: AtariEpisode, rng: np.random.Generator) -> AtariEpisode | None:
    """The same observed frames, and a future in which another option is right because the ball turns; or None."""
    take, first = episode.excerpt.take, episode.excerpt.first
    after = first + LAST_SEEN * FRAMES_PER_STEP + 1
    futures = [take.with_ball(after, (0, 0), TURNS[turn]) for turn in rng.permutation(len(TURNS))]
    for asked in _other_answers(episode.asked, rng):
        for future in futures:
            if fits(asked, future.tracks, np.array([first]))[0]:
                return replace(episode, asked=asked, excerpt=Excerpt(future, first), variant="other")
    return None


def _moved(episode: AtariEpisode, rng: np.random.Generator) -> AtariEpisode | None:
    """The ball is elsewhere from the first frame on, and another option is right; None if no place was found."""
    for asked in _other_answers(episode.asked, rng) * TRIES:
        excerpt = put_to_fit(asked, episode.excerpt.take, "unseen", rng)
        if excerpt is not None:
            return replace(episode, asked=asked, excerpt=excerpt, variant="moved")
    return None


def _other_answers(asked: AtariQuestion, rng: np.random.Generator) -> list[AtariQuestion]:
    """The question with each of the options that are not right as its answer, in random order."""
    others = [option for option in rng.permutation(len(LETTERS)).tolist() if option != asked.right]
    return [replace(asked, right=option, stays=stays) for option in others for stays in (False, True)]
