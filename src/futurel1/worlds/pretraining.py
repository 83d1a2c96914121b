"""Pretraining records of a tiny backbone, about clips of any world with zones.

Every record asks only about frames that it shows. Imagining is the exception; it is learned from video, as the next
frames of a clip and as descriptions of imagined frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from futurel1.data.frames import POOL_SIZE
from futurel1.worlds.clips import frame_record
from futurel1.worlds.episodes import QuestionEpisode
from futurel1.worlds.look import in_steps
from futurel1.worlds.questions import HOPS, INTERPOLATION, OBSERVED

__all__ = ["pretraining_records"]

WINDOW = 2  # frames in a description
IMAGINED = tuple(OBSERVED[-1] + step for step in HOPS if step != INTERPOLATION)  # pool frames, 1-based, and steps
WATCHED = 2  # observed frames, enough to reveal speeds
ANSWERS = 4  # seed of the `answer` questions, in addition to the number of the clip


def pretraining_records(episode: QuestionEpisode, video: str) -> dict[str, dict[str, Any]]:
    """Records of one clip, one per kind.

    Args:
        episode: the clip, with a question about it.
        video: path of its clip, relative to the folder of the records' file.

    Returns:
        By kind: ``describe``: two consecutive frames, each described by a caption in the words of thoughts about zones;
        ``imagine``: an unlabelled video, three frames to imagine after four; ``watch``: the same with all remaining
        frames after two; ``tell``: one to three frames to imagine after four, as many as the question says, with
        captions of the last observed frame and of each imagined one; the last caption is also the answer, and half of
        the questions list zones as options; ``answer``: a question about where a shape is, or was when another one
        arrived somewhere, with those frames in view.
    """
    first = 1 + episode.number % (POOL_SIZE - WINDOW + 1)
    window = range(first, first + WINDOW)
    ahead = IMAGINED[: 1 + episode.number % len(IMAGINED)]
    thoughts = " <image>\n".join(episode.caption(step) for step in (OBSERVED[-1], *ahead))
    shown = episode.about_what_is_shown(np.random.default_rng((episode.number, ANSWERS)))
    listed = shown.listed_options if episode.number // len(IMAGINED) % 2 else ""
    return {
        "describe": _record(
            episode, "describe", video, window, "Describe the frames.", "",
            "; ".join(episode.caption(step) for step in window),
        ),
        "imagine": {
            "id": f"{episode.id}-imagine",
            "video": video,
            "image": list(OBSERVED),
            "reasoning_image": list(IMAGINED),
        },
        "watch": {
            "id": f"{episode.id}-watch",
            "video": video,
            "image": list(range(1, WATCHED + 1)),
            "reasoning_image": list(range(WATCHED + 1, POOL_SIZE + 1)),
        },
        "tell": _record(
            episode, "tell", video, OBSERVED, f"Imagine the zones after {in_steps(len(ahead))}." + listed, thoughts,
            episode.caption(ahead[-1]), ahead,
        ),
        "answer": _record(
            episode, "answer", video, [*OBSERVED, *shown.asked.hints], shown.question + shown.listed_options,
            "\n".join(shown.thoughts if shown.asked.hop == INTERPOLATION else shown.thoughts[-1:]),
            shown.options[shown.answer],
        ),
    }  # fmt: skip


def _record(
    episode: QuestionEpisode, kind: str, video: str, shown: Iterable[int], question: str, response: str, answer: str,
    hints: Iterable[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """A frame-indexed record of a kind."""
    return frame_record(
        f"{episode.id}-{kind}",
        video,
        observed=list(shown),
        hints=list(hints),
        question=question,
        response=response,
        answer=answer,
        question_type=kind,
    )
