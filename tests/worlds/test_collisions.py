"""The physics of the world of events."""

import dataclasses

import numpy as np
import pytest

from futurel1.worlds import collisions, event_scenes
from futurel1.worlds.collisions import HIGH, LOW, RADIUS


def test_shapes_stay_inside_do_not_overlap_and_lose_no_energy(train):
    for episode in train[:200]:
        states = episode.states
        assert states.positions.min() >= LOW
        assert states.positions.max() <= HIGH
        for first, second in collisions.PAIRS:
            gap = np.hypot(*(states.positions[:, first] - states.positions[:, second]).T)
            assert gap.min() > 2 * RADIUS - 0.02  # sides; a part of a step is at most 0.025 long
        energy = (states.velocities**2).sum(axis=(1, 2))
        assert energy == pytest.approx(np.full(10, energy[0]))
        assert np.hypot(*states.velocities[0].T).max() <= event_scenes.FASTEST + 1e-9
        assert np.hypot(*states.velocities[0].T).min() >= event_scenes.SLOWEST - 1e-9


def test_motion_is_straight_exactly_where_nothing_is_met(train):
    straight = bent = 0
    for episode in train[:200]:
        states = episode.states
        met = states.wall_hits.any(axis=-1) | states.contacts.any(axis=-1) | states.gate_hits
        kept = np.isclose(states.velocities[1:], states.velocities[:-1]).all(axis=-1)
        moved = np.isclose(states.positions[1:], states.positions[:-1] + states.velocities[1:]).all(axis=-1)
        assert (kept & moved)[~met[1:]].all()
        assert not kept[met[1:] & states.clear_cut[1:]].all()
        straight += int((~met[1:]).sum())
        bent += int(met.sum())
    assert min(straight, bent) > 500


def test_a_head_on_collision_exchanges_velocities_and_colours_once():
    layouts = collisions.Layouts(np.array([0]), np.array([0.7]), np.array([[0.24, 0.24]]))
    start = np.array([[[0.2, 0.8], [0.5, 0.8], [0.2, 0.4]]])
    velocity = np.array([[[0.1, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    states = collisions.simulate(start, velocity, layouts).scene(0)
    hits = np.flatnonzero(states.contacts[:, 0, 1])
    assert hits[0] == 2  # the gap of 0.3 - 1/6 is closed in the second step
    assert states.velocities[2, 0] == pytest.approx([0, 0])
    assert states.velocities[2, 1] == pytest.approx([0.1, 0])
    assert states.flips[:, 0].tolist() == states.flips[:, 1].tolist()
    assert states.flips[:, 0].tolist() == [int((hits <= step).sum()) for step in range(10)]
    assert not states.flips[:, 2].any()
    # then the second one bumps into the gate, 0.7 - 0.5 - REACH further on, and comes back to hit the first again
    assert np.flatnonzero(states.gate_hits[:, 1]).tolist() == [np.flatnonzero(states.gate_open)[0]] == [3]
    assert len(hits) > 1


def test_the_gate_opens_on_contact_alone_and_bars_the_way_until_then(train, test):
    opened = 0
    for episode in [*train[:200], *test[:100]]:
        states, layout = episode.states, episode.layout
        hits = states.gate_hits.any(axis=1)
        assert states.gate_open.tolist() == (np.cumsum(hits) > 0).tolist()
        along = states.positions[:, :, layout.gate_axis] - layout.gate_at
        closed = ~states.gate_open
        assert (np.sign(along[closed]) == np.sign(along[0])).all()
        assert (np.abs(along[closed]) >= collisions.REACH - 1e-9).all()
        for step in np.flatnonzero(hits):
            opened += 1
            # what bumps into it was within a step's way of it
            near = np.abs(along[step - 1 : step + 1]).min(axis=0) - collisions.REACH
            assert (near[states.gate_hits[step]] <= np.sqrt(3) * event_scenes.FASTEST).all()
    assert opened > 100


def test_shapes_pass_an_open_gate(train):
    crossed = 0
    for episode in train[:200]:
        along = episode.states.positions[:, :, episode.layout.gate_axis] - episode.layout.gate_at
        crossed += int((np.sign(along[-1]) != np.sign(along[0])).sum())
    assert crossed > 50


def test_states_are_read_as_one_record_of_arrays(train):
    shapes = {
        name: getattr(train[0].states, name).shape for name in (f.name for f in dataclasses.fields(train[0].states))
    }
    assert shapes["positions"] == shapes["velocities"] == (10, 3, 2)
    assert shapes["wall_hits"] == (10, 3, 4)
    assert shapes["contacts"] == (10, 3, 3)
    assert shapes["gate_open"] == (10,)
    assert {shapes[name] for name in ("hidden", "gate_hits", "clear_cut", "flips")} == {(10, 3)}
    assert train[0].colours.shape == (10, 3)
