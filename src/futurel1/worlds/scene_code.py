"""Content of a frame of the world of events as a vector, a training target for vision towers.

A shape is identified by its pair of colours (red and yellow, green and purple, blue and orange): no two shapes of a
scene share a pair, and a shape keeps its pair when it changes colour. The code has for each pair: soft bins of x and of
y, which of the two colours, which form; all zero if the shape is behind the pillar. Gate and pillar follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.collisions import NUM_SHAPES
from futurel1.worlds.event_scenes import GATES, PILLARS, EventScene
from futurel1.worlds.look import COLOURS, FORMS

__all__ = ["BINS", "CODE_SIZE", "NUM_BINS", "SHAPE_SIZE", "read_code", "scene_code"]

Floats = NDArray[np.float32]

NUM_BINS = 8
BINS = np.linspace(0.1, 0.9, NUM_BINS)  # centres of the bins, in sides of the arena
BIN_WIDTH = 0.1  # standard deviation of a bin
FORM_WEIGHT = 0.5  # of forms relative to the rest, because they are hardest to see and least needed
SHAPE_SIZE = 2 * NUM_BINS + 2 + len(FORMS)
CODE_SIZE = NUM_SHAPES * SHAPE_SIZE + len(GATES) + 1 + len(PILLARS)


def scene_code(scene: EventScene, steps: Sequence[int]) -> Floats:
    """Codes of frames of a scene.

    Args:
        scene: the scene.
        steps: T steps from 0 to 9.

    Returns:
        (T, CODE_SIZE), entries from 0 to 1.
    """
    chosen, half = list(steps), len(COLOURS) // 2
    by_pair = np.argsort(np.array(scene.last_colours) % half)
    positions = scene.states.positions[chosen][:, by_pair]
    colours = scene.colours[chosen][:, by_pair]
    visible = ~scene.states.hidden[chosen][:, by_pair]
    frames = len(chosen)

    bins = np.exp(-0.5 * ((positions[..., None] - BINS) / BIN_WIDTH) ** 2).reshape(frames, NUM_SHAPES, -1)
    forms = np.broadcast_to(FORM_WEIGHT * np.eye(len(FORMS))[by_pair], (frames, NUM_SHAPES, len(FORMS)))
    shapes = np.concatenate([bins, np.eye(2)[colours // half], forms], axis=-1) * visible[..., None]

    gate = np.zeros((frames, len(GATES) + 1))
    gate[:, GATES.index((scene.layout.gate_axis, scene.layout.gate_at))] = 1
    gate[:, -1] = scene.states.gate_open[chosen]
    pillar = np.zeros((frames, len(PILLARS)))
    pillar[:, PILLARS.index(scene.layout.pillar)] = 1
    return np.concatenate([shapes.reshape(frames, -1), gate, pillar], axis=-1).astype(np.float32)


def read_code(code: Floats) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """Read the shapes from a code, which may be noisy.

    Args:
        code: (T, CODE_SIZE).

    Returns:
        (T, 3, 2) positions in sides of the arena, (T, 3) which colour of its pair each shape has, and (T, 3) whether it
        is visible; shapes are in the order of their pairs in `COLOURS`.
    """
    shapes = code[:, : NUM_SHAPES * SHAPE_SIZE].reshape(len(code), NUM_SHAPES, SHAPE_SIZE)
    bins = np.clip(shapes[..., : 2 * NUM_BINS], 1e-6, None).reshape(len(code), NUM_SHAPES, 2, NUM_BINS)
    weights = np.square(bins)  # squared bins are narrower, which reduces the bias from the cut-off ends of the range
    positions = (weights * BINS).sum(axis=-1) / weights.sum(axis=-1)
    colours = shapes[..., 2 * NUM_BINS : 2 * NUM_BINS + 2]
    return positions.astype(np.float32), colours.argmax(axis=-1), colours.sum(axis=-1) > 0.5
