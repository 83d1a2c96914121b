"""Folders of worlds: one world to a folder, and what is there is kept or refused."""

import json

import pytest
from world_reading import records_of

from futurel1.errors import ConfigError
from futurel1.worlds import write_world


def test_other_counts_extend_a_world(tmp_path):
    write_world(tmp_path, train=2, test=1, task="next_zone", progress=False)
    files = write_world(tmp_path, train=4, test=1, task="next_zone", progress=False)
    assert (files.written, files.kept) == (2, 3)
    assert len(records_of(files.train)) == 4


def test_other_settings_in_the_same_folder_are_an_error_unless_overwritten(tmp_path):
    old = write_world(tmp_path, train=3, test=1, task="next_zone", progress=False)
    before = (old.videos / "train-00000.mp4").read_bytes()
    with pytest.raises(ConfigError, match=r'other settings.*"seed": 0.*"seed": 1.*overwrite=True'):
        write_world(tmp_path, train=3, test=1, seed=1, task="next_zone", progress=False)
    assert (old.videos / "train-00000.mp4").read_bytes() == before
    (old.videos / "holiday.mp4").write_bytes(b"mine")
    new = write_world(tmp_path, train=2, test=0, seed=1, task="next_zone", progress=False, overwrite=True)
    assert new.written == 2
    assert sorted(path.name for path in new.videos.iterdir()) == ["holiday.mp4", "train-00000.mp4", "train-00001.mp4"]
    assert (new.videos / "train-00000.mp4").read_bytes() != before
    assert json.loads((tmp_path / "world.json").read_text())["seed"] == 1


def test_a_folder_of_unknown_clips_or_a_broken_manifest_is_not_trusted(tmp_path):
    write_world(tmp_path, train=1, test=0, task="next_zone", progress=False)
    (tmp_path / "world.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        write_world(tmp_path, train=1, test=0, task="next_zone", progress=False)
    (tmp_path / "world.json").unlink()
    with pytest.raises(ConfigError, match=r"holds clips but .*world\.json is not there"):
        write_world(tmp_path, train=1, test=0, task="next_zone", progress=False)
    assert write_world(tmp_path, train=1, test=0, task="next_zone", progress=False, overwrite=True).written == 1


def test_worlds_do_not_mix_in_a_folder(tmp_path):
    write_world(tmp_path, train=1, test=1, size=32, progress=False)
    with pytest.raises(ConfigError, match="other settings"):
        write_world(tmp_path, train=1, test=1, size=32, task="next_zone", progress=False)
    with pytest.raises(ConfigError, match=r'"seed": 0.*"seed": 1'):
        write_world(tmp_path, train=1, test=1, seed=1, size=32, progress=False)
    write_world(tmp_path, train=1, test=0, size=32, task="next_zone", progress=False, overwrite=True)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"train.jsonl", "test.jsonl", "world.json", "train-00000.mp4"}


def test_clips_fit_the_kinds_of_question_of_their_folder(tmp_path):
    write_world(tmp_path, train=1, test=0, size=32, kinds=("zone",), progress=False)
    assert json.loads((tmp_path / "world.json").read_text())["kinds"] == ["zone"]
    with pytest.raises(ConfigError, match="kinds"):
        write_world(tmp_path, train=1, test=0, size=32, progress=False)
