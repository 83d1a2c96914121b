"""Video files: which frames they show, when, and their pixels; an error for all that cannot be read faithfully."""

from futurel1.data.video.backends import BACKENDS, VideoBackend, VideoReader, open_video
from futurel1.data.video.container import check_is_file
from futurel1.data.video.pyav import MAX_PIXELS, VideoInfo

__all__ = ["BACKENDS", "MAX_PIXELS", "VideoBackend", "VideoInfo", "VideoReader", "check_is_file", "open_video"]
