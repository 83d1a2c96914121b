"""TwiFF-Bench for lmms-eval; `docs/evaluation.md` has the rules.

``FUTUREL1_TWIFFBENCH`` names the Parquet file or folder. The judge is any OpenAI-compatible endpoint:
``FUTUREL1_JUDGE_URL`` (``http://localhost:8000/v1``; ``none``: no judge, and every sample counts as a failure),
``FUTUREL1_JUDGE_MODEL``, ``FUTUREL1_JUDGE_KEY_ENV`` (name of the variable that holds the key; default:
``OPENAI_API_KEY`` if that is set), ``FUTUREL1_JUDGE_CACHE`` (folder of verdicts). lmms-eval scores samples in
`--process_docs_parallel` threads, with one call per sample.
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from futurel1.data.benchmarks import image_values, parse_twiffbench
from futurel1.data.record_fields import RecordFields
from futurel1.data.samples import Frame, RawRecord, Sample
from futurel1.errors import ConfigError
from futurel1.image_formats import open_image
from futurel1.integrations.lmms_requests import picture_bytes
from futurel1.integrations.lmms_tasks import dataset_source, mean, total
from futurel1.metrics.functional import extract_answer, judged_scores, sanitize_response
from futurel1.rewards import Judge, ResponseItem

__all__ = ["doc_to_target", "doc_to_text", "doc_to_visual", "judge", "mean", "process_results", "total"]

RECORDS = "FUTUREL1_TWIFFBENCH"
URL, MODEL = "FUTUREL1_JUDGE_URL", "FUTUREL1_JUDGE_MODEL"
KEY_ENV, CACHE = "FUTUREL1_JUDGE_KEY_ENV", "FUTUREL1_JUDGE_CACHE"
_IMAGE_COLUMNS = ("question_images", "reasoning_images")


def __getattr__(name: str) -> Any:
    """Read values of `twiffbench.yaml` from the environment when the task is loaded, not when it is listed."""
    if name in ("DATASET_PATH", "DATASET_KWARGS"):
        judge()  # report wrong judge settings before hours of decoding
        return dict(zip(("DATASET_PATH", "DATASET_KWARGS"), dataset_source(RECORDS), strict=True))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def judge() -> Judge | None:
    """The judge configured by the environment; None for ``FUTUREL1_JUDGE_URL=none``.

    Raises:
        ConfigError: the address, the model or the key is missing.
    """
    url, model = os.environ.get(URL, "").strip(), os.environ.get(MODEL, "").strip()
    if url.lower() == "none":
        return None
    if not url or not model:
        raise ConfigError(
            f"TwiFF-Bench needs a judge: set {URL} and {MODEL}, or {URL}=none to leave every sample unscored"
        )
    key = os.environ.get(KEY_ENV) or ("OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None)
    return Judge(url, model, api_key_env=key, cache_dir=os.environ.get(CACHE) or None)


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """Images of the question."""
    frames = [part for part in _sample(doc).turns[-1].parts if isinstance(part, Frame)]
    images = [open_image(frame.path if frame.data is None else BytesIO(frame.data)) for frame in frames]
    for image in images:
        image.load()
    return list(images)


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The benchmark's instruction, a blank line, the question without image markers."""
    return str(_sample(doc).turns[-1].parts[-1])


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The reference answer."""
    return str(_sample(doc).info.answer)


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, float] | None]:
    """Ask the judge about one response.

    Args:
        doc: the record.
        results: the response, as the only item.

    Returns:
        ``cot``, ``answer`` and their mean ``average``, each 0-5, or None if the judge gave no verdict; ``failures``: 1
        in that case, else 0.

    Raises:
        JudgeError: the endpoint refuses the calls, or too many of them fail.
    """
    info = _sample(doc).info
    client = judge()
    value = None
    if client is not None:
        fields = _fields(_record(doc))
        item = ResponseItem(
            question=str(info.question),
            question_images=image_values(fields, "question_images"),
            reference_reasoning=str(info.reference_reasoning),
            reference_images=image_values(fields, "reasoning_images"),
            ground_truth=str(info.answer),
            reasoning=sanitize_response(results[0]),
            answer=extract_answer(results[0]),
        )
        verdict = client.score_responses([item])[0]
        value = None if verdict.failed else verdict.value
    scores = judged_scores(value)
    if scores is None:
        return {"cot": None, "answer": None, "average": None, "failures": {"score": 1.0}}
    cot, answer = scores
    values = {"cot": float(cot), "answer": float(answer), "average": (cot + answer) / 2, "failures": 0.0}
    return {name: {"score": number} for name, number in values.items()}


def _record(doc: Mapping[str, Any]) -> RawRecord:
    """Rebuild the stored record: `datasets` has opened embedded images if its schema declares them as images."""
    raw = dict(doc)
    for column in _IMAGE_COLUMNS:
        raw[column] = [
            picture_bytes(value) if isinstance(value, Image.Image) else value for value in raw.get(column) or ()
        ]
    path = Path(os.environ.get(RECORDS) or ".").expanduser().absolute()
    # lmms-eval does not tell which record of the file a document is, so messages name its id.
    return RawRecord(
        raw, file=path, number=0, folder=path if path.is_dir() else path.parent, name=f"TwiFF-Bench id {doc.get('id')}"
    )


def _fields(record: RawRecord) -> RecordFields:
    return RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder)


def _sample(doc: Mapping[str, Any]) -> Sample:
    return parse_twiffbench(_record(doc))
