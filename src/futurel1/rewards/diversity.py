"""Reward for consecutive spans that imagine different things."""

import torch
from torch import Tensor

from futurel1.errors import BatchError, ConfigError
from futurel1.rewards.base import Reward, RewardInputs


class TemporalDiversityReward(Reward):
    """``-mean_m cos^2(b_m, b_{m+1})``, `b_m` the mean latent of span m (R_div; Future-L1, arXiv 2606.05769, Eq. 6).

    Spans without latents are skipped, and pairs with a zero mean are left out. Fewer than two spans give 0, the largest
    value, so a policy could shorten responses to a single span; `min_spans` prevents that.

    Args:
        min_spans: a response with fewer non-empty spans gets -1, the smallest value.

    Raises:
        ConfigError: `min_spans` below 0.
    """

    def __init__(self, min_spans: int = 0) -> None:
        if min_spans < 0:
            raise ConfigError(f"min_spans must be at least 0, got {min_spans}")
        self.min_spans = min_spans

    @torch.no_grad()
    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32, -1 to 0.

        Raises:
            BatchError: latents without `span_ids`.
        """
        device = inputs.group_ids.device
        latents, mask, span_ids = inputs.latents, inputs.latent_mask, inputs.span_ids
        if latents is None or mask is None:
            return torch.full((len(inputs),), -1.0 if self.min_spans else 0.0, device=device)
        if span_ids is None:
            raise BatchError("latents without span_ids (N, S): the diversity of spans needs the span of each latent")
        opens = mask.clone()
        opens[:, 1:] &= span_ids[:, 1:] != span_ids[:, :-1]
        spans = opens.sum(dim=1)
        most = max(spans.tolist(), default=0)
        # Padding is summed too, in an extra place after all spans.
        first = torch.arange(len(inputs), device=mask.device)[:, None] * most
        place = torch.where(mask, first + opens.cumsum(dim=1) - 1, len(inputs) * most)
        # Cosines of sums equal cosines of means.
        sums = latents.new_zeros(len(inputs) * most + 1, latents.shape[-1], dtype=torch.float32)
        sums = sums.index_add_(0, place.flatten(), latents.flatten(0, 1).float())[:-1]
        sums = sums.reshape(len(inputs), most, latents.shape[-1])
        norms = torch.linalg.vector_norm(sums, dim=-1)
        pairs = (norms[:, :-1] != 0) & (norms[:, 1:] != 0)
        smallest = torch.finfo(torch.float32).tiny
        cosines = (sums[:, :-1] * sums[:, 1:]).sum(dim=-1) / (norms[:, :-1] * norms[:, 1:]).clamp_min(smallest)
        value = (cosines.square().clamp(max=1) * pairs).sum(dim=1) / pairs.sum(dim=1).clamp_min(1)
        return torch.where(spans < self.min_spans, -1, -value).to(device)
