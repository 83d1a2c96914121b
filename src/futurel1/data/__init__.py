"""Records, frames, chat layout and batches, all independent of Lightning."""

from futurel1.data.batches import PromptBatch, SFTBatch
from futurel1.data.frames import VideoInfo, frame_pool, probe_video, read_frames, read_image
from futurel1.data.look_ahead import LookAhead
from futurel1.data.mixtures import Mixture, MixtureSource, WeightedRecords
from futurel1.data.record_shapes import parse_record
from futurel1.data.records import RecordSource, open_records
from futurel1.data.rl_prompts import parse_rl_prompt
from futurel1.data.samples import Frame, Sample, SkippedRecord, Turn, Video
from futurel1.data.stored_files import StoredFile

__all__ = [
    "Frame",
    "LookAhead",
    "Mixture",
    "MixtureSource",
    "PromptBatch",
    "RecordSource",
    "SFTBatch",
    "Sample",
    "SkippedRecord",
    "StoredFile",
    "Turn",
    "Video",
    "VideoInfo",
    "WeightedRecords",
    "frame_pool",
    "open_records",
    "parse_record",
    "parse_rl_prompt",
    "probe_video",
    "read_frames",
    "read_image",
]
