"""Turns: their loss, their typed parts, and keys that would be lost."""

import copy
from pathlib import Path

import pytest
from example_records import CHAT, CLIP, FOLDER, FRAME_INDEXED, changed, parse

from futurel1.data.samples import Frame, Video
from futurel1.errors import RecordError


def test_columnar_conversations_are_the_same_record():
    turns = FRAME_INDEXED["conversations"]
    columns = {key: [turn[key] for turn in turns] for key in ("from", "value")}
    assert parse(changed(FRAME_INDEXED, conversations=columns)) == parse(FRAME_INDEXED)


def with_loss(record, *losses):
    """The record with the `loss` of each turn."""
    record = copy.deepcopy(record)
    for turn, loss in zip(record["messages" if "messages" in record else "conversations"], losses, strict=True):
        turn["loss"] = loss
    return record


def test_turns_that_are_not_to_be_learned():
    assert [turn.loss for turn in parse(CHAT).turns] == [True] * 4
    assert [turn.loss for turn in parse(with_loss(CHAT, None, False, False, True)).turns] == [True, False, False, True]
    draft = [{"from": "human", "value": "Draft?"}, {"from": "gpt", "value": "A draft.", "loss": False}]
    sample = parse(changed(FRAME_INDEXED, conversations=draft + FRAME_INDEXED["conversations"]))
    assert [turn.loss for turn in sample.turns if turn.role == "assistant"] == [False, True]
    columns = {"role": ["user", "assistant"] * 2, "content": list("abcd"), "loss": [None, False, None, None]}
    assert [turn.loss for turn in parse({"messages": columns}).turns] == [True, False, True, True]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((None, False, None, False), "field 'messages.loss' = False: no assistant turn to learn"),
        ((None, "false", None, None), "field 'messages.loss' = 'false': str where true or false is expected"),
        ((None, 2, None, None), "field 'messages.loss' = 2: int where true or false"),
        ((None, [0, 1], None, None), "field 'messages.loss' = .*: list where true or false"),
    ],
)
def test_losses_that_cannot_be_meant(losses, says):
    with pytest.raises(RecordError, match=says):
        parse(with_loss(CHAT, *losses))


@pytest.mark.parametrize("key", ["loss", "loss_mask", "trainable"])
@pytest.mark.parametrize(("true", "false"), [(True, False), (1, 0), (1.0, 0.0), (None, False)])
def test_turns_are_left_out_of_the_loss_by_each_spelling(key, true, false):
    messages = [{**turn, key: value} for turn, value in zip(CHAT["messages"], (true, false, true, true), strict=True)]
    assert [turn.loss for turn in parse(changed(CHAT, messages=messages)).turns] == [True, False, True, True]
    with pytest.raises(RecordError, match=f"field 'messages.{key}' = 'no': str where true or false is expected"):
        parse(changed(CHAT, messages=[messages[0], {**messages[1], key: "no"}, *messages[2:]]))


def test_spellings_of_loss_that_contradict_each_other():
    turn = {**CHAT["messages"][3], "loss": True, "loss_mask": 0}
    with pytest.raises(RecordError, match=r"field 'messages\.loss' = .*they contradict each other; keep one"):
        parse(changed(CHAT, messages=[*CHAT["messages"][:3], turn]))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("weight", 0, "a weight of the turn that is not read; write 'loss': false"),
        ("train", False, "a weight of the turn that is not read"),
        ("loss_scale", 0.5, "a weight of the turn that is not read"),
        ("losss", False, "an unknown key that looks like 'loss'"),
        ("Loss", False, "an unknown key that looks like 'loss'"),
        ("lossMask", 0, "an unknown key that looks like 'loss_mask'"),
        ("tool_calls", [{"name": "zoom"}], "not read, and so it would be lost"),
        ("reasoning_content", "Hm.", "not read, and so it would be lost"),
    ],
)
def test_keys_of_a_turn_that_would_be_ignored(key, value, says):
    turn = {**CHAT["messages"][1], key: value}
    with pytest.raises(RecordError, match=f"field 'messages.{key}' = .*{says}"):
        parse(changed(CHAT, messages=[CHAT["messages"][0], turn]))


