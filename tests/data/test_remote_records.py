"""Records in stores: the same samples as from a disk, with media beside them; what fails names shard and line."""

import json
import multiprocessing
import pickle

import pytest
from example_records import (
    FRAME_INDEXED,
    PATH_BASED,
    changed,
    numbered,
    question,
    questions,
    rows,
    save,
    write_lines,
    write_parquet,
)
from PIL import Image
from range_server import serving

from futurel1.curation.curated import curated_record
from futurel1.data import open_records, read_frames, read_image
from futurel1.data.benchmarks import parse_twiffbench, read_images
from futurel1.data.remote import mirror_place, shown
from futurel1.errors import ConfigError, MediaError, MissingFileError, RecordError, RemoteError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the server that serves it."""
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as server:
        yield folder, server


def write_all(folder):
    """Twelve records in four formats."""
    write_lines(folder / "a.jsonl", rows(0, 3))
    write_parquet(folder / "b.parquet", rows(3, 8), row_group_size=2)
    save(folder / "c", rows(8, 10))
    (folder / "c/state.json").unlink()
    (folder / "c/dataset_info.json").unlink()
    (folder / "d.json").write_text(json.dumps(rows(10, 12)))


def test_every_format_gives_the_samples_of_a_disk(served):
    folder, server = served
    write_all(folder)
    local, remote = open_records(folder), open_records(server.url)
    assert questions(remote) == questions(local) == [f"Q{number}" for number in range(12)]
    assert [remote.id(index) for index in range(12)] == [local.id(index) for index in range(12)]
    assert [file.place for file in remote.files][:2] == [f"{server.url}/a.jsonl", f"{server.url}/b.parquet"]
    assert shown(remote.raw(4).file) == f"{server.url}/b.parquet"
    assert questions(open_records([f"{server.url}/d.json", f"{server.url}/*.jsonl"])) == [
        "Q10",
        "Q11",
        "Q0",
        "Q1",
        "Q2",
    ]


@pytest.mark.parametrize("pattern", ["part-*.jsonl", "**/part-0[01].jsonl"])
def test_patterns_of_local_files(tmp_path, pattern):
    for number in (1, 0):
        write_lines(tmp_path / f"part-{number:02d}.jsonl", rows(number, number + 1))
    write_lines(tmp_path / "other.jsonl", rows(9, 10))
    assert questions(open_records(tmp_path / pattern)) == ["Q0", "Q1"]
    with pytest.raises(MissingFileError, match=r"gone-\*: no .* file matches"):
        open_records(tmp_path / "gone-*")
    with pytest.raises(ConfigError, match="the file is named twice"):
        open_records([tmp_path / pattern, tmp_path / "part-01.jsonl"])
    write_lines(tmp_path / "part-*.jsonl", rows(5, 6))  # a name, not a pattern, where there is such a file
    assert questions(open_records(tmp_path / "part-*.jsonl")) == ["Q5"]


def test_a_record_costs_one_request(served):
    folder, server = served
    write_lines(folder / "a.jsonl", rows(0, 500))
    source = open_records(f"{server.url}/a.jsonl")
    server.asked.clear()
    assert question(source[321]) == "Q321"
    [(_, _, span)] = server.asked
    first, last = map(int, span.removeprefix("bytes=").split("-"))
    assert last - first < 200 < (folder / "a.jsonl").stat().st_size / 100


def test_errors_name_the_shard_and_the_line(served):
    folder, server = served
    (folder / "a.jsonl").write_text(f"{json.dumps(numbered(1))}\n\n{{broken\n")
    write_lines(folder / "b.jsonl", [changed(FRAME_INDEXED, image=[9])])
    source = open_records(server.url)
    with pytest.raises(RecordError, match=r"^a\.jsonl, record 3: not valid JSON"):
        source.sample(1)
    with pytest.raises(RecordError, match=r"^b\.jsonl, record 1, field 'image'"):
        source.sample(2)
    (folder / "b.jsonl").unlink()
    with pytest.raises(MissingFileError, match=rf"^b\.jsonl, record 1: the file {server.url}/b\.jsonl has gone"):
        source.sample(2)
    server.ranges = False
    with pytest.raises(RecordError, match=r"^a\.jsonl, record 1: the file .*a\.jsonl cannot be read .*ignores ranges"):
        source.sample(0)


def test_files_that_are_not_what_they_seem(served):
    folder, server = served
    (folder / "a.parquet").write_bytes(b"no table")
    (folder / "b.jsonl").touch()
    with pytest.raises(RecordError, match=r"^a\.parquet: not a readable Parquet file"):
        open_records(f"{server.url}/a.parquet")
    with pytest.raises(RecordError, match=r"b\.jsonl: the file is empty"):
        open_records(f"{server.url}/b.jsonl")
    with pytest.raises(MissingFileError, match=r"^http://127\.0\.0\.1:9/a\.jsonl: no such file or folder there \(.*"):
        open_records("http://127.0.0.1:9/a.jsonl")


def test_a_rewritten_arrow_file_is_not_taken_from_its_copy(served):
    folder, server = served
    save(folder / "c", rows(0, 2))
    url = f"{server.url}/c/data-00000-of-00001.arrow"
    assert questions(open_records(url)) == ["Q0", "Q1"]
    (folder / "c/data-00000-of-00001.arrow").replace(folder / "old")
    save(folder / "d", rows(2, 4))
    (folder / "d/data-00000-of-00001.arrow").replace(folder / "c/data-00000-of-00001.arrow")
    assert questions(open_records(url)) == ["Q2", "Q3"]


def test_media_lie_beside_their_shard(served, clips, pictures, frame_number):
    folder, server = served
    (folder / "records").mkdir()
    (folder / "my clips").mkdir()
    (folder / "my clips/a.mp4").write_bytes(clips["closed"].read_bytes())
    (folder / "my clips/now.png").write_bytes((pictures / "now.png").read_bytes())
    video = changed(FRAME_INDEXED, video="../my clips/a.mp4")
    image = changed(PATH_BASED, image=["../my clips/now.png"], reasoning_image=["gone.png", "gone.png"])
    write_lines(folder / "records/a.jsonl", [video, image])
    source = open_records(f"{server.url}/records")
    server.asked.clear()
    first, second = source.sample(0), source.sample(1)
    assert all(path.endswith("a.jsonl") for _, path, _ in server.asked)  # media are asked for when they are read
    assert [frame_number(picture) for picture in read_frames(first.hints[0].path, [3, 40])] == [3, 40]
    assert read_image(second.observed[0].path).tobytes() == Image.open(pictures / "now.png").tobytes()
    with pytest.raises(MissingFileError, match=rf"^{server.url}/records/gone\.png: no such file"):
        read_image(second.hints[0].path)
    # chosen records are written elsewhere, with addresses in place of relative paths
    moved = curated_record(source.raw(1), {}, folder)
    assert moved["image"] == [f"{server.url}/my clips/now.png"]


def test_where_media_of_remote_records_may_lie(served, tmp_path):
    folder, server = served
    names = ["../../../../../../etc/passwd", "s3://other/a.mp4", f"{server.url}/in/a.mp4", str(tmp_path / "x.mp4")]
    (folder / "in").mkdir()
    write_lines(folder / "in/a.jsonl", [changed(FRAME_INDEXED, video=name) for name in [*names, "../out.mp4"]])
    url = f"{server.url}/in/a.jsonl"
    free = open_records(url)
    with pytest.raises(RecordError, match=r"field 'video' = '\.\./.*not the address of a file .*above the bucket"):
        free.sample(0)
    with pytest.raises(RecordError, match=r"a s3 URL, which is not read; .*or set data_root to the address"):
        free.sample(1)
    with pytest.raises(MissingFileError, match=r"there is no file .*x\.mp4"):
        free.sample(3)
    rooted = open_records(url, data_root=f"{server.url}/in")
    assert shown(rooted.sample(2).hints[0].path) == f"{server.url}/in/a.mp4"
    for index in (1, 3, 4):
        with pytest.raises(RecordError, match=rf"field 'video' = .*, outside data_root {server.url}/in; move"):
            rooted.sample(index)


def test_records_cannot_ask_the_network_by_the_path_of_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))
    path = mirror_place("http://127.0.0.1:9/a.mp4")
    names = [str(path), "cache/remote/http/127.0.0.1:9/a.mp4", "packed://00000000/http:/127.0.0.1:9/a.tar/x.mp4"]
    write_lines(tmp_path / "a.jsonl", [changed(FRAME_INDEXED, video=name) for name in names])
    source = open_records(tmp_path / "a.jsonl")
    for index in (0, 1):
        with pytest.raises(RecordError, match=r"field 'video' = .*a place in the cache of remote files"):
            source.sample(index)
    with pytest.raises(RecordError, match=r"field 'video' = .*a packed URL, which is not read"):
        source.sample(2)


def test_local_records_may_name_media_of_a_store(served, tmp_path, clips):
    folder, server = served
    (folder / "a.mp4").write_bytes(clips["closed"].read_bytes())
    write_lines(tmp_path / "a.jsonl", [changed(FRAME_INDEXED, video=f"{server.url}/a.mp4")])
    sample = open_records(tmp_path / "a.jsonl", data_root=server.url)[0]
    assert len(read_frames(sample.observed[0].path, [0])) == 1


def _read(source):
    return questions(source)


def test_remote_sources_work_in_other_processes(served):
    folder, server = served
    write_all(folder)
    source = open_records(server.url)
    expected = questions(source)
    assert questions(pickle.loads(pickle.dumps(source))) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:  # after this process has used the connection
        assert pool.apply(_read, [source]) == expected


def test_stored_images_are_read_back(served):
    folder, server = served
    record = {
        "question": "What?", "answer": "That.", "reasoning": "So.", "question_images": [{"bytes": b"one"}],
        "reasoning_images": [{"bytes": b"two"}],
    }  # fmt: skip
    write_parquet(folder / "bench.parquet", [record])
    info = open_records(f"{server.url}/bench.parquet", parse=parse_twiffbench)[0].info
    assert (read_images(info.question_images), read_images(info.reference_images)) == ([b"one"], [b"two"])


def test_damage_names_the_copy_and_failures_the_address(served, monkeypatch):
    folder, server = served
    (folder / "a.mp4").write_bytes(b"no video")
    write_lines(folder / "a.jsonl", [changed(FRAME_INDEXED, video=name) for name in ("a.mp4", "b.mp4")])
    monkeypatch.setattr("futurel1.data.remote._ATTEMPTS", 1)
    bad, failing = open_records(f"{server.url}/a.jsonl")
    with pytest.raises(MediaError, match=r"a\.mp4: "):
        read_frames(bad.observed[0].path, [0])
    (folder / "b.mp4").write_bytes(b"x")
    server.failures = 1
    with pytest.raises(RemoteError, match=rf"^{server.url}/b\.mp4: cannot be read"):
        read_frames(failing.observed[0].path, [0])
