"""Fields of every type: what is read, what is refused and how messages show it."""

import datetime
import decimal
import json
import math
import pickle

import pytest
from example_records import CHAT, FOLDER, FRAME_INDEXED, SHAPES, UNLABELLED, UPSTREAM, changed, parse

from futurel1.data.records import open_records
from futurel1.data.samples import RecordFileError
from futurel1.errors import MissingFileError, RecordError


def test_null_fields_count_as_absent():
    nulls = dict.fromkeys(["messages", "question_images_index", "images"])
    assert parse(changed(FRAME_INDEXED, **nulls)) == parse(FRAME_INDEXED)


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


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    file = tmp_path / "odd.jsonl"
    turns = [{"role": "user", "content": "What is \ud800?"}, {"role": "assistant", "content": "B"}]
    file.write_text(json.dumps({"messages": turns, "videos": [], "images": []}))
    with pytest.raises(RecordError, match="surrogate"):
        open_records(file).sample(0)
