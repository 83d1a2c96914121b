"""The pictures and videos of one record, each video opened once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from PIL import Image

from futurel1.data.frames import decode_image, frame_pool, read_image
from futurel1.data.samples import Frame, Sample, Video
from futurel1.data.video import Pixels, VideoBackend, VideoReader, open_video

__all__ = ["RecordMedia", "media_sources"]

T = TypeVar("T")


class RecordMedia(ExitStack):
    """Reads the media of one record; a context manager that closes them.

    Args:
        backend: the video decoder, see :func:`futurel1.data.video.open_video`.
    """

    def __init__(self, backend: VideoBackend = "auto") -> None:
        super().__init__()
        self._backend = backend
        self._videos: dict[Path, VideoReader] = {}

    def video(self, path: Path) -> VideoReader:
        """Open a video, or return its open reader."""
        if path not in self._videos:
            self._videos[path] = self.enter_context(open_video(path, self._backend))
        return self._videos[path]

    def size(self, frame: Frame) -> tuple[int, int]:
        """Height and width of a frame in pixels; for a frame of a video, as the video states them."""
        if frame.pool_index is None:
            picture = _read_still(frame)
            return picture.height, picture.width
        info = self.video(frame.path).info
        return info.height, info.width

    def pictures(self, frames: Sequence[Frame], converters: Sequence[Callable[[Image.Image], T]]) -> list[T]:
        """Read frames, decoding each video once.

        Args:
            frames: the frames, in any order.
            converters: one function per frame, called as soon as the frame is decoded, so that no two pictures are
                held at full size.

        Returns:
            The converted value of each frame, in the order of `frames`.

        Raises:
            MissingFileError: a file is not there.
            MediaError: a file cannot be read.
        """
        made: dict[int, T] = {}
        places: dict[Path, dict[int, list[int]]] = {}
        for place, frame in enumerate(frames):
            if frame.pool_index is None:
                made[place] = converters[place](_read_still(frame))
            else:
                pool = frame_pool(self.video(frame.path).info.num_frames)
                places.setdefault(frame.path, {}).setdefault(pool[frame.pool_index - 1], []).append(place)
        for path, wanted in places.items():

            def convert(number: int, pixels: Pixels, wanted: dict[int, list[int]] = wanted) -> dict[int, T]:
                picture = Image.fromarray(pixels)
                return {place: converters[place](picture) for place in wanted[number]}

            for parts in self.video(path).read(list(wanted), convert).values():
                made |= parts
        return [made[place] for place in range(len(frames))]


def media_sources(sample: Sample) -> tuple[str, ...]:
    """Sources of a sample's frames, without duplicates: real paths of files, and digests of embedded images."""
    media = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
    embedded = [part.data for part in media if isinstance(part, Frame) and part.data is not None]
    paths = dict.fromkeys(part.path for part in media if isinstance(part, Video) or part.data is None)
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in embedded]
    return tuple(dict.fromkeys([*map(os.path.realpath, paths), *digests]))


def _read_still(frame: Frame) -> Image.Image:
    """An image file, or an image embedded in a record, as an upright RGB picture; see `read_image`."""
    return read_image(frame.path) if frame.data is None else decode_image(frame.data, frame.path)
