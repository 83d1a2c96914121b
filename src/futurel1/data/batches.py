"""Typed batches. Shapes: B rows, T tokens, P patches of D values, I images, N latents.

The batch classes, and the classes of the objects that they hold, are not frozen: Lightning's precision plugins
(`bf16-true`) convert a batch by assigning to the fields of a copy.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from futurel1.data.samples import PromptInfo, SkippedRecord
from futurel1.errors import BatchError
from futurel1.models import VisionFeatures


class _Batch:
    """Device transfer and length, shared by the typed batches."""

    input_ids: Tensor

    def _map_tensors(self, function: Any) -> Self:
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, VisionFeatures):
                seconds = value.seconds_per_grid
                changed[field.name] = VisionFeatures(
                    function(value.embeds),
                    tuple(map(function, value.deepstack)),
                    function(value.grid_thw),
                    value.counts,
                    None if seconds is None else function(seconds),
                )
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass
class SFTBatch(_Batch):
    """Right-padded training sequences with their images and hint frames.

    Attributes:
        input_ids: (B, T) token ids; spans hold one LATENT per visual token of their hint.
        attention_mask: (B, T), non-zero at real tokens.
        labels: (B, T) token ids to predict, -100 where nothing is asked.
        pixel_values: (P, D) patches of all observed images, in order of appearance; None without images.
        image_grid_thw: (I, 3) int64 patch grid of each image.
        pixel_values_videos: (P, D) patches of all videos; None without videos.
        video_grid_thw: (I, 3) int64 patch grid of each video.
        hint_pixel_values: (P, D) patches of all hint (future) frames, one span each, in order; None without hints.
        hint_grid_thw: (I, 3) int64 patch grid of each hint.
        video_seconds_per_grid: (I,) seconds between temporal patches of each video.
        sample_ids: B names, `file:record`; empty when the batch was made by hand.
        total_tokens: labelled tokens of the whole optimizer step over accumulation and ranks; None: this batch's own.
        total_latents: latents of the whole optimizer step; None: this batch's own.
        image_features: features of the observed images if they are already known (frozen vision cache).
        hint_features: the same for the hints.
        image_keys: I cache keys of the observed images; empty without a cache.
        hint_keys: the same for the hints.
        skipped: records that could not be used while this batch was made.
        record_ids: the B records' own ids, None for a record without one; empty when the batch was made by hand.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    hint_pixel_values: Tensor | None = None
    hint_grid_thw: Tensor | None = None
    video_seconds_per_grid: Tensor | None = None
    sample_ids: tuple[str, ...] = ()
    total_tokens: int | None = None
    total_latents: int | None = None
    image_features: VisionFeatures | None = None
    hint_features: VisionFeatures | None = None
    image_keys: tuple[str, ...] = ()
    hint_keys: tuple[str, ...] = ()
    skipped: tuple[SkippedRecord, ...] = ()
    record_ids: tuple[str | int | None, ...] = ()

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ("input_ids", "attention_mask", "labels")}
        if len(set(shapes.values())) != 1 or self.input_ids.dim() != 2:
            raise BatchError(f"input_ids, attention_mask and labels need one shape (B, T), got {shapes}")
        _check_names(self)


@dataclass
class PromptBatch(_Batch):
    """Left-padded prompts with their images and videos.

    Attributes:
        input_ids: (B, P) token ids, padded on the left.
        attention_mask: (B, P), non-zero at real tokens.
        pixel_values: (P, D) patches of all images, in order of appearance; None without images.
        image_grid_thw: (I, 3) int64 patch grid of each image.
        pixel_values_videos: (P, D) patches of all videos; None without videos.
        video_grid_thw: (I, 3) int64 patch grid of each video.
        video_seconds_per_grid: (I,) seconds between temporal patches of each video.
        hint_pixel_values: (P, D) patches of all future frames, row by row, for interventions that feed their features;
            None without them.
        hint_grid_thw: (I, 3) int64 patch grid of each future frame.
        hint_counts: B numbers of future frames; empty without them.
        sample_ids: B names, `file:record`; empty when the batch was made by hand.
        skipped: records that could not be used while this batch was made.
        sources: per row, the files and embedded images that its frames come from; empty when the batch was made by
            hand.
        info: per row, what a metric, a reward or a writer needs to know; empty when the batch was made by hand.
        responses: responses of an engine that answered while the batch was loaded
            (:class:`~futurel1.engines.answered.Responses`); T is 0 then. None: nobody answered yet.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    video_seconds_per_grid: Tensor | None = None
    hint_pixel_values: Tensor | None = None
    hint_grid_thw: Tensor | None = None
    hint_counts: tuple[int, ...] = ()
    sample_ids: tuple[str, ...] = ()
    skipped: tuple[SkippedRecord, ...] = ()
    sources: tuple[tuple[str, ...], ...] = ()
    info: tuple[PromptInfo, ...] = ()
    responses: Any = None

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.attention_mask.shape or self.input_ids.dim() != 2:
            raise BatchError(
                f"input_ids and attention_mask need one shape (B, P), got {tuple(self.input_ids.shape)} and "
                f"{tuple(self.attention_mask.shape)}"
            )
        _check_names(self)
        for name in ("sources", "info", "hint_counts"):
            if getattr(self, name) and len(getattr(self, name)) != len(self):
                raise BatchError(f"{len(getattr(self, name))} entries of {name} for {len(self)} rows")


def _check_names(batch: SFTBatch | PromptBatch) -> None:
    if batch.sample_ids and len(batch.sample_ids) != len(batch):
        raise BatchError(f"{len(batch.sample_ids)} sample_ids for {len(batch)} rows")
