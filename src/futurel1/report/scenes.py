"""Latents of the tiny backbone, read as scenes: its vision tower regresses a scene code, and the code can be undone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from futurel1.worlds import CODE_SIZE, read_code
from futurel1.worlds.look import COLOURS

__all__ = ["SceneReader", "SeenShape"]

MOST_UNEXPLAINED = 0.2
"""Share of the energy of features that may lie outside of the codes; about half does where a tower knows no codes."""


@dataclass(frozen=True)
class SeenShape:
    """A shape that a decoder reads: its place in sides of the arena, from the top left, and its colour."""

    x: float
    y: float
    colour: str


class SceneReader:
    """Reads features as scenes.

    Args:
        width: H, numbers of a feature.
    """

    def __init__(self, width: int) -> None:
        from futurel1.modules import TowerPretrainModule

        self._tower = TowerPretrainModule(text_width=width)
        self._tower.configure_model()

    @classmethod
    def of(cls, features: Tensor) -> SceneReader | None:
        """A reader for features that are scene codes; None for those of another tower.

        Args:
            features: (F, H) features of frames.
        """
        if features.shape[-1] < CODE_SIZE:
            return None
        reader = cls(features.shape[-1])
        rotation = reader._tower.get_buffer("rotation")
        outside = features - features @ rotation.T @ rotation
        share = float(outside.square().sum() / features.square().sum())
        return reader if share < MOST_UNEXPLAINED else None

    @torch.no_grad()
    def shapes(self, feature: Tensor) -> tuple[SeenShape, ...]:
        """What a feature, or the mean latent of a span, says of the three shapes; hidden ones are left out.

        Args:
            feature: (H,) the feature.
        """
        positions, chosen, visible = read_code(self._tower.codes(feature[None].float()).numpy())
        colours = list(COLOURS.values())
        half = len(colours) // 2
        return tuple(
            SeenShape(
                round(float(positions[0, pair, 0]), 3),
                round(float(positions[0, pair, 1]), 3),
                "#{:02x}{:02x}{:02x}".format(*colours[pair + half * int(chosen[0, pair])]),
            )
            for pair in range(half)
            if visible[0, pair]
        )
