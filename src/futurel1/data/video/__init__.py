"""Video files: which frames they show, when, and their pixels; an error for all that cannot be read faithfully."""

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
