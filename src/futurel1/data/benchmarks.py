"""Parse benchmark records into prompts, one parser per benchmark, and read the images that a judge is shown."""

import re
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path

from futurel1.data.record_fields import RecordFields
from futurel1.data.records import open_records
from futurel1.data.remote import is_there
from futurel1.data.samples import PromptInfo, RawRecord, Sample, StoredImages, Turn, Video
from futurel1.errors import BatchError, MissingFileError, RecordError

__all__ = ["image_values", "parse_futurebench", "parse_twiffbench", "read_images", "twiffbench_instruction"]

_REASONING_FIELDS = ("reasoning", "cot")
_INLINE_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)


# ------------------------------------------------------------------------------------------------- FutureBench


def parse_futurebench(record: RawRecord, *, video_root: Path | None = None, data_root: Path | None = None) -> Sample:
    """Turn a FutureBench record into a prompt: its video, then the text of the reference harness.

    Args:
        record: the record as stored.
        video_root: folder to which `video_path` is relative; None: the folder of the record's file.
        data_root: if given, videos outside this folder are refused.

    Raises:
        RecordError: a field is missing or wrong.
        RecordFileError: the video is missing.
    """
    from futurel1.metrics.functional import FUTUREBENCH_SPLITS, OPTION_LETTERS, futurebench_prompt, gold_option

    folder = record.folder if video_root is None else video_root
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=folder, data_root=data_root)
    fields.refuse_misspelt({"qa", "question_type", "video_path", "system"})
    split = fields.text("question_type")
    if split not in FUTUREBENCH_SPLITS:
        fields.fail(
            "question_type", split, "not a split of FutureBench", f"write one of {', '.join(FUTUREBENCH_SPLITS)}"
        )
    qa = fields.take("qa")
    if not isinstance(qa, Mapping):
        fields.fail("qa", qa, "not an object", "write {Question, Options, Answer}")
    question = fields.check_text("qa.Question", qa.get("Question"))
    options = qa.get("Options")
    if not isinstance(options, Mapping):
        fields.fail("qa.Options", options, "not an object", "write {A, B, C, D}, each with its text")
    for letter in OPTION_LETTERS:
        fields.check_text(f"qa.Options.{letter}", options.get(letter))
    try:
        answer = gold_option(fields.check_text("qa.Answer", qa.get("Answer")))
    except BatchError:
        fields.fail("qa.Answer", qa["Answer"], "not the letter of an option", "write A, B, C or D")
    info = PromptInfo(
        id=fields.identity(),
        question=question,
        answer=answer,
        options={letter: options[letter] for letter in OPTION_LETTERS},
        split=split,
    )
    video = Video(fields.media_path("video_path", fields.take("video_path")), "video_path")
    asked = Turn("user", (video, futurebench_prompt(qa)), field="qa")
    return Sample(fields.id, (*fields.system_turns(), asked), None, {}, info, "FutureBench")


# ------------------------------------------------------------------------------------------------- TwiFF-Bench


@lru_cache(maxsize=1)
def twiffbench_instruction() -> str:
    """The benchmark's instruction, placed between the images and the question (paper, Fig. 11)."""
    return (files("futurel1.data") / "templates" / "twiffbench.txt").read_text(encoding="utf-8").strip()


