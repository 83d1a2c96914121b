"""Records of the five shapes become samples; bad ones are named with field, value and remedy."""

import copy
from pathlib import Path

import pytest
from example_records import (
    CHAT,
    CLIP,
    FOLDER,
    FRAME_INDEXED,
    PATH_BASED,
    SHAPES,
    SHARED,
    THOUGHTS,
    UNLABELLED,
    UPSTREAM,
    changed,
    parse,
    said,
    without,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from futurel1.data.record_shapes import IMAGINE_NEXT
from futurel1.data.samples import Frame, Sample, Turn, Video
from futurel1.errors import FutureL1Error, RecordError


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


def test_a_hint_may_repeat_the_last_observed_frame():
    assert parse(changed(FRAME_INDEXED, reasoning_image=[2, 8])).hints == (Frame(CLIP, 2), Frame(CLIP, 8))


@pytest.mark.parametrize("shape", SHAPES)
def test_parsing_leaves_the_raw_record_alone(shape):
    record = copy.deepcopy(SHAPES[shape])
    parse(record)
    assert record == SHAPES[shape]


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
