"""Reward for latents that resemble those of correct rollouts more than those of wrong ones.

Shapes: K groups of the same size, G rollouts each, S latents of a rollout, H hidden size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.rewards.accuracy import AccuracyReward
from futurel1.rewards.base import Reward, RewardInputs, RewardVariant

NUMBERS_AT_ONCE = 2**23


class OutcomeContrastiveReward(Reward):
    """Similarity to the nearest correct rollout, contrasted with wrong (R_ctr; Future-L1, arXiv 2606.05769, Eq. 5).

    ``exp(s_i+ / tau) / (exp(s_i+ / tau) + sum_{j in N_i} exp(s_ij / tau))``: P_i and N_i are the other correct and
    wrong rollouts of the group that have latents, `s_i+` is the largest `s_ij` over P_i, and `s_ij` is the mean of
    ``(1 + cosine) / 2`` over the latents that both have. The value is 0 without latents or without positives. A rollout
    is correct if its accuracy is at least 1: `inputs.correct`, else the rule of `AccuracyReward`.

    A rollout whose correctness is NaN is neither positive nor negative for others. In the paper's variant its own value
    does not depend on its correctness; in the released variant its value is NaN. Latents that are not finite make every
    dependent value NaN.

    Args:
        temperature: tau.
        variant: ``"paper"``, or ``"released"`` as in the released code: a wrong rollout is among its own negatives, a
            single correct rollout is its own positive, without positives the numerator and its term are 1, without
            negatives the value is ``s_i+ / tau``, and a group of one gets 0.

    Raises:
        ConfigError: an invalid temperature or variant.
    """

    def __init__(self, temperature: float = 0.5, variant: RewardVariant = "paper") -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {temperature}")
        if variant not in ("paper", "released"):
            raise ConfigError(f"variant must be 'paper' or 'released', got {variant!r}")
        self.temperature = temperature
        self.variant: RewardVariant = variant

    @torch.no_grad()
    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32, 0 to 1; in the released variant up to ``1 / temperature``.
        """
        device = inputs.group_ids.device
        latents, mask = inputs.latents, inputs.latent_mask
        if latents is None or mask is None:
            return torch.zeros(len(inputs), device=device)
        correct = AccuracyReward()(inputs).to(latents.device)
        rewards = torch.zeros(len(inputs), device=latents.device)
        present = mask.any(dim=1)
        for rows in _slices_of_groups(inputs.group_ids.to(latents.device), latents.shape[1:].numel()):
            scaled = trajectory_similarity(latents, mask, rows) / self.temperature
            rewards[rows] = torch.where(present[rows], self._of_groups(scaled, present[rows], correct[rows]), 0)
        return rewards.to(device)

    def _of_groups(self, scaled: Tensor, present: Tensor, correct: Tensor) -> Tensor:
        """(K, G) rewards from (K, G, G) similarities divided by tau; comparisons with NaN are false."""
        positive, negative = present & (correct >= 1), present & (correct < 1)
        other = ~torch.eye(scaled.shape[-1], dtype=torch.bool, device=scaled.device)
        positives, negatives = positive[:, None] & other, negative[:, None] & other
        if self.variant == "released":
            positives = torch.where(positives.any(dim=-1, keepdim=True), positives, positive[:, None])
            negatives = negative[:, None]
        nearest = scaled.masked_fill(~positives, -torch.inf).amax(dim=-1)
        against = scaled.masked_fill(~negatives, -torch.inf).logsumexp(dim=-1)
        if self.variant == "paper":
            return torch.where(positives.any(dim=-1), torch.sigmoid(nearest - against), 0)
        nearest = torch.where(positives.any(dim=-1), nearest, 0)
        value = torch.where(negatives.any(dim=-1), torch.sigmoid(nearest - against), nearest)
        value = value.masked_fill(correct.isnan(), torch.nan)
        return value if scaled.shape[-1] > 1 else torch.zeros_like(value)


def trajectory_similarity(latents: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Similarity of the latents of every two rollouts of a group (`s_ij` of Future-L1, Eq. 5), in float32.

    Args:
        latents: (N, S, H), right-padded.
        mask: (N, S) bool, True at latents.
        rows: (K, G) int64 rollouts of each group.

    Returns:
        (K, G, G) float32, 0 to 1; a zero latent counts as orthogonal to all others, and a pair without common latents
        has 0.5.
    """
    steps = torch.arange(latents.shape[1], device=latents.device)
    place = rows[:, None, :], steps[:, None]
    there = mask[place]
    steps_KSGH = latents[place].float().masked_fill_(~there[..., None], 0)
    with torch.autocast(latents.device.type, enabled=False):
        products = steps_KSGH @ steps_KSGH.mT
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    smallest = torch.finfo(torch.float32).tiny
    cosines = (products / (norms[..., :, None] * norms[..., None, :]).clamp_min(smallest)).clamp(-1, 1)
    both = there[..., :, None] & there[..., None, :]
    return (1 + (cosines * both).sum(dim=1) / both.sum(dim=1).clamp_min(1)) / 2


def _slices_of_groups(group_ids: Tensor, numbers: int) -> Iterator[Tensor]:
    """Yield (K, G) rows of K groups of the same size G, so that no padding is needed; together they cover all groups.

    Each rollout has `numbers` numbers of latents, and a slice has about `NUMBERS_AT_ONCE` in all, which bounds memory
    and keeps copies fast.
    """
    order = group_ids.argsort(stable=True)
    counts = torch.unique_consecutive(group_ids[order], return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    for size in counts.unique().tolist():
        rows = order[starts[counts == size, None] + torch.arange(size, device=order.device)]
        yield from torch.split(rows, max(1, NUMBERS_AT_ONCE // max(1, size * numbers)))
