"""Parse raw records of any shape into samples, checking each field.

Five shapes are supported: frame-indexed (TwiFF style), upstream TwiFF-2.7M, path-based, chat (including ShareGPT's
form) and unlabelled video. `docs/data.md` describes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from futurel1.data.record_fields import TRAINING_SHAPES, RecordFields, quoted
from futurel1.data.record_turns import CHAT_MARKER, MARKER, Said, check_question, turns_of
from futurel1.data.samples import Frame, Part, Sample, Turn, Video

__all__ = ["IMAGINE_NEXT", "TRAINING_FIELDS", "is_unlabelled", "parse_record"]

IMAGINE_NEXT = "Imagine what comes next."
"""The user's text after the observed frames of an unlabelled video."""
_CHAT_FIELDS = frozenset({"messages", "videos", "images", "system"})
_INDEXED_FIELDS = frozenset({"video", "image", "reasoning_image", "conversations", "answer", "system"})
_PATH_FIELDS = _INDEXED_FIELDS | {"videos", "images"}
_UPSTREAM_FIELDS = frozenset(
    {"video", "question", "answer", "question_images_index", "reasoning_images_index", "cot", "reasoning", "system"}
)
_UNLABELLED_FIELDS = _INDEXED_FIELDS | {"messages", "question"}
TRAINING_FIELDS = _CHAT_FIELDS | _PATH_FIELDS | _UPSTREAM_FIELDS
"""Fields of records of all shapes."""
_THOUGHT_PREFIX = re.compile(r"\bTHOUGHT\s+\d+\s*:\s*")
_INLINE_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)


def parse_record(
    raw: Mapping[str, Any],
    *,
    file: str,
    number: int,
    folder: Path,
    data_root: Path | None = None,
    check_files: bool = True,
) -> Sample:
    """Turn a raw record of any of the five shapes into a `Sample`.

    A record's `system` field becomes its system turn, verbatim.

    Args:
        raw: the record's fields; a field that is null counts as absent.
        file: name of the file the record comes from, for the id and messages.
        number: 1-based number of the record in that file.
        folder: folder against which relative media paths resolve.
        data_root: if given, media outside this folder are refused, also if a link leads there.
        check_files: whether media files have to exist.

    Returns:
        The sample; its id is `<file>:<number>`.

    Raises:
        RecordError: the record cannot be used.
        RecordFileError: a media file is missing; also a `MissingFileError`.
    """
    fields = RecordFields(raw, file=file, number=number, folder=folder, data_root=data_root, check_files=check_files)
    system = fields.system_turns()
    fields.identity()
    fields.used.discard("id")  # it stays in `meta`
    if "messages" in fields.values:
        fields.refuse_misspelt(_CHAT_FIELDS)
        sample = _parse_chat(fields, "messages", turns_of(fields, "messages"))
    elif "conversations" in fields.values:
        sample = _parse_conversations(fields)
    elif fields.values.keys() & {"question_images_index", "reasoning_images_index"}:
        sample = _parse_upstream(fields)
    elif is_unlabelled(fields):
        sample = _parse_unlabelled(fields)
    else:
        fields.fail_shape(TRAINING_SHAPES, TRAINING_FIELDS)
    return _with_system(fields, sample, system)


def _with_system(fields: RecordFields, sample: Sample, system: tuple[Turn, ...]) -> Sample:
    """Put the turn of the field `system` first; if the conversation has a system turn too, the texts must agree."""
    if not system:
        return sample
    text = str(system[0].parts[0])
    stated = ["".join(map(str, turn.parts)).strip() for turn in sample.turns if turn.role == "system"]
    # compare without outer blanks, because the hinted shapes strip their turns
    if stated and stated != [text.strip()]:
        fields.fail("system", text, f"the record has another system turn, {quoted(stated[0])}", "keep one of them")
    return replace(sample, turns=(*system, *(turn for turn in sample.turns if turn.role != "system")))


def is_unlabelled(fields: RecordFields) -> bool:
    """Whether a record without the fields of a labelled shape lists frames of a video."""
    return "video" in fields.values and bool(fields.values.keys() & {"image", "reasoning_image"})


