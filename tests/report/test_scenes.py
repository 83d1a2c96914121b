from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from futurel1.models import LatentReasoner
from futurel1.report.scenes import SceneReader, SeenShape
from futurel1.worlds import EventsWorld, make_event_episode
from futurel1.worlds.look import COLOURS


def shows(picture: Image.Image, shape: SeenShape) -> bool:
    """Whether a frame has a shape's colour at its place."""
    pixels = np.asarray(picture, dtype=int)
    x, y = int(picture.width * shape.x), int(picture.height * shape.y)
    near = pixels[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
    colour = [int(shape.colour[place : place + 2], 16) for place in (1, 3, 5)]
    return bool(np.abs(near - colour).sum(axis=-1).min() < 60)


def test_features_of_the_tiny_tower_are_read_as_the_scene_that_was_drawn(tiny: LatentReasoner) -> None:
    pictures = [
        Image.fromarray(frame)
        for number in range(8)
        for frame in make_event_episode("train", number, size=64).render([5])
    ]
    inputs = tiny.processor.image_processor(images=pictures, do_resize=False, return_tensors="pt")
    seen = tiny.encode_hints(inputs["pixel_values"], inputs["image_grid_thw"])
    features = torch.stack([part.mean(dim=0) for part in torch.split(seen.embeds, list(seen.counts))])
    reader = SceneReader.of(features, EventsWorld())
    assert reader is not None
    read = [
        (picture, shape)
        for picture, feature in zip(pictures, features, strict=True)
        for shape in reader.shapes(feature)
    ]
    assert len(read) > 12  # three a frame, but for those behind the pillar
    assert {shape.colour for _, shape in read} <= {"#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS.values()}
    assert np.mean([shows(picture, shape) for picture, shape in read]) > 0.85


def test_features_of_other_towers_are_not_read() -> None:
    features = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    assert SceneReader.of(features, EventsWorld()) is None
    assert SceneReader.of(features[:, :16], EventsWorld()) is None