def test_keys_of_a_turn_that_change_nothing():
    turns = [{**turn, "weight": 1, "train": None, "tool_calls": [], "name": "x"} for turn in CHAT["messages"]]
    assert parse(changed(CHAT, messages=turns)) == parse(CHAT)


def typed(*parts, **columns):
    """A chat record whose question is a list of typed parts."""
    return {"messages": [{"role": "user", "content": list(parts)}, CHAT["messages"][1]], **columns}


WORDS = {"type": "text", "text": "What is this? "}


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_typed_parts_keep_their_order(key):
    sample = parse(
        typed({"type": "image", "image": "a.png"}, WORDS, {"type": "text", "text": "And this?"},
              {"type": "video", key: "clips/a.mp4"})
    )  # fmt: skip
    assert sample.turns[0].parts == (Frame(FOLDER / "a.png", None), "What is this? And this?", Video(CLIP))
    assert [part.field for part in sample.turns[0].parts if not isinstance(part, str)] == ["messages.content"] * 2


def test_typed_parts_without_a_file_and_markers_take_the_next_of_the_columns():
    marked = {"type": "text", "text": "<image>or<video>?"}
    sample = parse(
        typed({"type": "image"}, {"type": "image", "image": "own.png"}, marked, images=["a.png", "b.png"],
              videos=["clips/a.mp4"])
    )  # fmt: skip
    a, own, b = (Frame(FOLDER / name, None) for name in ("a.png", "own.png", "b.png"))
    assert sample.turns[0].parts == (a, own, b, "or", Video(CLIP), "?")
    with pytest.raises(RecordError, match="field 'images' = None: 0 given, but the text has 1 <image>"):
        parse(typed({"type": "image"}, WORDS))


def test_typed_parts_of_every_role_and_of_parquet():
    parts = [{"type": "text", "text": "Look.", "image": None}]
    record = {"messages": [{"role": role, "content": parts} for role in ("system", "user", "assistant")]}
    assert [turn.parts for turn in parse(record).turns] == [("Look.",)] * 3


def test_file_urls_are_paths():
    sample = parse(typed(WORDS, {"type": "video", "video": "file:///clips/a%20b.mp4"}))
    assert sample.turns[0].parts[-1] == Video(Path("/clips/a b.mp4"))
    assert parse(changed(CHAT, videos=["file://localhost/a.mp4"])).turns[0].parts[0] == Video(Path("/a.mp4"))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("What?", "'messages.content' = 'What\\?': str where a part is expected"),
        ({"text": "What?"}, "'messages.content.type' = None: not a known type of part; write text, image or video"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url': not a known type of part"),
        ({"type": ["text"]}, "not a known type of part"),
        ({"type": "text"}, "not a text part"),
        ({"type": "text", "text": 3}, "not a text part"),
        ({"type": "text", "text": "a", "image": "a.png"}, "not a text part"),
        ({"type": "video", "video": "a.mp4", "fps": 4}, "a part of type 'video' with more than its file"),
        ({"type": "video", "video": "a.mp4", "path": "b.mp4"}, "with more than its file"),
        ({"type": "video", "image": "a.png"}, "with more than its file"),
        ({"type": "video", "video": ["1.png", "2.png"]}, "a list of frames where one video is expected"),
        ({"type": "video", "video": 3}, "int where a string is expected"),
        ({"type": "video", "video": {"bytes": b"x"}}, "an embedded video; write it to a file"),
        ({"type": "image", "image": "https://a.org/b.png"}, "a https URL, which is not read; save it as a file"),
        ({"type": "image", "image": "data:image/png;base64,AA"}, "a data URL, which is not read"),
        ({"type": "image", "image": 3}, "'messages.content' = 3: not an image"),
        ({"type": "image", "image": "a\0.png"}, "characters that no file name has"),
    ],
)
def test_typed_parts_that_cannot_be_read(part, says):
    with pytest.raises(RecordError, match=f"record 3, field '?.*{says}"):
        parse(typed(WORDS, part))
