"""Prompts for reinforcement learning: from RL records, training records and FutureBench records, also in one file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from futurel1.data.prompts import image_values, parse_futurebench, parse_prompt
from futurel1.data.records import Frame, Part, RawRecord, RecordFields, Sample, Turn, Video, is_unlabelled
from futurel1.errors import RecordError

__all__ = ["parse_rl_prompt"]

MULTIPLE_CHOICE = "multiple choice"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TRAINING_FIELDS = ("messages", "conversations", "question_images_index", "reasoning_images_index")
_SHAPES = (
    "an RL record (problem, answer, videos or images, problem_type), a training record (conversations, messages or "
    "question_images_index) or a FutureBench record (question_type, qa, video_path)"
)
_MARKER = re.compile(r"(<video>|<image>)")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ANSWER_TAG = re.compile(r"</?answer>")
_ONLY_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_LABEL = re.compile(r"\s*\(?([A-Z])[.):]\s*(?=\S)")


def parse_rl_prompt(record: RawRecord, *, data_root: Path | None = None) -> Sample:
    """Turn a record of any kind that rollouts can start from into a prompt.

    Three kinds are told apart by their fields: RL records (``problem``), FutureBench records (``qa``), and the four
    labelled shapes of training records, of which the observed frames and the question are asked. A file may mix them.

    Args:
        record: the record as stored.
        data_root: if given, media outside this folder are refused.

    Returns:
        The turns before the response. Its `meta` holds at least ``question``, ``answer`` (the ground truth without
        tags; of an RL record with options, the letter), ``options`` (letter to text, or None), ``question_type`` (or
        None) and ``reference_length`` (tokens of a reference response, or None).

    Raises:
        RecordError: the record cannot be used, is of no or of two kinds, or is an unlabelled video.
        RecordFileError: a media file is missing.
    """
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder, data_root=data_root)
    kinds = [name for name in ("problem", "qa", *_TRAINING_FIELDS) if name in fields.values]
    if not kinds and is_unlabelled(fields):
        fields.fail(
            "video",
            fields.values["video"],
            "a video without a question, so there is nothing to answer",
            "add 'conversations' and 'answer', or keep it for supervised training",
        )
    if not kinds:
        keys = ", ".join(sorted(fields.values)) or "none"
        raise RecordError(f"{fields.place}: unknown shape, its keys are: {keys}; write it as {_SHAPES}")
    if len(kinds) > 1 and not set(kinds) <= set(_TRAINING_FIELDS):
        raise RecordError(
            f"{fields.place}: '{kinds[0]}' and '{kinds[1]}' belong to different kinds of record; write it as {_SHAPES}"
        )
    if kinds[0] == "problem":
        sample = _parse_problem(fields)
    elif kinds[0] == "qa":
        sample = parse_futurebench(record, data_root=data_root)
        sample = replace(sample, meta={**sample.meta, "question_type": sample.meta["split"]})
    else:
        sample = parse_prompt(record, data_root=data_root)
        meta = {"answer": _without_tags(fields, str(sample.meta["answer"])), "options": _options(fields)}
        sample = replace(sample, meta={**sample.meta, **meta})
    return replace(sample, meta={**sample.meta, "reference_length": _reference_length(fields)})


def _parse_problem(fields: RecordFields) -> Sample:
    """Parse an RL record."""
    problem = fields.text("problem")
    if not _MARKER.sub("", problem).strip():
        fields.fail("problem", problem, "empty question", "write the question beside the markers or drop the record")
    options = _options(fields)
    question_type = _problem_type(fields, options)
    answer = _without_tags(fields, fields.text("answer"))
    if options is not None and not _carries(problem, options):
        problem += "".join(f"\n{letter}. {text}" for letter, text in options.items())
    question = _MARKER.sub("", problem).strip()
    if question_type == MULTIPLE_CHOICE:
        from futurel1.metrics.functional.futurebench import INSTRUCTION

        answer = _letter(fields, answer, options)
        if INSTRUCTION not in problem:
            problem += f"\n{INSTRUCTION}"
    meta = {
        "id": _identity(fields),
        "question": question,
        "answer": answer,
        "options": options,
        "question_type": question_type,
    }
    return Sample(fields.id, (Turn("user", _with_media(fields, problem)),), None, meta)


def _with_media(fields: RecordFields, problem: str) -> tuple[Part, ...]:
    """The parts of the user's turn: media in the place of their markers or, where there are none, before the text."""
    videos: list[Part] = [Video(path) for path in fields.media_paths("videos")]
    images: list[Part] = [
        Frame(Path(f"{fields.place}, image {number}"), None, image) if isinstance(image, bytes) else Frame(image, None)
        for number, image in enumerate(image_values(fields, "images"), 1)
    ]
    if not videos and not images:
        fields.fail("videos", fields.values.get("videos"), "no video and no image", "list files in videos or images")
    if not _MARKER.search(problem):
        return (*videos, *images, problem)
    supply: dict[str, Iterator[Part]] = {}
    for marker, field, media in (("<video>", "videos", videos), ("<image>", "images", images)):
        found = problem.count(marker)
        if found != len(media):
            fields.fail(
                field,
                fields.values.get(field),
                f"{len(media)} given, but the problem has {found} {marker} markers",
                f"write one {marker} for each, or no marker at all to put the media before the text",
            )
        supply[marker] = iter(media)
    pieces = _MARKER.split(problem)
    return tuple(next(supply[piece]) if piece in supply else piece for piece in pieces if piece)


