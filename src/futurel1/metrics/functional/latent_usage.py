"""Statistics of how a model uses its latents: spans and latents per response, similarity of neighbouring spans."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.errors import BatchError
from futurel1.models import LatentTokens, Spans, find_spans

__all__ = ["adjacent_span_cosines"]

SUMS = (
    "responses",
    "with_span",
    "spans",
    "latents",
    "cosine",
    "cosine_pairs",
    "undefined_pairs",
    "budget_known",
    "ended",
)
"""Sums per split; `budget_known` counts the spans for which it is known whether the budget ended them."""


def adjacent_span_cosines(latents: Tensor, rows: Tensor, span_ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Cosine between the mean latents of neighbouring spans (the quantity under R_div, Future-L1 Eq. 6).

    Args:
        latents: (L, H) all latents of a batch.
        rows: (L,) int64 response of each latent.
        span_ids: (L,) int64 number of each latent's span within its response.
        num_rows: number of responses.

    Returns:
        (K,) float64 cosines of the K pairs of spans m, m + 1 with latents in both, NaN if a mean is zero or not finite;
        (K,) int64 response of each pair.
    """
    width = int(span_ids.max()) + 1 if len(span_ids) else 1
    place = rows * width + span_ids
    sums = latents.new_zeros(num_rows * width, latents.shape[-1], dtype=torch.float64)
    # Sums instead of means: the cosine is the same.
    sums = sums.index_add(0, place, latents.double()).reshape(num_rows, width, latents.shape[-1])
    filled = torch.bincount(place, minlength=num_rows * width).reshape(num_rows, width) > 0
    row, left = (filled[:, :-1] & filled[:, 1:]).nonzero(as_tuple=True)
    first, second = sums[row, left], sums[row, left + 1]
    usable = _has_direction(first) & _has_direction(second)
    unit = F.normalize(first, dim=-1, eps=0), F.normalize(second, dim=-1, eps=0)
    return torch.where(usable, (unit[0] * unit[1]).sum(dim=-1), torch.nan), row


def _has_direction(vectors: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norm.isfinite() & (norm > 0)


def _latent_usage_update(
    tokens: LatentTokens,
    responses: Tensor,
    latents: Tensor | None,
    latent_mask: Tensor | None,
    span_ids: Tensor | None,
    ended_by_budget: Tensor | None,
    split_numbers: Tensor,
    num_splits: int,
) -> dict[str, Tensor]:
    """Sums over the responses of each split: (num_splits,) float64 for every name in `SUMS`."""
    if responses.ndim != 2:
        raise BatchError(f"responses must be (N, R) token ids, got shape {tuple(responses.shape)}")
    number = len(responses)
    spans = find_spans(responses, tokens)
    per_row = {
        "responses": torch.ones(number),
        "with_span": spans.counts > 0,
        "spans": spans.counts,
        "latents": spans.latent_mask.sum(dim=1),
    }
    if latents is not None:
        per_row |= _cosine_sums(spans, latents, latent_mask, span_ids)
    if ended_by_budget is not None:
        per_row |= _budget_sums(spans, ended_by_budget)
    device = responses.device
    zeros = torch.zeros(num_splits, dtype=torch.float64, device=device)
    sums = {name: zeros for name in SUMS}
    for name, values in per_row.items():
        sums[name] = zeros.index_add(0, split_numbers.to(device), values.to(device, torch.float64))
    return sums


def _cosine_sums(
    spans: Spans, latents: Tensor, latent_mask: Tensor | None, span_ids: Tensor | None
) -> dict[str, Tensor]:
    """Per response: sum and number of defined cosines, and number of pairs without one."""
    number = len(spans.counts)
    if latent_mask is None or span_ids is None:
        raise BatchError("latents need their latent_mask (N, S) and span_ids (N, S); at least one of them is missing")
    shapes = {"latent_mask": tuple(latent_mask.shape), "span_ids": tuple(span_ids.shape)}
    if latents.ndim != 3 or len(latents) != number or any(shape != latents.shape[:2] for shape in shapes.values()):
        raise BatchError(
            f"for {number} responses latents must be (N, S, H) with (N, S) masks and span ids, got latents "
            f"{tuple(latents.shape)}, {shapes}"
        )
    emitted, recorded = spans.latent_mask.sum(dim=1), latent_mask.sum(dim=1)
    if not torch.equal(emitted, recorded):
        row = int((emitted != recorded).nonzero()[0])
        raise BatchError(
            f"row {row}: {int(recorded[row])} recorded latents, but its response has {int(emitted[row])} LATENT tokens "
            "inside spans"
        )
    rows, _ = latent_mask.nonzero(as_tuple=True)
    ids = span_ids[latent_mask]
    differs = ids != spans.span_ids[spans.latent_mask]
    if differs.any():
        row = int(rows[differs.nonzero()[0]])
        raise BatchError(
            f"row {row}: span_ids {span_ids[row][latent_mask[row]].tolist()} differ from the spans of its response, "
            f"{spans.span_ids[row][spans.latent_mask[row]].tolist()}"
        )
    cosines, pair_rows = adjacent_span_cosines(latents[latent_mask], rows, ids, number)
    defined = ~cosines.isnan()

    def per_row(values: Tensor) -> Tensor:
        return cosines.new_zeros(number).index_add(0, pair_rows, values.double())

    return {
        "cosine": per_row(cosines.nan_to_num(nan=0.0)),
        "cosine_pairs": per_row(defined),
        "undefined_pairs": per_row(~defined),
    }


def _budget_sums(spans: Spans, ended_by_budget: Tensor) -> dict[str, Tensor]:
    """Per response: number of spans that the budget ended, and number of spans."""
    number, most = len(spans.counts), int(spans.counts.max()) if len(spans.counts) else 0
    shape = tuple(ended_by_budget.shape)
    if ended_by_budget.ndim != 2 or shape[0] != number or shape[1] < most:
        raise BatchError(
            f"ended_by_budget must be (N, M) with a column per span: {number} responses with up to {most} spans, "
            f"got shape {shape}"
        )
    columns = torch.arange(shape[1], device=spans.counts.device)
    real = columns < spans.counts[:, None]
    return {"ended": (ended_by_budget.bool() & real).sum(dim=1), "budget_known": spans.counts}


def _latent_usage_compute(sums: Mapping[str, Tensor], splits: Sequence[str]) -> dict[str, Tensor]:
    """Shares and means from the sums; see `LatentUsage` for the keys."""
    if not int(sums["responses"].sum()):
        raise BatchError("LatentUsage has no responses to compute from: call update() first")
    result = _usage_ratios({name: values.sum() for name, values in sums.items()})
    for number, split in enumerate(splits):
        ratios = _usage_ratios({name: values[number] for name, values in sums.items()})
        result |= {f"{split}/{key}": value for key, value in ratios.items()}
    return {key: value.float() for key, value in result.items()}


def _usage_ratios(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ratios of the sums; 0 / 0 gives NaN, for values with nothing to average."""
    return {
        "responses": sums["responses"],
        "share_with_span": sums["with_span"] / sums["responses"],
        "spans_per_response": sums["spans"] / sums["responses"],
        "latents_per_response": sums["latents"] / sums["responses"],
        "adjacent_cosine": sums["cosine"] / sums["cosine_pairs"],
        "adjacent_pairs": sums["cosine_pairs"],
        "undefined_pairs": sums["undefined_pairs"],
        "share_ended_by_budget": sums["ended"] / sums["budget_known"],
    }
