import copy
import datetime
import decimal
import json
import math
import multiprocessing
import os
import pickle
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from futurel1.data import records
from futurel1.data.records import (
    IMAGINE_NEXT,
    Frame,
    RecordFileError,
    Sample,
    SkippedRecord,
    Turn,
    Video,
    open_records,
    parse_record,
)
from futurel1.errors import ConfigError, FutureL1Error, MissingFileError, RecordError

FOLDER = Path("/data")
CLIP = FOLDER / "clips/a.mp4"

FRAME_INDEXED = {
    "video": "clips/a.mp4",
    "image": [1, 2],
    "reasoning_image": [4, 7],
    "conversations": [
        {"from": "system", "value": " Be brief. "},
        {"from": "human", "value": "frame_1\n<image>\nframe_2\n<image>\nWhat happens next? "},
        {
            "from": "gpt",
            "value": "THOUGHT 0: He lifts a latch. <image>\nTHOUGHT 1: It swings.<image>\nTHOUGHT 2: Open.",
        },
    ],
    "answer": " He opens the gate.\n",
    "cot": "",
    "gain": 0.5,
}
UPSTREAM = {
    "video": "clips/a.mp4",
    "question": "What happens next?",
    "answer": "He lifts a latch.\n<rimage>\nIt swings.\n<rimage>\nOpen.\n<ans>He opens the gate.</ans>",
    "question_images_index": [1, 2],
    "reasoning_images_index": [4, 7],
    "meta_data": {"start": "0:01"},
}
PATH_BASED = {
    "image": ["seen.png"],
    "reasoning_image": ["later/1.png", "later/2.png"],
    "conversations": [
        {"from": "human", "value": "<image>What happens next?"},
        {"from": "gpt", "value": "He lifts a latch.<image><image>Open."},
    ],
    "answer": "He opens the gate.",
}
CHAT = {
    "messages": [
        {"role": "user", "content": "<video>\n What is this? <image> "},
        {"role": "assistant", "content": " A gate. "},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "It is open.\n"},
    ],
    "videos": ["clips/a.mp4"],
    "images": ["seen.png"],
}
UNLABELLED = {"id": "a", "video": "clips/a.mp4", "image": [1, 3], "reasoning_image": [5, 6, 8]}
SHAPES = {
    "frame-indexed": FRAME_INDEXED,
    "upstream": UPSTREAM,
    "path-based": PATH_BASED,
    "chat": CHAT,
    "unlabelled": UNLABELLED,
}
THOUGHTS = (
    "He lifts a latch.",
    Frame(CLIP, 4),
    "It swings.",
    Frame(CLIP, 7),
    "Open.",
)


def parse(record, **options):
    options = {"file": "train.jsonl", "number": 3, "folder": FOLDER, "check_files": False} | options
    return parse_record(record, **options)


def changed(record, **values):
    return copy.deepcopy(record) | values


def without(record, *keys):
    return {key: value for key, value in copy.deepcopy(record).items() if key not in keys}


def said(record, speaker, text):
    """The record with another text for a speaker of its conversations."""
    record = copy.deepcopy(record)
    next(turn for turn in record["conversations"] if turn["from"] == speaker)["value"] = text
    return record


# ---------------------------------------------------------------------------------------------------- the five shapes


def test_frame_indexed():
    assert parse(FRAME_INDEXED) == Sample(
        id="train.jsonl:3",
        turns=(
            Turn("system", ("Be brief.",)),
            Turn("user", ("frame_1", Frame(CLIP, 1), "frame_2", Frame(CLIP, 2), "What happens next?")),
            Turn("assistant", THOUGHTS),
        ),
        answer="He opens the gate.",
        meta={"cot": "", "gain": 0.5},
    )


def test_columnar_conversations_are_the_same_record():
    turns = FRAME_INDEXED["conversations"]
    columns = {key: [turn[key] for turn in turns] for key in ("from", "value")}
    assert parse(changed(FRAME_INDEXED, conversations=columns)) == parse(FRAME_INDEXED)


def test_upstream_puts_observed_frames_before_the_question():
    assert parse(UPSTREAM) == Sample(
        id="train.jsonl:3",
        turns=(
            Turn("user", (Frame(CLIP, 1), Frame(CLIP, 2), "What happens next?")),
            Turn("assistant", THOUGHTS),
        ),
        answer="He opens the gate.",
        meta={"meta_data": {"start": "0:01"}},
    )


def test_upstream_keeps_the_places_of_question_markers():
    sample = parse(changed(UPSTREAM, question="frame_1\n<image>\nframe_2\n<image>\nWhat happens next?"))
    assert sample.turns[0].parts == ("frame_1", Frame(CLIP, 1), "frame_2", Frame(CLIP, 2), "What happens next?")


@pytest.mark.parametrize("key", ["cot", "reasoning"])
def test_upstream_reasoning_may_stand_beside_the_answer(key):
    reasoning = UPSTREAM["answer"].split("<ans>")[0]
    sample = parse(changed(UPSTREAM, answer="He opens the gate.", **{key: reasoning}))
    assert sample == parse(UPSTREAM)


def test_upstream_without_hints_has_an_answer_only():
    sample = parse(changed(UPSTREAM, answer="He opens the gate.", reasoning_images_index=[]))
    assert sample.turns[1] == Turn("assistant", ())
    assert (sample.answer, sample.hints) == ("He opens the gate.", ())


def test_path_based():
    assert parse(PATH_BASED).turns == (
        Turn("user", (Frame(FOLDER / "seen.png", None), "What happens next?")),
        Turn(
            "assistant",
            ("He lifts a latch.", Frame(FOLDER / "later/1.png", None), Frame(FOLDER / "later/2.png", None), "Open."),
        ),
    )