def _problem_type(fields: RecordFields, options: Mapping[str, str] | None) -> str | None:
    """The kind of question as written, but one spelling of `multiple choice`, which options alone imply too."""
    if fields.values.get("problem_type") is None:
        return None if options is None else MULTIPLE_CHOICE
    written = fields.text("problem_type")
    if re.sub(r"[\s_-]+", " ", written).casefold() == MULTIPLE_CHOICE:
        return MULTIPLE_CHOICE
    if options is not None:
        fields.fail(
            "problem_type",
            written,
            "a record with options of another type",
            f"write '{MULTIPLE_CHOICE}', or leave the options out",
        )
    return written


def _options(fields: RecordFields) -> dict[str, str] | None:
    """Letter to text: `options` is that, or a list of texts in the order of letters, each with its label or without."""
    value = fields.take("options")
    # Parquet gives every row the keys of all rows, and writers keep empty lists for questions without options.
    if isinstance(value, Mapping):
        options = {letter: text for letter, text in value.items() if text is not None}
    elif isinstance(value, list | tuple):
        options = dict(zip(LETTERS, value, strict=False))
        if len(value) > len(LETTERS):
            fields.fail("options", value, f"{len(value)} options", f"write at most {len(LETTERS)}")
        for letter, text in options.items():
            label = _LABEL.match(fields.check_text(f"options.{letter}", text))
            if label and label[1] == letter:
                options[letter] = text[label.end() :]
    elif value is not None:
        fields.fail("options", value, "neither an object nor a list", "write {A: text, B: text}")
    else:
        options = {}
    for letter, text in options.items():
        if letter not in list(LETTERS):
            fields.fail("options", value, f"'{letter}' is not a letter", "name the options A, B, C and so on")
        fields.check_text(f"options.{letter}", text)
    return {letter: text.strip() for letter, text in options.items()} or None


def _carries(problem: str, options: Mapping[str, str]) -> bool:
    """Whether the problem lists the options itself."""
    return all(re.search(rf"(?<!\w)\(?{letter}[.):]", problem) for letter in options)


def _without_tags(fields: RecordFields, answer: str) -> str:
    """A ground truth, bare or in one pair of answer tags, without them."""
    found = _ANSWER.fullmatch(answer.strip())
    bare = found[1] if found else answer
    if _ANSWER_TAG.search(bare):
        fields.fail("answer", answer, "not one pair of answer tags around the whole of it", "write <answer>B</answer>")
    return fields.check_text("answer", bare).strip()


def _letter(fields: RecordFields, answer: str, options: Mapping[str, str] | None) -> str:
    """The letter that a multiple-choice ground truth means: itself, the label before a text, or an option's text."""
    found = _ONLY_LETTER.fullmatch(answer) or _LABEL.match(answer)
    letter = found[1].upper() if found else None
    if options is not None and letter is None:
        texts = {text.casefold(): letter for letter, text in options.items()}
        letter = texts.get(answer.casefold())
    if letter is None or (options is not None and letter not in options):
        choices = "A, B, C and so on" if options is None else ", ".join(options)
        fields.fail("answer", fields.values["answer"], "not the letter of an option", f"write one of {choices}")
    return letter


def _reference_length(fields: RecordFields) -> int | None:
    length = fields.take("reference_length")
    # bool is an int to isinstance
    if length is not None and (type(length) is not int or length < 1):
        fields.fail("reference_length", length, "not a number of tokens", "write an integer from 1, or leave it out")
    return length


def _identity(fields: RecordFields) -> str | int | None:
    value: Any = fields.take("id")
    if value is not None and type(value) not in (str, int):
        fields.fail("id", value, f"{type(value).__name__} where a text or a number is expected", "write a text")
    return value  # type: ignore[no-any-return]
