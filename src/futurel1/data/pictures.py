"""Pictures kept as patches of 8-bit pixel levels until a batch is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Pictures", "PixelScale", "join_pixels"]


@dataclass(frozen=True)
class PixelScale:
    """How an image processor of `transformers` turns 8-bit pixel levels into pixel values, bit for bit.

    Args:
        temporal_patch_size: frames per patch; a picture repeats its single frame.
        mean: levels subtracted from the three channels; None: levels are only multiplied by `factor`.
        std: levels that the three channels are divided by.
        factor: multiplier of the levels if they are not normalized.
    """

    temporal_patch_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    factor: float

    @classmethod
    def of(cls, processor: Any) -> PixelScale:
        """The scale of an image processor, from its `do_rescale`, `do_normalize` and their numbers."""
        factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
        frames = int(processor.temporal_patch_size)
        if not processor.do_normalize:
            return cls(frames, None, None, factor)
        # Computed in float32 like the processor: rounding a float64 mean later would give another value.
        mean, std = (
            tuple((torch.tensor(values) * (1.0 / factor)).tolist())
            for values in (processor.image_mean, processor.image_std)
        )
        return cls(frames, mean, std, factor)

    def write(self, levels: Tensor, values: Tensor) -> None:
        """Write the (P, D) float32 pixel values of the (P, D) uint8 patches of one picture into `values`."""
        frames = (len(levels), 3, self.temporal_patch_size, -1)
        once = levels.view(frames)[:, :, :1].to(torch.float32)
        if self.mean is None or self.std is None:
            once.mul_(self.factor)
        else:
            mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
            once.sub_(mean).div_(std)
        values.view(frames).copy_(once.expand(-1, -1, self.temporal_patch_size, -1))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one record.

    Attributes:
        levels: for each picture, its (P, D) uint8 patches as the image processor cuts them.
        grid_thw: (I, 3) patch grids.
        scale: how levels become pixel values.
    """

    levels: tuple[Tensor, ...]
    grid_thw: Tensor
    scale: PixelScale


def join_pixels(parts: Sequence[Pictures | None]) -> Tensor | None:
    """(P, D) float32 pixel values of all pictures, concatenated; None if there are no pictures."""
    pictures = [(levels, part.scale) for part in parts if part is not None for levels in part.levels]
    if not pictures:
        return None
    values = torch.empty(sum(len(levels) for levels, _ in pictures), pictures[0][0].shape[1])
    first = 0
    for levels, scale in pictures:
        scale.write(levels, values[first : first + len(levels)])
        first += len(levels)
    return values
