"""Latents read as scenes, for towers that regress a code of what a frame of their world shows: it can be undone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from futurel1.worlds import SceneWorld

__all__ = ["SceneReader", "SeenShape"]

MOST_UNEXPLAINED = 0.2
"""Share of the energy of features that may lie outside of the codes; about half does where a tower knows no codes."""


@dataclass(frozen=True)
class SeenShape:
    """An object that a decoder reads: its place in sides of the frame, from the top left, and its colour."""

    x: float
    y: float
    colour: str


class SceneReader:
    """Reads features as scenes.

    Args:
        width: H, numbers of a feature.
        world: the world that the tower was trained on.
    """

    def __init__(self, width: int, world: SceneWorld) -> None:
        from futurel1.modules import TowerPretrainModule

        self._tower = TowerPretrainModule(text_width=width, world=world)
        self._tower.configure_model()

    @classmethod
    def of(cls, features: Tensor, world: SceneWorld) -> SceneReader | None:
        """A reader for features that are scene codes; None for those of another tower.

        Args:
            features: (F, H) features of frames.
            world: the world that the frames are of.
        """
        if features.shape[-1] < world.code_size:
            return None
        reader = cls(features.shape[-1], world)
        rotation = reader._tower.get_buffer("rotation")
        outside = features - features @ rotation.T @ rotation
        share = float(outside.square().sum() / features.square().sum())
        return reader if share < MOST_UNEXPLAINED else None

    @torch.no_grad()
    def shapes(self, feature: Tensor) -> tuple[SeenShape, ...]:
        """What a feature, or the mean latent of a span, says of the objects; hidden ones are left out.

        Args:
            feature: (H,) the feature.
        """
        world = self._tower.world
        reading = world.read_code(self._tower.codes(feature[None].float()).numpy())
        (places,), (visible,), (colours,) = reading.positions, reading.visible, world.colours(reading)
        return tuple(
            SeenShape(round(float(x), 3), round(float(y), 3), "#{:02x}{:02x}{:02x}".format(*colour))
            for (x, y), seen, colour in zip(places, visible, colours, strict=True)
            if seen
        )