def _parse_conversations(fields: RecordFields) -> Sample:
    """Parse the frame-indexed shape (with `video`), the path-based one (without), and ShareGPT's form of chats."""
    fields.refuse_misspelt(_INDEXED_FIELDS if "video" in fields.values else _PATH_FIELDS)
    turns = turns_of(fields, "conversations")
    columns = fields.values.keys() & {"videos", "images"}
    hinted = fields.values.keys() & {"video", "image", "reasoning_image", "answer"}
    if columns and not hinted and not any("<ans>" in turn.text for turn in turns):
        return _parse_chat(fields, "conversations", turns)
    videos: list[Video] = []
    image_field = "image"
    if "video" in fields.values:
        video = fields.media_path("video", fields.take("video"))
        observed_indices, hint_indices = fields.pool_indices("image"), fields.pool_indices("reasoning_image")
        _check_order(fields, "image", observed_indices, "reasoning_image", hint_indices)
        observed = [Frame(video, index, field="video") for index in observed_indices]
        hints = [Frame(video, index, field="video") for index in hint_indices]
    else:
        for field in ("image", "reasoning_image"):
            for value in fields.sequence(field):
                if isinstance(value, int | float):
                    fields.fail(
                        field,
                        fields.values[field],
                        f"{quoted(value)} is a frame index, but the record has no 'video'",
                        "add 'video', or list image files",
                    )
        if "image" in fields.values:
            observed = _image_files(fields, "image")
        else:
            image_field = "images" if "images" in fields.values else "image"
            observed = fields.images(image_field)
        videos = fields.videos("videos")
        hints = _image_files(fields, "reasoning_image")
    _check_stray_markers(fields, "conversations", turns, videos=bool(videos))
    if not observed and not videos:
        fields.fail("image", fields.values.get("image"), "no observed frame", "list at least one")
    shown: dict[str, tuple[str, Sequence[Part]]] = {"<image>": (image_field, observed)}
    if videos:
        shown["<video>"] = ("videos", videos)
    return _hinted_sample(fields, "conversations", turns, shown, "reasoning_image", hints)


def _image_files(fields: RecordFields, field: str) -> list[Frame]:
    return [Frame(fields.media_path(field, value), None, field=field) for value in fields.sequence(field)]


def _parse_upstream(fields: RecordFields) -> Sample:
    """Parse the shape of TwiFF-2.7M.

    `answer` carries the reasoning with the final answer inline as `<ans>..</ans>` (as in TwiFF's published
    conversion); if the reasoning is in a field `cot` or `reasoning`, `answer` may be the bare final answer.
    """
    fields.refuse_misspelt(_UPSTREAM_FIELDS)
    video = fields.media_path("video", fields.take("video"))
    observed_indices = fields.pool_indices("question_images_index")
    hint_indices = fields.pool_indices("reasoning_images_index")
    _check_order(fields, "question_images_index", observed_indices, "reasoning_images_index", hint_indices)
    if not observed_indices:
        value = fields.values.get("question_images_index")
        fields.fail("question_images_index", value, "no observed frame", "list at least one")
    question = fields.text("question")
    if "<image>" not in question:
        question = "<image>" * len(observed_indices) + question
    reasoning = ""
    # an `answer` with <ans> or image markers is the whole response
    answer = fields.values.get("answer")
    if isinstance(answer, str) and ("<ans>" in answer or MARKER.search(answer)):
        reasoning = fields.text("answer")
        fields.values.pop("answer")
        reasoning_field = "answer"
    else:
        reasoning_field = next((field for field in ("cot", "reasoning") if fields.values.get(field)), "cot")
        if reasoning_field in fields.values:
            reasoning = fields.text(reasoning_field)
    asked = Said("user", question, field="question")
    replied = Said("assistant", reasoning, field=reasoning_field)
    check_question(fields, "question", [asked])
    _check_stray_markers(fields, "question", [asked])
    _check_stray_markers(fields, reasoning_field, [replied])
    return _hinted_sample(
        fields,
        reasoning_field,
        [asked, replied],
        {"<image>": ("question_images_index", [Frame(video, index, field="video") for index in observed_indices])},
        "reasoning_images_index",
        [Frame(video, index, field="video") for index in hint_indices],
    )


