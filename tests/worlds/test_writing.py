"""Worlds as files: what clips show, records, and calls that go on where another stopped."""

import json
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from world_reading import decoded, decoded_pool, pool_of, records_of

from futurel1.data import frame_pool, open_records, parse_rl_prompt
from futurel1.errors import ConfigError
from futurel1.worlds import (
    Clip,
    Episode,
    EventEpisode,
    bouncing,
    make_episode,
    make_event_episode,
    write_clips,
    write_world,
)
from leaving import leave_half

GOLDEN_POOLS = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["pool8"]


@pytest.fixture(scope="module")
def next_zone(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), train=14, test=6, task="next_zone", progress=False)


# --- clips ----------------------------------------------------------------------------------------------------------


def test_own_reading_of_the_pool_agrees_with_the_golden_values():
    assert pool_of(300) == [1, 26, 75, 124, 174, 223, 272, 298]
    for length, pool in GOLDEN_POOLS.items():
        assert pool_of(int(length)) == pool


def test_the_pool_of_a_written_clip_is_the_states_that_the_question_is_about(next_zone):
    for split in ("train", "test"):
        for number, record in enumerate(records_of(next_zone.root / f"{split}.jsonl")):
            episode = make_episode(split, number)
            pool = decoded_pool(next_zone.root / record["video"]).astype(float)
            error = np.abs(pool - episode.render().astype(float)).mean(axis=(1, 2, 3))
            assert error.max() < 3
            # and not of the neighbouring states: what moved differs
            shifted = np.abs(pool - episode.render(np.arange(8)).astype(float)).mean(axis=(1, 2, 3))
            assert (shifted > 1.5 * error).all()


def test_written_clips_show_the_states_of_the_pool(files):
    assert frame_pool(10) == list(range(1, 9))
    for split in ("train", "test", "rl"):
        for number, record in enumerate(records_of(files.root / f"{split}.jsonl")):
            episode = make_event_episode(split, number)
            pool = decoded(files.root / record["video"], frame_pool(10)).astype(float)
            error = np.abs(pool - episode.render().astype(float)).mean(axis=(1, 2, 3))
            assert error.max() < 3
            shifted = np.abs(pool - episode.render(range(8)).astype(float)).mean(axis=(1, 2, 3))
            assert (shifted > 1.5 * error).all()


def test_benchmark_clips_show_what_is_observed_and_nothing_of_the_future(files):
    for number, record in enumerate(records_of(files.futurebench)):
        shown = decoded(files.root / record["video_path"])
        assert len(shown) == 4
        error = np.abs(shown - make_event_episode("test", number).render([1, 2, 3, 4]).astype(float)).mean()
        assert error < 3


def test_other_sizes_decode_to_their_size(tmp_path):
    files = write_world(tmp_path, train=1, test=0, size=64, task="next_zone", progress=False)
    assert decoded_pool(files.videos / "train-00000.mp4").shape == (8, 64, 64, 3)
    assert files.test.read_text() == ""


def test_the_real_clips_are_written_beside_the_others(tmp_path):
    files = write_world(tmp_path, train=1, test=0, size=32, task="next_zone", footage=True, progress=False)
    assert {(tmp_path / record["video"]).is_file() for record in records_of(files.footage)} == {True}
    assert (files.written, len(list(files.videos.iterdir()))) == (1, 1 + 4)


class Greys:
    """The least that a world has to be: clips that get lighter, with a record that says how light they end."""

    splits = ("train", "test")
    settings: ClassVar = {"world": "greys"}

    def record_files(self, split):
        return (f"{split}.jsonl",)

    def clips(self, split, count):
        for number in range(count):
            frames = np.linspace(0, 60 + number, 10, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2)
            name = f"{split}-{number:05d}"
            yield Clip(name, partial(frames.repeat, 3, 3), {f"{split}.jsonl": {"id": name, "light": 60 + number}})


