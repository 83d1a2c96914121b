"""Scenes of the world of events: their looks and layouts, and what frames show."""

from collections import Counter

import numpy as np
import pytest

from futurel1.errors import ConfigError
from futurel1.worlds import collisions, event_scenes, layouts_of, look, make_event_scenes, palette
from futurel1.worlds.collisions import RADIUS

COLOURS, FORMS = list(look.COLOURS), look.FORMS
STEPS = range(10)


def test_scenes_are_as_many_as_asked_for_and_seeded():
    for count in (0, 1, 7, 50):
        assert len(make_event_scenes(np.random.default_rng(3), count)) == count
    some, again, other = (make_event_scenes(np.random.default_rng(seed), 20, size=32) for seed in (3, 3, 4))
    frames = [np.stack([scene.render(STEPS) for scene in part]) for part in (some, again, other)]
    assert (frames[0] == frames[1]).all()
    assert frames[0].shape == (20, 10, 32, 32, 3)
    starts = {scene.states.positions[0].tobytes() for part in (some, other) for scene in part}
    assert len(starts) == 40
    with pytest.raises(ConfigError, match="multiple of 32"):
        make_event_scenes(np.random.default_rng(0), 1, size=40)


def test_scenes_show_the_combinations_and_layouts_of_both_splits(scenes):
    looks = Counter(
        (COLOURS[colour], form) for scene in scenes for colour, form in zip(scene.last_colours, FORMS, strict=True)
    )
    assert set(looks) == set(palette("train")) | set(palette("test"))
    assert min(looks.values()) > 0.8 * 3 * len(scenes) / len(looks)
    assert {scene.layout for scene in scenes} == {*layouts_of("train"), *layouts_of("test")}
    mixed = [
        {(COLOURS[c], f) in palette("test") for c, f in zip(scene.last_colours, FORMS, strict=True)} for scene in scenes
    ]
    assert sum(len(parts) == 2 for parts in mixed) > len(scenes) / 3  # of both in one scene


def test_scenes_obey_the_rules_of_the_world(scenes):
    for scene in scenes[:200]:
        states, layout = scene.states, scene.layout
        assert (states.positions >= collisions.LOW).all()
        assert (states.positions <= collisions.HIGH).all()
        assert states.gate_open.tolist() == (np.cumsum(states.gate_hits.any(axis=1)) > 0).tolist()
        along = np.abs(states.positions[:, :, layout.gate_axis] - layout.gate_at)
        assert (along[~states.gate_open] >= collisions.REACH - 1e-9).all()
        assert sorted(colour % 3 for colour in scene.last_colours) == [0, 1, 2]
        assert scene.colours[4].tolist() == list(scene.last_colours)


def test_colours_change_with_contacts_alone_and_into_the_partner(train):
    for episode in train[:200]:
        colours, touched = episode.colours, episode.states.contacts.any(axis=-1)
        changed = colours[1:] != colours[:-1]
        clear = episode.states.clear_cut[1:]
        assert (changed == touched[1:])[clear].all()
        assert ((colours[1:] - colours[:-1]) % 6 == 3)[changed].all()
        assert colours[4].tolist() == list(episode.asked.colours)
        gap = np.hypot(
            *(episode.states.positions[:, :, None] - episode.states.positions[:, None]).transpose(3, 0, 1, 2)
        )
        near = np.minimum(gap[1:], gap[:-1]) - 2 * RADIUS
        assert (near[episode.states.contacts[1:]] <= 2 * np.sqrt(3) * event_scenes.FASTEST).all()


def test_shapes_are_drawn_in_their_colours_and_hidden_ones_behind_the_pillar(train):
    seen = Counter()
    for episode in train[:60]:
        beyond = np.abs(episode.states.positions - episode.layout.pillar).max(axis=-1) - collisions.PILLAR_HALF
        for frame, step in zip(episode.render(), range(1, 9), strict=True):
            for shape in np.flatnonzero(
                np.abs(beyond[step]) > 0.02
            ):  # at its edge, what the pillar hides shows through
                x, y = np.floor(episode.states.positions[step, shape] * 96).astype(int)
                hidden = bool(episode.states.hidden[step, shape])
                colour = look.COLOURS[COLOURS[episode.colours[step, shape]]]
                assert frame[y, x].tolist() == list(event_scenes.PILLAR_COLOUR if hidden else colour)
                seen[hidden] += 1
    assert seen[True] > 50


def test_the_picture_shows_whether_the_gate_is_open(train):
    for episode in train[:60]:
        frames = episode.render(range(10)).astype(int)
        at = int(episode.layout.gate_at * 96)
        line = frames[:, :, at] if episode.layout.gate_axis == 0 else frames[:, at]
        white = (np.abs(line - np.array(event_scenes.GATE_COLOUR)).max(axis=-1) < 8).sum(axis=1)
        is_open = episode.states.gate_open
        assert (white[is_open] <= 14).all()
        assert (white[~is_open] >= 60).all()
