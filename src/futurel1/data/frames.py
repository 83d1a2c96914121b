"""Read video frames and image files as RGB pictures; anything that cannot be read faithfully is an error."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from futurel1.data.video import MAX_PIXELS, VideoBackend, VideoInfo, check_is_file, open_video
from futurel1.errors import MediaError
from futurel1.image_formats import open_image

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["VideoInfo", "frame_pool", "probe_video", "read_frames", "read_image"]

POOL_SIZE = 8
MAX_PIXELS_IN_ALL = 2**28
"""Most pixels that one call of `read_frames` may decode in all (a gigabyte of pictures): 128 frames of full HD."""


def frame_pool(num_frames: int) -> list[int]:
    """Choose the eight frames of a video that records point into.

    Args:
        num_frames: number of frames V of the video, at least 1.

    Returns:
        Eight 0-based frame indices in ascending order; a record's index k (1..8) means entry k - 1. Videos with fewer
        frames to choose from repeat the last one.

    Raises:
        MediaError: `num_frames` is below 1.
    """
    if num_frames < 1:
        raise MediaError(f"a video of {num_frames} frames has no frame to choose from: give a video with at least one")
    first = 0 if num_frames <= 2 else 1
    last = num_frames - 2 if num_frames - 2 > first else num_frames - 1
    num_middle = min(POOL_SIZE - 2, last - first)
    bounds = np.linspace(first + 1, last, num_middle + 1).astype(np.int64)
    middle = (bounds[:-1] + bounds[1:] - 1) // 2
    pool = [first, *middle.tolist(), last]
    return pool + [last] * (POOL_SIZE - len(pool))


def probe_video(path: str | PathLike[str]) -> VideoInfo:
    """Read the properties of a video from its packets and its first frame.

    Args:
        path: an MP4/MOV, Matroska/WebM or AVI file.

    Returns:
        Frame count, average frame rate in frames per second, seconds, height and width in pixels (rotation applied).

    Raises:
        MissingFileError: there is no such file.
        MediaError: the file is empty, cut short, damaged, without frames or not a video of these kinds.
    """
    with open_video(path) as video:
        return video.info


def read_frames(path: str | PathLike[str], indices: Sequence[int], backend: VideoBackend = "auto") -> list[Image.Image]:
    """Decode frames of a video.

    Args:
        path: an MP4/MOV, Matroska/WebM or AVI file.
        indices: 0-based frame indices, in any order, repeats allowed.
        backend: the video decoder, see :func:`futurel1.data.video.open_video`.

    Returns:
        One RGB picture per index, in the order of `indices`; a repeated index yields the same picture object.

    Raises:
        MissingFileError: there is no such file.
        MediaError: an index is outside the video, the frames have too many pixels in all, or the file is empty, cut
            short, damaged or not a video.
        ConfigError: the backend is not installed.
    """
    if len(indices) == 0:
        return []
    with open_video(path, backend) as video:
        num_frames = video.info.num_frames
        outside = [index for index in indices if not 0 <= index < num_frames]
        if outside:
            raise MediaError(
                f"{path}: frame {outside[0]} was asked for, but the video has frames 0 to {num_frames - 1}; "
                "check the record's indices against this file"
            )
        pixels_in_all = video.info.height * video.info.width * len(set(indices))
        if pixels_in_all > MAX_PIXELS_IN_ALL:
            raise MediaError(
                f"{path}: {len(set(indices))} frames of {video.info.width} x {video.info.height} pixels, more than "
                f"{MAX_PIXELS_IN_ALL} in all; read fewer frames at a time"
            )
        frames = video.read(indices, lambda _, pixels: Image.fromarray(pixels))
    return [frames[index] for index in indices]


def read_image(path: str | PathLike[str]) -> Image.Image:
    """Read an image file.

    Args:
        path: a file of one of `futurel1.image_formats.IMAGE_FORMATS`, with 8 bits per channel.

    Returns:
        RGB picture, turned upright by its EXIF orientation, transparent parts on white.

    Raises:
        MissingFileError: there is no such file.
        MediaError: the file is empty, cut short, damaged, not an image, or has more than 8 bits per channel.
    """
    path = Path(path)
    check_is_file(path)
    return _upright_rgb(path, path, "replace the file")


def decode_image(data: bytes, place: str | PathLike[str]) -> Image.Image:
    """Decode an image file that is embedded in a record.

    Args:
        data: the contents of the image file, see :func:`read_image`.
        place: where the record is, for messages.

    Raises:
        MediaError: the bytes are damaged or not an image, or have more than 8 bits per channel.
    """
    return _upright_rgb(BytesIO(data), place, "embed the image again")


def _upright_rgb(source: Path | BytesIO, place: str | PathLike[str], remedy: str) -> Image.Image:
    try:
        with open_image(source) as stored:
            width, height = stored.size
            too_large = width * height > MAX_PIXELS
            if not too_large:
                stored.load()
                image = ImageOps.exif_transpose(stored)
    except Image.DecompressionBombError:
        too_large, width, height = True, 0, 0
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise MediaError(f"{place}: not a readable image ({error}); {remedy} or drop the record") from error
    if too_large:
        size = f" of {width} x {height}" if width else " of too many"
        raise MediaError(f"{place}: a picture{size} pixels, more than {MAX_PIXELS} in all; scale it down")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        # Pillow clips such values at 255 on conversion, which yields a white picture
        raise MediaError(f"{place}: pixels of mode {image.mode!r} exceed 8 bits per channel; save it as an 8-bit image")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
