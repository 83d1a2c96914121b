"""A second world that pretraining is tried on: a bright dot that moves to the right over a dark frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds import Clip, CodeReading, Scene
from futurel1.worlds.clips import Split

SIDE = 8  # pixels of the dot


@dataclass(frozen=True)
class DotScene:
    """A clip: the dot starts at `start`, in pixels, and moves by `speed` pixels a step."""

    size: int
    start: tuple[int, int]
    speed: int

    def place(self, step: int) -> tuple[int, int]:
        """Column and row of the dot's corner."""
        return (self.start[0] + self.speed * step) % (self.size - SIDE), self.start[1]

    def render(self, steps: Sequence[int] = range(1, 9)) -> NDArray[np.uint8]:
        """Frames of the clip."""
        frames = np.full((len(steps), self.size, self.size, 3), 40, np.uint8)
        for frame, (x, y) in zip(frames, map(self.place, steps), strict=True):
            frame[y : y + SIDE, x : x + SIDE] = 200
        return frames

    def code(self, steps: Sequence[int]) -> NDArray[np.float32]:
        """Place of the dot's middle, in sides of the frame, and a one for its being visible."""
        middles = (np.array([self.place(step) for step in steps]) + SIDE / 2) / self.size
        return np.concatenate([middles, np.ones((len(middles), 1))], axis=1).astype(np.float32)


@dataclass(frozen=True)
class DotWorld:
    """The world of the dot, in memory alone.

    Args:
        size: side of the frames in pixels.
        fastest: most pixels a step.
    """

    size: int = 32
    fastest: int = 3

    splits = ("pretrain",)
    code_size = 3
    num_steps = 6

    @property
    def settings(self) -> dict[str, Any]:
        """What its clips depend on."""
        return {"world": "dots", "size": self.size, "fastest": self.fastest}

    def record_files(self, split: Split) -> tuple[str, ...]:
        """It has no records."""
        return ()

    def clips(self, split: Split, count: int) -> Iterator[Clip]:
        """It writes no clips."""
        return iter(())

    def scenes(
        self, rng: np.random.Generator, count: int, *, split: Split | None = None, size: int | None = None
    ) -> Sequence[Scene]:
        """Clips without questions."""
        side = self.size if size is None else size
        starts = rng.integers(side - SIDE, size=(count, 2)).tolist()
        speeds = rng.integers(1, self.fastest + 1, size=count).tolist()
        return [DotScene(side, (x, y), speed) for (x, y), speed in zip(starts, speeds, strict=True)]

    def read_code(self, code: NDArray[np.float32]) -> CodeReading:
        """The dot's place; it has no further attributes but one that is always 0."""
        return CodeReading(code[:, None, :2], code[:, 2:] > 0.5, np.zeros((len(code), 1), np.int64))

    def colours(self, reading: CodeReading) -> NDArray[np.uint8]:
        """Its grey."""
        return np.full((*reading.visible.shape, 3), 200, np.uint8)