def test_chat_text_is_verbatim():
    assert parse(CHAT) == Sample(
        id="train.jsonl:3",
        turns=(
            Turn("user", (Video(CLIP), "\n What is this? ", Frame(FOLDER / "seen.png", None), " ")),
            Turn("assistant", (" A gate. ",)),
            Turn("user", ("And now?",)),
            Turn("assistant", ("It is open.\n",)),
        ),
        answer=None,
        meta={},
    )


def test_unlabelled_video_is_frames_and_an_instruction():
    assert parse(UNLABELLED) == Sample(
        id="train.jsonl:3",
        turns=(
            Turn("user", ("frame_1", Frame(CLIP, 1), "frame_3", Frame(CLIP, 3), IMAGINE_NEXT)),
            Turn("assistant", (Frame(CLIP, 5), Frame(CLIP, 6), Frame(CLIP, 8))),
        ),
        answer=None,
        meta={"id": "a"},
    )
    assert parse(without(UNLABELLED, "id")).meta == {}


@pytest.mark.parametrize("shape", ["frame-indexed", "upstream"])
def test_observed_and_hints(shape):
    sample = parse(SHAPES[shape])
    assert sample.observed == (Frame(CLIP, 1), Frame(CLIP, 2))
    assert sample.hints == (Frame(CLIP, 4), Frame(CLIP, 7))


def test_chat_has_no_hints():
    assert parse(CHAT).hints == ()


def test_empty_thoughts_are_left_out():
    sample = parse(
        said(FRAME_INDEXED, "gpt", "THOUGHT 0: <image> \nTHOUGHT 1:\n<image>THOUGHT 2: Open. THOUGHT 10: Ah.")
    )
    assert sample.turns[-1].parts == (Frame(CLIP, 4), Frame(CLIP, 7), "Open. Ah.")


def test_inline_answer_of_a_conversation():
    record = said(FRAME_INDEXED, "gpt", "Lifts.<rimage>Swings.<rimage>Open.\n<ans> He opens\nthe gate. </ans>")
    sample = parse(without(record, "answer"))
    assert sample.answer == "He opens\nthe gate."
    assert sample.turns[-1].parts == ("Lifts.", Frame(CLIP, 4), "Swings.", Frame(CLIP, 7), "Open.")


def test_null_fields_count_as_absent():
    nulls = dict.fromkeys(["messages", "question_images_index", "images"])
    assert parse(changed(FRAME_INDEXED, **nulls)) == parse(FRAME_INDEXED)


def test_a_hint_may_repeat_the_last_observed_frame():
    assert parse(changed(FRAME_INDEXED, reasoning_image=[2, 8])).hints == (Frame(CLIP, 2), Frame(CLIP, 8))


