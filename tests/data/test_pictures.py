"""Pixel values are those of the image processor, value for value."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from futurel1.data.pictures import Pictures, PixelScale, join_pixels
from futurel1.models import load_processor


def pictures_of(processor: Any, images: list[Image.Image]) -> Pictures:
    made = [processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="pt") for image in images]
    assert {part["pixel_values"].dtype for part in made} == {torch.uint8}
    grid = torch.cat([part["image_grid_thw"] for part in made])
    return Pictures(tuple(part["pixel_values"] for part in made), grid, PixelScale.of(processor))


@pytest.mark.parametrize("settings", [
    {}, {"image_mean": [0.48, 0.457, 0.408], "image_std": [0.268, 0.261, 0.275]}, {"do_normalize": False},
    {"do_rescale": False}, {"do_normalize": False, "image_mean": None, "image_std": None},
    {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]},
])  # fmt: skip
def test_values_are_those_of_the_image_processor(settings: dict[str, Any]) -> None:
    processor = load_processor("tiny@random").image_processor
    for name, value in settings.items():
        setattr(processor, name, value)
    rng = np.random.default_rng(0)
    shapes = [(64, 96, 3), (64, 64, 3), (96, 32, 3)]
    images = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    first, second = pictures_of(processor, images[:2]), pictures_of(processor, images[2:])
    wanted = processor(images=images, return_tensors="pt")
    values = join_pixels([first, None, pickle.loads(pickle.dumps(second))])
    assert values is not None
    assert values.dtype == torch.float32
    assert torch.equal(values, wanted["pixel_values"].to(torch.float32))
    assert torch.equal(torch.cat([first.grid_thw, second.grid_thw]), wanted["image_grid_thw"])
    assert join_pixels([None, None]) is None
