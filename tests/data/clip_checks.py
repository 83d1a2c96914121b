"""Clips in every coding and form, and how tests compare their frames."""

import itertools
from pathlib import Path

import av
import numpy as np
from codings import CODINGS

from futurel1.data.frames import probe_video, read_frames

CARRIED = Path(__file__).parent / "clips"
"""Clips that were read wrongly once. Bars number the frames of most."""
FORMS = ["written", "plain mkv", "fragmented mp4", "live mkv", "cut mp4", "cut mkv"]


NOT_IN_MP4 = ("vp8", "ffv1")
CLIPS = [
    (coding, form) for coding, form in itertools.product(CODINGS, FORMS) if not ("mp4" in form and coding in NOT_IN_MP4)
]


def pixels_of(path: Path, numbers: list[int] | range | None = None) -> list[np.ndarray]:
    """Frames as arrays, all by default."""
    if numbers is None:
        numbers = range(probe_video(path).num_frames)
    return [np.asarray(picture) for picture in read_frames(path, numbers)]


def assert_same(frames: list[np.ndarray], others: list[np.ndarray]) -> None:
    assert len(frames) == len(others)
    for number, (frame, other) in enumerate(zip(frames, others, strict=True)):
        np.testing.assert_array_equal(frame, other, err_msg=f"frame {number}")


def bar_number(frame: np.ndarray) -> int:
    """The number that twelve bars in the middle of a carried clip's frame show, lowest bit first."""
    grey = frame.mean(axis=2)
    height, width = grey.shape
    bars = grey[height * 7 // 16 : height * 9 // 16, : width // 12 * 12].reshape(-1, 12, width // 12)
    quarter = width // 48
    return int(sum(1 << bit for bit in range(12) if bars[:, bit, quarter : width // 12 - quarter].mean() > 128))


def undamaged_decode(path: Path) -> list[np.ndarray] | None:
    """All frames by a plain decode; None if the decoder reports damage."""
    frames = []
    try:
        with av.open(str(path)) as container:
            # Decoders on several threads report less.
            container.streams.video[0].thread_type = "NONE"
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    return None
                frames.append(frame.to_ndarray(format="rgb24"))
    except av.FFmpegError:
        return None
    return frames
