"""Content of a frame of the world of events as a vector, a training target for vision towers.

A shape is identified by its pair of colours (red and yellow, green and purple, blue and orange): no two shapes of a
scene share a pair, and a shape keeps its pair when it changes colour. The code has for each pair: soft bins of x and of
y, which of the two colours, which form; all zero if the shape is behind the pillar. Gate and pillar follow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.collisions import NUM_SHAPES
from futurel1.worlds.event_layouts import GATES, PILLARS
from futurel1.worlds.look import FORMS
from futurel1.worlds.position_bins import read_bins
from futurel1.worlds.protocols import CodeReading

__all__ = ["BINS", "CODE_SIZE", "FORM_WEIGHT", "NUM_BINS", "SHAPE_SIZE", "read_code"]

Floats = NDArray[np.float32]

NUM_BINS = 8
BINS = np.linspace(0.1, 0.9, NUM_BINS)  # centres of the bins, in sides of the arena
FORM_WEIGHT = 0.5  # of forms relative to the rest, because they are hardest to see and least needed
SHAPE_SIZE = 2 * NUM_BINS + 2 + len(FORMS)
CODE_SIZE = NUM_SHAPES * SHAPE_SIZE + len(GATES) + 1 + len(PILLARS)


def read_code(code: Floats) -> CodeReading:
    """Read the shapes from codes, which may be noisy.

    Args:
        code: (T, CODE_SIZE).

    Returns:
        Places of three shapes, whether each is visible, and as classes which colour of its pair each visible one has;
        shapes are in the order of their pairs in `COLOURS`.
    """
    shapes = code[:, : NUM_SHAPES * SHAPE_SIZE].reshape(len(code), NUM_SHAPES, SHAPE_SIZE)
    positions = read_bins(shapes[..., : 2 * NUM_BINS], BINS)
    colours = shapes[..., 2 * NUM_BINS : 2 * NUM_BINS + 2]
    visible = colours.sum(axis=-1) > 0.5
    return CodeReading(positions, visible, np.where(visible, colours.argmax(axis=-1), -1))
