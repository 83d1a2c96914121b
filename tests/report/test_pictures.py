from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from futurel1.errors import ConfigError
from futurel1.report.pictures import Thumbnails, data_uri


def read(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_small_pictures_are_kept_exactly_and_large_ones_become_small() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (64, 48, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(read(data_uri(small, 192))), np.asarray(small))
    large = Image.new("RGB", (1920, 1080), "teal")
    shown = read(data_uri(large, 192))
    assert shown.size == (192, 108)
    assert np.abs(np.asarray(shown, dtype=int) - np.asarray(large.resize((192, 108)), dtype=int)).max() < 6
    assert large.size == (1920, 1080)


def test_each_picture_is_there_once() -> None:
    thumbnails = Thumbnails(32)
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    assert [thumbnails.add("a", red), thumbnails.add("b", blue), thumbnails.add("a", blue)] == [0, 1, 0]
    assert len(thumbnails.uris) == 2
    assert read(thumbnails.uris[0]).getpixel((5, 5))[0] > 200
    assert (thumbnails.place("b"), thumbnails.place("c")) == (1, None)


def test_a_side_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="thumbnail=3"):
        Thumbnails(3)
