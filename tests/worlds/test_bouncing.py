"""The bouncing world: its motion, splits and questions."""

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from world_reading import zone_name

from futurel1.errors import ConfigError
from futurel1.worlds import Arena, Episode, Shape, bouncing, look, make_episode, make_episodes, palette


@pytest.fixture(scope="module")
def episodes():
    return list(make_episodes("train", 1200, size=32))


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
    arena, wall = Arena(96), look.wall_thickness(96)
    for form in look.FORMS:
        # Flies to the right from the middle and reaches the wall at step 1.
        shape = Shape(form, "red", (48.0, 48.0), (arena.low + arena.span - 48.0, 0.0))
        episode = Episode("train", 0, arena, shape)
        empty = np.rint(look.background(96)).astype(np.uint8)
        changed = (episode.render([1.0])[0] != empty).any(axis=-1)
        columns = np.flatnonzero(changed.any(axis=0))
        assert columns.max() == pytest.approx(96 - wall - 1, abs=1)  # a smooth corner may tint the pixel beyond it
        assert columns.min() == pytest.approx(96 - wall - 2 * arena.radius, abs=1)
        assert 0.4 < changed.sum() / (2 * arena.radius) ** 2 < 1.15


def test_render_draws_the_shape_at_its_position_in_its_colour():
    for number in range(20):
        episode = make_episode("train", number)
        frames, centres = episode.render(), episode.positions()
        assert frames.shape == (8, 96, 96, 3)
        assert frames.dtype == np.uint8
        for frame, centre in zip(frames, centres, strict=True):
            x, y = np.floor(centre).astype(int)
            assert frame[y, x].tolist() == list(look.COLOURS[episode.shape.colour])


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


def test_an_episode_does_not_depend_on_how_many_are_sampled():
    assert list(make_episodes("test", 5)) == list(make_episodes("test", 9))[:5]


def test_splits_share_no_combination_and_no_motion(episodes):
    parts = [episodes, *(list(make_episodes(split, 200, size=32)) for split in ("test", "rl"))]
    looks = [{(episode.shape.colour, episode.shape.form) for episode in part} for part in parts]
    assert looks == [set(palette("train")), set(palette("test")), set(palette("train"))]
    starts = [{episode.shape.start for episode in part} for part in parts]
    assert len(set.union(*starts)) == sum(len(part) for part in parts)
    assert {episode.id for episode in parts[2]} == {f"rl-{number:05d}" for number in range(200)}


# --- questions ------------------------------------------------------------------------------------------------------


def test_it_asks_for_the_zone_after_one_step_of_one_large_shape(episodes):
    for episode in episodes:
        assert (bouncing.OBSERVED, episode.hints) == ((3, 4), (5,))
        now, then = episode.positions([4, 5])
        assert np.abs(np.stack([now, then]) - 16).min() >= 32 / 24
        assert episode.question == f"In which zone is the {episode.shape.name} after 1 step?"
        assert episode.options == dict(zip("ABCD", look.ZONES, strict=True))
        assert episode.options[episode.answer] == zone_name(then, 32)
        first, second = episode.thoughts
        assert first.startswith(f"{zone_name(now, 32)}, moves ")
        assert second == zone_name(then, 32)
        # a shape that fills 0.4 of the side never leaves the frame
        low, high = episode.arena.low, episode.arena.low + episode.arena.span
        assert episode.arena.radius == pytest.approx(6.4)
        assert all(low - 1e-9 <= value <= high + 1e-9 for value in (*now, *then))


def test_answers_are_balanced_and_neither_the_text_nor_the_last_zone_tells_them(episodes):
    for block in range(0, 1200, 4):
        assert {episode.answer for episode in episodes[block : block + 4]} == set("ABCD")
    votes = defaultdict(Counter)
    for episode in episodes[:600]:
        votes[episode.question][episode.answer] += 1
    right = np.mean([votes[e.question].most_common(1)[0][0] == e.answer for e in episodes[600:]])
    sigma = np.sqrt(0.25 * 0.75 / 600)
    assert abs(right - 0.25) < 3 * sigma
    stays = np.mean([zone_name(e.positions([4])[0], 32) == e.options[e.answer] for e in episodes])
    assert abs(stays - 0.25) < 3 * sigma


def test_spoken_directions_match_the_displacement(episodes):
    for episode in episodes[:600]:
        x, y = np.subtract(*episode.positions([4.0001, 4]))
        words = episode.thoughts[0].partition(", moves ")[2].split(" and ")
        assert all({"left": x < 0, "right": x > 0, "up": y < 0, "down": y > 0}[word] for word in words)
        steep = min(abs(x), abs(y)) / max(abs(x), abs(y))
        assert len(words) == (2 if steep > np.tan(np.pi / 8) else 1)


def test_bad_episode_arguments_are_named():
    with pytest.raises(ConfigError, match="split='validation'"):
        make_episode("validation", 0)
    with pytest.raises(ConfigError, match="number=-1"):
        make_episode("train", -1)
