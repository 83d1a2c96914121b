"""Responses that have ended, and how they become a rollout.

Shapes: N responses of at most R tokens, S latents, H hidden size, M spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from futurel1.models.decoding.rollout import FinishReason, Rollout
from futurel1.models.policies import LatentPolicy
from futurel1.models.tokens import LatentTokens


@dataclass
class Response:
    """One response.

    Attributes:
        in_span: whether the prompt ended with START.
        latents: its latents so far, each (H,).
        densities: their log-densities.
        tokens: (T,) int64; this and the following are set when it ends.
        log_probs: (T,) float32, as in :class:`~futurel1.models.decoding.Rollout`.
        chosen: (T,) bool, as `chosen_mask` there.
        slots: (T,) bool, as `slot_mask` there.
        reason: why it ended.
    """

    in_span: bool
    latents: list[Tensor] = field(default_factory=list)
    densities: list[Tensor] = field(default_factory=list)
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    log_probs: Tensor = field(default_factory=lambda: torch.zeros(0))
    chosen: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    slots: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    reason: FinishReason = "length"


def as_rollout(
    responses: Sequence[Response],
    *,
    tokens: LatentTokens,
    num_branches: int,
    temperature: float,
    policy: LatentPolicy,
    pad_token_id: int,
    no_latents: Tensor,
) -> Rollout:
    """Pad and join N >= 1 responses.

    Args:
        responses: those of all branches of a prompt, prompt after prompt.
        tokens: ids of START, LATENT and END.
        num_branches: G.
        temperature: temperature of the log-probabilities.
        policy: policy that the latents were sampled from.
        pad_token_id: id that pads the tokens.
        no_latents: (0, H) tensor with the dtype and the device of latents.
    """

    def padded(name: str, value: float = 0) -> Tensor:
        return pad_sequence([getattr(response, name) for response in responses], batch_first=True, padding_value=value)

    ids, slots, chosen = padded("tokens", pad_token_id), padded("slots"), padded("chosen")
    device = ids.device
    lengths = torch.tensor([len(response.tokens) for response in responses], device=device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    counts = torch.tensor([len(response.latents) for response in responses], device=device)
    latents = pad_sequence(
        [torch.stack(own.latents) if own.latents else no_latents for own in responses], batch_first=True
    )
    none = torch.zeros(0, dtype=torch.float64, device=device)
    densities = pad_sequence(
        [torch.stack(own.densities) if own.densities else none for own in responses], batch_first=True
    )
    latent_mask = torch.arange(latents.shape[1], device=device) < counts[:, None]
    in_span = torch.tensor([response.in_span for response in responses], device=device)
    number, table = _spans(ids, mask, slots, chosen, in_span, tokens)
    span_ids = torch.full(latent_mask.shape, -1, device=device)
    span_ids[latent_mask] = number[slots]
    return Rollout(
        responses=ids,
        response_mask=mask,
        log_probs=padded("log_probs"),
        chosen_mask=chosen,
        slot_mask=slots,
        latents=latents,
        latent_mask=latent_mask,
        span_ids=span_ids,
        latent_log_probs=densities,
        span_table=table,
        finish_reasons=[response.reason for response in responses],
        num_branches=num_branches,
        temperature=temperature,
        policy=policy,
    )


def _spans(
    ids: Tensor, mask: Tensor, slots: Tensor, chosen: Tensor, in_span: Tensor, tokens: LatentTokens
) -> tuple[Tensor, Tensor]:
    """(N, R) number of the newest span at each token, and the (M, 5) span table of a rollout.

    A START opens a span once another token follows it; inside a span there are only latents and the END that ends it.
    """
    # Column 0 stands for the last token of the prompt, so that column c + 1 is token c.
    before = torch.cat([in_span[:, None], (ids == tokens.start_id) & mask], dim=1)
    opens = before & torch.cat([mask, torch.zeros_like(mask[:, :1])], dim=1)
    inside = opens | torch.cat([torch.zeros_like(in_span)[:, None], slots], dim=1)
    number = opens.long().cumsum(dim=1) - 1
    ends = (ids == tokens.end_id) & mask & inside[:, :-1]
    row, column = opens.nonzero(as_tuple=True)
    # Spans are numbered through all responses, in the order of the table.
    first = number[:, -1] + 1
    index = (first.cumsum(dim=0) - first)[:, None] + number[:, 1:]
    latents = torch.bincount(index[slots], minlength=len(row))
    end = torch.full_like(row, -1)
    forced = torch.zeros_like(row)
    end[index[ends]] = ends.nonzero()[:, 1]
    forced[index[ends]] = (~chosen[ends]).long()
    return number[:, 1:], torch.stack([row, column - 1, latents, end, forced], dim=1)
