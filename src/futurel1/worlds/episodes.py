"""Episodes, clips with a question about their future, and the forms of their records, which several worlds share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import Split, frame_record, thoughts_text, video_of
from futurel1.worlds.look import LETTERS
from futurel1.worlds.questions import OBSERVED, Question

__all__ = ["Fork", "QuestionEpisode"]


@dataclass(frozen=True, kw_only=True)
class QuestionEpisode(ABC):
    """A scene with one question about its future.

    Args:
        split: its split.
        number: its number in the split, from 0.
        asked: the question and its answer.
        variant: what was changed in an episode of that number; "" for the episode itself.
    """

    split: Split
    number: int
    asked: Question
    variant: str = ""

    @property
    def id(self) -> str:
        """Name of the episode and of its clip, such as `train-00012` or `counterfactual-00012-moved`."""
        return "-".join(filter(None, (self.split, f"{self.number:05d}", self.variant)))

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
        """The options as appended to a question, one per line."""
        return "".join(f"\n{letter}. {text}" for letter, text in self.options.items())

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.asked.right]

    @property
    @abstractmethod
    def thoughts(self) -> tuple[str, ...]:
        """Thoughts before each hint and after the last, in coarse words without coordinates."""

    @property
    @abstractmethod
    def future_positions(self) -> NDArray[np.float64]:
        """(hints, K, 2) positions of all objects in the hints, in sides of the frame, in an order that frames tell."""

    @abstractmethod
    def render(self, steps: Sequence[int] = range(1, 9)) -> NDArray[np.uint8]:
        """(N, size, size, 3) RGB frames of N steps."""

    @abstractmethod
    def caption(self, step: int) -> str:
        """Zones of all objects at a step."""

    @abstractmethod
    def about_what_is_shown(self, rng: np.random.Generator) -> Self:
        """The clip with a zone question about any of the frames, for a model that is shown that frame."""

    def record(self, video: str) -> dict[str, Any]:
        """The episode as a frame-indexed training record, answered by the text of an option.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A record that JSON can hold.
        """
        return frame_record(
            self.id,
            video,
            observed=OBSERVED,
            hints=self.asked.hints,
            question=self.question + self.listed_options,
            response=thoughts_text(self.thoughts),
            answer=self.options[self.answer],
            question_type=self.question_type,
            options=self.options,
            letter=self.answer,
        )

    def futurebench_record(self, video: str) -> dict[str, Any]:
        """The episode as a FutureBench record.

        Args:
            video: path of a clip of only the observed frames, because the benchmark shows a whole video.

        Returns:
            A record that JSON can hold.
        """
        return {
            "id": self.id,
            "video_path": video,
            "question_type": self.question_type,
            "qa": {"Question": self.question, "Options": self.options, "Answer": self.answer},
        }

    def forked_record(self, other: QuestionEpisode) -> dict[str, Any]:
        """The record of the episode, which names the future of another one as its counterfactual."""
        counterfactual = {
            "video": video_of(other.id),
            "reasoning_image": list(other.asked.hints),
            "answer": other.options[other.answer],
        }
        return {
            **self.record(video_of(self.id)),
            "counterfactual": counterfactual,
            "future_positions": self.future_positions.round(4).tolist(),
        }


@dataclass(frozen=True)
class Fork:
    """An episode with its counterfactuals; question and options of all are the same.

    Attributes:
        episode: the episode.
        other: the same observed frames, with another future and another answer.
        changed: the episode with other observed frames: `reversed`, `moved`, `recoloured`.
    """

    episode: QuestionEpisode
    other: QuestionEpisode
    changed: tuple[QuestionEpisode, ...]