@pytest.mark.parametrize("shape", SHAPES)
def test_parsing_leaves_the_raw_record_alone(shape):
    record = copy.deepcopy(SHAPES[shape])
    parse(record)
    assert record == SHAPES[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_can_be_sent_between_processes(shape):
    sample = parse(SHAPES[shape])
    assert pickle.loads(pickle.dumps(sample)) == sample


# -------------------------------------------------------------------------------------------------------- bad records


@pytest.mark.parametrize("value", [0, 9, -1, True, 2.0, "2", None, [2]], ids=lambda value: str(type(value)))
@pytest.mark.parametrize(
    ("record", "field"),
    [
        (FRAME_INDEXED, "image"),
        (FRAME_INDEXED, "reasoning_image"),
        (UPSTREAM, "question_images_index"),
        (UPSTREAM, "reasoning_images_index"),
        (UNLABELLED, "image"),
        (UNLABELLED, "reasoning_image"),
    ],
)
def test_bad_index(record, field, value):
    with pytest.raises(RecordError) as caught:
        parse(changed(record, **{field: [1, value]}))
    message = str(caught.value)
    assert message.startswith(f"train.jsonl, record 3, field '{field}' = [1, ")
    assert message.endswith("write integers from 1 to 8")
    assert f"{value!r} is not a frame of the 8-frame pool" in message


def test_an_index_too_long_to_print():
    with pytest.raises(RecordError, match="field 'image' = <list>: <int> is not a frame of the 8-frame pool"):
        parse(changed(FRAME_INDEXED, image=[10**5000]))


BAD = {
    "hint before observed": (
        changed(FRAME_INDEXED, image=[1, 5]),
        r"field 'reasoning_image' = \[4, 7\]: hint 4 comes before the last observed frame, 5 in 'image'; list future",
    ),
    "upstream hint before observed": (
        changed(UPSTREAM, question_images_index=[1, 6]),
        r"field 'reasoning_images_index' = \[4, 7\]: hint 4 comes before the last observed frame, 6",
    ),
    "too few observed": (
        changed(FRAME_INDEXED, image=[1]),
        r"field 'image' = \[1\]: 1 given, but the text has 2 <image> markers \(per turn: \[0, 2\]\); write one",
    ),
    "too many hints": (
        changed(FRAME_INDEXED, reasoning_image=[4, 5, 6]),
        r"field 'reasoning_image' = \[4, 5, 6\]: 3 given, but the text has 2 <image> markers \(per turn: \[2\]\)",
    ),
    "upstream marker count": (
        changed(UPSTREAM, reasoning_images_index=[4]),
        r"field 'reasoning_images_index' = \[4\]: 1 given, but the text has 2 <rimage> markers",
    ),
    "upstream question markers": (
        changed(UPSTREAM, question="<image>What?"),
        r"field 'question_images_index' = \[1, 2\]: 2 given, but the text has 1 <image> markers",
    ),
    "path-based marker count": (
        changed(PATH_BASED, image=["a.png", "b.png"]),
        r"field 'image' = \['a.png', 'b.png'\]: 2 given, but the text has 1",
    ),
    "chat video count": (changed(CHAT, videos=[]), r"field 'videos' = \[\]: 0 given, but the text has 1 <video>"),
    "chat image count": (without(CHAT, "images"), r"field 'images' = None: 0 given, but the text has 1 <image>"),
    "no observed frame": (changed(FRAME_INDEXED, image=[]), r"field 'image' = \[\]: no observed frame; list at least"),
    "missing answer": (without(FRAME_INDEXED, "answer"), r"field 'answer' = None: missing; add a string 'answer'"),
    "empty answer": (changed(FRAME_INDEXED, answer=" \n"), r"field 'answer' = ' \\n': empty; write some text"),
    "upstream without an answer": (without(UPSTREAM, "answer"), r"field 'answer' = None: missing"),
    "upstream with reasoning only": (
        changed(UPSTREAM, answer="a<rimage>b<rimage>c"),
        r"field 'answer' = 'a<rimage>b<rimage>c': reasoning without a final answer; mark that by <ans>",
    ),
    "empty inline answer": (changed(UPSTREAM, answer="<rimage><rimage><ans> </ans>"), r"\(<ans>\)' = ' ': empty"),
    "unpaired answer": (changed(UPSTREAM, answer="<rimage><rimage><ans>B"), r"field 'answer' = .*unpaired <ans>"),
    "two inline answers": (changed(UPSTREAM, answer="<ans>A</ans><ans>B</ans>"), r"\['A', 'B'\]: 2 final answers"),
    "answer of another type": (
        changed(FRAME_INDEXED, answer=["A"]),
        r"field 'answer' = \['A'\]: list where a string",
    ),
    "chat with an empty answer": (
        changed(CHAT, messages=[CHAT["messages"][0], {"role": "assistant", "content": " "}]),
        r"field 'messages' = .*empty answer",
    ),
    "empty question": (said(FRAME_INDEXED, "human", "frame_1\n<image>\nframe_2<image> \n"), "empty question"),
    "upstream empty question": (changed(UPSTREAM, question=" "), r"field 'question' = ' ': empty"),
    "upstream question of markers": (
        changed(UPSTREAM, question="<image><image>"),
        r"field 'question' = .*empty question",
    ),
    "chat empty question": (
        changed(CHAT, messages=[{"role": "user", "content": "<video><image>"}, CHAT["messages"][1]]),
        r"field 'messages' = .*empty question",
    ),
    "no assistant turn": (
        changed(FRAME_INDEXED, conversations=FRAME_INDEXED["conversations"][:2]),
        r"field 'conversations' = .*no assistant turn; add the response",
    ),
    "chat no assistant turn": (changed(CHAT, messages=CHAT["messages"][:1]), "no assistant turn"),
    "no user turn": (changed(FRAME_INDEXED, conversations=FRAME_INDEXED["conversations"][2:]), "no user turn"),
    "ends with a question": (changed(CHAT, messages=CHAT["messages"][:3]), "the last turn is the user's"),
    "unknown speaker": (
        changed(FRAME_INDEXED, conversations=[{"from": "bot", "value": "hi"}]),
        r"field 'conversations.from' = 'bot': not a known speaker; write one of system, human",
    ),
    "text of another type": (
        changed(CHAT, messages=[{"role": "user", "content": 7}]),
        r"field 'messages.content' = 7: int where a string is expected",
    ),
    "turn of another type": (
        changed(CHAT, messages=["hi"]),
        r"field 'messages' = 'hi': str where a turn is expected; write",
    ),
    "uneven columns": (
        changed(FRAME_INDEXED, conversations={"from": ["human"], "value": []}),
        "two lists 'from' and 'value' of one length",
    ),
    "conversations of another type": (
        changed(FRAME_INDEXED, conversations="hi"),
        "'conversations' = 'hi': str where",
    ),
    "image of another type": (changed(FRAME_INDEXED, image=1), r"field 'image' = 1: int where a list is expected"),
    "index without video": (
        without(FRAME_INDEXED, "video"),
        r"field 'image' = \[1, 2\]: 1 is a frame index, but the record has no 'video'; add 'video', or list",
    ),
    "path of another type": (changed(PATH_BASED, image=[{"bytes": 1}]), r"field 'image' = .*dict where a string"),
    "path of no file": (
        changed(FRAME_INDEXED, video="a\0.mp4"),
        r"field 'video' = 'a\\x00.mp4': characters that no file",
    ),
    "video of another type": (changed(FRAME_INDEXED, video=["a.mp4"]), r"field 'video' = \['a.mp4'\]: list where"),
    "video marker": (said(FRAME_INDEXED, "human", "<image><image><video>What?"), "a <video> marker in a user turn"),
    "hint in the question": (said(FRAME_INDEXED, "human", "<rimage><image>What?"), "a <rimage> marker in a user turn"),
    "chat image in a response": (
        changed(CHAT, messages=[CHAT["messages"][0], {"role": "assistant", "content": "<image>"}], images=["a", "b"]),
        "a <image> marker in an assistant turn; move it to a user turn",
    ),
    "unlabelled without observed frames": (
        changed(UNLABELLED, image=[]),
        r"field 'image' = \[\]: no observed frame; list at least one",
    ),
    "unlabelled without a field of observed frames": (without(UNLABELLED, "image"), "field 'image' = None: no obs"),
    "unlabelled with nothing to imagine": (
        changed(UNLABELLED, reasoning_image=[]),
        r"field 'reasoning_image' = \[\]: no frame to imagine; list at least one, or drop the record",
    ),
    "unlabelled without a field of hints": (
        without(UNLABELLED, "reasoning_image"),
        "field 'reasoning_image' = None: no frame to imagine",
    ),
    "unlabelled hint before observed": (
        changed(UNLABELLED, image=[1, 6]),
        r"field 'reasoning_image' = \[5, 6, 8\]: hint 5 comes before the last observed frame, 6 in 'image'",
    ),
    "unlabelled with image files": (
        changed(UNLABELLED, image=["a.png"]),
        r"field 'image' = \['a.png'\]: 'a.png' is not a frame of the 8-frame pool",
    ),
    "answer without conversations": (
        without(FRAME_INDEXED, "conversations"),
        "field 'answer' = .*: a video with 'answer' but without 'conversations'; add 'conversations', or leave",
    ),
    "question without conversations": (
        changed(UNLABELLED, question="What next?"),
        "field 'question' = 'What next\\?': a video with 'question' but without 'conversations'; add",
    ),
    "frames without a video": (without(UNLABELLED, "video"), "unknown shape, its keys are: id, image, reasoning_image"),
    "unknown shape": (
        {"text": "hi", "label": 1},
        "record 3: unknown shape, its keys are: label, text; "
        "write it as frame-indexed .*upstream.*path-based.*chat.*unlabelled video",
    ),
    "empty record": ({}, "unknown shape, its keys are: none"),
    "no object": ([1, 2], r"record 3: list \(\[1, 2\]\) where an object is expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_record_is_named_with_field_value_and_remedy(case):
    record, says = BAD[case]
    with pytest.raises(RecordError, match=f"(?s){says}") as caught:
        parse(record)
    assert str(caught.value).startswith("train.jsonl, record 3")
    assert len(str(caught.value)) < 700


# ----------------------------------------------------------------------------------- what other tools write in records


@pytest.mark.parametrize("shape", SHAPES)
def test_a_system_field_is_the_system_turn_as_it_is_given(shape):
    record = copy.deepcopy(SHAPES[shape])
    if shape == "frame-indexed":
        del record["conversations"][0]
    sample = parse(changed(record, system=" Talk like a pirate.\n"))
    plain = parse(record)
    assert sample.turns == (Turn("system", (" Talk like a pirate.\n",)), *plain.turns)
    assert sample.meta == plain.meta
    assert parse(changed(record, system=None)) == plain


def test_a_system_field_may_repeat_the_system_turn_only():
    turns = [{"role": "system", "content": "Be brief."}, *CHAT["messages"]]
    record = changed(CHAT, messages=turns, system="Be brief.")
    assert parse(record) == parse(without(record, "system"))
    assert parse(changed(FRAME_INDEXED, system=" Be brief. ")).turns[0] == Turn("system", (" Be brief. ",))
    for other in ("Be kind.", "Be brief"):
        with pytest.raises(RecordError, match=r"record 3, field 'system' = 'Be .*: the record has another system turn"):
            parse(changed(record, system=other))
    with pytest.raises(RecordError, match="another system turn"):
        parse(changed(record, messages=[turns[0], *turns], system="Be brief."))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "field 'system' = '': empty; write some text, or leave it out for the default"),
        (" \n", "empty"),
        (["Be brief."], "list where a string is expected"),
        ("\ud800", "half a surrogate pair"),
    ],
)
def test_a_system_field_that_is_no_text(value, says):
    with pytest.raises(RecordError, match=says):
        parse(changed(CHAT, system=value))


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


