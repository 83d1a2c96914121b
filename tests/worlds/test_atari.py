"""The world of Atari games: what its clips show, questions that no text answers, and counterfactuals."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from futurel1.errors import ConfigError
from futurel1.worlds import AtariWorld, look
from futurel1.worlds.atari_questions import HOPS, atari_cells, sample_atari_question
from futurel1.worlds.atari_scenes import is_unseen

pytest.importorskip("ale_py")

GAMES = ("pong", "breakout")


@pytest.fixture(scope="module")
def scenes():
    return AtariWorld(pool=1).scenes(np.random.default_rng(0), 8, split="pretrain")


@pytest.fixture(scope="module")
def episodes():
    world = AtariWorld(kinds=("zone",))
    return {split: list(world.episodes(split, 24)) for split in ("train", "test")}


def test_objects_are_where_the_pixels_say(scenes):
    for scene in scenes:
        frames = scene.render(range(10))
        for step, frame in enumerate(frames):
            for number, (x, y) in enumerate(scene.tracks.positions[step]):
                if not scene.tracks.visible[step, number] or not 0.1 < y < 0.9:
                    continue  # at an edge only a part is visible, and Breakout's ball has the colours of bricks
                if scene.rules.name == "breakout" and y < 0.4:
                    continue
                around = frame[int(64 * y) - 3 : int(64 * y) + 4, max(int(64 * x) - 3, 0) : int(64 * x) + 4]
                colour = np.array(scene.rules.colours[number])
                assert np.abs(around.astype(int) - colour).sum(axis=-1).min() < 60


def test_codes_say_where_the_objects_are(scenes):
    world = AtariWorld()
    for scene in scenes:
        code = scene.code(range(10))
        reading = world.read_code(code)
        assert code.shape == (10, world.code_size)
        assert (reading.visible == scene.tracks.visible).all()
        apart = np.abs(reading.positions - scene.tracks.positions)[reading.visible]
        assert apart.max() < 0.06
        assert (reading.classes == GAMES.index(scene.rules.name)).all()


def test_clips_are_the_same_in_another_process(scenes):
    code = (
        "import hashlib, numpy as np; from futurel1.worlds import AtariWorld;"
        "s = AtariWorld(pool=1).scenes(np.random.default_rng(0), 8, split='pretrain');"
        "print(hashlib.sha256(np.stack([x.render() for x in s]).tobytes()).hexdigest())"
    )
    import hashlib

    here = hashlib.sha256(np.stack([scene.render() for scene in scenes]).tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_the_right_option_is_where_the_ball_is(episodes):
    for episode in episodes["train"] + episodes["test"]:
        step = look.LAST_SEEN + episode.asked.hop
        assert episode.options[episode.answer] == look.ZONES[episode.zone(step)]
        assert episode.tracks.visible[: step + 1, 0].all()
        assert (episode.zone(look.LAST_SEEN) == episode.zone(step)) == episode.asked.stays


def test_no_test_clip_has_a_ball_where_a_training_clip_has_one(episodes):
    for split, unseen in (("train", False), ("test", True)):
        for episode in episodes[split]:
            ball = episode.excerpt.take.tracks.positions[:, 0]
            last = episode.excerpt.first + 8 * look.LAST_SEEN
            assert is_unseen(ball[last], ball[last] - ball[last - 1]) == unseen


def test_answers_are_balanced_and_text_tells_nothing():
    rng = np.random.default_rng(0)
    cells = atari_cells(GAMES, ("zone", "event"))
    asked = [sample_atari_question(cell, right, rng) for _ in range(40) for cell in cells for right in range(4)]
    for game in GAMES:
        for hop in HOPS:
            zones = Counter(one.answer for one in asked if (one.game, one.hop, one.kind) == (game, hop, "zone"))
            assert min(zones.values()) > 160 / 4 * 0.6
    # A guesser that knows how often each option was right beside each question, from half of the questions.
    texts = [(one.question, [one.text(choice) for choice in one.choices], one.right) for one in asked]
    known, new = texts[::2], texts[1::2]
    right, shown = Counter(), Counter()
    for question, options, answer in known:
        shown.update((question, option) for option in options)
        right[question, options[answer]] += 1
    guesses = [
        max(range(4), key=lambda n: right[question, options[n]] / (shown[question, options[n]] or 1)) == answer
        for question, options, answer in new
    ]
    assert abs(np.mean(guesses) - 0.25) < 0.08


def test_counterfactuals_differ_in_one_thing():
    (fork,) = AtariWorld(kinds=("zone",)).forks(1)
    seen, later = range(look.LAST_SEEN + 1), [look.LAST_SEEN + fork.episode.asked.hop]
    assert (fork.episode.render(seen) == fork.other.render(seen)).all()
    assert (fork.episode.render(later) != fork.other.render(later)).any()
    moved, recoloured = fork.changed
    assert fork.episode.options == fork.other.options == moved.options
    assert len({fork.episode.answer, fork.other.answer}) == 2
    assert fork.episode.answer not in (fork.other.answer, moved.answer)
    assert recoloured.answer == fork.episode.answer
    assert (recoloured.render() != fork.episode.render()).any()


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="games"):
        AtariWorld(games=())
    with pytest.raises(ConfigError, match="kinds"):
        AtariWorld(kinds=("gate",))


def test_without_the_emulator_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError, match=r"futurel1\[atari\]"):
        AtariWorld()
