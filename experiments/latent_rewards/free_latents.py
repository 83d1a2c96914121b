"""What R_ctr and R_div move where nothing is in their way: a policy whose predictions are free parameters.

    python -m experiments.latent_rewards.free_latents

Every prompt has two predicted latents, which point as alike as neighbouring frames of the miniature do, and one number:
the log-odds of a right answer. Sampling, rewards, advantages, objective and logged statistics are those of LA-DAPO;
there is no model. So what a reward cannot teach latents here, it cannot teach them through a model either; a model can
also change its number of spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.losses import PolicyLoss, group_advantages
from futurel1.models.policies import VonMisesFisherLatents
from futurel1.rewards import (
    AccuracyReward,
    CompositeReward,
    OutcomeContrastiveReward,
    RewardInputs,
    TemporalDiversityReward,
)
from futurel1.rewards.base import RewardOutput, RewardVariant
from futurel1.rollout.rollout_statistics import deviations, within_groups

PROMPTS, GROUP, SPANS, WIDTH = 32, 8, 2, 128  # as in the miniature
ROLLOUTS = PROMPTS * GROUP
UPDATES, ENDS = 100, 10
LEARNING_RATE = 1e-2  # of parameters of size 1
OWN = 0.47  # size of what a span has of its own: two spans of a prompt have a cosine of 0.82
PAPER = {"accuracy": 0.9, "contrastive": 0.2, "diversity": 0.1}
EQUAL = {**PAPER, "contrastive": 1.0, "diversity": 1.0}


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        label: what the row is called.
        weights: weight of each reward.
        cosine: expected cosine of the von Mises-Fisher policy.
        variant: variant of R_ctr.
        width: H.
        decoupled: standardize every reward within its group before it is weighted (GDPO, arXiv 2601.05242).
    """

    label: str
    weights: dict[str, float]
    cosine: float = 0.98
    variant: RewardVariant = "paper"
    width: int = WIDTH
    decoupled: bool = False


def alone(name: str) -> dict[str, float]:
    """Weights that reward one thing alone."""
    return {**dict.fromkeys(PAPER, 0.0), name: 1.0}


SETTINGS = (
    Setting("accuracy alone", alone("accuracy")),
    Setting("the paper's weights", PAPER),
    Setting("R_ctr alone", alone("contrastive")),
    Setting("R_ctr alone, `variant: released`", alone("contrastive"), variant="released"),
    Setting("R_div alone", alone("diversity")),
    Setting("weights of 1 for both, the largest of the paper", EQUAL),
    Setting("the paper's weights, `cosine: 0.9`", PAPER, cosine=0.9),
    Setting("R_div alone, `cosine: 0.9`", alone("diversity"), cosine=0.9),
    Setting("the paper's weights, standardized before weighting", PAPER, decoupled=True),
    Setting("weights of 1 for both, standardized before weighting", EQUAL, decoupled=True),
)


def train(setting: Setting, *, updates: int = UPDATES) -> list[dict[str, float]]:
    """Train the free parameters; returns what the first and the last `ENDS` updates log."""
    torch.manual_seed(0)
    policy = VonMisesFisherLatents(setting.cosine)
    common = torch.randn(PROMPTS, 1, setting.width)
    predicted = (common + OWN * torch.randn(PROMPTS, SPANS, setting.width)).requires_grad_()
    right = torch.zeros(PROMPTS, requires_grad=True)  # log-odds
    optimizer = torch.optim.Adam([predicted, right], lr=LEARNING_RATE)
    reward = CompositeReward(
        {
            "accuracy": AccuracyReward(),
            "contrastive": OutcomeContrastiveReward(variant=setting.variant),
            "diversity": TemporalDiversityReward(),
        },
        setting.weights,
    )
    logged = []
    for update in range(updates):
        batch = sample(predicted, right, policy, reward, decoupled=setting.decoupled)
        optimizer.zero_grad()
        batch.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if min(update, updates - 1 - update) < ENDS:
            logged.append(statistics(batch, reward.weights))
    return logged


@dataclass(frozen=True)
class Batch:
    """A rollout batch: its objective, latents (ROLLOUTS, SPANS, H), rewards, their sum as optimized, and advantages."""

    loss: Tensor
    latents: Tensor
    parts: dict[str, Tensor]
    optimized: RewardOutput
    advantages: Tensor