def test_a_world_of_ones_own_is_written_like_the_others(tmp_path):
    files = write_clips(tmp_path, Greys(), {"train": 2}, progress=False)
    assert [record["light"] for record in records_of(files.train)] == [60, 61]
    assert files.test.read_text() == ""
    assert (files.written, files.kept, files.futurebench, files.observed) == (2, 0, None, None)
    light = decoded(files.videos / "train-00001.mp4").mean(axis=(1, 2, 3))
    assert (np.diff(light) > 3).all()
    assert write_clips(tmp_path, Greys(), {"train": 3}, progress=False).written == 1
    with pytest.raises(ConfigError, match=r"train=0: counts start at 0"):
        write_clips(tmp_path, Greys(), {"train": 0}, progress=False)


# --- records --------------------------------------------------------------------------------------------------------


def test_records_are_well_formed(next_zone):
    for split, count in (("train", 14), ("test", 6)):
        records = records_of(next_zone.root / f"{split}.jsonl")
        assert [record["id"] for record in records] == [f"{split}-{number:05d}" for number in range(count)]
        for record in records:
            human, gpt = record["conversations"]
            assert human["from"] == "human"
            assert gpt["from"] == "gpt"
            assert record["image"] == [3, 4]
            assert record["reasoning_image"] == [5]
            assert human["value"].count("<image>") == 2
            assert gpt["value"].count("<image>") == 1
            assert re.findall(r"THOUGHT (\d):", gpt["value"]) == ["0", "1"]
            assert list(record["options"]) == list("ABCD")
            assert all(f"\n{letter}. {text}" in human["value"] for letter, text in record["options"].items())
            assert record["question_type"] == "hop1"
            assert record["answer"] == record["letter"]
            assert record["letter"] in record["options"]
            assert record["cot"] == ""
            assert not Path(record["video"]).is_absolute()
            assert (next_zone.root / record["video"]).is_file()
    assert json.loads((next_zone.root / "world.json").read_text()) == {
        "world": "bouncing",
        "version": bouncing.MANIFEST_VERSION,
        "seed": 0,
        "size": 96,
        "task": "next_zone",
    }


def test_records_for_reinforcement_learning_are_written_beside_the_others(tmp_path):

    files = write_world(tmp_path, train=1, test=1, rl=3, size=32, task="next_zone", progress=False)
    assert files.rl == tmp_path / "rl.jsonl"
    assert (files.written, files.kept) == (5, 0)
    prompts = list(open_records(files.rl, parse=parse_rl_prompt))
    assert [prompt.info.answer for prompt in prompts] == [record["letter"] for record in records_of(files.rl)]
    assert [[frame.pool_index for frame in prompt.observed] for prompt in prompts] == [[3, 4]] * 3
    assert json.loads((tmp_path / "world.json").read_text())["task"] == "next_zone"
    plain = write_world(tmp_path, train=1, test=1, size=32, task="next_zone", progress=False, overwrite=True)
    assert plain.rl is None
    assert not list(tmp_path.rglob("rl*"))


def test_other_splits_are_the_same_with_and_without_pretraining(tmp_path, files):
    def others(root):
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith("pretrain")
        }

    write_world(tmp_path, train=8, test=5, rl=2, pretrain=1, progress=False)
    there = others(files.root)
    assert there == others(tmp_path)
    assert len(there) == 7 + 1 + 15 + 5  # records, world.json, clips, observed clips
    assert not list(files.root.rglob("pretrain*"))
    assert len(list(tmp_path.rglob("pretrain*"))) == 5 + 1


# --- calls that go on -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that dies."""