def test_images_of_chats_may_be_embedded_or_objects():
    turns = [{"role": "user", "content": "<image><image><image><image>What?"}, CHAT["messages"][1]]
    images = [{"path": "a.png", "bytes": None}, {"bytes": b"png", "path": "b.png"}, b"raw", {"bytes": "cG5n"}]
    frames = parse({"messages": turns, "images": images}).observed
    assert [frame.data for frame in frames] == [None, b"png", b"raw", b"png"]
    assert frames[0].path == FOLDER / "a.png"
    assert str(frames[3].path) == "train.jsonl, record 3, image 4"
    for image, says in (({}, "not an image"), ({"bytes": ""}, "not an image"), ({"bytes": "p"}, "not base64")):
        with pytest.raises(RecordError, match=f"record 3, field 'images' = .*{says}"):
            parse({"messages": turns, "images": [*images[:3], image]})
    assert parse(changed(CHAT, videos=[{"path": "clips/a.mp4"}])) == parse(CHAT)


SHARED = {
    "conversations": [{"from": "human", "value": "<video>What? <image>"}, {"from": "gpt", "value": " A gate. "}],
    "videos": ["clips/a.mp4"],
    "images": ["seen.png"],
}


def test_share_gpt_records_with_media_columns_are_chats():
    turns = (
        Turn("user", (Video(CLIP), "What? ", Frame(FOLDER / "seen.png", None))),
        Turn("assistant", (" A gate. ",)),
    )
    assert parse(SHARED) == Sample("train.jsonl:3", turns, None, {})
    text_only = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A gate."}]
    assert parse({"conversations": text_only, "videos": []}).turns[1].parts == ("A gate.",)


@pytest.mark.parametrize("change", [{"answer": "It is open."}, "inline"])
def test_share_gpt_records_with_an_answer_are_reasoning(change):
    record = copy.deepcopy(SHARED)
    if change == "inline":
        record["conversations"][1]["value"] += "<ans>It is open.</ans>"
    else:
        record |= change
    turns = (
        Turn("user", (Video(CLIP), "What?", Frame(FOLDER / "seen.png", None))),
        Turn("assistant", ("A gate.",)),
    )
    assert parse(record) == Sample("train.jsonl:3", turns, "It is open.", {})


def test_whole_videos_may_have_hint_files():
    record = changed(SHARED, reasoning_image=["later.png"], answer="It is open.")
    record["conversations"][1]["value"] = "It swings.<image>"
    sample = parse(record)
    assert sample.hints == (Frame(FOLDER / "later.png", None),)
    assert sample.turns[0].parts[0] == Video(CLIP)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"videos": []}, "field 'videos' = \\[\\]: 0 given, but the text has 1 <video>"),
        ({"videos": ["a.mp4", "b.mp4"]}, "2 given, but the text has 1 <video>"),
        ({"videos": "a.mp4"}, "str where a list is expected"),
        ({"videos": [["1.png"]]}, "a list of frames where one video is expected"),
        ({"videos": ["a.mp4", "b.mp4"], "answer": "x"}, "2 given, but the text has 1 <video>"),
        ({"videos": [], "answer": "x"}, "a <video> marker in a user turn"),
    ],
)
def test_share_gpt_media_that_do_not_fit(change, says):
    with pytest.raises(RecordError, match=says):
        parse(changed(SHARED, **change))


