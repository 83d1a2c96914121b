"""Discs that collide with walls, a gate and each other: a fixed-step simulation of many scenes at once.

Lengths are in sides of the square arena, x points right, y points down, and times are in steps. A step is one frame of
a clip and is simulated in `SUBSTEPS` equal parts, because collisions of several shapes have no closed form. Nothing
depends on the size of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_SHAPES", "NUM_STATES", "PAIRS", "Layouts", "States", "continued", "simulate", "starts_apart"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NUM_SHAPES = 3
NUM_STATES = 10  # frames of a clip
SUBSTEPS = 16
PAIRS = ((0, 1), (0, 2), (1, 2))

RADIUS = 1 / 12  # of every disc
WALL = 1 / 48  # thickness
LOW, HIGH = WALL + RADIUS, 1 - WALL - RADIUS  # smallest and largest coordinate of a centre
GATE_HALF = 1 / 48  # half the thickness of the gate
REACH = GATE_HALF + RADIUS  # distance from the middle of the gate at which a disc touches it
PILLAR_HALF = 0.15  # half the side of the pillar


@dataclass(frozen=True, eq=False)
class Layouts:
    """Positions of gate and pillar in B arenas.

    Args:
        gate_axis: (B,) axis that the gate bars: 0 for an upright gate, 1 for a level one.
        gate_at: (B,) coordinate of the gate's middle on that axis. A closed gate reaches from wall to wall.
        pillar: (B, 2) middle of the square pillar, which hides everything behind it.
    """

    gate_axis: Ints
    gate_at: Floats
    pillar: Floats


@dataclass(frozen=True, eq=False)
class States:
    """States and events of scenes; entry t of the time axis is frame t, and its events happen after frame t - 1.

    States of a single scene have no batch axis B. N is the number of shapes, T the number of frames.

    Args:
        positions: (B, T, N, 2) centres.
        velocities: (B, T, N, 2) in sides per step.
        hidden: (B, T, N) whether the centre is behind the pillar.
        gate_open: (B, T) whether the gate is open.
        wall_hits: (B, T, N, 4) bounces off the left, right, top and bottom wall.
        contacts: (B, T, N, N) collisions between shapes, symmetric; each changes the colours of both.
        gate_hits: (B, T, N) whether the shape bumped into the closed gate, which opens it.
        clear_cut: (B, T, N) whether no event of the shape is so close to a frame that its step would be ambiguous,
            and no shape has two collisions with shapes in one step, which would undo its change of colour.
        flips: (B, T, N) colour changes since frame 0.
    """

    positions: Floats
    velocities: Floats
    hidden: Bools
    gate_open: Bools
    wall_hits: Bools
    contacts: Bools
    gate_hits: Bools
    clear_cut: Bools
    flips: Ints

    def scene(self, number: int) -> States:
        """The states of one scene of the batch, as a copy."""
        return States(**{field.name: getattr(self, field.name)[number].copy() for field in fields(self)})

    def reordered(self, order: Sequence[int]) -> States:
        """The same scenes with shape `order[i]` as shape i."""
        by_shape = list(order)
        return States(
            positions=self.positions[..., by_shape, :],
            velocities=self.velocities[..., by_shape, :],
            hidden=self.hidden[..., by_shape],
            gate_open=self.gate_open,
            wall_hits=self.wall_hits[..., by_shape, :],
            contacts=self.contacts[..., by_shape, :][..., by_shape],
            gate_hits=self.gate_hits[..., by_shape],
            clear_cut=self.clear_cut[..., by_shape],
            flips=self.flips[..., by_shape],
        )

    def goes_behind(self) -> Bools:
        """(B, T, N) whether the shape is behind the pillar but was not in the frame before."""
        before = np.concatenate([self.hidden[..., :1, :], self.hidden[..., :-1, :]], axis=-2)
        enters: Bools = self.hidden & ~before
        return enters


def starts_apart(start: Floats, layouts: Layouts) -> Bools:
    """(B,) whether no two of the (B, N, 2) discs overlap and none overlaps the gate."""
    apart: Bools = np.ones(len(start), bool)
    for first, second in PAIRS:
        gap = start[:, first] - start[:, second]
        apart &= np.hypot(gap[:, 0], gap[:, 1]) > 2 * RADIUS
    along = np.take_along_axis(start, layouts.gate_axis[:, None, None], axis=2)[..., 0]
    apart &= (np.abs(along - layouts.gate_at[:, None]) > REACH).all(axis=1)
    return apart


def simulate(
    start: Floats, velocity: Floats, layouts: Layouts, *, opened: Bools | None = None, frames: int = NUM_STATES
) -> States:
    """Move discs of equal mass through B arenas; collisions lose no energy.

    Args:
        start: (B, N, 2) centres at frame 0; `starts_apart` holds for those that were not simulated.
        velocity: (B, N, 2) at frame 0, in sides per step.
        layouts: gates and pillars of the arenas.
        opened: (B,) whether the gate is open at frame 0; None: all are closed.
        frames: number of frames.

    Returns:
        States of that many frames.
    """
    scenes, shapes = start.shape[:2]
    # Scenes are the last axis inside this function, because numpy is fast along it and there are many scenes.
    place, speed = (np.array(vectors.transpose(1, 2, 0), order="C") for vectors in (start, velocity))
    level, gate = layouts.gate_axis == 1, layouts.gate_at
    side = np.sign(_along(place, level) - gate)  # no shape changes sides while the gate is closed
    closed = np.ones(scenes, bool) if opened is None else ~opened

    positions = np.empty((frames, shapes, 2, scenes))
    velocities = np.empty_like(positions)
    gate_open = np.zeros((frames, scenes), bool)
    wall_hits = np.zeros((frames, shapes, 4, scenes), bool)
    contacts = np.zeros((frames, shapes, shapes, scenes), np.int64)
    gate_hits = np.zeros((frames, shapes, scenes), bool)
    at_frame = np.zeros((frames, shapes, scenes), bool)
    positions[0], velocities[0], gate_open[0] = place, speed, ~closed

    # The loop over time is sequential: every part of a step needs the one before it.
    for step in range(1, frames):
        for part in range(SUBSTEPS):
            place += speed / SUBSTEPS
            touching = _collide_all(place, speed)
            hits = _hit_walls(place, speed)
            bumps = _bump(place, speed, level, gate, side, closed)
            contacts[step] += touching
            wall_hits[step] |= hits
            gate_hits[step] |= bumps
            closed &= ~bumps.any(axis=0)
            if part in (0, SUBSTEPS - 1):
                at_frame[step] |= touching.any(axis=1) | hits.any(axis=1) | bumps
        positions[step], velocities[step], gate_open[step] = place, speed, ~closed

    def scenes_first(array: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(array, -1, 0)

    turns = scenes_first(contacts).sum(axis=-1)
    hidden: Bools = np.all(np.abs(scenes_first(positions) - layouts.pillar[:, None, None]) < PILLAR_HALF, axis=-1)
    return States(
        positions=scenes_first(positions),
        velocities=scenes_first(velocities),
        hidden=hidden,
        gate_open=scenes_first(gate_open),
        wall_hits=scenes_first(wall_hits),
        contacts=scenes_first(contacts > 0),
        gate_hits=scenes_first(gate_hits),
        clear_cut=~scenes_first(at_frame) & (turns <= 1).all(axis=-1, keepdims=True),
        flips=turns.cumsum(axis=1),
    )


def continued(states: States, step: int, velocity: Floats, layouts: Layouts) -> States:
    """Other continuations of one scene.

    Args:
        states: the scene, without a batch axis.
        step: last frame that stays as it is; what follows is simulated anew from there.
        velocity: (B, N, 2) velocities right after that frame, in sides per step.
        layouts: the scene's gate and pillar, B times.

    Returns:
        (B, `NUM_STATES`, ...) states, up to `step` those of the scene, its velocities included.
    """
    count = len(velocity)

    def repeated(array: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(array[None], count, axis=0)

    later = simulate(
        repeated(states.positions[step]), velocity, layouts, opened=repeated(states.gate_open[step]),
        frames=NUM_STATES - step,
    )  # fmt: skip
    joined = {
        field.name: np.concatenate(
            [repeated(getattr(states, field.name)[: step + 1]), getattr(later, field.name)[:, 1:]], axis=1
        )
        for field in fields(states)
    }
    joined["flips"][:, step + 1 :] += states.flips[step]
    return States(**joined)


def _collide_all(place: Floats, speed: Floats) -> Bools:
    """Bounce the discs of every scene off each other, (N, 2, B) arrays in place; return (N, N, B) collisions."""
    touching = np.zeros((NUM_SHAPES, NUM_SHAPES, place.shape[-1]), bool)
    for first, second in PAIRS:
        touching[first, second] = touching[second, first] = _collide(place, speed, first, second)
    return touching


def _collide(place: Floats, speed: Floats, first: int, second: int) -> Bools:
    """Bounce two discs of every scene off each other, (N, 2, B) arrays in place; return (B,) whether they collided."""
    gap = place[first] - place[second]
    distance = np.maximum(np.hypot(gap[0], gap[1]), 1e-9)
    near = distance < 2 * RADIUS
    normal = gap / distance
    approach = ((speed[first] - speed[second]) * normal).sum(axis=0)
    touching: Bools = near & (approach < 0)
    # equal masses exchange the velocity components along the line between their centres
    impulse = np.where(touching, approach, 0) * normal
    speed[first] -= impulse
    speed[second] += impulse
    push = np.where(near, RADIUS - distance / 2, 0) * normal
    place[first] += push
    place[second] -= push
    return touching


def _hit_walls(place: Floats, speed: Floats) -> Bools:
    """Bounce discs off the walls, (N, 2, B) arrays in place; return (N, 4, B) hits: left, right, top, bottom."""
    below, above = (place < LOW) & (speed < 0), (place > HIGH) & (speed > 0)
    np.negative(speed, out=speed, where=below | above)
    np.clip(place, LOW, HIGH, out=place)
    return np.stack([below[:, 0], above[:, 0], below[:, 1], above[:, 1]], axis=1)


def _bump(place: Floats, speed: Floats, level: Bools, gate: Floats, side: Floats, closed: Bools) -> Bools:
    """Bounce discs off closed gates, (N, 2, B) arrays in place; return (N, B) whether they hit one."""
    blocked = closed & ((_along(place, level) - gate) * side < REACH)
    bumps: Bools = blocked & (_along(speed, level) * side < 0)
    for axis, barred in enumerate((~level, level)):
        np.copyto(place[:, axis], gate + side * REACH, where=blocked & barred)
        np.negative(speed[:, axis], out=speed[:, axis], where=bumps & barred)
    return bumps


def _along(vectors: Floats, level: Bools) -> Floats:
    """(N, B) components of (N, 2, B) vectors on the axis that the gate bars: x if it is upright, y if it is level."""
    parts: Floats = np.where(level, vectors[:, 1], vectors[:, 0])
    return parts
