"""Where latent spans are in a sequence of token ids, vectorised over (B, T).

A *span* is START, any number of LATENT, END. A LATENT is inside a span when the tokens between it and the nearest
START to its left are all LATENT; a stray LATENT is ordinary text. A span may be open: cut off before its END.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from futurel1.errors import BatchError
from futurel1.models.tokens import LatentTokens

IGNORE = -100
"""Label of a position without a target; the default `ignore_index` of PyTorch's cross entropy."""


@dataclass(frozen=True)
class Spans:
    """Spans of a batch of token sequences.

    Attributes:
        latent_mask: (B, T) bool, True at each LATENT inside a span.
        span_ids: (B, T) int64, 0-based number of the span of each latent within its row, -1 elsewhere.
        step_ids: (B, T) int64, 0-based index of each latent within its span, -1 elsewhere.
        counts: (B,) int64, number of spans in each row, including empty ones (END directly after START) and open ones.
        closed: (B,) int64, number of spans in each row that end with END.
    """

    latent_mask: Tensor
    span_ids: Tensor
    step_ids: Tensor
    counts: Tensor
    closed: Tensor


def find_spans(input_ids: Tensor, tokens: LatentTokens) -> Spans:
    """Find every latent span.

    Args:
        input_ids: (B, T) token ids.
        tokens: ids of START, LATENT and END.

    Returns:
        The spans, see :class:`Spans`.
    """
    is_start = input_ids == tokens.start_id
    is_latent = input_ids == tokens.latent_id
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    # A LATENT belongs to a span when the last token that is not a LATENT is a START.
    last_other = torch.where(is_latent, -1, positions).cummax(dim=1).values
    last_start = torch.where(is_start, positions, -1).cummax(dim=1).values
    inside = is_latent & (last_other >= 0) & (last_other == last_start)
    number = is_start.cumsum(dim=1) - 1
    span_ids = torch.where(inside, number, -1)
    step_ids = torch.where(inside, positions - last_start - 1, -1)
    follows_span = inside | is_start
    closed = (input_ids[:, 1:] == tokens.end_id) & follows_span[:, :-1]
    return Spans(inside, span_ids, step_ids, is_start.sum(dim=1), closed.sum(dim=1))


def learned_latents(spans: Spans, input_ids: Tensor, labels: Tensor, tokens: LatentTokens) -> Tensor:
    """Find the latents of trained turns: those whose START has a label.

    In a row without labels, which is scored but not trained on, all latents count.

    Args:
        spans: spans of `input_ids`.
        input_ids: (B, T) token ids.
        labels: (B, T) token ids to predict, -100 where there is no target.
        tokens: ids of START, LATENT and END.

    Returns:
        (B, T) bool, True at these latents.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    last_start = torch.where(input_ids == tokens.start_id, positions, 0).cummax(dim=1).values
    labelled = labels != IGNORE
    return spans.latent_mask & (labelled.gather(1, last_start) | ~labelled.any(dim=1, keepdim=True))


def longest_chain(latent_mask: Tensor) -> int:
    """Length of the longest dependency chain of latents: the most latents in any row of a (B, T) mask.

    Every latent attends to all latents before it in its row, so this many parallel passes reproduce the latents of
    step-by-step decoding (`docs/decisions.md`, "Exposure").
    """
    return int(latent_mask.sum(dim=1).max()) if latent_mask.numel() else 0


def previous(hidden_BTH: Tensor, mask: Tensor) -> Tensor:
    """Hidden states one position before each position of a mask.

    Args:
        hidden_BTH: (B, T, H) hidden states.
        mask: (B, T) bool; column 0 must be False, because nothing precedes it.

    Returns:
        (N, H), in row-major order of the mask.
    """
    return hidden_BTH[:, :-1][mask[:, 1:]]


def put_latents(embeds: Tensor, mask: Tensor, latents: Tensor) -> Tensor:
    """Replace embeddings at masked positions with latents.

    Args:
        embeds: (B, T, H) embeddings.
        mask: (B, T) bool, N positions set.
        latents: (N, H), row-major order of the mask.

    Raises:
        BatchError: the number of masked positions is not the number of latents.
    """
    slots = int(mask.sum())
    if latents.shape != (slots, embeds.shape[-1]):
        raise BatchError(
            f"{slots} latent slots inside spans need latents of shape {(slots, embeds.shape[-1])}, got "
            f"{tuple(latents.shape)}; each span has to have as many LATENT tokens as its hint frame has visual tokens"
        )
    return embeds.masked_scatter(mask[..., None], latents.to(embeds.dtype))