@pytest.mark.parametrize(
    ("shape", "key", "wrong"),
    [
        ("path-based", "reasoning_image", "reasoning_images"),
        ("path-based", "reasoning_image", "reasoningImage"),
        ("path-based", "reasoning_image", "Reasoning-Image"),
        ("path-based", "reasoning_image", "resoning_image"),
        ("path-based", "image", "imgae"),
        ("path-based", "answer", "anwser"),
        ("frame-indexed", "reasoning_image", "reasoning_images"),
        ("frame-indexed", "image", "images"),
        ("frame-indexed", "video", "vidoe"),
        ("upstream", "reasoning_images_index", "reasoning_image_index"),
        ("upstream", "question", "qestion"),
        ("chat", "videos", "video"),
        ("chat", "images", "Images"),
        ("unlabelled", "reasoning_image", "reasoning_images"),
    ],
)
def test_misspelt_keys_are_named(shape, key, wrong):
    record = without(SHAPES[shape], key) | {wrong: SHAPES[shape][key]}
    with pytest.raises(RecordError, match=f"record 3, field '{wrong}' = .*looks like '{key}'.*rename it to '{key}'"):
        parse(record)


@pytest.mark.parametrize(("wrong", "right"), [("mesages", "messages"), ("Conversations", "conversations")])
def test_a_misspelt_shape_is_named(wrong, right):
    with pytest.raises(RecordError, match=f"unknown shape, its keys are: {wrong} \\('{wrong}' looks like '{right}'\\)"):
        parse({wrong: CHAT["messages"]})


def test_a_labelled_video_with_a_misspelt_key_is_no_unlabelled_one():
    with pytest.raises(RecordError, match=r"field 'conversation' = .*looks like 'conversations'"):
        parse(UNLABELLED | {"conversation": FRAME_INDEXED["conversations"]})


