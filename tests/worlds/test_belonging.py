"""Which world wrote a clip, or records."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from futurel1.worlds import BouncingWorld, EventsWorld, World, write_clips, write_world
from futurel1.worlds.belonging import is_event_clip, world_of


def test_only_clips_that_lie_where_a_world_of_events_was_written(tmp_path: Path) -> None:
    events, zones = tmp_path / "events", tmp_path / "zones"
    write_world(events, train=1, test=1, size=32, progress=False)
    write_world(zones, train=1, test=1, size=32, task="next_zone", progress=False)
    clip = events / "videos" / "test-00000.mp4"
    assert is_event_clip(clip)
    assert is_event_clip(next((events / "observed").glob("*.mp4")))
    assert not is_event_clip(zones / "videos" / "test-00000.mp4")
    (events / "videos" / "bikes.mp4").touch()  # real footage lies beside the clips
    assert not is_event_clip(events / "videos" / "bikes.mp4")
    shutil.copy(clip, tmp_path / "test-00000.mp4")
    assert not is_event_clip(tmp_path / "test-00000.mp4")
    for manifest in ("[]", "{", ""):
        (events / "world.json").write_text(manifest)
        assert not is_event_clip(clip)
    (events / "world.json").unlink()
    assert not is_event_clip(clip)


@pytest.mark.parametrize(
    "world", [EventsWorld(3, 64, ("zone", "pair")), EventsWorld(), BouncingWorld(seed=2, size=32)], ids=str
)
def test_records_tell_the_world_that_wrote_them(world: World, tmp_path: Path) -> None:
    files = write_clips(tmp_path, world, {"train": 1}, progress=False)
    for file in (files.train, files.videos / "train-00000.mp4"):
        found = world_of(file)
        assert type(found) is type(world)
        assert found.settings == world.settings
    other = tmp_path / "other"
    other.mkdir()
    assert world_of(other / "train.jsonl") is None
    (other / "world.json").write_text('{"world": "mine", "seed": 0}')
    assert world_of(other / "train.jsonl") is None
