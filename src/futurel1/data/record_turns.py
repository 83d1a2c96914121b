"""Turns as written in a record: speakers, texts, typed parts, and whether each turn is trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from futurel1.data.misspellings import misspelt
from futurel1.data.record_fields import RecordFields, printable
from futurel1.data.samples import Part, Role

__all__ = ["CHAT_MARKER", "MARKER", "Said", "check_question", "turns_of"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
MARKER = re.compile(r"(<r?image>|<video>)")
"""Placeholders in a text for an observed frame, a future frame or a whole video."""
CHAT_MARKER = re.compile(r"(<image>|<video>)")
"""Placeholders in chats, which have no future frames."""
_FRAME_LABEL = re.compile(r"^\s*frame_\d+\s*$", re.MULTILINE)
_OTHER_LOSS_KEYS = {"weight": (1,), "train": (True,), "training": (True,), "loss_scale": (1,)}
"""Keys by which other tools weight a turn in the loss, with the values that have no effect."""
_LOSS_KEYS = ("loss", "loss_mask", "trainable")
"""Keys of a turn that say whether it is trained on."""
_LOST_TURN_KEYS = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "thinking")
"""Keys of a turn that hold text which the model would say or read in addition to its content."""
_MEDIA_MARKERS = {"image": "<image>", "video": "<video>"}


class Said(NamedTuple):
    """A turn as stored: its text with markers, and the media that the turn itself names, by number of the marker."""

    role: Role
    text: str
    loss: bool = True
    field: str = ""
    media: Mapping[int, tuple[str, Part]] = {}


_TURN_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Fields that hold turns, with the keys of speaker and text."""


def turns_of(fields: RecordFields, field: str) -> list[Said]:
    """Return the turns of a field (a list of objects, or an object of lists) and check their order."""
    role_key, text_key = _TURN_KEYS[field]
    value = fields.take(field)
    if isinstance(value, Mapping):
        columns = {key: column for key, column in value.items() if column is not None}
        lists = all(isinstance(column, list | tuple) for column in columns.values())
        if not lists or not {role_key, text_key} <= columns.keys() or len(set(map(len, columns.values()))) != 1:
            fields.fail(
                field,
                value,
                f"an object that does not hold two lists '{role_key}' and '{text_key}' of one length",
                "write a list of turns, or two such lists",
            )
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, list | tuple):
        fields.fail(field, value, f"{type(value).__name__} where a list is expected", "write a list of turns")
    turns = [_turn(fields, field, entry, role_key, text_key) for entry in value]
    _check_turns(fields, field, turns)
    check_question(fields, field, turns)
    return turns


def _turn(fields: RecordFields, field: str, entry: object, role_key: str, text_key: str) -> Said:
    if not isinstance(entry, Mapping):
        fields.fail(
            field,
            entry,
            f"{type(entry).__name__} where a turn is expected",
            f'write {{"{role_key}": .., "{text_key}": ..}}',
        )
    speaker, text = entry.get(role_key), entry.get(text_key)
    if not isinstance(speaker, str) or speaker not in _ROLES:
        fields.fail(f"{field}.{role_key}", speaker, "not a known speaker", f"write one of {', '.join(_ROLES)}")
    role, place = _ROLES[speaker], f"{field}.{text_key}"
    media: dict[int, tuple[str, Part]] = {}
    if field == "messages" and isinstance(text, list | tuple):
        text, media = _typed_content(fields, place, text)
    if not isinstance(text, str):
        fields.fail(place, text, f"{type(text).__name__} where a string is expected", "write a string")
    return Said(role, fields.check_characters(place, text), _loss(fields, field, entry, role), field, media)


