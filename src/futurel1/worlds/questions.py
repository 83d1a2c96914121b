"""Questions about the future of a clip, as all worlds of 10 frames ask them.

A model sees steps 1 to 4 and is asked about one of the three steps after that, or, in an interpolation, about the way
to a later step, in which something is stated to be the case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from futurel1.errors import ConfigError
from futurel1.worlds.look import LAST_SEEN

__all__ = ["HOPS", "INTERPOLATION", "LATER", "OBSERVED", "STAY_RATE", "Question", "check_kinds"]

OBSERVED = (1, 2, 3, 4)  # pool frames, 1-based, and steps
INTERPOLATION = 5  # the `hop` of questions about what happens on the way to a later frame
HOPS = (1, 2, 3, INTERPOLATION)
LATER = 8  # the step about which an interpolation states something
STAY_RATE = 0.25  # share of zone questions whose answer is the last seen zone: repeating it is no better than chance


@dataclass(frozen=True, kw_only=True)
class Question(ABC):
    """A question and its answer, sampled before its scene.

    Args:
        hop: the step asked about, counted from the last observed one, or `INTERPOLATION`.
        choices: codes of the four options in the order shown.
        right: index of the right option.
        stays: whether the answer to a zone question is the zone last seen.
    """

    hop: int
    choices: tuple[int, ...]
    right: int
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
        """Future pool frames (1-based) that lead to the answer."""
        return tuple(range(LAST_SEEN + 1, min(self.window[1], LATER - 1) + 1))

    @property
    @abstractmethod
    def question(self) -> str:
        """The question without its options."""

    @abstractmethod
    def text(self, choice: int) -> str:
        """An option in words."""


def check_kinds(kinds: Sequence[str], known: Sequence[str]) -> None:
    """Refuse kinds of question that a world does not have, none, or one that is listed twice.

    Raises:
        ConfigError: the choice is invalid.
    """
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(known):
        raise ConfigError(f"kinds={list(kinds)}: choose some of {', '.join(known)}, each once")
