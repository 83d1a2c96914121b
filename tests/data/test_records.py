"""Sources of records: which files are found, what has gone, and that processes can share them."""

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from example_records import (
    FRAME_INDEXED,
    changed,
    numbered,
    question,
    questions,
    rows,
    save,
    write_lines,
    write_parquet,
)

from futurel1.data import Sample
from futurel1.data.records import open_records
from futurel1.data.samples import RawRecord, SkippedRecord
from futurel1.errors import ConfigError, MissingFileError, RecordError


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


def test_a_skipped_record_can_be_named(tmp_path):
    source = open_records(write_lines(tmp_path / "some.jsonl", [{"text": "hi"}]))
    with pytest.raises(RecordError) as caught:
        source.sample(0)
    skipped = SkippedRecord(source.id(0), type(caught.value).__name__, str(caught.value))
    assert (skipped.id, skipped.error) == ("some.jsonl:1", "RecordError")
    assert "unknown shape" in skipped.message


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


def test_saved_data_set_is_read_in_the_order_of_its_index(tmp_path):
    folder = save(tmp_path / "saved", rows(0, 5), rows(5, 8))
    source = pickle.loads(pickle.dumps(open_records(folder)))
    assert len(source) == 8
    assert questions(source) == [f"Q{number}" for number in range(8)]
    assert source.id(6) == "data-00001-of-00002.arrow:2"
    assert source.sample(6).id == "data-00001-of-00002.arrow:2"


def test_saved_splits_follow_each_other(tmp_path):
    save(tmp_path / "all" / "train", rows(0, 2))
    save(tmp_path / "all" / "test", rows(2, 3))
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_records(tmp_path / "all")
    assert questions(source) == ["Q0", "Q1", "Q2"]
    assert source.id(2) == "test/data-00000-of-00001.arrow:1"


def test_saved_data_that_cannot_be_read_says_why(tmp_path):
    folder = save(tmp_path / "a", rows(0, 2))
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(MissingFileError, match=r"data-00000-of-00001\.arrow: .*state\.json lists this file"):
        open_records(folder)
    with pytest.raises(ConfigError, match="its rows are chosen by an index; save it after flatten_indices"):
        open_records(save(tmp_path / "b", rows(0, 2), _indices_data_files=[{"filename": "indices.arrow"}]))
    (tmp_path / "bad.arrow").write_bytes(b"this is no Arrow file")
    with pytest.raises(RecordError, match=r"bad\.arrow: not a readable Arrow file"):
        open_records(tmp_path / "bad.arrow")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state.json").write_text("{")
    with pytest.raises(RecordError, match=r"state\.json: not valid JSON.*save the data again"):
        open_records(tmp_path / "c")


@pytest.mark.parametrize(
    "name", ["../b/data-00000-of-00001.arrow", "/tmp/a.arrow", "..", ".", "", "a\0.arrow", 3, None]
)
def test_metadata_of_saved_data_name_files_of_their_own_folder(tmp_path, name):
    save(tmp_path / "b", rows(0, 2))
    folder = save(tmp_path / "a", rows(0, 2), _data_files=[{"filename": name}])
    with pytest.raises(ConfigError, match=r"its metadata name .*, which is no file of the folder"):
        open_records(folder)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(ConfigError, match="its metadata name"):
        open_records(tmp_path)


def test_own_parser_sees_records_as_they_are_stored(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"a": 1}\n[2]\n')

    def parse(record: RawRecord) -> Sample:
        return Sample(f"{record.name}:{record.number}", (), None, record.raw)

    source = open_records(tmp_path / "own.jsonl", parse=parse)
    assert source.sample(0) == Sample("own.jsonl:1", (), None, {"a": 1})
    with pytest.raises(RecordError, match=r"own\.jsonl, record 2: list .*write it as an object with named fields"):
        source.sample(1)
