"""A reward between the responses of a prompt: for latents that differ from those of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from futurel1.rewards import RewardInputs
from futurel1.rewards.contrastive import trajectory_similarity


@torch.no_grad()
def spread(inputs: RewardInputs) -> Tensor:
    """Mean of ``(1 - cosine) / 2`` to the latents at the same places of the other responses of the group.

    Args:
        inputs: N rollouts, in groups of one size, two or more.

    Returns:
        (N,) float32, 0 to 1; 0 for a rollout without latents, and 0.5 towards one with which it has none in common.
    """
    latents, mask, groups = inputs.latents, inputs.latent_mask, inputs.group_ids
    values = torch.zeros(len(inputs), device=groups.device)
    if latents is None or mask is None:
        return values
    size = int((groups == groups[0]).sum())
    rows = groups.argsort(stable=True).view(-1, size)
    similarity = trajectory_similarity(latents, mask, rows)
    others = ~torch.eye(size, dtype=torch.bool, device=rows.device)
    values[rows] = 1 - (similarity * others).sum(dim=-1) / (size - 1)
    return values.masked_fill(~mask.any(dim=1), 0)
