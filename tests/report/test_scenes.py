from __future__ import annotations

import numpy as np
import torch

from futurel1.models import LatentReasoner
from futurel1.report.scenes import SceneReader
from futurel1.worlds import make_event_episode
from futurel1.worlds.look import COLOURS


def test_features_of_the_tiny_tower_are_read_as_the_scene_that_was_drawn(tiny: LatentReasoner) -> None:
    episode = make_event_episode("test", 3, size=64)
    from PIL import Image

    picture = Image.fromarray(episode.render([5])[0])
    inputs = tiny.processor.image_processor(images=[picture], do_resize=False, return_tensors="pt")
    feature = tiny.encode_hints(inputs["pixel_values"], inputs["image_grid_thw"]).embeds.mean(dim=0, keepdim=True)
    reader = SceneReader.of(feature)
    assert reader is not None
    shapes = reader.shapes(feature[0])
    assert shapes
    pixels = np.asarray(picture, dtype=int)
    for shape in shapes:
        red, green, blue = (int(shape.colour[place : place + 2], 16) for place in (1, 3, 5))
        assert (red, green, blue) in COLOURS.values()
        # Where the decoder sees a shape, the frame has its colour.
        near = pixels[int(64 * shape.y) - 3 : int(64 * shape.y) + 4, int(64 * shape.x) - 3 : int(64 * shape.x) + 4]
        assert np.abs(near - (red, green, blue)).sum(axis=-1).min() < 60


def test_features_of_other_towers_are_not_read() -> None:
    features = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    assert SceneReader.of(features) is None
    assert SceneReader.of(features[:, :16]) is None
