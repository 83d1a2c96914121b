"""Clipped policy objective of LA-DAPO for a response's decisions and latents, and group advantages.

Shapes: N rollouts, R response positions, S latents.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import BatchError, ConfigError

Advantage = Literal["grpo", "dr_grpo", "rloo"]
ADVANTAGES: tuple[Advantage, ...] = ("grpo", "dr_grpo", "rloo")
LOG_RATIO_LIMIT = 20.0
"""Bound of log-ratios, so that no exponential overflows; far beyond every clip bound."""


def group_advantages(
    rewards: Tensor, group_ids: Tensor, valid: Tensor | None = None, kind: Advantage = "grpo"
) -> Tensor:
    """Advantage of each rollout over the others of its group.

    Args:
        rewards: (N,) total rewards.
        group_ids: (N,) int64; rollouts of one prompt share a number.
        valid: (N,) bool, False where the reward is unknown; group statistics ignore those. None: all are known.
        kind: ``"grpo"``: `(R - mean) / (std + 1e-6)` with the unbiased std (Shao et al. 2024); ``"dr_grpo"``:
            `R - mean` (Liu et al. 2025); ``"rloo"``: `R - mean of the others` (Ahmadian et al. 2024).

    Returns:
        (N,) advantages; 0 for invalid rollouts and in groups with a single valid rollout.

    Raises:
        ConfigError: an unknown kind.
        BatchError: tensors of different shapes.
    """
    if kind not in ADVANTAGES:
        raise ConfigError(f"advantage is one of {', '.join(ADVANTAGES)}, got {kind!r}")
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    if not rewards.shape == group_ids.shape == valid.shape:
        raise BatchError(
            f"rewards, group_ids and valid need one shape (N,), got {tuple(rewards.shape)}, {tuple(group_ids.shape)} "
            f"and {tuple(valid.shape)}"
        )
    _, group = torch.unique(group_ids, return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    weight = valid.double()
    # In float64: float32 rounding differences between equal rewards would not be small against the 1e-6.
    known = torch.where(valid, rewards, 0.0).double()

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(groups).index_add(0, group, values)

    count = total(weight)
    centred = torch.where(valid, known - (total(known) / count.clamp(min=1))[group], 0.0)
    if kind == "rloo":
        centred = centred * (count / (count - 1).clamp(min=1))[group]
    elif kind == "grpo":
        std = (total(centred.square()) / (count - 1).clamp(min=1)).sqrt()
        centred = centred / (std[group] + 1e-6)
    return torch.where(count[group] > 1, centred, 0.0).to(rewards.dtype)


@dataclass
class PolicyTerm:
    """Sums over the decisions of one kind (text or latents), not divided by any count.

    Attributes:
        loss: sum of clipped losses, with gradient.
        count: number of decisions.
        ratio_sum: sum of importance ratios.
        ratio_max: largest ratio; 0 without decisions.
        ratio_min: smallest ratio; infinity without decisions.
        clipped_high: number of decisions whose ratio the upper bound clipped.
        clipped_low: number of decisions whose ratio the lower bound clipped.
        dual_clipped: number of decisions that the dual clip bounded.
    """

    loss: Tensor
    count: Tensor
    ratio_sum: Tensor
    ratio_max: Tensor
    ratio_min: Tensor
    clipped_high: Tensor
    clipped_low: Tensor
    dual_clipped: Tensor


@dataclass
class PolicyLossOutput:
    """Terms of the objective, as sums.

    Attributes:
        loss: weighted sum of all terms, divided by `total`, with gradient.
        text: sums over tokens, ends of spans and decisions to continue a span.
        latents: sums over sampled latents.
        kl: sum of `k3` over the decisions of `text`; 0 without a reference.
    """

    loss: Tensor
    text: PolicyTerm
    latents: PolicyTerm
    kl: Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """Clipped surrogate with asymmetric bounds, dual clip and KL (DAPO, Yu et al. 2025; Future-L1, arXiv 2606.05769).

    A response's decisions and its latents have separate bounds. A latent's ratio is the geometric mean over its `width`
    dimensions. In thousands of dimensions, a step that barely moves the direction changes densities by hundreds of
    nats, so a plain ratio would always be clipped, and its gradient, hundreds of times a token's, would dominate the
    update.

    Args:
        clip_low: ratios below `1 - clip_low` are clipped where the advantage is negative.
        clip_high: ratios above `1 + clip_high` are clipped where the advantage is positive.
        dual_clip: upper bound of the loss at negative advantages, as a multiple (above 1) of `-advantage`.
        latent_clip_low: `clip_low` for latents.
        latent_clip_high: `clip_high` for latents.
        latent_weight: weight of the latent term.
        kl_weight: weight of the KL to the reference.

    Raises:
        ConfigError: bounds outside their range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    latent_clip_low: float = 0.1
    latent_clip_high: float = 0.1
    latent_weight: float = 0.5
    kl_weight: float = 1e-2

    def __post_init__(self) -> None:
        lows, highs = (self.clip_low, self.latent_clip_low), (self.clip_high, self.latent_clip_high)
        if not all(0 <= low < 1 for low in lows) or not all(high >= 0 for high in highs):
            raise ConfigError(
                "clip_low and latent_clip_low are in [0, 1), clip_high and latent_clip_high at least 0; got "
                f"{lows[0]}, {lows[1]}, {highs[0]}, {highs[1]}"
            )
        if not self.dual_clip > 1 or self.latent_weight < 0 or self.kl_weight < 0:
            raise ConfigError(
                "dual_clip is above 1, latent_weight and kl_weight are at least 0; got "
                f"{self.dual_clip}, {self.latent_weight}, {self.kl_weight}"
            )

    def __call__(
        self,
        log_probs: Tensor,
        latent_log_probs: Tensor,
        *,
        advantages: Tensor,
        mask: Tensor,
        latent_mask: Tensor,
        width: int,
        total: float,
        old_log_probs: Tensor | None = None,
        old_latent_log_probs: Tensor | None = None,
        reference_log_probs: Tensor | None = None,
    ) -> PolicyLossOutput:
        """Loss of rollouts.

        Args:
            log_probs: (N, R) log-probabilities of the decisions under the current policy.
            latent_log_probs: (N, S) log-densities of the latents under the current policy. Without gradient (the policy
                does not sample latents), latents have no term.
            advantages: (N,) advantages.
            mask: (N, R) bool, decisions that count.
            latent_mask: (N, S) bool, latents that count.
            width: H, dimensions of a latent.
            total: divisor of the sums: the tokens of the whole optimizer step over micro-batches and ranks.
            old_log_probs: (N, R) under the policy that sampled; NaN, or None for all: the current policy sampled.
            old_latent_log_probs: (N, S), the same for latents.
            reference_log_probs: (N, R) under the frozen reference; None: no KL term.
        """
        text = self._term(log_probs, old_log_probs, advantages, mask, (self.clip_low, self.clip_high))
        scored = latent_mask & latent_log_probs.requires_grad
        per_dimension = latent_log_probs / width
        old = None if old_latent_log_probs is None else old_latent_log_probs / width
        latents = self._term(per_dimension, old, advantages, scored, (self.latent_clip_low, self.latent_clip_high))
        kl = log_probs.new_zeros(())
        if reference_log_probs is not None:
            # k3 (Schulman 2020): never negative, and low variance
            gap = torch.where(mask, reference_log_probs - log_probs, 0.0).clamp(max=LOG_RATIO_LIMIT)
            kl = (gap.expm1() - gap).sum()
        loss = (text.loss + self.latent_weight * latents.loss + self.kl_weight * kl) / total
        return PolicyLossOutput(loss, text, latents, kl)

    def _term(
        self, log_probs: Tensor, old: Tensor | None, advantages: Tensor, mask: Tensor, clip: tuple[float, float]
    ) -> PolicyTerm:
        low, high = 1 - clip[0], 1 + clip[1]
        current = log_probs.detach()
        old = current if old is None else torch.where(old.isnan(), current, old)
        log_ratio = torch.where(mask, log_probs - old, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        ratio = log_ratio.exp()
        advantage = advantages[:, None].to(ratio.dtype).expand_as(ratio)
        plain, bounded = -advantage * ratio, -advantage * ratio.clamp(low, high)
        clipped = bounded > plain
        # Not torch.maximum, which halves the gradient of ratios exactly on a bound.
        loss = torch.where(clipped, bounded, plain)
        ceiling = -advantage * self.dual_clip
        dual = (advantage < 0) & (loss > ceiling) & mask
        loss = torch.where(dual, ceiling, loss)
        seen = ratio.detach()
        return PolicyTerm(
            loss=torch.where(mask, loss, 0.0).sum().to(torch.float32),
            count=mask.sum(),
            ratio_sum=torch.where(mask, seen, 0.0).sum(),
            ratio_max=torch.where(mask, seen, 0.0).amax() if mask.numel() else seen.new_zeros(()),
            ratio_min=torch.where(mask, seen, torch.inf).amin() if mask.numel() else seen.new_full((), torch.inf),
            clipped_high=(clipped & (seen > high) & mask).sum(),
            clipped_low=(clipped & (seen < low) & mask).sum(),
            dual_clipped=dual.sum(),
        )
