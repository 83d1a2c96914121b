"""Packing: what is in the shards, that nothing is lost by kills or overwritten, and reading them as records."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from range_server import serving

from futurel1 import pack as subject
from futurel1.checking import check
from futurel1.curation.curated import curated_record
from futurel1.data import open_records, parse_record, read_frames
from futurel1.data.remote import shown
from futurel1.data.tar_shards import scan_members
from futurel1.datamodules import VideoHintDataModule
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.pack import pack
from futurel1.worlds import WorldFiles, write_world

RECORDS = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    return write_world(tmp_path_factory.mktemp("world"), train=RECORDS, test=1, size=64, progress=False)


@pytest.fixture(scope="module")
def packed(world: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two records each, and one of the last."""
    out = tmp_path_factory.mktemp("packed") / "out"
    written = pack(str(world.train), str(out), shard_size=two(world))
    assert (written.records, written.shards) == (RECORDS, 4)
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))


def two(world: WorldFiles) -> float:
    """A shard size in megabytes that two records exceed, and one does not."""
    sizes = [sample.hints[0].path.stat().st_size for sample in open_records(world.train)]
    return (max(sizes) + 6_000) / 1e6


def data(place: Path | str, **options: Any) -> VideoHintDataModule:
    return VideoHintDataModule(train=str(place), processor="tiny@random", num_workers=0, **options)


def test_members_are_named_as_webdataset_names_them(world: WorldFiles, packed: Path) -> None:
    with tarfile.open(packed / "shard-00001.tar") as shard:
        assert shard.getnames() == [f"00000000{key}.{kind}" for key in (2, 3) for kind in ("json", "video0.mp4")]
        clip = shard.extractfile("000000003.video0.mp4").read()
        record = json.load(shard.extractfile("000000003.json"))
    source = open_records(world.train)
    assert clip == source[3].hints[0].path.read_bytes()
    assert record == {**source.raw(3).raw, "video": "000000003.video0.mp4"}


def test_shards_give_the_samples_of_their_records(world: WorldFiles, packed: Path) -> None:
    whole, shards = data(world.train).dataset("train"), data(packed).dataset("train")
    assert len(shards) == RECORDS
    ids = [shards.source.id(number) for number in (0, 3, 6)]
    assert ids == ["shard-00000.tar:1", "shard-00001.tar:2", "shard-00003.tar:1"]
    for number in (6, 0, 3):  # random access
        assert torch.equal(whole[number].input_ids, shards[number].input_ids)
        assert torch.equal(whole[number].labels, shards[number].labels)
    loaders = (data(place, batch_size=4, shuffle=False).train_dataloader() for place in (world.train, packed))
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one.pixel_values, other.pixel_values)
        assert torch.equal(one.hint_pixel_values, other.hint_pixel_values)
    assert check(str(packed), num_workers=0).ok


def test_all_kinds_of_media_are_packed(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", "c.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    parts = [{"type": "video", "video": "c.mp4"}, {"type": "image"}, {"type": "text", "text": "a.png"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "b.PNG"}]
    chat = {"messages": turns, "images": [{"path": "a.png"}]}
    paths = {"image": ["a.png"], "reasoning_image": ["b.PNG", "a.png"], "conversations": [], "answer": "c.mp4"}
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (chat, paths)))
    pack(str(tmp_path / "r.jsonl"), str(tmp_path / "out"))
    first, second = (open_records(tmp_path / "out").raw(number).raw for number in (0, 1))
    assert first["images"] == [{"path": "000000000.images0.png"}]
    assert first["messages"][0]["content"] == [{**parts[0], "video": "000000000.video1.mp4"}, *parts[1:]]
    assert first["messages"][1]["content"] == "b.PNG"
    assert (second["image"], second["answer"]) == (["000000001.image0.png"], "c.mp4")
    assert second["reasoning_image"] == ["000000001.reasoning_image1.png", "000000001.image0.png"]
    sample = open_records(tmp_path / "out")[0]
    assert [shown(part.path).rpartition("/")[2] for part in sample.turns[0].parts if not isinstance(part, str)] == [
        "000000000.video1.mp4", "000000000.images0.png",
    ]  # fmt: skip


