"""Prompts for reinforcement learning, from RL, training and FutureBench records; one file may mix them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from futurel1.data.benchmarks import parse_futurebench
from futurel1.data.multiple_choice import gold_letter, lists_options, read_options
from futurel1.data.prompts import parse_prompt
from futurel1.data.record_fields import RecordFields
from futurel1.data.record_shapes import TRAINING_FIELDS, is_unlabelled
from futurel1.data.samples import Part, PromptInfo, RawRecord, Sample, Turn
from futurel1.errors import RecordError

__all__ = ["parse_rl_prompt"]

MULTIPLE_CHOICE = "multiple choice"
MOST_TOKENS = 2**31
"""Upper limit of `reference_length`; no response is longer."""

_TRAINING_FIELDS = ("messages", "conversations", "question_images_index", "reasoning_images_index")
_SHAPES = (
    "an RL record (problem, answer, videos or images, problem_type), a training record (conversations, messages or "
    "question_images_index) or a FutureBench record (question_type, qa, video_path)"
)
_MARKER = re.compile(r"(<video>|<image>)")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ANSWER_TAG = re.compile(r"</?answer>")
_PROBLEM_FIELDS = frozenset(
    {"problem", "answer", "videos", "images", "problem_type", "options", "reference_length", "system"}
)


def parse_rl_prompt(record: RawRecord, *, data_root: Path | None = None) -> Sample:
    """Turn a record of any kind that rollouts can start from into a prompt.

    The record's fields determine its kind: an RL record (``problem``), a FutureBench record (``qa``), or one of the
    four labelled shapes of training records, whose observed frames and question become the prompt. A file may mix them.

    Args:
        record: the record as stored.
        data_root: if given, media outside this folder are refused.

    Returns:
        The turns before the response. `info` holds at least ``question`` and ``answer`` (the ground truth without
        tags; for a multiple-choice RL record, the letter), and ``options``, ``question_type`` and
        ``reference_length`` if the record has them.

    Raises:
        RecordError: the record cannot be used, is of no kind or of two, or is an unlabelled video.
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
        fields.fail_shape(_SHAPES, {*_PROBLEM_FIELDS, *TRAINING_FIELDS, "qa"})
    if len(kinds) > 1 and not set(kinds) <= set(_TRAINING_FIELDS):
        raise RecordError(
            f"{fields.place}: '{kinds[0]}' and '{kinds[1]}' belong to different kinds of record; write it as {_SHAPES}"
        )
    if kinds[0] == "problem":
        sample = _parse_problem(fields)
    elif kinds[0] == "qa":
        sample = parse_futurebench(record, data_root=data_root)
        sample = replace(sample, info=replace(sample.info, question_type=sample.info.split))
    else:
        sample = parse_prompt(record, data_root=data_root)
        answer = _without_tags(fields, str(sample.info.answer))
        sample = replace(sample, info=replace(sample.info, answer=answer))
    return replace(sample, info=replace(sample.info, reference_length=_reference_length(fields)))


def _parse_problem(fields: RecordFields) -> Sample:
    """Parse an RL record."""
    fields.refuse_misspelt(_PROBLEM_FIELDS)
    problem = fields.text("problem")
    if not _MARKER.sub("", problem).strip():
        fields.fail("problem", problem, "empty question", "write the question beside the markers or drop the record")
    options = read_options(fields)
    question_type = _problem_type(fields, options)
    answer = _without_tags(fields, fields.text("answer"))
    if options is not None and not lists_options(problem, options):
        problem += "".join(f"\n{letter}. {text}" for letter, text in options.items())
    question = _MARKER.sub("", problem).strip()
    if question_type == MULTIPLE_CHOICE:
        from futurel1.metrics.functional.futurebench import INSTRUCTION

        answer = gold_letter(fields, answer, options, problem)
        if INSTRUCTION not in problem:
            problem += f"\n{INSTRUCTION}"
    info = PromptInfo(
        id=fields.identity(), question=question, answer=answer, options=options, question_type=question_type
    )
    asked = Turn("user", _with_media(fields, problem), field="problem")
    return Sample(fields.id, (*fields.system_turns(), asked), None, {}, info)


def _with_media(fields: RecordFields, problem: str) -> tuple[Part, ...]:
    """The parts of the user's turn: media in place of their markers or, without markers, before the text."""
    videos: list[Part] = [*fields.videos("videos")]
    images: list[Part] = [*fields.images("images")]
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
    """The question type as written, with one spelling for `multiple choice`, which options also imply."""
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


def _without_tags(fields: RecordFields, answer: str) -> str:
    """Return a ground truth without its answer tags; it may have one pair around the whole text, or none."""
    found = _ANSWER.fullmatch(answer.strip())
    bare = found[1] if found else answer
    if _ANSWER_TAG.search(bare):
        fields.fail("answer", answer, "not one pair of answer tags around the whole of it", "write <answer>B</answer>")
    return fields.check_text("answer", bare).strip()


def _reference_length(fields: RecordFields) -> int | None:
    length = fields.take("reference_length")
    # bool is an int to isinstance
    if length is not None and (type(length) is not int or not 1 <= length < MOST_TOKENS):
        fields.fail("reference_length", length, "not a number of tokens", "write an integer from 1, or leave it out")
    return length
