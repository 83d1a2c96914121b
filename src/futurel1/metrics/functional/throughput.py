"""Cost of a response: tokens and seconds."""

import torch
from torch import Tensor

from futurel1.errors import BatchError

__all__: list[str] = []


def _throughput_update(tokens: Tensor, seconds: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Summed tokens (int64), summed seconds (float64), number of samples (int64)."""
    fractional = tokens.is_floating_point() and tokens.numel() > 0
    if tokens.ndim != 1 or fractional or bool((tokens < 0).any()):
        raise BatchError(f"tokens must be (N,) whole numbers of at least 0, got {tokens}")
    spent = torch.as_tensor(seconds, dtype=torch.float64)
    if spent.ndim > 1 or (spent.ndim == 1 and len(spent) != len(tokens)):
        raise BatchError(
            f"seconds must be one number for the batch or one per sample ({len(tokens)}), got shape "
            f"{tuple(spent.shape)}"
        )
    if not bool((spent.isfinite() & (spent >= 0)).all()):
        raise BatchError(f"seconds must be finite and at least 0, got {spent}")
    if spent.ndim == 0 and not len(tokens) and bool(spent > 0):
        raise BatchError(f"{float(spent)} seconds were given for a batch of no samples")
    return tokens.long().sum(), spent.sum(), torch.tensor(len(tokens))


def _throughput_compute(tokens: Tensor, seconds: Tensor, samples: Tensor) -> dict[str, Tensor]:
    """Means per sample; see `Throughput` for the keys."""
    if not int(samples):
        raise BatchError("Throughput has no samples to compute from: call update() first")
    return {
        "tokens_per_sample": (tokens / samples).float(),
        "seconds_per_sample": (seconds / samples).float(),
        "samples": samples.float(),
    }
