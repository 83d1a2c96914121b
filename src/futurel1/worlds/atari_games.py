"""The games of the world of Atari games: where things are in memory, what can happen to the ball, how to play.

Addresses in the console's 128 bytes of memory (RAM) are those of the Atari Annotated RAM Interface (Anand et al. 2019,
arXiv 1906.08226). Offsets from memory to pixels, events and the addresses of the ball's velocity were found by
experiment; tests compare them with the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIELD", "FIRE", "GAMES", "LEFT", "NOOP", "NUM_OBJECTS", "RIGHT", "Game", "GameName", "Tracks"]

GameName = Literal["pong", "breakout"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Ram = NDArray[np.uint8]

FIELD = 160  # side of the playfield, which is as wide as the screen, in the console's pixels
NUM_OBJECTS = 3  # ball, first paddle, second paddle
NOOP, FIRE, RIGHT, LEFT = 0, 1, 3, 4  # numbers of ale-py's actions; in Pong, "right" is up


class Tracks(NamedTuple):
    """Objects and events, frame by frame.

    Attributes:
        positions: (F, 3, 2) centres (x, y) of ball and paddles, in sides of the playfield.
        visible: (F, 3) whether an object is on the screen.
        events: (F, E) which event happens to the ball, in the order of the game's `events`.
        unlisted: (F,) whether the ball turns for a reason that is not among them.
    """

    positions: Floats
    visible: Bools
    events: Bools
    unlisted: Bools


@dataclass(frozen=True)
class Game:
    """A game.

    Attributes:
        name: its name in ale-py.
        top: row of the screen in which the playfield begins.
        objects: names of ball and paddles; fewer than three if there is one paddle.
        colours: RGB levels of each object's slot.
        events: what can happen to the ball, in words; the last one stands for nothing.
        along: for each event the axis along which the ball can be elsewhere when it happens, 0 or 1; -1 for neither.
        free: top left and bottom right corner of where the ball moves freely, in pixels of the playfield.
        ball: addresses of the ball's x and y.
        velocity: addresses of its velocity along x and y, a signed byte in pixels per frame, and the sign of each.
        irrelevant: RGB levels of something no question is about, and others for it.
        read: (F, 128) memory to tracks.
        steer: memory and an offset in pixels to the action that takes the paddle to the ball, off by the offset.
    """

    name: GameName
    top: int
    objects: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    events: tuple[str, ...]
    along: tuple[int, ...]
    free: tuple[tuple[int, int], tuple[int, int]]
    ball: tuple[int, int]
    velocity: tuple[tuple[int, int], tuple[int, int]]
    irrelevant: tuple[tuple[int, int, int], tuple[int, int, int]]
    read: Callable[[Ram], Tracks]
    steer: Callable[[Ram, int], int]


def _turns(values: Ints, alive: Bools) -> tuple[Bools, Bools]:
    """(F,) in which frames a coordinate of the ball begins to grow again, and in which to fall."""
    steps = np.diff(values, prepend=values[:1])
    known = alive & np.roll(alive, 1) & np.roll(alive, 2)
    known[:2] = False
    before = np.roll(steps, 1)
    return known & (before < 0) & (steps > 0), known & (before > 0) & (steps < 0)


def _leaves(alive: Bools) -> Bools:
    """(F,) in which frames the ball is gone for the first time."""
    gone = np.roll(alive, 1) & ~alive
    gone[0] = False
    return gone


def _places(*objects: tuple[Ints | int, Ints | int], frames: int) -> Floats:
    """(F, 3, 2) positions in sides of the playfield, from x and y of the objects in pixels."""
    pixels = np.zeros((frames, NUM_OBJECTS, 2))
    for number, (x, y) in enumerate(objects):
        pixels[:, number, 0], pixels[:, number, 1] = x, y
    return np.clip(pixels / FIELD, 0, 1)


def _read_pong(ram: Ram) -> Tracks:
    memory = ram.astype(np.int64)
    x, y, alive = memory[:, 49], memory[:, 54], memory[:, 54] > 0
    rightward, leftward = _turns(x, alive)
    downward, upward = _turns(y, alive)
    top, bottom = downward & (y < 60), upward & (y > 190)
    left, right = rightward & (x < 90), leftward & (x > 165)
    events = np.stack([top, bottom, left, right, _leaves(alive)], axis=-1)
    # A paddle turns the ball as it likes.
    unlisted = (rightward & ~left) | (leftward & ~right) | (((downward & ~top) | (upward & ~bottom)) & ~(left | right))
    shown = alive & (y >= 46) & (y <= 206)  # else it is in front of a wall
    positions = _places((x - 48, y - 46), (18, memory[:, 50] - 41), (142, memory[:, 51] - 40), frames=len(ram))
    visible = np.stack([shown, np.ones_like(alive), np.ones_like(alive)], axis=-1)
    return Tracks(positions, visible, events, unlisted)


def _steer_pong(ram: Ram, offset: int) -> int:
    if ram[54] == 0:
        return FIRE
    above = int(ram[51]) - int(ram[54]) + 6 + offset
    return RIGHT if above > 4 else LEFT if above < -4 else NOOP


def _read_breakout(ram: Ram) -> Tracks:
    memory = ram.astype(np.int64)
    x, y, alive = memory[:, 99], memory[:, 101], memory[:, 101] > 0
    rightward, leftward = _turns(x, alive)
    downward, upward = _turns(y, alive)
    bricks = np.unpackbits(ram[:, :BRICK_BYTES], axis=1).sum(axis=1, dtype=np.int64)
    brick = np.diff(bricks, prepend=bricks[:1]) < 0
    paddle = upward & (y > 165)
    left, right = rightward & (x < 60), leftward & (x > 195)
    events = np.stack([left, right, brick, paddle, _leaves(alive)], axis=-1)
    close = brick | np.roll(brick, 1) | np.roll(brick, -1)  # memory of the wall and of the ball may change in turn
    unlisted = ((rightward & ~left) | (leftward & ~right)) & ~paddle & ~close
    unlisted |= (downward | (upward & ~paddle)) & ~close
    shown = alive & (y <= 182)  # else it is below the paddle
    positions = _places((x - 48, y - 22), (memory[:, 72] - 39, 158), frames=len(ram))
    visible = np.stack([shown, np.ones_like(alive), np.zeros_like(alive)], axis=-1)
    return Tracks(positions, visible, events, unlisted)


def _steer_breakout(ram: Ram, offset: int) -> int:
    if ram[101] == 0:
        return FIRE
    ahead = int(ram[99]) - int(ram[72]) - 9 + offset
    return RIGHT if ahead > 4 else LEFT if ahead < -4 else NOOP


BRICK_BYTES = 36

GAMES: Mapping[GameName, Game] = {
    "pong": Game(
        name="pong",
        top=34,
        objects=("ball", "left paddle", "right paddle"),
        colours=((236, 236, 236), (213, 130, 74), (92, 186, 92)),
        events=(
            "It hits the top wall", "It hits the bottom wall", "It hits the left paddle", "It hits the right paddle",
            "It leaves the field", "It meets nothing",
        ),
        along=(0, 0, -1, -1, -1),
        free=((24, 4), (136, 156)),
        ball=(49, 54),
        velocity=((58, -1), (56, 1)),
        irrelevant=((144, 72, 17), (84, 60, 120)),
        read=_read_pong,
        steer=_steer_pong,
    ),
    "breakout": Game(
        name="breakout",
        top=33,
        objects=("ball", "paddle"),
        colours=((200, 72, 72), (200, 72, 72), (200, 72, 72)),
        events=(
            "It hits the left wall", "It hits the right wall", "It hits a brick", "It hits the paddle",
            "It leaves the field", "It meets nothing",
        ),
        along=(1, 1, 0, -1, -1),
        free=((10, 64), (150, 146)),
        ball=(99, 101),
        velocity=((105, -1), (103, 1)),
        irrelevant=((142, 142, 142), (84, 92, 164)),
        read=_read_breakout,
        steer=_steer_breakout,
    ),
}  # fmt: skip
