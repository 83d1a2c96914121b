"""Codes of frames say what the frames show."""

import dataclasses

import numpy as np
import pytest

from futurel1.worlds import CODE_SIZE, event_layouts, look, read_code
from futurel1.worlds.scene_code import NUM_BINS, SHAPE_SIZE

COLOURS = list(look.COLOURS)
STEPS = range(10)
PLACE = slice(0, 2 * NUM_BINS)
COLOUR = slice(2 * NUM_BINS, 2 * NUM_BINS + 2)
FORM = slice(2 * NUM_BINS + 2, SHAPE_SIZE)


@pytest.fixture(scope="module")
def codes(scenes):
    return [scene.code(STEPS) for scene in scenes]


def shapes_of(code):
    """(T, 3, SHAPE_SIZE): a row for each pair of colours."""
    return code[:, : 3 * SHAPE_SIZE].reshape(-1, 3, SHAPE_SIZE)


def by_pair(scene):
    """Number of the shape that has a colour of red and yellow, of green and purple, of blue and orange."""
    return [[colour % 3 for colour in scene.last_colours].index(pair) for pair in range(3)]


def test_codes_are_numbers_from_0_to_1(scenes, codes):
    assert scenes[0].code([2, 9]).shape == (2, CODE_SIZE)
    assert CODE_SIZE == 3 * (2 * 8 + 2 + 3) + 8 + 1 + 9
    assert codes[0].dtype == np.float32
    every = np.concatenate(codes)
    assert every.min() == 0
    assert every.max() == 1
    assert (every.max(axis=0) > 0.4).all()  # no entry is of no use
    assert (scenes[0].code([7, 2]) == codes[0][[7, 2]]).all()


def test_places_colours_and_visibility_are_read_back(scenes, codes):
    errors = []
    for scene, code in zip(scenes[:300], codes[:300], strict=True):
        order = by_pair(scene)
        positions, visible, colours = read_code(code)
        assert positions.shape == (10, 3, 2)
        assert (visible == ~scene.states.hidden[:, order]).all()
        pairs = colours * 3 + np.arange(3)
        assert (pairs == scene.colours[:, order])[visible].all()
        errors.append((positions - scene.states.positions[:, order])[visible])
    apart = np.abs(np.concatenate(errors))
    assert apart.max() < 0.03  # at walls, where half of the bins are missing
    assert apart.mean() < 0.008


def test_what_is_read_hardly_depends_on_a_little_noise(codes):
    code = np.concatenate(codes[:100])
    noisy = code + np.random.default_rng(0).normal(0, 0.05, code.shape).astype(np.float32)
    exact, told = read_code(code), read_code(noisy)
    seen = exact.visible
    assert (told.visible == seen).mean() > 0.999
    assert (told.classes == exact.classes)[seen].mean() > 0.999
    assert np.linalg.norm(told.positions - exact.positions, axis=-1)[seen].mean() < 0.03


def test_the_picture_has_the_colour_that_is_read_where_it_is_read(scenes):
    right = []
    for scene in scenes[:60]:
        positions, visible, colours = read_code(scene.code(STEPS))
        for frame, places, told, seen in zip(scene.render(STEPS), positions, colours, visible, strict=True):
            for pair in np.flatnonzero(seen):
                x, y = np.floor(places[pair] * 96).astype(int)
                expected = look.COLOURS[COLOURS[3 * told[pair] + pair]]
                right.append(bool(np.abs(frame[y, x].astype(int) - expected).max() < 16))
    assert len(right) > 1000
    assert np.mean(right) > 0.97  # but for the edge of the pillar


def test_hidden_shapes_are_zeros_and_visible_ones_have_a_colour_and_their_form(scenes, codes):
    hidden = 0
    for scene, code in zip(scenes, codes, strict=True):
        order = by_pair(scene)
        away = scene.states.hidden[:, order]
        shapes = shapes_of(code)
        assert (shapes[away] == 0).all()
        assert (shapes[~away][:, COLOUR].sum(axis=-1) == 1).all()
        forms = np.broadcast_to(np.eye(3)[order], (10, 3, 3))[~away]
        assert (shapes[~away][:, FORM] == 0.5 * forms).all()
        hidden += int(away.sum())
    assert hidden > 500


def test_a_shape_keeps_its_place_in_the_code_when_it_changes_colour(scenes):
    turned = 0
    for scene in scenes[:300]:
        still = dataclasses.replace(
            scene, states=dataclasses.replace(scene.states, flips=np.zeros_like(scene.states.flips))
        )
        code, unturned = (shapes_of(one.code(STEPS)) for one in (scene, still))
        others = [index for index in range(SHAPE_SIZE) if not COLOUR.start <= index < COLOUR.stop]
        assert (code[..., others] == unturned[..., others]).all()
        order = by_pair(scene)
        changed = scene.colours[:, order] != np.array(scene.last_colours)[order]
        seen = ~scene.states.hidden[:, order]
        assert (code[..., COLOUR] == unturned[..., COLOUR])[~changed].all()
        assert (code[..., COLOUR] == unturned[..., COLOUR][..., ::-1])[changed].all()
        turned += int((changed & seen).sum())
    assert turned > 300


def test_gate_and_pillar_stand_behind_the_shapes(scenes, codes):
    for scene, code in zip(scenes, codes, strict=True):
        gate, is_open, pillar = np.split(code[:, 3 * SHAPE_SIZE :], [8, 9], axis=1)
        for told, there, all_there in (
            (gate, (scene.layout.gate_axis, scene.layout.gate_at), event_layouts.GATES),
            (pillar, scene.layout.pillar, event_layouts.PILLARS),
        ):
            assert (told.sum(axis=1) == 1).all()
            assert {all_there[number] for number in told.argmax(axis=1)} == {there}
        assert (is_open[:, 0] == scene.states.gate_open).all()


def test_frames_that_look_different_have_different_codes(codes):
    every = np.concatenate(codes[:100])
    assert len(np.unique(every, axis=0)) == len(every)
