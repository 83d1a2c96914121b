"""Appearance and vocabulary of both worlds: frames, forms, colours, zones, walls, directions.

Time is counted in *steps*. A clip has 10 frames and frame i shows step i, because the 8-frame pool of a 10-frame video
is exactly frames 1 to 8: pool frame n (1-based) is step n, and steps 0 and 9 only surround them. Questions are about
steps after `LAST_SEEN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError
from futurel1.worlds.clips import UNSEEN, Split

__all__ = [
    "COLOURS",
    "FORMS",
    "LAST_SEEN",
    "LETTERS",
    "NUM_STEPS",
    "WALLS",
    "ZONES",
    "Form",
    "background",
    "check_frame_size",
    "direction",
    "in_steps",
    "paint",
    "palette",
    "shape_cover",
    "signed_distance",
    "wall_thickness",
    "zones_of",
]

Form = Literal["circle", "square", "triangle"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_STEPS = 10  # frames of a clip
LAST_SEEN = 4  # the last observed step

FORMS: tuple[Form, ...] = ("circle", "square", "triangle")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (226, 54, 54),
    "green": (56, 186, 78),
    "blue": (64, 108, 240),
    "yellow": (240, 214, 60),
    "purple": (168, 76, 208),
    "orange": (244, 140, 40),
}
BACKGROUND = (24, 26, 32)
ZONE_LINE = (58, 62, 72)
WALL = (150, 154, 164)

ZONES = ("top left", "top right", "bottom left", "bottom right")
WALLS = ("left wall", "right wall", "top wall", "bottom wall")
LETTERS = "ABCD"


def palette(split: Split) -> list[tuple[str, Form]]:
    """The combinations of colour and form that a split samples from.

    Colour c and form f go to the test split when c and f + 1 agree modulo 3 (6 of the 18), else to the training split.
    So each colour and each form occurs in both splits, but no combination does.

    Args:
        split: `test` and `counterfactual` have combinations of their own, the others those of training.

    Returns:
        (colour, form) pairs.
    """
    return [
        (colour, form)
        for form_number, form in enumerate(FORMS)
        for colour_number, colour in enumerate(COLOURS)
        if (colour_number % 3 == (form_number + 1) % 3) == (split in UNSEEN)
    ]


# ------------------------------------------------------------------------------------------------------------- frames


def check_frame_size(size: int) -> None:
    """Refuse a frame size, in pixels, that is not a positive multiple of 32.

    Raises:
        ConfigError: the size is invalid.
    """
    if size < 32 or size % 32:
        raise ConfigError(f"size={size}: frames need a side that is a positive multiple of 32, such as 96")


def wall_thickness(size: int) -> int:
    """Thickness of the walls in frames of `size` pixels, in pixels."""
    return max(1, size // 48)


def background(size: int) -> NDArray[np.float32]:
    """An empty arena, (size, size, 3): walls at the edge and a cross between the four zones."""
    wall = wall_thickness(size)
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUND
    middle = slice(size // 2 - 1, size // 2 + 1)
    image[middle, :] = image[:, middle] = ZONE_LINE
    inside = np.zeros((size, size), bool)
    inside[wall:-wall, wall:-wall] = True
    image[~inside] = WALL
    return image


def signed_distance(form: Form, across: Floats, down: Floats, radius: float) -> Floats:
    """Distance of points to the outline of a form in pixels, negative inside.

    All forms fill the same box, so that each visibly touches a wall when it bounces off it.

    Args:
        form: the form.
        across: x of the points relative to the centre, in pixels.
        down: y of the points relative to the centre, in pixels, broadcast against `across`.
        radius: half the side of the box, in pixels.

    Returns:
        Distances in the broadcast shape.
    """
    if form == "circle":
        distance: Floats = np.hypot(across, down) - radius
    elif form == "square":
        distance = np.maximum(np.abs(across), np.abs(down)) - radius
    else:
        # An isosceles triangle on its base: a leg falls two pixels for each one across, so its normal is (2, -1) / √5.
        leg = (2 * np.abs(across) - down - radius) / np.sqrt(5)
        distance = np.maximum(leg, down - radius)
    return distance


def shape_cover(form: Form, centres: Floats, radius: float, size: int) -> Floats:
    """Share of every pixel that a form covers, with smooth edges.

    Args:
        form: the form.
        centres: (N, 2) centre of the form in N frames, in pixels.
        radius: half the side of the box that it fills, in pixels.
        size: side of the frames in pixels.

    Returns:
        (N, size, size) shares from 0 to 1.
    """
    pixels = np.arange(size) + 0.5
    across = (pixels - centres[:, :1])[:, None, :]
    down = (pixels - centres[:, 1:])[:, :, None]
    cover: Floats = np.clip(0.5 - signed_distance(form, across, down, radius), 0, 1)
    return cover


def paint(frames: NDArray[np.float32], cover: Floats, rgb: object) -> None:
    """Blend a colour over (N, size, size, 3) frames in place, weighted by `cover`, which broadcasts against them."""
    frames += cover[..., None].astype(np.float32) * (np.asarray(rgb, np.float32) - frames)


# -------------------------------------------------------------------------------------------------------------- words


def zones_of(positions: Floats, side: float = 1.0) -> Ints:
    """Index into `ZONES` of (..., 2) centres in an arena of a given side."""
    beyond = positions >= side / 2
    return 2 * beyond[..., 1].astype(np.int64) + beyond[..., 0]


def direction(heading: Floats) -> str:
    """One of eight directions in words, for an (x, y) heading."""
    x, y = heading
    narrow = np.tan(np.pi / 8)  # half of a 45 degree sector
    words = []
    if abs(y) > narrow * abs(x):
        words.append("down" if y > 0 else "up")
    if abs(x) > narrow * abs(y):
        words.append("right" if x > 0 else "left")
    return " and ".join(words)


def in_steps(count: int) -> str:
    """A number of steps in words, such as `1 step` or `2 steps`."""
    return f"{count} step{'s' if count > 1 else ''}"
