"""Scenes of Atari games: clips without questions, and codes of what their frames show."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from futurel1.worlds.atari_emulation import FRAMES_PER_STEP, LATEST, Take, play
from futurel1.worlds.atari_games import FIELD, GAMES, NUM_OBJECTS, Game, GameName, Tracks
from futurel1.worlds.clips import UNSEEN, Split
from futurel1.worlds.look import LAST_SEEN, NUM_STEPS
from futurel1.worlds.position_bins import read_bins, soft_bins
from futurel1.worlds.protocols import CodeReading

__all__ = [
    "CODE_SIZE",
    "AtariScene",
    "Excerpt",
    "Part",
    "fitting_starts",
    "is_unseen",
    "parts_of",
    "pooled_scenes",
    "read_atari_code",
    "stepwise",
]

Part = Literal["seen", "unseen"]

TILE = 8  # side in pixels of the tiles of the playfield that are for tests or for training
BINS = np.linspace(0, 1, 10)  # centres of the bins of positions, in sides of the frame
OBJECT_SIZE = 2 * len(BINS) + 1
CODE_SIZE = NUM_OBJECTS * OBJECT_SIZE + len(GAMES)
PER_GAME = 24  # scenes in a pool from one game from its beginning to its end
TAKES = 32  # of such a game at once
POOL_STREAM = 4  # of a world's seed
_TEST_TILES = np.random.default_rng(TILE).integers(3, size=32 * 32 * 4) == 0


@dataclass(frozen=True, eq=False)
class Excerpt:
    """The frames of a clip in a take, emulated again when they are first shown, and kept.

    Args:
        take: frames of the game.
        first: the frame of the take that step 0 shows, from 1 to `LATEST`.
    """

    take: Take
    first: int

    @cached_property
    def tracks(self) -> Tracks:
        """Objects in each of the 10 steps, and the events on the way from the step before."""
        every = stepwise(self.take.tracks, np.array([self.first]))
        return Tracks(*(of_clips[0] for of_clips in every))

    @cached_property
    def screens(self) -> tuple[bytes, ...]:
        """Compressed (160, 160, 3) playfields of the 10 steps."""
        return self.take.screens(range(self.first, self.first + NUM_STEPS * FRAMES_PER_STEP, FRAMES_PER_STEP))


@dataclass(frozen=True, kw_only=True)
class AtariScene:
    """A clip of a game; frames are rendered on demand.

    Args:
        size: side of the frames in pixels.
        excerpt: frames of the game.
        recoloured: whether something that no question is about has another colour.
    """

    size: int
    excerpt: Excerpt
    recoloured: bool = False

    @property
    def rules(self) -> Game:
        """The game."""
        return self.excerpt.take.rules

    @property
    def tracks(self) -> Tracks:
        """Objects in each of the 10 steps, and the events on the way from the step before."""
        return self.excerpt.tracks

    def render(self, steps: Sequence[int] = range(1, 9)) -> NDArray[np.uint8]:
        """Frames of the clip, the playfield only.

        Args:
            steps: N steps from 0 to 9; the default is the 8-frame pool.

        Returns:
            (N, size, size, 3) RGB frames.
        """
        frames = np.empty((len(steps), self.size, self.size, 3), np.uint8)
        for number, step in enumerate(steps):
            field = np.frombuffer(zlib.decompress(self.excerpt.screens[step]), np.uint8).reshape(FIELD, FIELD, 3)
            if self.recoloured:
                old, new = self.rules.irrelevant
                field = np.where((field == old).all(axis=-1, keepdims=True), np.array(new, np.uint8), field)
            frames[number] = np.asarray(Image.fromarray(field).resize((self.size, self.size), Image.Resampling.BOX))
        return frames

    def code(self, steps: Sequence[int]) -> NDArray[np.float32]:
        """What frames show: for ball and paddles soft bins of x and of y and visibility, then which game it is.

        Args:
            steps: N steps from 0 to 9.

        Returns:
            (N, CODE_SIZE), entries from 0 to 1.
        """
        chosen = list(steps)
        tracks = self.tracks
        visible = tracks.visible[chosen][..., None]
        objects = np.concatenate([soft_bins(tracks.positions[chosen], BINS), np.ones(visible.shape)], axis=-1) * visible
        game = np.broadcast_to(np.eye(len(GAMES))[list(GAMES).index(self.rules.name)], (len(chosen), len(GAMES)))
        return np.concatenate([objects.reshape(len(chosen), -1), game], axis=-1).astype(np.float32)


def read_atari_code(code: NDArray[np.float32]) -> CodeReading:
    """Read (T, CODE_SIZE) codes, which may be noisy: ball and paddles, and which game it is."""
    objects = code[:, : NUM_OBJECTS * OBJECT_SIZE].reshape(len(code), NUM_OBJECTS, OBJECT_SIZE)
    game = code[:, NUM_OBJECTS * OBJECT_SIZE :].argmax(axis=-1)[:, None]
    return CodeReading(read_bins(objects[..., :-1], BINS), objects[..., -1] > 0.5, game)


def stepwise(tracks: Tracks, starts: NDArray[np.int64]) -> Tracks:
    """Tracks of the 10 steps of S clips, from those of each frame of a take.

    Args:
        tracks: tracks of all frames.
        starts: (S,) the frame that is step 0 of each clip.

    Returns:
        Positions (S, 10, 3, 2) and so on; events are those since the step before.
    """
    last = starts[:, None] + np.arange(NUM_STEPS) * FRAMES_PER_STEP
    since = np.maximum(last[..., None] - np.arange(FRAMES_PER_STEP), 0)
    happened = (tracks.events[since].any(axis=2), tracks.unlisted[since].any(axis=2))
    return Tracks(tracks.positions[last], tracks.visible[last], *happened)


def is_unseen(ball: NDArray[np.float64], heading: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether clips are for tests, by the tile and the direction of the ball when last seen.

    The playfield is tiled, and a third of all pairs of tile and direction, scattered at random, are for tests. So no
    ball that a model is tested on was at the same place with the same direction in a training clip.

    Args:
        ball: (..., 2) positions of the ball when last seen, in sides of the playfield.
        heading: (..., 2) how it moved just before.

    Returns:
        (...,) in the broadcast shape.
    """
    tile = np.rint(ball * FIELD).astype(np.int64) // TILE
    ahead = heading > 0
    number = ((tile[..., 0] * 32 + tile[..., 1]) * 2 + ahead[..., 0]) * 2 + ahead[..., 1]
    unseen: NDArray[np.bool_] = _TEST_TILES[np.clip(number, 0, len(_TEST_TILES) - 1)]
    return unseen


