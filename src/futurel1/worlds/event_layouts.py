"""Where the gate and the pillar of the world of events stand."""

from __future__ import annotations

from dataclasses import dataclass

from futurel1.worlds.clips import UNSEEN, Split

__all__ = ["GATES", "PILLARS", "Layout", "layouts_of"]


@dataclass(frozen=True)
class Layout:
    """Positions of gate and pillar, in sides of the arena.

    Args:
        gate_axis: 0 for an upright gate, which bars the way along x, 1 for a level one.
        gate_at: coordinate of the gate's middle on that axis.
        pillar: middle (x, y) of the pillar.
    """

    gate_axis: int
    gate_at: float
    pillar: tuple[float, float]


GATES = tuple((axis, at) for axis in (0, 1) for at in (0.3, 0.4, 0.6, 0.7))
PILLARS = tuple((x, y) for x in (0.24, 0.5, 0.76) for y in (0.24, 0.5, 0.76))


def layouts_of(split: Split) -> list[Layout]:
    """The layouts that a split samples from: 24 of the 72 for tests, 48 for what a model is trained on.

    Every gate and every pillar occurs in both parts, but no combination of the two does.
    """
    return [
        Layout(axis, at, pillar)
        for gate_number, (axis, at) in enumerate(GATES)
        for pillar_number, pillar in enumerate(PILLARS)
        if ((gate_number + pillar_number) % 3 == 0) == (split in UNSEEN)
    ]
