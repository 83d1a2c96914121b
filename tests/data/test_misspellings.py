"""Misspelt keys are named, and the keys of public data are left alone."""

import pytest
from example_records import CHAT, FRAME_INDEXED, PATH_BASED, SHAPES, SHARED, UNLABELLED, changed, parse, without

from futurel1.errors import RecordError


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
