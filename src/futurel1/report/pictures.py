"""Thumbnails of a page: each picture once, as a data URI."""

from __future__ import annotations

import base64
import io

from PIL import Image

from futurel1.errors import ConfigError

__all__ = ["Thumbnails", "data_uri"]

QUALITY = 80
LOSSLESS_UP_TO = 64 * 64
"""Pictures of so many pixels are kept exactly: they are small, and their edges are what one looks at."""


def data_uri(picture: Image.Image, side: int) -> str:
    """A picture as a WebP data URI.

    Args:
        picture: an RGB picture; it is not changed.
        side: most pixels of the longer side; smaller pictures keep their size.
    """
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    lossless = small.width * small.height <= LOSSLESS_UP_TO
    small.save(file, "WEBP", quality=QUALITY, method=4, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


class Thumbnails:
    """Pictures by key, in the order in which they came.

    Args:
        side: most pixels of the longer side.

    Attributes:
        uris: the pictures as data URIs; the page names them by their place.

    Raises:
        ConfigError: a side that shows nothing.
    """

    def __init__(self, side: int) -> None:
        if side < 16:
            raise ConfigError(f"thumbnail={side}: pictures of fewer than 16 pixels show nothing; 192 is the default")
        self.side = side
        self.uris: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, key: str) -> int | None:
        """Where a picture stands, if it is there."""
        return self._places.get(key)

    def add(self, key: str, picture: Image.Image) -> int:
        """Put a picture under a key, unless there is one; returns its place."""
        if key not in self._places:
            self._places[key] = len(self.uris)
            self.uris.append(data_uri(picture, self.side))
        return self._places[key]
