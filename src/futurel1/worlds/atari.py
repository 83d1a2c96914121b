"""A world of Atari games, emulated by ale-py: Pong and Breakout.

A clip has 10 frames, as in the world of events, 8 frames of the console apart: the ball moves 0.05 to 0.15 of the frame
between two of them. Someone plays until the last observed frame, or shortly before; from then on nobody touches the
paddle, so that the future follows from what is seen.

Train and test are disjoint: each has its own seed stream, and its own places and directions of the ball when last seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError
from futurel1.worlds.atari_emulation import require_emulator
from futurel1.worlds.atari_episodes import AtariEpisode
from futurel1.worlds.atari_forks import ATARI_CHANGES, make_atari_forks
from futurel1.worlds.atari_games import GAMES, GameName
from futurel1.worlds.atari_questions import USUAL_KINDS, atari_cells, sample_atari_block
from futurel1.worlds.atari_scenes import CODE_SIZE, parts_of, pooled_scenes, read_atari_code
from futurel1.worlds.clips import Split, check_seed
from futurel1.worlds.episodes import Fork
from futurel1.worlds.look import LETTERS, check_frame_size
from futurel1.worlds.protocols import CodeReading, Scene
from futurel1.worlds.question_worlds import QuestionWorld

__all__ = ["AtariWorld"]

MANIFEST_VERSION = 2  # raise it when the same seed no longer gives the same clips


@dataclass(frozen=True)
class AtariWorld(QuestionWorld[AtariEpisode]):
    """The world of Atari games.

    Args:
        seed: seed of the world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        games: the games, each equally often.
        kinds: kinds of question: `zone` asks where the ball is, `event` what happens to it, for which
            clips are rare: the first one takes minutes.
        pool: number of different scenes in memory for each game.

    Raises:
        ConfigError: a negative seed, an impossible size, unknown or no games, no scenes, or ale-py is not installed.
    """

    seed: int = 0
    size: int = 64
    games: Sequence[GameName] = ("pong", "breakout")
    kinds: Sequence[str] = USUAL_KINDS
    pool: int = 1024

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_frame_size(self.size)
        if not self.games or len(set(self.games)) < len(self.games) or not set(self.games) <= set(GAMES):
            raise ConfigError(f"games={list(self.games)}: choose some of {', '.join(GAMES)}, each once")
        if self.pool < 1:
            raise ConfigError(f"pool={self.pool}: at least one scene is needed")
        atari_cells(self.games, self.kinds)
        require_emulator()

    @property
    def code_size(self) -> int:
        """Numbers of a code."""
        return CODE_SIZE

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the clips depend on."""
        return {
            "world": "atari", "version": MANIFEST_VERSION, "seed": self.seed, "size": self.size,
            "games": list(self.games), "kinds": list(self.kinds),
        }  # fmt: skip

    def episode(self, split: Split, number: int) -> AtariEpisode:
        """An episode of a split."""
        # The records of pretraining are about zones, so their clips show the ball for some time.
        cells = atari_cells(self.games, ("zone",) if split == "pretrain" else self.kinds)
        block, place = divmod(number, len(cells) * len(LETTERS))
        asked, excerpt = sample_atari_block(self.seed, split, block, cells)[place]
        return AtariEpisode(size=self.size, excerpt=excerpt, split=split, number=number, asked=asked)

    @property
    def changes(self) -> tuple[str, ...]:
        """Changes to the observed frames of the split `counterfactual`."""
        return ATARI_CHANGES

    def forks(self, count: int) -> Iterator[Fork]:
        """The first episodes of the split `counterfactual`."""
        return make_atari_forks(count, seed=self.seed, size=self.size, cells=atari_cells(self.games, self.kinds))

    def scenes(
        self, rng: np.random.Generator, count: int, *, split: Split | None = None, size: int | None = None
    ) -> Sequence[Scene]:
        """Sample clips without questions from a pool that depends only on the world's seed.

        This process emulates the pool as it is needed, and keeps it: the first batches take longer than the others.
        """
        return pooled_scenes(
            rng,
            count,
            games=self.games,
            parts=parts_of(split),
            seed=self.seed,
            pool=self.pool,
            size=self.size if size is None else size,
        )

    def read_code(self, code: NDArray[np.float32]) -> CodeReading:
        """Places of ball, first and second paddle, and which game it is."""
        return read_atari_code(code)

    def colours(self, reading: CodeReading) -> NDArray[np.uint8]:
        """(T, 3, 3) RGB colours of ball, first and second paddle."""
        return np.array([game.colours for game in GAMES.values()], np.uint8)[reading.classes[:, 0]]
