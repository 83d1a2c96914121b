"""Determine from the packets which frames a video shows and when, before any picture is decoded; then read pixels.

A video player shows the frames that an edit list leaves, each at its own time. The packets of a file hold both: one
pass over them, without decoding, gives the number of frames and their times. Packets are not enough for some files: AVI
stores no display times, and a packet of interlaced H.264 may be half a frame. Those files are decoded once to count.

The packets also say where decoding may start: at a key frame from which every frame shown later comes out right. The
key frame of an open group qualifies; frames displayed before it are decoded from the key frame before.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from futurel1.data.video.container import Container, check_container
from futurel1.data.video.packets import Packets, hide_untimed, scan_packets, visible
from futurel1.errors import ConfigError, MediaError

if TYPE_CHECKING:
    import av

T = TypeVar("T")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

__all__ = ["MAX_PIXELS", "Pixels", "PyAVReader", "VideoInfo"]

logger = logging.getLogger(__name__)

MAX_PIXELS = 2**26
"""Most pixels of a frame or image (8192 x 8192): a file of a few kilobytes can declare a picture of gigabytes."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video: number of frames, average frames per second, displayed size in pixels, total seconds.

    Container and codec, by the names of FFmpeg's demuxer and decoder, are left out of comparisons.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    duration: float
    container: str = field(default="", compare=False)
    codec: str = field(default="", compare=False)


@dataclass(frozen=True)
class _KeyFrame:
    """A place to start decoding: its times, and the latest seek target that ends there, in clock ticks."""

    pts: int
    dts: int | None
    latest: int


