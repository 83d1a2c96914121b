"""Common parts of the worlds: splits, numbered episodes, clips and the form of their records.

The writer (`futurel1.worlds.writing`) uses a world only through the protocol `World`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError

__all__ = [
    "OBSERVED_FOLDER",
    "SPLITS",
    "UNSEEN",
    "VIDEO_FOLDER",
    "Clip",
    "Split",
    "World",
    "check_episode",
    "check_seed",
    "frame_record",
    "observed_of",
    "thoughts_text",
    "video_of",
]

Split = Literal["train", "test", "rl", "pretrain", "counterfactual"]

SPLITS: tuple[Split, ...] = ("train", "test", "rl", "pretrain", "counterfactual")  # the index is part of a split's seed
UNSEEN: tuple[Split, ...] = ("test", "counterfactual")  # look like no clip that a model is trained on
VIDEO_FOLDER, OBSERVED_FOLDER = "videos", "observed"


@dataclass(frozen=True)
class Clip:
    """A clip of a world with all its records.

    Args:
        id: its name, such as `train-00012`; `video_of` and `observed_of` give the paths of its files.
        video: renders its (N, H, W, 3) RGB frames; called if the file does not exist yet.
        records: its records, by the name of their file.
        observed: renders only the observed frames, for benchmarks that show a whole video; None: no such file.
        variants: renders further videos, by their names.
        causal: encode a frame without regard to later ones, so that videos that begin alike also decode alike.
    """

    id: str
    video: Callable[[], NDArray[np.uint8]]
    records: Mapping[str, dict[str, Any]]
    observed: Callable[[], NDArray[np.uint8]] | None = None
    variants: Mapping[str, Callable[[], NDArray[np.uint8]]] = field(default_factory=dict)
    causal: bool = False


class World(Protocol):
    """Interface of a world to the writer; constructors refuse invalid settings before anything is written."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of this world."""

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that clips depend on, JSON-serializable; a folder with clips of other settings is refused."""

    def record_files(self, split: Split) -> tuple[str, ...]:
        """Names of the record files of a split; all of them are written, even if there are no clips."""

    def clips(self, split: Split, count: int) -> Iterator[Clip]:
        """Yield the first clips of a split; a clip does not depend on `count`."""


def check_seed(seed: int) -> None:
    """Refuse a negative seed of a world.

    Raises:
        ConfigError: the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed}: seeds count from 0")


def check_episode(split: str, number: int, seed: int) -> None:
    """Refuse arguments that identify no episode.

    Raises:
        ConfigError: an unknown split, or a negative number or seed.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0 or number < 0:
        raise ConfigError(f"seed={seed}, number={number}: both count from 0")


def video_of(clip: str) -> str:
    """Path of a clip's video, relative to the world's folder."""
    return f"{VIDEO_FOLDER}/{clip}.mp4"


def observed_of(clip: str) -> str:
    """Path of the video that holds only a clip's observed frames, relative to the world's folder."""
    return f"{OBSERVED_FOLDER}/{clip}.mp4"


def thoughts_text(thoughts: Sequence[str]) -> str:
    """Join numbered thoughts, with an image marker for a hint between any two."""
    return " <image>\n".join(f"THOUGHT {number}: {text}" for number, text in enumerate(thoughts))


def frame_record(
    identity: str,
    video: str,
    *,
    observed: Sequence[int],
    hints: Sequence[int],
    question: str,
    response: str,
    answer: str,
    **more: Any,
) -> dict[str, Any]:
    """A frame-indexed record (`docs/data.md`).

    Args:
        identity: its `id`.
        video: path of its clip, relative to the folder of the records' file.
        observed: pool frames (1-based) that are shown with the question.
        hints: pool frames (1-based) of the future, one for each ``<image>`` in `response`.
        question: the question, with its options.
        response: the thoughts, with markers for the hints.
        answer: the final answer.
        **more: further fields.

    Returns:
        A record that JSON can hold.
    """
    frames = "".join(f"frame_{number}\n<image>\n" for number in observed)
    return {
        "id": identity,
        "video": video,
        "image": list(observed),
        "reasoning_image": list(hints),
        "conversations": [{"from": "human", "value": frames + question}, {"from": "gpt", "value": response}],
        "answer": answer,
        "cot": "",
        **more,
    }