@contextmanager
def dying_at_the_fourth_clip(monkeypatch, episode):
    """A process that dies while it renders its fourth `episode`."""
    render, calls = episode.render, []

    def dies(self, steps):
        calls.append(self.id)
        if len(calls) == 4:
            raise Killed
        return render(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(episode, "render", dies)
        yield


def test_a_killed_write_is_taken_up_where_it_stopped(tmp_path, monkeypatch):
    out = tmp_path / "world"
    with dying_at_the_fourth_clip(monkeypatch, Episode), pytest.raises(Killed):
        write_world(out, train=5, test=2, task="next_zone", progress=False)
    assert sorted(path.name for path in (out / "videos").iterdir()) == [f"train-0000{n}.mp4" for n in range(3)]
    assert not (out / "train.jsonl").exists()

    (out / "videos" / "train-00001.mp4").unlink()
    (out / "videos" / "train-00002.mp4").write_bytes(b"")  # renamed, but its bytes were lost in a power cut
    for half in (out / "videos" / "train-00003.mp4", out / "train.jsonl"):
        leave_half(half)
    before = (out / "videos" / "train-00000.mp4").stat().st_mtime_ns
    files = write_world(out, train=5, test=2, task="next_zone", progress=False)
    assert (files.written, files.kept) == (6, 1)
    assert (out / "videos" / "train-00000.mp4").stat().st_mtime_ns == before
    assert not list(out.rglob("*.part"))
    assert len(list((out / "videos").iterdir())) == 7

    fresh = write_world(tmp_path / "fresh", train=5, test=2, task="next_zone", progress=False)
    assert files.train.read_bytes() == fresh.train.read_bytes()
    assert files.test.read_bytes() == fresh.test.read_bytes()
    for clip in fresh.videos.iterdir():
        assert (decoded_pool(clip) == decoded_pool(files.videos / clip.name)).all()


def test_a_killed_write_of_events_is_taken_up_too_and_unchanged_records_are_left_alone(tmp_path, monkeypatch, files):
    with dying_at_the_fourth_clip(monkeypatch, EventEpisode), pytest.raises(Killed):
        write_world(tmp_path, train=8, test=5, rl=2, progress=False)
    assert not (tmp_path / "train.jsonl").exists()
    (tmp_path / "videos" / "train-00002.mp4").write_bytes(b"")
    again = write_world(tmp_path, train=8, test=5, rl=2, progress=False)
    assert (again.written, again.kept) == (13, 2)
    assert not list(tmp_path.rglob("*.part"))
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(files.root)) for path in files.root.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / name).read_bytes() == (files.root / name).read_bytes()
    before = again.train.stat().st_mtime_ns
    assert write_world(tmp_path, train=8, test=5, rl=2, progress=False).written == 0
    assert again.train.stat().st_mtime_ns == before


def test_a_later_call_keeps_clips_and_records_and_writes_what_is_missing(tmp_path):
    def write(count):
        return write_world(tmp_path, train=0, test=0, pretrain=count, size=32, progress=False)

    first = write(3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = write(3)
    assert (again.written, again.kept) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    told = first.root / "pretrain_tell.jsonl"
    text = told.read_text()
    lost = first.videos / "pretrain-00001.mp4"
    bytes_lost = lost.read_bytes()
    lost.unlink()
    more = write(5)
    assert (more.written, more.kept) == (3, 2)
    assert lost.read_bytes() == bytes_lost
    assert told.read_text().startswith(text)
    write_world(tmp_path, train=1, test=0, seed=1, size=32, progress=False, overwrite=True)  # another world
    assert not list(tmp_path.rglob("pretrain*"))


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": -1, "test": 1}, "train=-1"),
        ({"train": 0, "test": 0}, "has to be positive"),
        ({"train": 1, "test": 0, "rl": -1}, "rl=-1"),
        ({"train": 1, "test": 0, "seed": -2}, "seed=-2"),
        ({"train": 1, "test": 0, "size": 100}, "multiple of 32"),
        ({"train": 1, "test": 0, "size": 0}, "multiple of 32"),
    ],
)
@pytest.mark.parametrize("task", ["events", "next_zone"])
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, task, settings, message):
    with pytest.raises(ConfigError, match=message):
        write_world(tmp_path / "world", **settings, task=task, progress=False)
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "chess"}, "task='chess': choose one of events, next_zone"),
        ({"task": "next_zone", "pretrain": 2}, "pretrain=2: the task next_zone has no such clips"),
        ({"task": "next_zone", "kinds": ["zone"]}, r"kinds=\['zone'\]: the task next_zone has no kinds"),
        ({"pretrain": -1}, "pretrain=-1"),
        ({"kinds": []}, "choose some of zone, event, pair, gate"),
    ],
)
def test_what_a_world_does_not_have_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        write_world(tmp_path / "world", **settings, progress=False)
    assert not (tmp_path / "world").exists()
