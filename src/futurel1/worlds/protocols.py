"""What pretraining and the instruments ask of a world, beyond the clips and records that the writer asks for.

`futurel1.worlds.clips.World` is the writer's interface. A `SceneWorld` also makes unlabelled clips in memory and says
what each frame shows, as a code that a vision tower regresses and that `read_code` turns back into positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import Split, World

__all__ = ["CodeReading", "Scene", "SceneWorld"]


class CodeReading(NamedTuple):
    """What codes say, maybe noisy ones.

    Attributes:
        positions: (T, K, 2) places of K objects in a fixed order, in sides of the frame from its top left corner.
        visible: (T, K) whether each object is visible; the place of one that is not means nothing.
        classes: (T, M) further discrete attributes, in a fixed order; -1 for an attribute of what is not visible.
    """

    positions: NDArray[np.float32]
    visible: NDArray[np.bool_]
    classes: NDArray[np.int64]


class Scene(Protocol):
    """A clip without a question; frames are rendered on demand."""

    def render(self, steps: Sequence[int] = range(1, 9)) -> NDArray[np.uint8]:
        """Frames of the clip.

        Args:
            steps: N steps from 0; the default is the 8-frame pool.

        Returns:
            (N, size, size, 3) RGB frames.
        """

    def code(self, steps: Sequence[int]) -> NDArray[np.float32]:
        """What frames show.

        Args:
            steps: N steps from 0.

        Returns:
            (N, code_size) codes.
        """


@runtime_checkable
class SceneWorld(World, Protocol):
    """A world whose unlabelled clips can be made in memory.

    A class that a configuration names has to annotate its methods exactly as they are here.
    """

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""

    @property
    def code_size(self) -> int:
        """Numbers of a code."""

    @property
    def num_steps(self) -> int:
        """Frames of a clip."""

    def scenes(
        self, rng: np.random.Generator, count: int, *, split: Split | None = None, size: int | None = None
    ) -> Sequence[Scene]:
        """Sample clips without questions.

        Args:
            rng: the only source of randomness.
            count: number of clips.
            split: what the clips look like is that of this split; None: everything that occurs in the world.
            size: side of the frames in pixels; None for the world's own.
        """

    def read_code(self, code: NDArray[np.float32]) -> CodeReading:
        """Read (T, code_size) codes, which may be noisy."""

    def colours(self, reading: CodeReading) -> NDArray[np.uint8]:
        """(T, K, 3) RGB colours in which objects are shown; that of one that is not visible means nothing."""