def sample(
    predicted: Tensor, right: Tensor, policy: VonMisesFisherLatents, reward: CompositeReward, *, decoupled: bool = False
) -> Batch:
    """Sample and reward a rollout batch.

    Args:
        predicted: (PROMPTS, SPANS, H).
        right: (PROMPTS,) log-odds of a right answer.
        policy: how latents are sampled.
        reward: reward of rollouts.
        decoupled: standardize every reward within its group before it is weighted.
    """
    width = predicted.shape[-1]
    mu = predicted.repeat_interleave(GROUP, dim=0)
    latents = policy.sample(mu.reshape(-1, width)).view_as(mu)
    correct = torch.bernoulli(right.detach().sigmoid().repeat_interleave(GROUP))
    groups = torch.arange(PROMPTS).repeat_interleave(GROUP)
    mask = torch.ones(ROLLOUTS, SPANS, dtype=torch.bool)
    inputs = RewardInputs(
        [""] * ROLLOUTS,
        [""] * ROLLOUTS,
        [""] * ROLLOUTS,
        group_ids=groups,
        response_lengths=torch.ones_like(groups),
        latents=latents,
        latent_mask=mask,
        span_ids=torch.arange(SPANS).expand(ROLLOUTS, -1),
        correct=correct,
    )
    output = reward(inputs)
    optimized = output
    if decoupled:
        standard = {name: group_advantages(part, groups) for name, part in output.parts.items()}
        total = torch.stack([reward.weights[name] * part for name, part in standard.items()]).sum(dim=0)
        optimized = RewardOutput(total, standard, output.valid)
    advantages = group_advantages(optimized.total, groups)
    log_odds = right.repeat_interleave(GROUP)
    answer = F.logsigmoid(torch.where(correct > 0, log_odds, -log_odds))
    loss = PolicyLoss(kl_weight=0.0)(
        answer[:, None], policy.log_prob(latents, mu), advantages=advantages, mask=mask[:, :1], latent_mask=mask,
        width=width, total=ROLLOUTS * (1 + SPANS),
    ).loss  # fmt: skip
    return Batch(loss, latents, output.parts, optimized, advantages)


def statistics(batch: Batch, weights: dict[str, float]) -> dict[str, float]:
    """What LA-DAPO logs of a rollout batch."""
    rows = []
    for number in range(PROMPTS):
        own = slice(number * GROUP, (number + 1) * GROUP)
        latents = batch.latents[own]
        rollout = SimpleNamespace(latents=latents, latent_mask=torch.ones(latents.shape[:2], dtype=torch.bool))
        group: Any = SimpleNamespace(
            rollout=rollout, valid=batch.optimized.valid[own], rewards=batch.optimized.total[own],
            parts={name: part[own] for name, part in batch.optimized.parts.items()}, advantages=batch.advantages[own],
        )  # fmt: skip
        rows.append(deviations(group, weights))
    means = {f"reward/{name}": float(part.mean()) for name, part in batch.parts.items()}
    return means | within_groups(rows)


def main() -> None:
    """Print the table: means over the first and the last updates."""
    print("| rewarded | right, % | R_ctr | R_div | R² of R_ctr | R² of advantage | share of R_ctr | share of R_div |")
    print("| --- |" + " ---: |" * 7)
    for setting in SETTINGS:
        logged = train(setting)

        def ends(name: str, form: str = ".2f", scale: float = 1.0, logged: list[dict[str, float]] = logged) -> str:
            values = [row[name] * scale for row in logged if name in row and row[name] == row[name]]
            if not values:
                return "-"
            first, last = (sum(part) / len(part) for part in (values[:ENDS], values[-ENDS:]))
            return f"{first:{form}} to {last:{form}}"

        cells = [ends("reward/accuracy", ".0f", 100), ends("reward/contrastive"), ends("reward/diversity")]
        cells += [ends("accuracy_r2/contrastive"), ends("accuracy_r2/advantage")]
        cells += [ends(f"advantage_share/{name}", ".4f") for name in ("contrastive", "diversity")]
        print(f"| {setting.label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
