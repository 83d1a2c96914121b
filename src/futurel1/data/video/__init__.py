"""Video files: their frames, display times and pixels; anything that cannot be read faithfully is an error."""

from futurel1.data.video.backends import VideoBackend, VideoReader, check_backend, open_video
from futurel1.data.video.container import check_is_file
from futurel1.data.video.pyav import MAX_PIXELS, Pixels, VideoInfo

__all__ = [
    "MAX_PIXELS",
    "Pixels",
    "VideoBackend",
    "VideoInfo",
    "VideoReader",
    "check_backend",
    "check_is_file",
    "open_video",
]
