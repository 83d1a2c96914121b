"""Penalties for responses that are too long."""

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.rewards.base import Reward, RewardInputs


class LengthPenalty(Reward):
    """Tokens beyond the reference response; a penalty, so its weight is negative (-0.001 in the released code)."""

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32 tokens, 0 where the reference length is unknown.
        """
        lengths, references = inputs.response_lengths, inputs.reference_lengths
        if references is None:
            references = torch.zeros_like(lengths)
        references = references.to(lengths.device)
        excess = torch.where(references > 0, (lengths - references).clamp_min(0), 0)
        return excess.to(inputs.group_ids.device, torch.float32)


class OverlongPenalty(Reward):
    """Soft penalty near the longest allowed response (DAPO, arXiv 2503.14476, Eq. 13); its weight is negative.

    Args:
        max_length: tokens from which on the penalty is 1.
        buffer: tokens before `max_length` over which the penalty grows from 0.

    Raises:
        ConfigError: not 0 < buffer <= max_length.
    """

    def __init__(self, max_length: int, buffer: int) -> None:
        if not 0 < buffer <= max_length:
            raise ConfigError(f"buffer must be from 1 to max_length ({max_length}), got {buffer}")
        self.max_length = max_length
        self.buffer = buffer

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32, 0 to 1.
        """
        over = inputs.response_lengths.to(inputs.group_ids.device) - (self.max_length - self.buffer)
        return (over.float() / self.buffer).clamp(0, 1)
