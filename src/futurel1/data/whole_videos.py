"""Whole videos in a conversation: which frames are sampled, at which size and at which seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from futurel1.data.media import RecordMedia
from futurel1.data.picture_sizes import RESAMPLING, video_frame_size
from futurel1.data.video import Pixels, VideoInfo, VideoReader

__all__ = ["VideoSampling", "WholeVideos"]


@dataclass(frozen=True)
class VideoSampling:
    """How frames are sampled from a whole video.

    Attributes:
        fps: frames per second.
        max_frames: most frames.
        frame_tokens: most merged tokens per frame.
        num_frames: take this many frames, evenly spaced over the video (all frames of a shorter one), and ignore `fps`
            and `max_frames`; None: use those two.
    """

    fps: float
    max_frames: int
    frame_tokens: int
    num_frames: int | None

    def frame_numbers(self, info: VideoInfo) -> list[int]:
        """Numbers of the sampled frames of a video, at least two."""
        wanted = self.num_frames
        if wanted is None:
            # Containers round times, Matroska to milliseconds: without the 0.01, 10 s at 2 fps could give 19 frames.
            wanted = min(int(info.duration * self.fps + 0.01), self.max_frames)
        wanted = min(wanted, info.num_frames)
        # At least two frames, the first and the last, fill a temporal patch; a one-frame video repeats its frame.
        return [int(index) for index in np.linspace(0, info.num_frames - 1, max(wanted, 2)).round()]


class WholeVideos:
    """Prepares whole videos for one processor.

    Args:
        processor: a Qwen-VL processor.
        sampling: how frames are sampled from each video.
        unit: pixels per side of a merged token.

    Attributes:
        placeholder: text of a video that is not expanded yet.
    """

    def __init__(self, processor: Any, sampling: VideoSampling, unit: int) -> None:
        from transformers import Qwen3VLProcessor

        self.sampling = sampling
        self._unit = unit
        self._processor = processor
        # Families with timestamps write the vision brackets of a video themselves, one pair per temporal patch.
        self._timestamps = isinstance(processor, Qwen3VLProcessor)
        self.placeholder = "<|video_pad|>" if self._timestamps else "<|vision_start|><|video_pad|><|vision_end|>"

    def inputs(self, paths: Sequence[Path], media: RecordMedia) -> dict[str, Any]:
        """The processor's arguments for whole videos: resized frames, and the time of each."""
        from transformers.video_utils import VideoMetadata

        clips: list[np.ndarray[Any, Any]] = []
        metadata = []
        for path in paths:
            video = media.video(path)
            info = video.info
            numbers = self.sampling.frame_numbers(info)
            height, width = video_frame_size(info.height, info.width, self.sampling.frame_tokens, self._unit)
            frames = video.read(numbers, partial(_resized, height=height, width=width))
            clips.append(np.stack([frames[number] for number in numbers]))
            metadata.append(
                # Processors divide frame numbers by a frame rate. Passing seconds with a rate of 1 gives each frame its
                # true time also where the frame rate varies.
                VideoMetadata(
                    total_num_frames=info.num_frames,
                    fps=1.0,
                    width=info.width,
                    height=info.height,
                    duration=info.duration,
                    frames_indices=video.times[numbers].tolist(),
                )
            )
        return {
            "videos": clips,
            "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False, "do_resize": False},
        }

    def seconds_per_grid(self, paths: Sequence[Path], media: RecordMedia) -> Tensor | None:
        """(I,) seconds between temporal patches, for families that read them from the batch; None for the others."""
        if not paths or self._timestamps:
            return None
        seconds = []
        for path in paths:
            video = media.video(path)
            numbers = self.sampling.frame_numbers(video.info)
            shown = float(video.times[numbers[-1]] - video.times[numbers[0]])
            seconds.append(self._temporal_patch * shown / (len(numbers) - 1))
        return torch.tensor(seconds)

    @property
    def _temporal_patch(self) -> int:
        """Frames per temporal patch."""
        return int(self._processor.video_processor.temporal_patch_size)

    def most_tokens(self, video: VideoReader) -> int:
        """Upper bound of the tokens that a video adds to its placeholder."""
        info = video.info
        blocks = -(-len(self.sampling.frame_numbers(info)) // self._temporal_patch)
        height, width = video_frame_size(info.height, info.width, self.sampling.frame_tokens, self._unit)
        block = height * width // self._unit**2
        if self._timestamps:
            # No timestamp has more digits than the clip's duration.
            stamp = f"<{info.duration:.1f} seconds><|vision_start|><|vision_end|>"
            block += len(self._processor.tokenizer(stamp)["input_ids"])
        return blocks * block


def _resized(_: int, pixels: Pixels, *, height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), RESAMPLING))
