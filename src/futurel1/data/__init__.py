"""Records, frames, chat layout, batches; nothing here knows of Lightning."""

from futurel1.data.batches import PromptBatch, SFTBatch
from futurel1.data.frames import VideoInfo, frame_pool, probe_video, read_frames, read_image
from futurel1.data.records import Frame, RecordSource, Sample, SkippedRecord, Turn, Video, open_records, parse_record
from futurel1.data.rl_prompts import parse_rl_prompt

__all__ = [
    "Frame",
    "PromptBatch",
    "RecordSource",
    "SFTBatch",
    "Sample",
    "SkippedRecord",
    "Turn",
    "Video",
    "VideoInfo",
    "frame_pool",
    "open_records",
    "parse_record",
    "parse_rl_prompt",
    "probe_video",
    "read_frames",
    "read_image",
]