def parts_of(split: Split | None) -> tuple[Part, ...]:
    """Which clips a split has; None stands for all."""
    return ("seen", "unseen") if split is None else ("unseen",) if split in UNSEEN else ("seen",)


def pooled_scenes(
    rng: np.random.Generator, count: int, *, games: Sequence[GameName], parts: Sequence[Part], seed: int, pool: int,
    size: int,
) -> list[AtariScene]:  # fmt: skip
    """Sample scenes from a pool that this process emulates as they are needed, and keeps.

    Args:
        rng: samples the scenes.
        count: number of scenes.
        games: the games, each equally often.
        parts: which clips, each equally often.
        seed: seed of the pool.
        pool: number of scenes of each game and part.
        size: side of the frames in pixels.

    Returns:
        The scenes.
    """
    found = []
    for number in range(count):
        game, part = games[number % len(games)], parts[int(rng.integers(len(parts)))]
        session, place = divmod(int(rng.integers(pool)), PER_GAME)
        found.append(AtariScene(size=size, excerpt=_pool(game, part, seed, session)[place]))
    return found


@lru_cache(maxsize=1024)
def _pool(game: GameName, part: Part, seed: int, session: int) -> tuple[Excerpt, ...]:
    """The `PER_GAME` excerpts in which a ball is seen, from one or more games from their beginnings."""
    entropy = [seed, list(GAMES).index(game), part == "unseen", session]
    rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(POOL_STREAM,)))
    found: list[Excerpt] = []
    while len(found) < PER_GAME:
        for take in play(game, rng, TAKES):
            possible = fitting_starts(take, part)
            if len(possible):
                found.append(Excerpt(take, int(rng.choice(possible))))
    return tuple(found[:PER_GAME])


def fitting_starts(take: Take, part: Part | None) -> NDArray[np.int64]:
    """The first frames of clips of a part in a take, with the ball visible in the observed steps; None: any part."""
    tracks, starts = take.tracks, np.arange(1, LATEST + 1)
    observed = starts[:, None] + np.arange(LAST_SEEN + 1) * FRAMES_PER_STEP
    possible = tracks.visible[observed, 0].all(axis=1)
    if part is not None:
        ball, last = tracks.positions[:, 0], observed[:, -1]
        possible &= is_unseen(ball[last], ball[last] - ball[last - 1]) == (part == "unseen")
    fitting: NDArray[np.int64] = starts[possible]
    return fitting
