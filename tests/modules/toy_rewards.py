"""Rewards that random weights earn about half of the time, for tests in this process and on the command line."""

import zlib

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.rewards import RewardInputs


def parity(inputs: RewardInputs) -> Tensor:
    """1 or 0 by a checksum of the text."""
    return torch.tensor([float(zlib.crc32(text.encode()) % 2) for text in inputs.responses])


def rare(inputs: RewardInputs) -> Tensor:
    """1 for about one text in five, so that groups without any are filtered out."""
    return torch.tensor([float(zlib.crc32(text.encode()) % 5 == 0) for text in inputs.responses])


def starts(inputs: RewardInputs) -> Tensor:
    """1 for a response that opens a span."""
    return torch.tensor([float("<|latent_start|>" in text) for text in inputs.responses])


def direction(inputs: RewardInputs) -> Tensor:
    """Mean cosine of a response's latents with a fixed direction: depends on nothing else."""
    assert inputs.latents is not None
    assert inputs.latent_mask is not None
    width = inputs.latents.shape[-1]
    wanted = torch.randn(width, generator=torch.Generator().manual_seed(5))
    cosine = F.cosine_similarity(inputs.latents.float(), wanted, dim=-1) * inputs.latent_mask
    return cosine.sum(dim=1) / inputs.latent_mask.sum(dim=1).clamp(min=1)


def down(inputs: RewardInputs) -> Tensor:
    """No reward at all, as from a judge that is down."""
    return torch.full((len(inputs),), torch.nan)
