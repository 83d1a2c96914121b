"""One record as tensors, before it is padded into a batch."""

from dataclasses import dataclass, field

from torch import Tensor

from futurel1.data.pictures import Pictures, join_pixels
from futurel1.data.samples import PromptInfo

__all__ = ["EncodedSample"]


@dataclass(frozen=True)
class EncodedSample:
    """One record, ready to be padded into a batch. T tokens, P patches of D values, I images.

    Attributes:
        sample_id: `file:record`.
        input_ids: (T,) int64 token ids.
        labels: (T,) int64 token ids to predict, -100 elsewhere.
        prompt_length: tokens before the first supervised one.
        images: observed images; None without any.
        pixel_values_videos: (P, D) patches of videos; None without videos.
        video_grid_thw: (I, 3) patch grids.
        video_seconds_per_grid: (I,) seconds between temporal patches.
        hints: hint frames; None without any.
        image_keys: feature-cache keys of the observed images, made from file, its time and size, frame and grid.
        hint_keys: the same for hints.
        sources: files and embedded images that a prompt's frames come from; empty in training.
        info: what a metric or a writer needs to know of the record; in training, only its own id.
    """

    sample_id: str
    input_ids: Tensor
    labels: Tensor
    prompt_length: int
    images: Pictures | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    video_seconds_per_grid: Tensor | None = None
    hints: Pictures | None = None
    image_keys: tuple[str, ...] = ()
    hint_keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    info: PromptInfo = field(default_factory=PromptInfo)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def pixel_values(self) -> Tensor | None:
        """(P, D) pixel values of the observed images, computed at every access; None without images."""
        return join_pixels([self.images])

    @property
    def image_grid_thw(self) -> Tensor | None:
        """(I, 3) patch grids of the observed images; None without images."""
        return None if self.images is None else self.images.grid_thw

    @property
    def hint_pixel_values(self) -> Tensor | None:
        """(P, D) pixel values of the hint frames, computed at every access; None without hints."""
        return join_pixels([self.hints])

    @property
    def hint_grid_thw(self) -> Tensor | None:
        """(I, 3) patch grids of the hint frames; None without hints."""
        return None if self.hints is None else self.hints.grid_thw
