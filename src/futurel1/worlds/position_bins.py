"""Positions as soft bins, the part that the codes of all worlds share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_bins", "soft_bins"]

BIN_WIDTH = 0.1  # standard deviation of a bin, in sides of the frame


def soft_bins(positions: NDArray[np.floating], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 2) positions in sides of the frame as (..., 2 * B) soft bins of x, then of y, around B centres."""
    bins = np.exp(-0.5 * ((positions[..., None] - centres) / BIN_WIDTH) ** 2)
    flat: NDArray[np.float64] = bins.reshape(*positions.shape[:-1], 2 * len(centres))
    return flat


def read_bins(bins: NDArray[np.floating], centres: NDArray[np.float64]) -> NDArray[np.float32]:
    """(..., 2 * B) soft bins around B centres, which may be noisy, as (..., 2) positions in sides of the frame."""
    split = np.clip(bins, 1e-6, None).reshape(*bins.shape[:-1], 2, len(centres))
    weights = np.square(split)  # squared bins are narrower, which reduces the bias from the cut-off ends of the range
    positions: NDArray[np.float32] = ((weights * centres).sum(axis=-1) / weights.sum(axis=-1)).astype(np.float32)
    return positions