def test_a_killed_call_goes_on(
    world: WorldFiles, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, out = two(world), tmp_path / "out"
    members = subject._members

    def killed(source: Any, number: int, root: Any) -> Any:
        if number == 5:
            raise KeyboardInterrupt
        return members(source, number, root)

    monkeypatch.setattr(subject, "_members", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(str(world.train), str(out), shard_size=size)
    assert sorted(path.name for path in out.iterdir() if path.suffix) == [
        ".packing.json", "shard-00000.tar", "shard-00000.tar.idx", "shard-00001.tar", "shard-00001.tar.idx",
    ]  # fmt: skip
    with pytest.raises(RecordError, match="its records are not all packed; call the same `futurel1 pack` again"):
        open_records(out)
    with pytest.raises(ConfigError, match=r"other records or of another --shard_size"):
        pack(str(world.train), str(out), shard_size=1)
    monkeypatch.setattr(subject, "_members", members)
    assert pack(str(world.train), str(out), shard_size=size).records == RECORDS
    for file in packed.glob("shard-*"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_nothing_is_overwritten(world: WorldFiles, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"holds all {RECORDS} records already; choose another --out"):
        pack(str(world.train), str(packed), shard_size=two(world))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not empty, and nothing in it is overwritten"):
        pack(str(world.train), str(tmp_path))
    with pytest.raises(ConfigError, match=r"lies in .*, and what is written there would be read as records"):
        pack(str(world.root), str(world.root / "packed"))
    with pytest.raises(ConfigError, match="shard_size is above 0 megabytes, got 0"):
        pack(str(world.train), str(tmp_path / "out"), shard_size=0)


def test_what_does_not_read_back_gets_no_name(
    world: WorldFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(stream: Any) -> Any:
        with open(stream.name, "r+b") as written:
            written.seek(20_000)
            written.write(b"flipped")
        return scan_members(stream)

    monkeypatch.setattr(subject, "scan_members", damaged)
    with pytest.raises(
        RecordError, match=r"shard-00000\.tar: 00000000\d\.\w+\.mp4 does not read back as it was written"
    ):
        pack(str(world.train), str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []


def test_a_record_that_cannot_be_packed_is_named(world: WorldFiles, tmp_path: Path) -> None:
    record = json.loads(world.train.read_text().splitlines()[0])
    (tmp_path / "r.jsonl").write_text(json.dumps(record | {"video": "gone.mp4"}) + "\n")
    with pytest.raises(MissingFileError, match=r"r\.jsonl, record 1, field 'video' = 'gone\.mp4': there is no file"):
        pack(str(tmp_path / "r.jsonl"), str(tmp_path / "out"))


def test_tar_files_beside_other_records_are_archives(packed: Path, tmp_path: Path) -> None:
    shutil.copy(packed / "shard-00000.tar", tmp_path / "videos.tar")
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    with serving(tmp_path) as server:
        for place in (tmp_path, server.url):
            assert [file.path.name for file in open_records(place).files] == ["train.jsonl"]
            assert len(open_records([f"{place}/train.jsonl", f"{place}/videos.tar"])) == 3


def test_shards_of_others_are_scanned(packed: Path, tmp_path: Path) -> None:
    shutil.copy(packed / "shard-00000.tar", tmp_path / "theirs.tar")
    source = open_records(tmp_path / "theirs.tar")
    assert len(source) == 2
    assert len(read_frames(source[1].hints[0].path, [0])) == 1
    data = (packed / "shard-00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordError, match=r"cut\.tar: .*(cut short|not a readable tar)"):
        open_records(tmp_path / "cut.tar")
    (tmp_path / "none.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(RecordError, match=r"none\.tar: not a readable tar file"):
        open_records(tmp_path / "none.tar")


def test_a_damaged_index_is_named(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "out")
    index = tmp_path / "out/shard-00002.tar.idx"
    index.write_bytes(index.read_bytes()[:-40])
    with pytest.raises(
        RecordError, match=r"shard-00002\.tar\.idx: damaged .*; remove it, and the shard is read through"
    ):
        open_records(tmp_path / "out")
    index.unlink()
    assert len(open_records(tmp_path / "out")) == RECORDS


def test_a_changed_shard_is_seen(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "out")
    sample = open_records(tmp_path / "out")[0]
    shutil.copy(packed / "shard-00001.tar", tmp_path / "out/shard-00000.tar")
    with pytest.raises(MissingFileError, match=r"shard-00000\.tar has changed since"):
        read_frames(sample.hints[0].path, [0])


def test_members_stay_within_their_shard_and_the_shard_within_the_root(packed: Path, tmp_path: Path) -> None:
    source = open_records(packed, data_root=packed)
    assert len(source[0].hints) > 0
    with pytest.raises(RecordError, match=rf"outside data_root {tmp_path}"):
        open_records(packed, data_root=tmp_path)[0]
    record = source.raw(0)
    for name in ("../shard-00001.tar/000000002.video0.mp4", "../../../etc/passwd"):
        with pytest.raises(RecordError, match=r"field 'video' = .*leads out of the shard"):
            parse_record({**record.raw, "video": name}, file=record.name, number=1, folder=record.folder)


def test_chosen_records_name_members_by_address(packed: Path, tmp_path: Path) -> None:
    source = open_records(packed)
    moved = curated_record(source.raw(3), {"gain": 1}, tmp_path)
    (tmp_path / "curated.jsonl").write_text(json.dumps(moved) + "\n")
    assert open_records(tmp_path / "curated.jsonl")[0].hints[0].path == source[3].hints[0].path


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_from_a_store_reads_shard_after_shard(packed: Path, num_workers: int) -> None:
    local = [batch.sample_ids for batch in data(packed, shuffle_shards=2).train_dataloader()]
    with serving(packed) as server:
        module = VideoHintDataModule(
            train=server.url, processor="tiny@random", num_workers=num_workers, shuffle_shards=2
        )
        loader = module.train_dataloader()
        assert not any(path.endswith(".tar") for method, path, _ in server.asked if method == "GET")
        assert [batch.sample_ids for batch in loader] == local
        for number in range(4):
            assert server.count("GET", f"shard-{number:05d}.tar") == 1
    # two shards at a time
    shards = [ids[0].partition(":")[0] for ids in local]
    first = set(shards[: len(shards) // 2])
    assert len(first) <= 3
    assert sorted(ids[0] for ids in local) == sorted(open_records(packed).id(number) for number in range(RECORDS))