PUBLIC_KEYS = [
    "meta_data", "gain", "correct_in_8_base", "correct_in_8_hint", "cot", "classification", "source", "tools",
    "objects", "audios", "rejected_response", "rejected_images", "label", "channel", "data_source", "video_id",
    "image_id",
    "question_id", "problem_id", "problem_type", "solution", "options", "duration", "fps", "width", "height", "idx",
    "conversation_id", "image_w", "answer_type", "split", "category", "cost", "model", "chosen", "rejected", "prompt",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_of_public_data_are_left_alone(shape):
    extra = dict.fromkeys(PUBLIC_KEYS, "x") | {"id": 7}
    sample = parse(changed(extra, **SHAPES[shape]))
    assert sample.turns == parse(SHAPES[shape]).turns
    assert extra.keys() - SHAPES[shape].keys() <= sample.meta.keys() | {"cot"}


@pytest.mark.parametrize(
    ("shape", "extra"),
    [
        ("chat", {"image": []}),
        ("chat", {"image": None, "sytem": "", "Images": []}),
        ("chat", {"message": "saved"}),
        ("unlabelled", {"questions": ["What next?"]}),
        ("unlabelled", {"questions": "What next?", "conversation": "c7", "messageId": "m1"}),
        ("path-based", {"videoId": "v1", "imageId": 3, "systems": "linux", "sytem": 4}),
        ("frame-indexed", {"systemId": "s", "system_": [1]}),
    ],
)
def test_keys_that_hold_something_else_are_not_misspelt(shape, extra):
    assert parse(SHAPES[shape] | extra).turns == parse(SHAPES[shape]).turns


@pytest.mark.parametrize(
    "extra", [{"answers": "B"}, {"answers": ["B"]}, {"videoId": "v1"}, {"imageId": 7}, {"image_ids": [1]}]
)
def test_keys_of_share_gpt_data_are_left_alone(extra):
    assert parse(SHARED | extra).turns == parse(SHARED).turns


def test_a_key_is_not_misspelt_beside_the_right_one():
    assert parse(changed(PATH_BASED, reasoning_images=["x.png"])).meta == {"reasoning_images": ["x.png"]}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("value", "read"),
    [
        (7, 7),
        ("q7", "q7"),
        (3.0, 3),
        (1.5, "1.5"),
        (True, "True"),
        ([1, "a"], '[1, "a"]'),
        ({"$oid": "x"}, '{"$oid": "x"}'),
        (b"1", "b'1'"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (decimal.Decimal("3.10"), "3.10"),
        (math.inf, "inf"),
    ],
)
def test_an_id_is_a_text_or_an_integer_and_else_its_text(shape, value, read):
    found = parse(changed(SHAPES[shape], id=value)).meta["id"]
    assert (type(found), found) == (type(read), read)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_id_that_is_not_a_number_is_none(shape):
    assert "id" not in parse(changed(SHAPES[shape], id=math.nan)).meta


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["<image>", "<ans>", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value, path=()):
    """Paths of all values within a record."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from _places(child, (*path, key))


@st.composite
def mutated_records(draw):
    record = copy.deepcopy(draw(st.sampled_from(list(SHAPES.values()))))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([path for path in _places(record) if path]))
        target = record
        for key in place[:-1]:
            target = target[key]
        if draw(st.booleans()):
            target[place[-1]] = draw(JSON_VALUES)
        else:
            del target[place[-1]]
        if not record:
            break
    return record


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_records() | JSON_VALUES, st.booleans(), st.sampled_from([None, Path("/data")]))
@example(changed(FRAME_INDEXED, video="x" * 5000), True, None)
@example(changed(FRAME_INDEXED, video="\ud800.mp4"), True, Path("/data"))
@example(changed(FRAME_INDEXED, conversations=[{"from": [], "value": ""}]), True, None)
def test_only_errors_of_our_own_come_out(record, check_files, data_root):
    try:
        sample = parse(record, check_files=check_files, data_root=data_root)
    except FutureL1Error as error:
        message = str(error)
    else:
        message = "train.jsonl, record 3"
        assert any(turn.role == "assistant" for turn in sample.turns)
        assert sample.answer is None or sample.answer.strip()
    assert message.startswith("train.jsonl, record 3")


# --------------------------------------------------------------------------------------------------------- media files


def test_missing_media_is_a_record_and_a_file_error(tmp_path):
    with pytest.raises(RecordFileError) as caught:
        parse(FRAME_INDEXED, folder=tmp_path, check_files=True)
    assert isinstance(caught.value, RecordError)
    assert isinstance(caught.value, MissingFileError)
    message = str(caught.value)
    assert message.startswith("train.jsonl, record 3, field 'video' = 'clips/a.mp4': there is no file")
    assert str(tmp_path / "clips/a.mp4") in message
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_media_resolve_against_the_folder_of_the_records(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").touch()
    assert parse(FRAME_INDEXED, folder=tmp_path, check_files=True).hints[0].path == tmp_path / "clips/a.mp4"


@pytest.fixture
def rooted(tmp_path):
    """A data root with a clip inside and one outside, which a link inside points to."""
    root = tmp_path / "root"
    (root / "clips").mkdir(parents=True)
    (root / "clips/a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    return root


@pytest.mark.parametrize("video", ["../secret.mp4", "clips/../../secret.mp4", "{outside}/secret.mp4", "link.mp4"])
def test_media_outside_the_data_root_are_refused(rooted, video):
    record = changed(FRAME_INDEXED, video=video.format(outside=rooted.parent))
    parse(record, folder=rooted, check_files=True)
    with pytest.raises(RecordError, match=r"field 'video' = .*secret\.mp4, outside data_root .*; move the file"):
        parse(record, folder=rooted, data_root=rooted, check_files=True)


@pytest.mark.parametrize("video", ["clips/a.mp4", "clips/../clips/a.mp4", "{root}/clips/a.mp4"])
def test_media_inside_the_data_root_are_allowed(rooted, video):
    record = changed(FRAME_INDEXED, video=video.format(root=rooted))
    assert len(parse(record, folder=rooted, data_root=rooted, check_files=True).hints) == 2


# ------------------------------------------------------------------------------------------------------------- sources


def numbered(number):
    return {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"A{number}"}]}


def question(sample):
    return sample.turns[0].parts[0]


def write_lines(path, records, newline="\n"):
    path.write_bytes(newline.join(json.dumps(record) for record in records).encode() + newline.encode())
    return path


def write_parquet(path, records, row_group_size=None):
    columns = {key: [record.get(key) for record in records] for record in records for key in record}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_samples(tmp_path, suffix):
    records_ = [numbered(number) for number in range(1, 8)]
    path = tmp_path / f"data.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(records_))
    elif suffix == "jsonl":
        write_lines(path, records_)
    else:
        write_parquet(path, records_, row_group_size=3)
    source = open_records(path)
    assert len(source) == 7
    assert [question(source[index]) for index in (6, 0, 3, 2, -1)] == ["Q7", "Q1", "Q4", "Q3", "Q7"]
    assert [sample.id for sample in source] == [f"data.{suffix}:{number}" for number in range(1, 8)]
    raw = source.raw(4)
    assert (raw.raw, raw.file, raw.number, raw.folder, raw.name) == (numbered(5), path, 5, tmp_path, path.name)
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"record {index} of 7"):
            source.raw(index)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_shapes_survive_storage(tmp_path, shape, suffix):
    path = tmp_path / f"data.{suffix}"
    (write_lines if suffix == "jsonl" else write_parquet)(path, [SHAPES[shape]])
    expected = parse(SHAPES[shape], file=path.name, number=1, folder=tmp_path)
    assert open_records(path).sample(0, check_files=False) == expected


def test_a_mixed_parquet_file_keeps_the_shapes_apart(tmp_path):
    path = write_parquet(tmp_path / "mixed.parquet", [FRAME_INDEXED, CHAT, UNLABELLED])
    source = open_records(path)
    # null columns of the other shapes
    assert source.raw(2).raw["conversations"] is source.raw(2).raw["messages"] is source.raw(2).raw["answer"] is None
    samples = [source.sample(index, check_files=False) for index in range(3)]
    assert samples[0].answer == "He opens the gate."
    assert samples[1].turns == parse(CHAT, folder=tmp_path).turns
    assert samples[2] == parse(UNLABELLED, file=path.name, folder=tmp_path)


def test_a_single_json_object_is_one_record(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(numbered(1)))
    source = open_records(tmp_path / "one.json")
    assert [sample.id for sample in source] == ["one.json:1"]


def test_a_folder_is_read_sorted_and_recursively(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    write_lines(tmp_path / "b" / "x.jsonl", [numbered(3)])
    write_lines(tmp_path / "c.jsonl", [numbered(4)])
    write_lines(tmp_path / ".cache" / "x.jsonl", [numbered(9)])
    write_parquet(tmp_path / "a.parquet", [numbered(1), numbered(2)])
    (tmp_path / "notes.txt").write_text("no records")
    source = open_records(str(tmp_path))
    assert [question(sample) for sample in source] == ["Q1", "Q2", "Q3", "Q4"]
    assert [source.id(index) for index in range(4)] == ["a.parquet:1", "a.parquet:2", "x.jsonl:1", "c.jsonl:1"]


def test_files_that_share_a_name_are_told_apart(tmp_path):
    for folder in ("one", "two/deep"):
        (tmp_path / folder).mkdir(parents=True)
        write_lines(tmp_path / folder / "train.jsonl", [numbered(1)])
    write_lines(tmp_path / "other.jsonl", [numbered(1)])
    source = open_records(
        [tmp_path / "two", tmp_path / "other.jsonl", str(tmp_path / "one/train.jsonl")],
    )
    assert [sample.id for sample in source] == ["two/deep/train.jsonl:1", "other.jsonl:1", "one/train.jsonl:1"]


def test_blank_lines_keep_line_numbers(tmp_path):
    path = tmp_path / "gaps.jsonl"
    lines = ["", json.dumps(numbered(2)), "", "  ", json.dumps(numbered(5)), json.dumps(numbered(6)), "", "{"]
    path.write_text("\n".join(lines))
    source = open_records(path)
    assert [source.id(index) for index in range(4)] == ["gaps.jsonl:2", "gaps.jsonl:5", "gaps.jsonl:6", "gaps.jsonl:8"]
    assert [question(source[index]) for index in range(3)] == ["Q2", "Q5", "Q6"]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = write_lines(tmp_path / "win.jsonl", [numbered(1), numbered(2)], newline="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [question(sample) for sample in open_records(path)] == ["Q1", "Q2"]
    (tmp_path / "win.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([numbered(3)]).encode())
    assert [question(sample) for sample in open_records(tmp_path / "win.json")] == ["Q3"]


def test_a_broken_line_is_an_error_of_that_record_only(tmp_path):
    path = tmp_path / "broken.jsonl"
    good = json.dumps(numbered(1)).encode()
    path.write_bytes(
        b"\n".join([good, b'{"messages": [}', b"[1, 2]", b'{"a": "\xff"}', b"9" * 5000, b"[" * 99999, good])
    )
    source = open_records(path)
    assert question(source[0]) == question(source[6]) == "Q1"
    for index, says in [
        (1, r"broken\.jsonl, record 2: not valid JSON: .*line 1 column 15, near .*; write one JSON object on the line"),
        (2, r"broken\.jsonl, record 3: list \(\[1, 2\]\) where an object is expected"),
        (3, r"broken\.jsonl, record 4: byte 0xff at offset 7 is not UTF-8; save the file as UTF-8"),
        (4, r"broken\.jsonl, record 5: JSON that Python cannot hold"),
        (5, r"broken\.jsonl, record 6: JSON that Python cannot hold"),
    ]:
        with pytest.raises(RecordError, match=says):
            source.sample(index)


REPEATED = {
    "at the top": ('{"videos": [], "videos": ["a.mp4"], "messages": []}', "videos"),
    "in a turn": ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
    "in a field nobody reads": ('{"messages": [], "meta": [{"a": {"b": 1, "b": 1}}]}', "b"),
    "by an escape": ('{"id": 1, "\\u0069d": 2}', "id"),
    "of half a pair": ('{"\\ud800": 1, "\\ud800": 2}', r"\\ud800"),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("case", REPEATED)
def test_a_key_that_stands_twice_is_an_error_of_its_record(tmp_path, suffix, case):
    text, key = REPEATED[case]
    good = json.dumps(numbered(1))
    file = tmp_path / f"a.{suffix}"
    file.write_text(f"[{good},\n{text}, {good}]" if suffix == "json" else f"{good}\n{text}\n{good}\n")
    source = open_records(file)
    assert [question(source.sample(index, check_files=False)) for index in (0, 2)] == ["Q1", "Q1"]
    with pytest.raises(RecordError, match=f"a.{suffix}, record 2, field '{key}': an object has this key twice"):
        source[1]


def test_a_json_object_with_a_key_twice_is_one_record(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"id": 1, "id": 2}', encoding="utf-8")
    source = open_records(tmp_path / "a.json")
    assert len(source) == 1
    with pytest.raises(RecordError, match="record 1, field 'id': an object has this key twice"):
        source[0]


@pytest.mark.parametrize("item", ['{"image": [' + "9" * 5000 + "]}", '{"a": ' + "[" * 5000 + "]" * 5000 + "}"])
def test_an_item_that_python_cannot_hold_is_an_error_of_its_record(tmp_path, item):
    odd = json.dumps(changed(numbered(1), note='a "quoted" ]}, \\'))
    (tmp_path / "a.json").write_text(f"[ {odd} , {item} ,{odd}]\n")
    source = open_records(tmp_path / "a.json")
    assert [question(source.sample(index, check_files=False)) for index in (0, 2)] == ["Q1", "Q1"]
    with pytest.raises(RecordError, match=r"a\.json, record 2: JSON that Python cannot hold"):
        source[1]


def test_values_of_parquet_that_python_cannot_hold_are_errors_of_their_field(tmp_path):
    late = pa.array([0, 10**12], pa.int64()).cast(pa.timestamp("s"))
    pq.write_table(pa.table({"id": ["a", "b"], "recorded": late}), tmp_path / "a.parquet")
    source = open_records(tmp_path / "a.parquet")
    assert source.raw(0).raw["id"] == "a"
    with pytest.raises(RecordError, match=r"a\.parquet, record 2, field 'recorded': the value of type timestamp"):
        source.raw(1)


def test_a_column_that_stands_twice_is_an_error(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(RecordError, match=r"a\.arrow, record 1, field 'id': the table has this column twice"):
        open_records(tmp_path / "a.arrow")[0]


def test_keys_are_printable_in_messages(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"\\ud800": 1, "' + "k" * 9000 + '": 2}\n')
    with pytest.raises(RecordError, match=r"its keys are: \\ud800, kkk") as caught:
        open_records(tmp_path / "a.jsonl")[0]
    assert len(str(caught.value).encode()) < 700


def test_paths_too_long_for_a_message_are_shortened(tmp_path):
    record = changed(UNLABELLED, video="a/" * 3000 + "x.mp4")
    with pytest.raises(RecordFileError, match=r"field 'video' = .*there is no file") as caught:
        parse(record, folder=tmp_path, check_files=True)
    assert len(str(caught.value)) < 1000


def test_a_skipped_record_can_be_named(tmp_path):
    source = open_records(write_lines(tmp_path / "some.jsonl", [{"text": "hi"}]))
    with pytest.raises(RecordError) as caught:
        source.sample(0)
    skipped = SkippedRecord(source.id(0), type(caught.value).__name__, str(caught.value))
    assert (skipped.id, skipped.error) == ("some.jsonl:1", "RecordError")
    assert "unknown shape" in skipped.message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'[{"a": 1},\n {"b": }]', r"a\.json: not valid JSON: Expecting value, line 2 column 8"),
        (
            "a.json",
            b'{"a": 1}\n{"b": 2}',
            r"a\.json: not valid JSON: Extra data, line 2 column 1.*name the file \.jsonl",
        ),
        ("a.json", b"[]", r"a\.json: the file has no records"),
        ("a.json", b"3", r"a\.json: int where a list is expected; write an array"),
        ("a.json", b'["\xe9"]', r"a\.json: byte 0xe9 at offset 2 is not UTF-8"),
        ("a.json", b"", r"a\.json: the file is empty \(0 bytes\)"),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty \(0 bytes\)"),
        ("a.jsonl", b"\n  \n", r"a\.jsonl: the file has no records"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: not a readable Parquet file"),
    ],
)
def test_a_file_without_records_is_an_error_at_opening(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=says):
        open_records(tmp_path / name)


def test_an_empty_parquet_file_is_an_error(tmp_path):
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(RecordError, match=r"none\.parquet: the file has no records"):
        open_records(tmp_path / "none.parquet")


def test_paths_that_cannot_be_records(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"data\.csv: extension '\.csv' is not one of \.json, \.jsonl, \.parquet"):
        open_records(tmp_path / "data.csv")
    with pytest.raises(ConfigError, match=r"the folder holds no \.json"):
        open_records(tmp_path)
    with pytest.raises(MissingFileError, match=r"nowhere\.json: no such file or folder"):
        open_records([tmp_path / "nowhere.json"])
    with pytest.raises(ConfigError, match="no record files are given"):
        open_records([])
    path = write_lines(tmp_path / "a.jsonl", [numbered(1)])
    with pytest.raises(ConfigError, match=r"a\.jsonl: the file is named twice"):
        open_records([path, tmp_path])
    with pytest.raises(MissingFileError, match=r"data_root .*gone: no such folder"):
        open_records(path, data_root=tmp_path / "gone")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_that_has_gone_is_an_error(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    (write_lines if suffix == "jsonl" else write_parquet)(path, [numbered(1)])
    source = open_records(path)
    path.unlink()
    with pytest.raises(MissingFileError, match=rf"data\.{suffix}, record 1: the file .* has gone"):
        source.sample(0)


def test_a_file_that_cannot_be_read_is_an_error_of_the_record(tmp_path):
    write_lines(tmp_path / "a.jsonl", [numbered(1)])
    source = open_records(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(RecordError, match=r"a\.jsonl, record 1: the file .* cannot be read"):
        source.raw(0)


def test_the_data_root_holds_for_a_source(rooted):
    write_lines(rooted / "train.jsonl", [FRAME_INDEXED, changed(FRAME_INDEXED, video="link.mp4")])
    source = open_records(rooted / "train.jsonl", data_root=rooted)
    assert len(source[0].hints) == 2
    with pytest.raises(RecordError, match=r"train\.jsonl, record 2, field 'video' = 'link\.mp4': leads to .*outside"):
        source.sample(1)


# --------------------------------------------------------------------------------------------- memory and processes


def test_json_lines_are_not_loaded(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps(numbered(1) | {"filler": "x" * 200}).encode() + b"\n"
    with path.open("wb") as stream:
        for _ in range(20):
            stream.write(line * 10_000)
    tracemalloc.start()
    try:
        source = open_records(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source) == 200_000
    assert path.stat().st_size > 50e6
    assert held < 2.5e6
    assert peak < 6e6
    assert len(pickle.dumps(source)) < 2e6
    assert source.id(199_999) == "large.jsonl:200000"
    assert question(source[-1]) == "Q1"


def test_few_row_groups_are_held(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "data.parquet", [numbered(number) for number in range(40)], row_group_size=10)
    source = open_records(path)
    records._row_group.cache_clear()
    for index in range(40):
        assert question(source[index]) == f"Q{index}"
    info = records._row_group.cache_info()
    assert (info.misses, info.currsize) == (4, 2)


def test_a_rewritten_parquet_file_is_not_served_from_the_cache(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", [numbered(1)])
    assert question(open_records(path)[0]) == "Q1"
    write_parquet(path, [numbered(2)])
    os.utime(path, ns=(1, 1))
    assert question(open_records(path)[0]) == "Q2"


def _questions(source):
    return [question(sample) for sample in source]


def test_no_file_stays_open(tmp_path):
    write_lines(tmp_path / "a.jsonl", [numbered(1)])
    write_parquet(tmp_path / "b.parquet", [numbered(2)])
    source = open_records(tmp_path)
    assert _questions(source) == ["Q1", "Q2"]
    held = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not [link for link in held if link.is_symlink() and str(tmp_path) in os.readlink(link)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_source_works_in_other_processes(tmp_path, method):
    write_lines(tmp_path / "a.jsonl", [numbered(1), numbered(2)])
    write_parquet(tmp_path / "b.parquet", [numbered(3), numbered(4)], row_group_size=1)
    (tmp_path / "c.json").write_text(json.dumps([numbered(5)]))
    source = open_records(tmp_path)
    expected = ["Q1", "Q2", "Q3", "Q4", "Q5"]
    assert _questions(source) == expected
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_questions, [source] * 4, chunksize=1) == [expected] * 4
    assert _questions(pickle.loads(pickle.dumps(source))) == expected


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    file = tmp_path / "odd.jsonl"
    turns = [{"role": "user", "content": "What is \ud800?"}, {"role": "assistant", "content": "B"}]
    file.write_text(json.dumps({"messages": turns, "videos": [], "images": []}))
    with pytest.raises(RecordError, match="surrogate"):
        open_records(file).sample(0)
