"""JSON, JSON Lines, Parquet and Arrow: the same records, errors of single records, and little memory."""

import json
import math
import os
import pickle
import shutil
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_records import (
    CHAT,
    FRAME_INDEXED,
    SHAPES,
    UNLABELLED,
    changed,
    numbered,
    parse,
    question,
    questions,
    rows,
    save,
    write_lines,
    write_parquet,
)

from futurel1.data import record_files
from futurel1.data.records import open_records
from futurel1.errors import RecordError


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


def test_opening_takes_a_fraction_of_parsing(tmp_path):
    path = tmp_path / "many.jsonl"
    record = numbered(1) | {"filler": ["x" * 40] * 20}
    path.write_text(f"{json.dumps(record)}\n" * 50_000)
    began = time.perf_counter()
    for line in path.read_bytes().splitlines():
        json.loads(line)
    parsing = time.perf_counter() - began
    opening = math.inf
    for _ in range(3):
        began = time.perf_counter()
        source = open_records(path)
        opening = min(opening, time.perf_counter() - began)
    assert len(source) == 50_000
    assert opening < parsing / 3
    assert len(pickle.dumps(source)) < 8.1 * 50_000


def test_few_row_groups_are_held(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "data.parquet", [numbered(number) for number in range(40)], row_group_size=10)
    source = open_records(path)
    record_files._row_group.cache_clear()
    for index in range(40):
        assert question(source[index]) == f"Q{index}"
    info = record_files._row_group.cache_info()
    assert (info.misses, info.currsize) == (4, 2)


def test_a_rewritten_parquet_file_is_not_served_from_the_cache(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", [numbered(1)])
    assert question(open_records(path)[0]) == "Q1"
    write_parquet(path, [numbered(2)])
    os.utime(path, ns=(1, 1))
    assert question(open_records(path)[0]) == "Q2"


def test_arrow_file_of_the_other_kind_is_read_too(tmp_path):
    table = pa.Table.from_pylist(rows(0, 3))
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert questions(open_records(tmp_path / "a.arrow")) == ["Q0", "Q1", "Q2"]


def test_rewritten_arrow_file_is_not_served_from_memory(tmp_path):
    assert questions(open_records(save(tmp_path / "saved", rows(0, 2)))) == ["Q0", "Q1"]
    shutil.rmtree(tmp_path / "saved")
    assert questions(open_records(save(tmp_path / "saved", rows(4, 7)))) == ["Q4", "Q5", "Q6"]


def test_arrow_rows_stay_on_disk(tmp_path):
    folder = save(tmp_path / "saved", [{"text": "x" * 1_000_000} for _ in range(8)])
    before = pa.total_allocated_bytes()
    source = open_records(folder)
    for index in range(8):
        assert len(source.raw(index).raw["text"]) == 1_000_000
        assert pa.total_allocated_bytes() - before < 2_000_000
