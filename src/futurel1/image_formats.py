"""The formats of image files that are read."""

from io import BytesIO
from pathlib import Path

from PIL import Image

__all__ = ["IMAGE_FORMATS", "open_image"]

IMAGE_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "PPM",
    "TGA",
    "ICO",
    "QOI",
)
"""Formats that Pillow decodes itself. Others are not images of cameras or screens, or, as EPS, programs in PostScript
that Pillow hands to Ghostscript."""


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open an image file, as `PIL.Image.open` does, if it is of one of `IMAGE_FORMATS`; its pixels are not read yet.

    Args:
        source: the file, or its contents.

    Raises:
        PIL.UnidentifiedImageError: the file is of none of these formats.
    """
    Image.init()
    return Image.open(source, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
