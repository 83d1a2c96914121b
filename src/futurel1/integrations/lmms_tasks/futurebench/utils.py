"""FutureBench for lmms-eval; `docs/evaluation.md` has the rules.

``FUTUREL1_FUTUREBENCH`` names the records, ``FUTUREL1_FUTUREBENCH_VIDEOS`` the folder of the videos (default: the
folder of the records). Responses need their ``<answer>`` tags: the model's `response` must not be ``answer``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from futurel1.errors import MissingFileError, RecordError
from futurel1.integrations.lmms_tasks import dataset_file, dataset_source, mean, total
from futurel1.metrics.functional import (
    FUTUREBENCH_SPLITS,
    ExtractionProtocol,
    extract_option,
    futurebench_prompt,
    gold_option,
)

__all__ = ["doc_to_target", "doc_to_text", "doc_to_visual", "mean", "process_results", "total"]

RECORDS, VIDEOS = "FUTUREL1_FUTUREBENCH", "FUTUREL1_FUTUREBENCH_VIDEOS"
PROTOCOLS: tuple[ExtractionProtocol, ...] = ("paper", "strict")


def __getattr__(name: str) -> Any:
    """Read values of `futurebench.yaml` from the environment when the task is loaded, not when it is listed."""
    if name in ("DATASET_PATH", "DATASET_KWARGS"):
        return dict(zip(("DATASET_PATH", "DATASET_KWARGS"), dataset_source(RECORDS), strict=True))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """Path of the record's video.

    Raises:
        MissingFileError: there is no such video.
    """
    folder = os.environ.get(VIDEOS, "").strip()
    if folder:
        root = Path(folder).expanduser()
    else:
        records = dataset_file(RECORDS)
        root = records if records.is_dir() else records.parent
    video = root / str(doc["video_path"])
    if not video.is_file():
        raise MissingFileError(f"FutureBench record {doc.get('id')}: there is no video {video}; set {VIDEOS}")
    return [str(video)]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question with its options, as the reference harness asks it."""
    return futurebench_prompt(doc["qa"])


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """Letter of the right option."""
    return gold_option(doc["qa"]["Answer"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, float] | None]:
    """Score one response in percent, under both protocols.

    Args:
        doc: the record.
        results: the response, as the only item.

    Returns:
        For ``paper`` and ``strict``: ``{protocol}_accuracy``, ``{protocol}_{split}`` for every split (None except for
        the record's own), and ``{protocol}_unanswered``: 1 if no option could be read, which also counts as wrong.

    Raises:
        RecordError: an unknown split.
    """
    split, qa = doc["question_type"], doc["qa"]
    if split not in FUTUREBENCH_SPLITS:
        raise RecordError(
            f"FutureBench record {doc.get('id')}: question_type {split!r} is none of {', '.join(FUTUREBENCH_SPLITS)}"
        )
    gold, options = gold_option(qa["Answer"]), qa.get("Options") or {}
    scores: dict[str, dict[str, float] | None] = {}
    for protocol in PROTOCOLS:
        chosen = extract_option(results[0], protocol, {key: text for key, text in options.items() if text is not None})
        correct = 100.0 * (chosen == gold)
        scores[f"{protocol}_accuracy"] = {"score": correct}
        scores |= {f"{protocol}_{name}": {"score": correct} if name == split else None for name in FUTUREBENCH_SPLITS}
        scores[f"{protocol}_unanswered"] = {"score": float(not chosen)}
    return scores
