"""Video readers behind one interface.

:class:`PyAVReader` always determines the frames of a file and their times, from the file's packets. The other backends
only decode these frames, and refuse files in which they count or time frames differently.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np

from futurel1.data.video.pyav import Pixels, PyAVReader, VideoInfo
from futurel1.errors import ConfigError, MediaError

T = TypeVar("T")
VideoBackend = Literal["auto", "pyav", "decord", "torchcodec"]
"""`auto` is `pyav`: the others do not report damage that their decoder finds, so their frames cannot be trusted."""
BACKENDS: tuple[VideoBackend, ...] = get_args(VideoBackend)

# decord silently replaces a frame that it cannot decode by the nearest good one; any positive tolerance below one
# frame makes it raise instead (0 would switch the check off)
_SUBSTITUTED_FRAMES_ALLOWED = 1e-9
_TIME_TOLERANCE = 1e-3
"""Seconds by which two readers may differ on when a frame is shown: Matroska rounds to milliseconds."""


class VideoReader(Protocol):
    """One open video.

    Attributes:
        info: number of frames, frame rate, size and duration.
        times: (V,) seconds from the first frame to each frame, ascending.
    """

    info: VideoInfo
    times: np.ndarray[Any, np.dtype[np.float64]]

    def read(self, numbers: Sequence[int], convert: Callable[[int, Pixels], T]) -> dict[int, T]:
        """Decode frames by number, 0 to V - 1, and keep what `convert` returns for each.

        `convert` is called with the number and the (H, W, 3) RGB pixels of a frame as soon as it is decoded.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def check_backend(backend: str) -> None:
    """Raise a ConfigError that lists the choices if there is no such backend."""
    if backend not in BACKENDS:
        raise ConfigError(f"video_backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


@contextmanager
def open_video(path: str | PathLike[str], backend: VideoBackend = "auto") -> Iterator[VideoReader]:
    """Open a video for the duration of a `with` block.

    Args:
        path: an MP4/MOV, Matroska/WebM or AVI file.
        backend: the video decoder; all but `auto` and `pyav` need a package installed.

    Raises:
        MissingFileError: there is no such file.
        MediaError: the file is empty, cut short, damaged, without frames, or of a kind or codec that is not read.
        ConfigError: no such backend, or its package is not installed.
    """
    check_backend(backend)
    readers: dict[str, Callable[[Path], VideoReader]] = {"decord": DecordReader, "torchcodec": TorchCodecReader}
    with closing(readers.get(backend, PyAVReader)(Path(path))) as reader:
        yield reader


class _OtherReader:
    """A reader whose frames are those of :class:`PyAVReader`, decoded by another package."""

    name: str

    def __init__(self, path: Path) -> None:
        index = PyAVReader(path)
        index.close()
        self.path, self.family, self.info, self.times = path, index.family, index.info, index.times
        if not index.upright:
            raise self._refusal("frames that are turned or mirrored for display")

    def close(self) -> None:
        """Does nothing: no file is kept open between calls."""

    def _refusal(self, what: str) -> MediaError:
        return MediaError(f"{self.path}: {self.name} does not read {what}; set video_backend: pyav")

    def _file_name(self) -> str:
        name = str(self.path.absolute())
        try:
            name.encode()
        except UnicodeEncodeError:
            raise self._refusal("a file whose name is not UTF-8") from None
        return name

    def _check_count(self, count: int) -> None:
        if count != self.info.num_frames:
            raise self._refusal(f"this file rightly: it counts {count} frames where {self.info.num_frames} are shown")

    def _checked(self, pixels: Pixels) -> Pixels:
        if pixels.shape != (self.info.height, self.info.width, 3) or pixels.dtype != np.uint8:
            raise self._refusal(
                f"this file rightly: it returns {pixels.shape} of {pixels.dtype} for RGB frames of {self.info.width} x "
                f"{self.info.height} pixels"
            )
        return pixels


class DecordReader(_OtherReader):
    """Decodes with decord, in order from the first frame.

    decord's random access is not used: where key frames are not clean cuts (open groups of H.264, HEVC, MPEG-4 with
    B-frames, AVI), it silently returns a neighbouring or broken frame.
    """

    name = "decord"

    def read(self, numbers: Sequence[int], convert: Callable[[int, Pixels], T]) -> dict[int, T]:
        """Decode frames, see :class:`VideoReader`."""
        try:
            import decord
        except ImportError as error:
            raise ConfigError(
                "video_backend: decord needs the package 'decord', which is not installed: pip install decord"
            ) from error
        name = self._file_name()
        kept: dict[int, T] = {}
        try:
            reader = decord.VideoReader(name, num_threads=1, fault_tol=_SUBSTITUTED_FRAMES_ALLOWED)
            self._check_count(len(reader))
            for number, frame in self._in_order(reader, sorted(set(numbers))):
                kept[number] = convert(number, self._checked(frame))
        # RuntimeError: decord cannot open the file; DECORDError: it cannot decode it; LimitReached (no subclass of
        # DECORDError): it would have replaced a frame; StopIteration: past the last frame that could be decoded;
        # TypeError: frames narrower than it can return
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, StopIteration, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MediaError(
                f"{self.path}: decord cannot decode the video ({reason}); the file is damaged, or of a codec that "
                "decord lacks, such as AV1: video_backend: pyav tells which"
            ) from error
        return kept

    def _in_order(self, reader: Any, ascending: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Yield the number and a copy of each frame, decoding forward from the first frame without seeking."""
        key_indices = reader.get_key_indices()
        num_frames = len(reader)
        starts = reader.get_frame_timestamp(range(num_frames))[:, 0]
        # skip_frames saves the conversion of frames, but identifies frames by their timestamps
        can_skip = bool(np.all(np.diff(starts) > 0))
        position = 0
        for index in ascending:
            while position < index:
                # skip_frames seeks when it passes a key frame, so it may only run up to the frame before the next one
                next_key = bisect.bisect_right(key_indices, position)
                limit = key_indices[next_key] - 1 if next_key < len(key_indices) else num_frames - 1
                num_skipped = min(index, limit) - position
                if can_skip and num_skipped > 0:
                    reader.skip_frames(num_skipped)
                    position += num_skipped
                else:
                    reader.next()
                    position += 1
            yield index, np.array(reader.next().asnumpy())
            position += 1


class TorchCodecReader(_OtherReader):
    """Decodes with torchcodec, which seeks by itself; its seeks fail in AVI, which stores no display times."""

    name = "torchcodec"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.family == "avi":
            raise self._refusal("AVI files frame by frame")

    def read(self, numbers: Sequence[int], convert: Callable[[int, Pixels], T]) -> dict[int, T]:
        """Decode frames, see :class:`VideoReader`."""
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError) as error:
            # It raises RuntimeError if it is installed but the shared libraries of FFmpeg are missing.
            raise ConfigError(
                "video_backend: torchcodec needs the package 'torchcodec' and the shared libraries of FFmpeg: pip "
                f"install torchcodec, and FFmpeg from your system's packages ({str(error).splitlines()[0]})"
            ) from error
        kept: dict[int, T] = {}
        try:
            decoder = VideoDecoder(self._file_name(), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            self._check_count(len(decoder))
            origin = float(decoder.metadata.begin_stream_seconds)
            for number in sorted(set(numbers)):
                frame = decoder.get_frame_at(number)
                if abs(frame.pts_seconds - origin - self.times[number]) > _TIME_TOLERANCE:
                    raise self._refusal(
                        f"this file rightly: it shows frame {number} at {frame.pts_seconds - origin:.3f} s, not at "
                        f"{self.times[number]:.3f} s"
                    )
                kept[number] = convert(number, self._checked(frame.data.numpy()))
        except (RuntimeError, IndexError) as error:
            raise MediaError(
                f"{self.path}: torchcodec cannot decode the video ({str(error).splitlines()[0]}); video_backend: pyav "
                "tells whether the file is damaged"
            ) from error
        return kept
