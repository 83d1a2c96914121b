"""What worlds have in common: splits, episodes by number, clips to write and the shape of their records.

`World` is all that the writer (`futurel1.worlds.writing`) knows of a world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError

__all__ = [
    "OBSERVED_FOLDER",
    "SPLITS",
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

Split = Literal["train", "test", "rl", "pretrain"]

SPLITS: tuple[Split, ...] = ("train", "test", "rl", "pretrain")  # the position is the split's number in the seed
VIDEO_FOLDER, OBSERVED_FOLDER = "videos", "observed"


@dataclass(frozen=True)
class Clip:
    """A clip of a world with all that is recorded of it.

    Args:
        id: its name, such as `train-00012`; `video_of` and `observed_of` tell where its files are.
        video: renders its (N, H, W, 3) RGB frames; called when the file is not there yet.
        records: its records, by the name of the file that they belong to.
        observed: renders the observed frames alone, for benchmarks that show a video whole; None for none.
    """

    id: str
    video: Callable[[], NDArray[np.uint8]]
    records: Mapping[str, dict[str, Any]]
    observed: Callable[[], NDArray[np.uint8]] | None = None


class World(Protocol):
    """What the writer knows of a world; constructors refuse settings that cannot work, before anything is written."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that it has."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that its clips depend on, as JSON can hold it; a folder with clips of other settings is refused."""

    def record_files(self, split: Split) -> tuple[str, ...]:
        """Names of the files of a split's records; all are written, also where there is no clip."""

    def clips(self, split: Split, count: int) -> Iterator[Clip]:
        """The first clips of a split; they do not depend on how many are asked for."""


def check_seed(seed: int) -> None:
    """Refuse the seed of a world that is below 0.

    Raises:
        ConfigError: it is.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed}: seeds count from 0")


def check_episode(split: str, number: int, seed: int) -> None:
    """Refuse what names no episode.

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
    """Path of the video of a clip's observed frames alone, relative to the world's folder."""
    return f"{OBSERVED_FOLDER}/{clip}.mp4"


def thoughts_text(thoughts: Sequence[str]) -> str:
    """Numbered thoughts with a hint between each and the next."""
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
        question: what is asked, with its options.
        response: thoughts and hints.
        answer: what is answered after them.
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