def _parse_chat(fields: RecordFields, field: str, turns: Sequence[Said]) -> Sample:
    """Parse the chat shape, whose turns are in `messages` or, in ShareGPT's form, in `conversations`."""
    if not any(turn.role == "assistant" and turn.loss and turn.text.strip() for turn in turns):
        fields.fail(field, fields.values[field], "empty answer", "write what the assistant says")
    supply: dict[str, list[Part]] = {"<video>": [*fields.videos("videos")], "<image>": [*fields.images("images")]}
    for marker, column in (("<video>", "videos"), ("<image>", "images")):
        counts = [turn.text.count(marker) - sum(name == marker for name, _ in turn.media.values()) for turn in turns]
        _check_markers(fields, column, len(supply[marker]), marker, counts)
    parsed = []
    for turn in turns:
        parts: list[Part] = []
        for place, piece in enumerate(CHAT_MARKER.split(turn.text)):
            if piece in supply:
                if turn.role == "assistant":
                    fields.fail(
                        field,
                        turn.text,
                        f"a {piece} marker in an assistant turn",
                        "move it to a user turn; future frames belong in the path-based shape as 'reasoning_image'",
                    )
                # re.split with one group puts the markers at odd places
                own = turn.media.get(place // 2)
                parts.append(supply[piece].pop(0) if own is None else own[1])
            elif piece:
                parts.append(piece)
        parsed.append(Turn(turn.role, tuple(parts), turn.loss, field))
    return Sample(fields.id, tuple(parsed), None, fields.meta)


def _parse_unlabelled(fields: RecordFields) -> Sample:
    """Parse the shape without texts: observed frames and frames to imagine."""
    fields.refuse_misspelt(_UNLABELLED_FIELDS)
    for field in ("question", "answer", "problem", "qa"):
        if field in fields.values:
            fields.fail(
                field,
                fields.values[field],
                f"a video with '{field}' but without 'conversations'",
                f"add 'conversations', or leave '{field}' out of an unlabelled video",
            )
    video = fields.media_path("video", fields.take("video"))
    observed, hints = fields.pool_indices("image"), fields.pool_indices("reasoning_image")
    if not observed:
        fields.fail("image", fields.values.get("image"), "no observed frame", "list at least one")
    if not hints:
        value = fields.values.get("reasoning_image")
        fields.fail("reasoning_image", value, "no frame to imagine", "list at least one, or drop the record")
    _check_order(fields, "image", observed, "reasoning_image", hints)
    shown = [part for index in observed for part in (f"frame_{index}", Frame(video, index, field="video"))]
    imagined = [Frame(video, index, field="video") for index in hints]
    turns = (Turn("user", (*shown, IMAGINE_NEXT)), Turn("assistant", tuple(imagined)))
    return Sample(fields.id, turns, None, fields.meta)


def _check_stray_markers(fields: RecordFields, field: str, turns: Sequence[Said], videos: bool = False) -> None:
    """Refuse markers in turns that cannot have such media; `videos`: whether the record has whole videos."""
    for turn in turns:
        stray = ("<video>",) if turn.role == "assistant" else ("<rimage>",) if videos else ("<video>", "<rimage>")
        for marker in stray:
            if marker in turn.text:
                fields.fail(
                    field, turn.text, f"a {marker} marker in a {turn.role} turn", "mark observed frames by <image>"
                )


def _check_order(
    fields: RecordFields, observed_field: str, observed: Sequence[int], hint_field: str, hints: Sequence[int]
) -> None:
    for hint in hints:
        if observed and hint < max(observed):
            fields.fail(
                hint_field,
                list(hints),
                f"hint {hint} comes before the last observed frame, {max(observed)} in '{observed_field}'",
                "list future frames only",
            )


def _check_markers(fields: RecordFields, field: str, num_media: int, marker: str, counts: Sequence[int]) -> None:
    if sum(counts) != num_media:
        fields.fail(
            field,
            fields.values.get(field),
            f"{num_media} given, but the text has {sum(counts)} {marker} markers (per turn: {list(counts)})",
            f"write one {marker} for each",
        )


def _hinted_sample(
    fields: RecordFields,
    text_field: str,
    turns: Sequence[Said],
    observed: Mapping[str, tuple[str, Sequence[Part]]],
    hint_field: str,
    hints: list[Frame],
) -> Sample:
    """Replace markers by media, take the final answer out of the reasoning and strip the texts.

    Args:
        fields: the record.
        text_field: the field that holds the reasoning.
        turns: the conversation.
        observed: for each marker, the field that lists its media, and the media.
        hint_field: the field that lists the hints.
        hints: the hints.
    """
    answer, turns = _final_answer(fields, text_field, turns)
    for marker, (field, media) in observed.items():
        counts = [turn.text.count(marker) for turn in turns if turn.role != "assistant"]
        _check_markers(fields, field, len(media), marker, counts)
    hinted = [len(MARKER.findall(turn.text)) for turn in turns if turn.role == "assistant"]
    hint_marker = "<rimage>" if any("<rimage>" in turn.text for turn in turns) else "<image>"
    _check_markers(fields, hint_field, len(hints), hint_marker, hinted)
    shown = {marker: iter(media) for marker, (_, media) in observed.items()}
    imagined = iter(hints)
    parsed = []
    for turn in turns:
        parts: list[Part] = []
        for piece in MARKER.split(turn.text):
            if MARKER.fullmatch(piece):
                parts.append(next(imagined) if turn.role == "assistant" else next(shown[piece]))
            else:
                stripped = (_THOUGHT_PREFIX.sub("", piece) if turn.role == "assistant" else piece).strip()
                if stripped:
                    parts.append(stripped)
        parsed.append(Turn(turn.role, tuple(parts), turn.loss, turn.field))
    return Sample(fields.id, tuple(parsed), answer, fields.meta)


def _final_answer(fields: RecordFields, text_field: str, turns: Sequence[Said]) -> tuple[str, list[Said]]:
    """Return the final answer (field `answer`, else the inline `<ans>..</ans>`) and the turns without it."""
    inline: list[str] = []
    remaining: list[Said] = []
    for turn in turns:
        if turn.role == "assistant":
            inline += _INLINE_ANSWER.findall(turn.text)
            text = _INLINE_ANSWER.sub("", turn.text)
            if "<ans>" in text or "</ans>" in text:
                fields.fail(text_field, text, "an unpaired <ans> or </ans>", "write <ans>the answer</ans>")
            turn = turn._replace(text=text)
        remaining.append(turn)
    if len(inline) > 1:
        fields.fail(text_field, inline, f"{len(inline)} final answers", "write one <ans>..</ans>")
    if text_field == "answer" and not inline:
        fields.fail("answer", turns[-1].text, "reasoning without a final answer", "mark that by <ans>the answer</ans>")
    if "answer" in fields.values or not inline:
        return fields.text("answer"), remaining
    return fields.check_text(f"{text_field} (<ans>)", inline[0]).strip(), remaining
