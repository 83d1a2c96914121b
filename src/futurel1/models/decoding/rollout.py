"""Results of decoding (responses with latents and log-probabilities) and of scoring.

Shapes: B prompts, G branches each, N = B * G responses of at most R tokens and S latents, H hidden size. Rows of a
prompt's branches are adjacent.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import FutureL1Error
from futurel1.models.policies import LatentPolicy

FinishReason = Literal["eos", "stop", "length"]
REASONS: tuple[FinishReason, ...] = ("eos", "stop", "length")


class DecodingError(FutureL1Error, ArithmeticError):
    """Decoding produced numbers that are not finite."""


@dataclass(frozen=True)
class DecodingStep:
    """What one step of decoding produced, for streaming.

    Attributes:
        step: 0-based number of the step.
        rows: (A,) int64 rows that are still active.
        tokens: (A,) int64 new token of each.
        is_latent: (A,) bool, True where the token stands for a latent.
    """

    step: int
    rows: Tensor
    tokens: Tensor
    is_latent: Tensor


@dataclass
class Rollout:
    """Decoded responses, with everything that scoring them again needs.

    Attributes:
        responses: (N, R) int64 token ids, right-padded.
        response_mask: (N, R) bool, True at real tokens.
        log_probs: (N, R) float32, log-probability of the model's choice: a token, the end of a span, or at a latent
            slot the decision to continue, log(1 - p(END)); 0 where it made no choice.
        chosen_mask: (N, R) bool, True where the model made a choice: False at padding and forced tokens.
        slot_mask: (N, R) bool, True at LATENT tokens that stand for a latent.
        latents: (N, S, H) latents in order of emission, right-padded with zeros.
        latent_mask: (N, S) bool, True at real latents.
        span_ids: (N, S) int64, 0-based span of each latent within its response, -1 at padding.
        latent_log_probs: (N, S) float64, log-density of each latent under the latent policy; in double precision,
            because only small differences of these large numbers matter.
        span_table: (K, 5) int64, one row per span: response, position of its START (-1 when START ended the prompt),
            number of latents, position of its END (-1 when decoding ended inside), 1 when END was forced by the budget.
        finish_reasons: N reasons: ``"eos"``, ``"stop"`` (a stop string) or ``"length"``.
        num_branches: G.
        temperature: temperature of the recorded log-probabilities.
        policy: policy that the latents were sampled from.
    """

    responses: Tensor
    response_mask: Tensor
    log_probs: Tensor
    chosen_mask: Tensor
    slot_mask: Tensor
    latents: Tensor
    latent_mask: Tensor
    span_ids: Tensor
    latent_log_probs: Tensor
    span_table: Tensor
    finish_reasons: list[FinishReason]
    num_branches: int
    temperature: float
    policy: LatentPolicy

    def __len__(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class RolloutScores:
    """Log-probabilities of a rollout under the current weights.

    Attributes:
        log_probs: (N, R) as in :class:`Rollout`, with gradient.
        latent_log_probs: (N, S) as in :class:`Rollout`, with gradient.
        entropy: (N, R) entropy in nats of each choice of the model, without gradient: over the next token, or at a
            latent slot over ending or continuing the span.
        predicted: (N, S, H) predicted latents, with gradient.
    """

    log_probs: Tensor
    latent_log_probs: Tensor
    entropy: Tensor
    predicted: Tensor


def ended_by_budget(rollout: Rollout) -> Tensor:
    """(N, M) bool, whether the budget ended span m of each response."""
    table = rollout.span_table
    counts = torch.bincount(table[:, 0], minlength=len(rollout))
    place = torch.arange(len(table), device=table.device) - (counts.cumsum(0) - counts)[table[:, 0]]
    ended = torch.zeros(len(rollout), max(1, int(counts.max())), dtype=torch.bool, device=table.device)
    ended[table[:, 0], place] = table[:, 4].bool()
    return ended