class PyAVReader:
    """Reads frames of one video with FFmpeg, exactly, decoding from the nearest key frame; see the module.

    Args:
        path: an MP4/MOV, Matroska/WebM or AVI file.

    Attributes:
        info: number of frames, frame rate, size and duration.
        times: (V,) seconds from the first frame to each frame, in ascending order.
        family: the family of the container.
        upright: whether frames are stored as they are displayed, neither turned nor mirrored.

    Raises:
        MissingFileError: there is no such file.
        MediaError: the file is empty, cut short, damaged, without frames, or of a kind or codec that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.family: Container = check_container(path)
        self._first: tuple[int, int] | None = None
        """Time of the first packet, in ticks of the stream's clock, and its byte offset in the file."""
        self._container, self._stream = self._open()
        try:
            with self._errors():
                self._read_index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    # ------------------------------------------------------------------ opening

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        try:
            import av
        except ImportError as error:
            raise ConfigError(
                "reading videos needs PyAV, the package 'av', which is not installed: pip install av"
            ) from error

        # FFmpeg would take the "12" of a file name 12:30.mp4 for a protocol; an explicit protocol prevents that.
        name = "file:" + os.path.abspath(self.path)
        with self._errors():
            # Titles and comments need not be UTF-8, and nothing here reads them.
            container = av.open(name, format=self.family, metadata_errors="replace")
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
            container.close()
            raise MediaError(f"{self.path}: the file has no video stream; name a video")
        context = stream.codec_context
        if context is None or not context.is_decoder:
            container.close()
            raise MediaError(
                f"{self.path}: FFmpeg, as PyAV carries it, has no decoder for the video's codec; re-encode it as H.264"
            )
        context.thread_type = "NONE"
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        return container, stream

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.FFmpegError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MediaError(
                f"{self.path}: the video cannot be decoded ({reason}){self._codec_name()}; it is damaged or "
                "incomplete: copy it again, or re-encode what can be played"
            ) from error

    def _codec_name(self) -> str:
        stream = getattr(self, "_stream", None)
        return "" if stream is None else f" as {stream.codec_context.name}"

    # ------------------------------------------------------------------ the index

    def _read_index(self) -> None:
        self._check_size(self._stream.codec_context.height, self._stream.codec_context.width)
        packets = scan_packets(self._container, self._stream, self.path)
        self._note_start(packets)
        num_untimed = hide_untimed(packets)
        by_time = self._times_tell(packets) and self._index_by_time(packets, num_untimed) and not self._interlaced
        if not by_time:
            self._index_by_decoding(packets)
        if len(self._pts) == 0:
            raise MediaError(f"{self.path}: a video without frames; record or export it again")
        self._by_time = by_time
        shape = (self._height, self._width) if self._turn is None or not self._turn[0] else (self._width, self._height)
        fps = len(self.times) / self._duration if self._duration > 0 else self._rate()
        self.info = VideoInfo(
            num_frames=len(self.times),
            fps=fps,
            height=shape[0],
            width=shape[1],
            duration=self._duration,
            container=self.family,
            codec=self._stream.codec_context.name,
        )
        self.upright = self._turn is None

    def _check_size(self, height: int, width: int) -> None:
        if height * width > MAX_PIXELS:
            raise MediaError(
                f"{self.path}: frames of {width} x {height} pixels, more than {MAX_PIXELS} in all; scale the video down"
            )

    def _note_start(self, packets: Packets) -> None:
        time = self._index_time(packets.pts[0], packets.dts[0]) if packets.pts else None
        if time is not None and packets.positions[0] is not None:
            self._first = time, packets.positions[0]

    def _times_tell(self, packets: Packets) -> bool:
        """Whether each packet is one frame with its own time."""
        # AVI has no display times: FFmpeg guesses them from the order of the packets.
        every_frame_is_key = len(packets.keys) == len(packets.pts)
        if self.family == "avi" and not every_frame_is_key:
            return False
        # If a video is cut within a gradual refresh, the decoder decides which frame it shows first.
        if None in packets.pts or not packets.keys or packets.keys[0] in packets.gradual:
            return False
        times = [time for time, shown in zip(packets.pts, packets.shown, strict=True) if shown]
        return 0 < len(times) == len(set(times))

    def _index_by_time(self, packets: Packets, num_untimed: int) -> bool:
        """Index the frames by the times of their packets; False if the decoder shows other frames."""
        pts = np.array(packets.pts, dtype=np.int64)
        shown = np.array(packets.shown)
        first_key = packets.keys[0]
        # Frames before the first key frame, in display or file order, lack references. Whether they are shown depends
        # on the codec, so the decoder is asked.
        leading = shown & ((pts < pts[first_key]) | (np.arange(len(pts)) < first_key))
        self._first_key = int(pts[first_key])
        decoded = self._decode_head(any_leading=bool(leading.any()) or num_untimed > 0)
        if num_untimed and decoded != [self._first_key]:
            return False
        shown &= ~leading | np.isin(pts, decoded)
        order = np.flatnonzero(shown)
        order = order[np.argsort(pts[order], kind="stable")]
        self._pts = pts[order]
        self._keys = self._clean_keys(packets, pts)
        self._key_times = [key.pts for key in self._keys]
        self._key_numbers = {self._index_time(key.pts, key.dts): number for number, key in enumerate(self._keys)}
        if len(order) == 0:
            self.times, self._duration = np.zeros(0), 0.0
            return True
        self.times = (self._pts - self._pts[0]) * self._unit
        last = packets.durations[order[-1]] * self._unit
        self._duration = float(self.times[-1]) + (last if last > 0 else self._mean_interval())
        return True

    def _clean_keys(self, packets: Packets, pts: np.ndarray[Any, np.dtype[np.int64]]) -> list[_KeyFrame]:
        """Clean key frames after which no earlier packet of the file is displayed."""
        # A seek to the time of a key frame may end at the one before, because MP4 counts the delay of its frames.
        latest = {
            order: (self._index_time(packets.pts[following], packets.dts[following]) or 0) - 1
            for order, following in itertools.pairwise(packets.keys)
        }
        highest = np.maximum.accumulate(pts)
        keys = [
            _KeyFrame(int(pts[order]), packets.dts[order], latest.get(order, int(pts.max())))
            for order in packets.clean
            if highest[order] == pts[order]
        ]
        return sorted(keys, key=lambda key: key.pts)

    def _mean_interval(self) -> float:
        if len(self.times) > 1:
            return float(self.times[-1]) / (len(self.times) - 1)
        rate = self._rate()
        return 1 / rate if rate > 0 else 0.0

    def _rate(self) -> float:
        """Frames per second stated by the file; 0 if it states none."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate and math.isfinite(rate) and rate > 0 else 0.0

    def _decode_head(self, any_leading: bool) -> list[int]:
        """Decode the first frame, or all frames up to the first key frame if frames lead it; return their times."""
        self._restart()
        times: list[int] = []
        for frame in self._decoded():
            if not times:
                self._note_first(frame)
            times.append(int(frame.pts or 0))
            if not any_leading or times[-1] >= self._first_key:
                return times
        if not times:
            raise MediaError(
                f"{self.path}: decoding the video{self._codec_name()} yields no frame; it is damaged, encrypted or of "
                "an unsupported kind: copy it again, or re-encode it as H.264"
            )
        return times

    def _index_by_decoding(self, packets: Packets) -> None:
        self._restart()
        given: list[float | None] = []
        for frame in self._decoded():
            if not given:
                self._note_first(frame)
            self._check_frame(frame)
            given.append(frame.time)
        count = len(given)
        self._pts, self._keys = np.arange(count), []
        times = np.array([math.nan if time is None else time for time in given], dtype=np.float64)
        if self.family == "avi" and count == len(packets.dts):
            # AVI shows frames in decoding order, at their decoding times plus a constant delay.
            times = np.array(packets.dts, dtype=np.float64) * self._unit
        elif self.family == "avi":
            times[:] = math.nan
        if not np.all(np.diff(times) > 0):
            if self._rate() <= 0:
                raise MediaError(f"{self.path}: the video states neither times nor a frame rate; re-encode it")
            times = np.arange(count) / self._rate()
        self.times = times - times[0] if count else times
        self._duration = (float(self.times[-1]) + self._mean_interval()) if count else 0.0

    def _note_first(self, frame: av.VideoFrame) -> None:
        self._height, self._width = frame.height, frame.width
        self._check_size(frame.height, frame.width)
        self._turn = self._display_turn(frame)
        self._interlaced = frame.interlaced_frame and self._stream.codec_context.name == "h264"

    def _display_turn(self, frame: av.VideoFrame) -> tuple[bool, bool, bool] | None:
        """Turn for display: transpose, then mirror left to right and top to bottom; None: no turn."""
        side_data: Any = frame.side_data
        matrix = next((data for data in side_data if data.type.name == "DISPLAYMATRIX"), None)
        if matrix is None:
            return None
        # x' = a x + c y, y' = b x + d y
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="<i4")[:5].tolist()
        if a and d and not b and not c:
            turn = (False, a < 0, d < 0)
        elif b and c and not a and not d:
            turn = (True, c < 0, b < 0)
        else:
            raise MediaError(
                f"{self.path}: the video is displayed turned by {frame.rotation} degrees, which is no multiple of 90; "
                "re-encode it upright"
            )
        return turn if any(turn) else None

    # ------------------------------------------------------------------ decoding

    def read(self, numbers: Sequence[int], convert: Callable[[int, Pixels], T]) -> dict[int, T]:
        """Decode frames.

        Args:
            numbers: 0-based frame numbers, each below `info.num_frames`.
            convert: takes the number and the (H, W, 3) RGB pixels of a frame and returns what to keep; called as soon
                as a frame is decoded, so that only one is held at full size.

        Returns:
            What `convert` returned, by frame number.

        Raises:
            MediaError: a requested frame, or a frame that it is decoded from, is damaged.
        """
        ascending = sorted(set(numbers))
        kept: dict[int, T] = {}
        with self._errors():
            if not self._by_time:
                return self._read_by_count(ascending, convert)
            for key, run in itertools.groupby(ascending, self._key_before):
                wanted = {int(self._pts[number]): number for number in run}
                try:
                    kept |= self._read_run(key, wanted, convert)
                except _InexactSeekError as error:
                    # Equally exact, only slower: no seek is involved.
                    logger.debug("%s: %s after a seek; decoding from the start", self.path, error)
                    kept |= self._read_run(-1, wanted, convert)
        return kept

    def _key_before(self, number: int) -> int:
        return bisect.bisect_right(self._key_times, int(self._pts[number])) - 1

    def _read_by_count(self, ascending: Sequence[int], convert: Callable[[int, Pixels], T]) -> dict[int, T]:
        wanted, kept = set(ascending), {}
        self._restart()
        for number, frame in enumerate(self._decoded()):
            self._check_frame(frame)
            if number in wanted:
                kept[number] = convert(number, self._pixels(frame))
                if len(kept) == len(wanted):
                    break
        return kept

    def _read_run(self, key: int, wanted: Mapping[int, int], convert: Callable[[int, Pixels], T]) -> dict[int, T]:
        """Decode from a key frame (-1: file start) through the last wanted frame; `wanted` maps times to numbers."""
        import av

        from_start = not self._seek(key)
        # Frames that lead a key frame lack their references, and no frame after it refers to them: ignore their damage.
        first_time = self._first_key if from_start else self._keys[key].pts
        kept: dict[int, T] = {}
        try:
            for frame in self._decoded(wanted):
                # A frame has a time if its packet has one.
                time = int(frame.pts or 0)
                if time >= first_time or time in wanted:
                    self._check_frame(frame)
                if time in wanted:
                    number = wanted[time]
                    kept[number] = convert(number, self._pixels(frame))
        except (MediaError, av.FFmpegError) as error:
            if from_start:
                raise
            raise _InexactSeekError(str(error)) from error
        missing = sorted(set(wanted.values()) - set(kept))
        if missing and not from_start:
            raise _InexactSeekError(f"frame {missing[0]} is missing")
        if missing:
            raise MediaError(
                f"{self.path}: frame {missing[0]} of {len(self.times)} is in the file, but the decoder does not yield "
                "it; the video is damaged: copy it again, or re-encode what can be played"
            )
        return kept

    def _decoded(self, wanted: Collection[int] | None = None) -> Iterator[av.VideoFrame]:
        """Decode on from the current position; with `wanted`, through the last frame with one of these times.

        After the last wanted frame the decoder is flushed. This also yields frames that it received earlier but shows
        later: the wanted frame may be decoded from them, so they must be checked for damage.
        """
        context = self._stream.codec_context
        context.skip_frame = "DEFAULT"
        remaining = set(wanted or ())
        skips = wanted is not None and context.name == "h264"
        for packet in self._container.demux(self._stream):
            if packet.size == 0:
                continue
            if skips:
                # Frames that no other frame refers to need no decoding unless they are wanted.
                context.skip_frame = "DEFAULT" if packet.pts in remaining else "NONREF"
            if wanted is not None and packet.is_discard:
                packet = visible(packet)
            for frame in context.decode(packet):
                remaining.discard(frame.pts)
                yield frame
            if wanted is not None and not remaining:
                break
        yield from context.decode(None)
        context.flush_buffers()

    def _check_frame(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            raise MediaError(
                f"{self.path}: the decoder finds the video damaged{self._place(frame)}; copy it again, or cut that "
                "part out"
            )
        if (frame.height, frame.width) != (self._height, self._width):
            raise MediaError(
                f"{self.path}: the size changes from {self._width} x {self._height} to {frame.width} x {frame.height} "
                f"pixels{self._place(frame)}; re-encode the video in one size"
            )

    def _place(self, frame: av.VideoFrame) -> str:
        return "" if frame.pts is None else f" at {frame.pts * self._unit:.2f} s"

    @property
    def _unit(self) -> float:
        """Seconds per tick of the stream's clock."""
        return float(self._stream.time_base or 0)

    def _pixels(self, frame: av.VideoFrame) -> Pixels:
        pixels = cast(Pixels, frame.to_ndarray(format="rgb24"))
        if self._turn is not None:
            transposed, mirrored, flipped = self._turn
            if transposed:
                pixels = pixels.transpose(1, 0, 2)
            pixels = np.ascontiguousarray(pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1])
        return pixels

    # ------------------------------------------------------------------ moving in the file

    def _restart(self) -> None:
        """Go to the very first packet: by a seek, or by reopening the file if the seek does not lead there."""
        if self._first is not None:
            time, place = self._first
            if self._arrives(time, lambda packet: packet.pos == place):
                return
        self._container.close()
        self._container, self._stream = self._open()

    def _index_time(self, pts: int | None, dts: int | None) -> int | None:
        """The time that identifies a packet in the container, independent of where reading began."""
        # Matroska stores only display times; FFmpeg guesses decoding times, and guesses differently after a seek.
        return pts if self.family == "matroska" or dts is None else dts

    def _seek(self, key: int) -> bool:
        """Go to a key frame or an earlier one and return True, or go to the start of the file and return False."""

        def leads_to_it(packet: av.Packet[Any]) -> bool:
            return self._key_numbers.get(self._index_time(packet.pts, packet.dts), key + 1) <= key

        if key >= 0:
            target = self._keys[key]
            positions = (target.latest, target.pts, target.pts if target.dts is None else target.dts)
            if any(self._arrives(position, leads_to_it) for position in positions):
                return True
            logger.debug("%s: no seek to %s", self.path, target)
        self._restart()
        return False

    def _arrives(self, position: int, accept: Callable[[av.Packet[Any]], bool]) -> bool:
        """Seek; return whether `accept` takes the packet found there, which is then the next one to be read."""
        self._go_to(position)
        packet = next(iter(self._container.demux(self._stream)), None)
        if packet is None or not accept(packet):
            return False
        self._go_to(position)
        self._stream.codec_context.flush_buffers()
        return True

    def _go_to(self, position: int) -> None:
        self._container.seek(position, stream=self._stream, backward=True, any_frame=False)


class _InexactSeekError(Exception):
    """Decoding from a key frame did not give the frames that decoding from the start would give."""
