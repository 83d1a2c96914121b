"""The world of events by number: the same for the same seed, and nothing shared between splits."""

import subprocess
import sys

import numpy as np
import pytest

from futurel1.errors import ConfigError
from futurel1.worlds import event_questions, layouts_of, look, make_event_episode, make_event_episodes, palette

COLOURS, FORMS = list(look.COLOURS), look.FORMS


DIGEST = """
import hashlib, json
from futurel1.worlds import make_event_episode
digest = hashlib.sha256()
for number in range(16):
    episode = make_event_episode("test", number, seed={seed})
    digest.update(json.dumps([episode.record("a"), episode.open_record("a")]).encode() + episode.render().tobytes())
print(digest.hexdigest())
"""


def test_same_seed_gives_the_same_world_in_another_process_and_other_seeds_do_not(capsys):
    there = subprocess.run([sys.executable, "-c", DIGEST.format(seed=5)], capture_output=True, text=True, check=True)
    event_questions.sample_block.cache_clear()
    exec(DIGEST.format(seed=5), {})
    exec(DIGEST.format(seed=6), {})
    same, other = capsys.readouterr().out.split()
    assert same == there.stdout.strip() != other


def test_states_do_not_depend_on_the_size_of_the_frames():
    small, large = (make_event_episode("test", 3, size=size) for size in (32, 128))
    assert (small.states.positions == large.states.positions).all()
    assert small.asked == large.asked
    assert small.render().shape == (8, 32, 32, 3)
    assert np.allclose(small.positions() * 4, large.positions())


def test_splits_share_no_combination_no_layout_and_no_start(train, test):
    looks, layouts, starts = [], [], []
    for part in (train, test):
        looks.append(
            {(COLOURS[c], form) for e in part for row in e.colours for c, form in zip(row, FORMS, strict=True)}
        )
        layouts.append({e.layout for e in part})
        starts.append({e.states.positions[0].tobytes() for e in part})
    assert looks == [set(palette("train")), set(palette("test"))]
    assert not looks[0] & looks[1]
    assert layouts[0] <= set(layouts_of("train"))
    assert layouts[1] <= set(layouts_of("test"))
    assert not set(layouts_of("train")) & set(layouts_of("test"))
    assert len(layouts_of("train")) + len(layouts_of("test")) == 72
    assert len(layouts[1]) > 20
    assert not starts[0] & starts[1]
    assert sum(map(len, starts)) == len(train) + len(test)  # and no scene serves two questions
    rl = list(make_event_episodes("rl", 64))
    assert {e.layout for e in rl} <= set(layouts_of("train"))
    assert not {e.states.positions[0].tobytes() for e in rl} & (starts[0] | starts[1])


def test_bad_episode_arguments_are_named():
    with pytest.raises(ConfigError, match="split='validation'"):
        make_event_episode("validation", 0)
    with pytest.raises(ConfigError, match="number=-1"):
        make_event_episode("train", -1)
    with pytest.raises(ConfigError, match="multiple of 32"):
        make_event_episode("train", 0, size=33)