def _loss(fields: RecordFields, field: str, entry: Mapping[str, Any], role: Role) -> bool:
    """Whether a turn is trained on: its `loss` (ms-swift), `loss_mask` or `trainable`; True if it has none of these.

    The value only matters for assistant turns, because no other turn is trained on.
    """
    stated: dict[str, bool] = {}
    for key, value in entry.items():
        if value is None:
            continue
        if key in _LOSS_KEYS:
            # bool is an int to isinstance; pandas turns an integer column with gaps into floats
            if not isinstance(value, int | float) or value not in (0, 1):
                fields.fail(
                    f"{field}.{key}",
                    value,
                    f"{type(value).__name__} where true or false is expected",
                    "write true or false (1 or 0)",
                )
            stated[key] = bool(value)
        elif key not in _OTHER_LOSS_KEYS and (right := misspelt(str(key), _LOSS_KEYS)):
            fields.fail(
                f"{field}.{printable(key)}",
                value,
                f"an unknown key that looks like '{right}'",
                f"rename it to '{right}'",
            )
        if value not in _OTHER_LOSS_KEYS.get(key, (value,)):
            fields.fail(
                f"{field}.{key}", value, "a weight of the turn that is not read", "write 'loss': false on turns that "
                "are not to be learned"
            )  # fmt: skip
        if key in _LOST_TURN_KEYS and value:
            fields.fail(f"{field}.{key}", value, "not read, and so it would be lost", "write it into the text")
    if role == "assistant" and len(set(stated.values())) > 1:
        fields.fail(f"{field}.{next(iter(stated))}", stated, "they contradict each other", "keep one of them")
    return all(stated.values())


def _typed_content(fields: RecordFields, place: str, content: Sequence[Any]) -> tuple[str, dict[int, tuple[str, Part]]]:
    """Convert a list of typed parts (Qwen and Hugging Face chats) to text with markers, and the markers' media."""
    text = ""
    media: dict[int, tuple[str, Part]] = {}
    for part in content:
        if not isinstance(part, Mapping):
            fields.fail(place, part, f"{type(part).__name__} where a part is expected", 'write {"type": .., ..}')
        kind = part.get("type")
        # Parquet gives every part the keys of all parts
        given = {key: value for key, value in part.items() if key != "type" and value is not None and value != ""}
        if kind == "text":
            written = part.get("text")
            if not isinstance(written, str) or set(given) - {"text"}:
                fields.fail(place, part, "not a text part", 'write {"type": "text", "text": ..}, with nothing besides')
            text += written
        elif isinstance(kind, str) and kind in _MEDIA_MARKERS:
            marker = _MEDIA_MARKERS[kind]
            if len(given) > 1 or set(given) - {kind, "path", "url"}:
                fields.fail(
                    place,
                    part,
                    f"a part of type '{kind}' with more than its file",
                    f'write {{"type": "{kind}", "{kind}": ..}}; sizes and sampling are settings of the data module',
                )
            number = len(CHAT_MARKER.findall(text))
            text += marker
            # a part without its own file takes the next one of the column
            for source in given.values():
                shown = fields.image(place, source, number + 1) if kind == "image" else fields.video(place, source)
                media[number] = marker, shown
        else:
            fields.fail(f"{place}.type", kind, "not a known type of part", "write text, image or video")
    return text, media


def _check_turns(fields: RecordFields, field: str, turns: Sequence[Said]) -> None:
    value = fields.values[field]
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        fields.fail(field, value, "no assistant turn", "add the response to learn")
    if "user" not in roles[: roles.index("assistant")]:
        fields.fail(field, value, "no user turn before the first assistant turn", "add the question")
    if roles[-1] != "assistant":
        fields.fail(field, value, f"the last turn is the {roles[-1]}'s", "end with the assistant's response")
    if not any(turn.loss for turn in turns if turn.role == "assistant"):
        fields.fail(f"{field}.loss", False, "no assistant turn to learn", "set it for one, or drop the record")


def check_question(fields: RecordFields, field: str, turns: Sequence[Said]) -> None:
    """Refuse a question without words (only markers or frame labels)."""
    asked = "\n".join(turn.text for turn in turns if turn.role == "user")
    if not _FRAME_LABEL.sub("", MARKER.sub("", asked)).strip():
        fields.fail(field, asked, "empty question", "write the question after the images or drop the record")