def parse_twiffbench(record: RawRecord, *, data_root: Path | None = None) -> Sample:
    """Turn a TwiFF-Bench record into a prompt: all images, the instruction, a blank line, the question.

    If `answer` also carries the reasoning, as in TwiFF-2.7M, the text in ``<ans>..</ans>`` is the answer and the rest
    is the reference reasoning.

    Args:
        record: the record as stored.
        data_root: if given, images outside this folder are refused; embedded ones have no path.

    Raises:
        RecordError: a field is missing or wrong, or a text has image markers but not one per image.
        RecordFileError: an image that is not embedded is missing.
    """
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder, data_root=data_root)
    fields.refuse_misspelt({"question", "answer", *_REASONING_FIELDS, "question_images", "reasoning_images", "system"})
    question = fields.text("question")
    shown = fields.images("question_images", "question image")
    if not shown:
        fields.fail("question_images", fields.values.get("question_images"), "no image", "embed at least one")
    _check_markers(fields, "question", question, "<image>", len(shown))
    text = question.replace("<image>", "").strip()
    if not text:
        fields.fail("question", question, "empty question", "write it after the markers")
    reasoning, answer = _reasoning_and_answer(fields)
    if "<rimage>" not in reasoning:
        reasoning = reasoning.replace("<image>", "<rimage>")
    _check_markers(fields, "reasoning_images", reasoning, "<rimage>", len(fields.images("reasoning_images")))
    stored = partial(StoredImages, str(record.file.absolute()), record.number)
    info = PromptInfo(
        id=fields.identity(),
        question=question,
        answer=answer,
        reference_reasoning=reasoning,
        question_images=stored("question_images"),
        reference_images=stored("reasoning_images"),
    )
    asked = Turn("user", (*shown, f"{twiffbench_instruction()}\n\n{text}"), field="question")
    return Sample(fields.id, (*fields.system_turns(), asked), None, {}, info, "TwiFF-Bench")


def _reasoning_and_answer(fields: RecordFields) -> tuple[str, str]:
    """Return the reference reasoning and the ground truth, from separate columns or both from `answer`."""
    answer = fields.text("answer")
    inline = _INLINE_ANSWER.search(answer)
    column = next((name for name in _REASONING_FIELDS if fields.values.get(name)), None)
    if column is not None:
        return fields.text(column), inline[1].strip() if inline else answer
    if inline is None:
        fields.fail(
            _REASONING_FIELDS[0],
            None,
            f"no reference reasoning, the record has {', '.join(fields.keys)}",
            f"the judge compares with it: name its column {' or '.join(_REASONING_FIELDS)}",
        )
    reasoning = _INLINE_ANSWER.sub("", answer).strip()
    return fields.check_text("answer (without <ans>)", reasoning), inline[1].strip()


def _check_markers(fields: RecordFields, field: str, text: str, marker: str, number: int) -> None:
    found = text.count(marker)
    if found not in (0, number):
        fields.fail(field, text, f"{found} {marker} markers for {number} images", "write one for each, or none")


# ------------------------------------------------------------------------------------------------- images


def image_values(fields: RecordFields, column: str) -> list[bytes | Path]:
    """Images in a column of a record: embedded bytes or file paths.

    Args:
        fields: the record.
        column: a list of bytes, of ``{"bytes", "path"}`` (the images of `datasets`), or of paths.

    Raises:
        RecordError: the column is not such a list, or an image is empty.
        RecordFileError: an image file is missing.
    """
    return [frame.path if frame.data is None else frame.data for frame in fields.images(column)]


def read_images(stored: StoredImages | None) -> list[bytes | Path]:
    """Read the images of a prompt back from the file of its record.

    Args:
        stored: where the images are: `question_images` or `reference_images` of a prompt's `info`.

    Returns:
        For each image, the bytes of an image file or the path of one.

    Raises:
        BatchError: `stored` is None: the prompt's record has no such images.
        MissingFileError: the file no longer exists.
        RecordError: the file has changed and no longer holds this record.
    """
    if stored is None:
        raise BatchError(
            "a prompt without stored images: the judge of TwiFF-Bench needs prompts of TwiFFBenchDataModule"
        )
    file = Path(stored.file)
    if not is_there(file):
        raise MissingFileError(f"{file}: the file has gone since its prompts were made; put it back")
    source = open_records([file])
    if not 1 <= stored.record <= len(source):
        raise RecordError(
            f"{file}: record {stored.record} of {len(source)}; the file has changed since its prompts were made"
        )
    record = source.raw(stored.record - 1)
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder)
    return image_values(fields, stored.column)
