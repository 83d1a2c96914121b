"""Clips in the codings that videos come in, made and cut by PyAV."""

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

NUM_FRAMES = 60
FPS = 10
GROUP = 12
"""Frames from one key frame to the next."""

H264 = {"bf": "3", "g": str(GROUP), "crf": "18"}
X265 = f"keyint={GROUP}:min-keyint={GROUP}:bframes=3:b-adapt=0:scenecut=0:log-level=none:pools=none"
ALT_REF = {"g": str(GROUP), "b": "200k", "auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "5"}
B_FRAMES = {"bf": "2", "g": str(GROUP), "b": "2M", "sc_threshold": "1000000000"}

CODINGS: dict[str, tuple[str, dict[str, str]]] = {
    "closed": ("libx264", {**H264, "x264-params": "scenecut=0:open-gop=0"}),
    "open": ("libx264", {**H264, "x264-params": "scenecut=0:open-gop=1:b-adapt=0"}),
    "pyramid": ("libx264", {**H264, "bf": "7", "x264-params": "scenecut=0:open-gop=1:b-adapt=0:b-pyramid=normal"}),
    "one_key": ("libx264", {**H264, "g": "250", "x264-params": "scenecut=0"}),
    "intra_refresh": ("libx264", {**H264, "x264-params": "intra-refresh=1:scenecut=0"}),
    "hevc": ("libx265", {"x265-params": f"{X265}:open-gop=1"}),
    "hevc_closed": ("libx265", {"x265-params": f"{X265}:open-gop=0"}),
    "vp9": ("libvpx-vp9", ALT_REF),
    "vp8": ("libvpx", ALT_REF),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": f"keyint={GROUP}:lp=1"}),
    "mpeg4": ("mpeg4", B_FRAMES),
    "mpeg2": ("mpeg2video", B_FRAMES),
    "mjpeg": ("mjpeg", {"q:v": "3"}),
    "ffv1": ("ffv1", {"g": str(GROUP)}),
}
SUFFIX = {"vp8": "webm", "vp9": "webm", "mjpeg": "avi", "ffv1": "mkv"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
LIVE = {"live": "1"}
"""Matroska as a browser records it: neither index nor duration."""


def moving_frames(count: int = NUM_FRAMES, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """(H, W, 3) frames of a texture that moves, each unlike every other."""
    rng = np.random.default_rng(7)
    texture = rng.integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return [
        np.roll(texture[:height, :width], (2 * index, 3 * index), (0, 1)) // 2 + np.uint8(2 * index % 128)
        for index in range(count)
    ]


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    times: Iterable[int] | None = None,
    clock: Fraction | None = None,
    pix_fmt: str | None = None,
    rotation: int | None = None,
    muxer: dict[str, str] | None = None,
    fps: int = FPS,
) -> Path:
    """Encode frames; `times` are steps of `clock`, else one frame follows the other at `fps`."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    frames = list(frames)
    with av.open(str(path), "w", options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.thread_count = 1
        stream.options = options or {}
        if clock is not None:
            stream.codec_context.time_base = clock
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for pixels, time in zip(frames, times or range(len(frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, clock or Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def remux(
    source: Path,
    target: Path,
    *,
    start: float = 0.0,
    keep: Callable[[int, "av.Packet"], bool] = lambda order, packet: True,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Copy packets, as `ffmpeg -ss START -i SOURCE -c copy` does: from the key frame before the start, which is 0.

    MP4 hides the frames before time 0 by an edit list.
    """
    with av.open(str(source)) as given, av.open(str(target), "w", options=muxer or {}) as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream, opaque=True)
        packets = [packet for packet in given.demux(stream) if packet.size]
        assert stream.time_base is not None
        first = min(packet.pts for packet in packets) + round(start / stream.time_base)
        keys = [order for order, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= first]
        for order, packet in enumerate(packets[keys[-1] :]):
            if not keep(order, packet):
                continue
            packet.pts -= first
            packet.dts = None if packet.dts is None else packet.dts - first
            packet.stream = copy
            output.mux_one(packet)
    return target


def plain_decode(path: Path) -> list[np.ndarray]:
    """All frames by one decode in order, without a seek."""
    with av.open(f"file:{path}") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


def packet_places(path: Path) -> list[tuple[int, int, int]]:
    """Place in the file, size and time of each packet in the order of the file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size, packet.pts) for packet in container.demux(video=0) if packet.size]


def packet_bytes(path: Path) -> list[bytes]:
    """What each packet holds, in the order of the file."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def overwrite(source: Path, target: Path, place: int, data: bytes) -> Path:
    """Copy a file with some bytes replaced."""
    content = bytearray(source.read_bytes())
    content[place : place + len(data)] = data
    target.write_bytes(content)
    return target


def set_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Copy an MP4 file with another display matrix: a, b, c, d of x' = a x + c y, y' = b x + d y."""
    content = bytearray(source.read_bytes())
    # The identity stands in the movie's header too; the track's comes after it.
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + len(identity)] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(content)
    return target
