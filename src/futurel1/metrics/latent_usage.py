"""Statistics of how a model uses its latents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from futurel1.errors import BatchError, ConfigError
from futurel1.metrics.functional.latent_usage import SUMS, _latent_usage_compute, _latent_usage_update
from futurel1.models import LatentTokens

__all__ = ["LatentUsage"]


class LatentUsage(Metric):
    """Spans and latents per response, similarity of neighbouring spans, and how spans end; overall and per split.

    `compute()` returns float32 scalars, overall and under ``{split}/..`` for every split:

    * ``responses``: number of responses; ``share_with_span``: share of them (0-1) with at least one span;
    * ``spans_per_response``, ``latents_per_response``: means over all responses, with and without spans; empty and
      unclosed spans count, LATENT tokens outside a span do not;
    * ``adjacent_cosine``: cosine between the mean latents of spans m and m + 1 of a response, averaged over all pairs
      with latents in both spans (``adjacent_pairs``); pairs without a cosine, because a mean is zero or not finite, are
      excluded and counted in ``undefined_pairs``. Without latents: NaN;
    * ``share_ended_by_budget``: share (0-1) of spans that the budget ended, among the spans for which this is known.

    A value with nothing to average is NaN.

    Args:
        tokens: ids of START, LATENT and END.
        splits: names of splits; empty: no values per split.
        **kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ConfigError: a split is repeated.

    Source:
        Future-L1, arXiv 2606.05769: mean spans per response by hops; R_div, Eq. 6, for the cosine.

    Example:
        >>> tokens = LatentTokens(start_id=1, latent_id=2, end_id=3)
        >>> responses = torch.tensor([[1, 2, 3, 9, 1, 2, 2, 3], [9, 9, 9, 9, 9, 0, 0, 0]])
        >>> latents = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]], [[0.0, 0.0]] * 3])
        >>> mask = torch.tensor([[True, True, True], [False, False, False]])
        >>> span_ids = torch.tensor([[0, 1, 1], [-1, -1, -1]])
        >>> ended = torch.tensor([[False, True], [False, False]])
        >>> metric = LatentUsage(tokens)
        >>> metric.update(responses, latents, mask, span_ids, ended)
        >>> usage = metric.compute()
        >>> [usage[key].item() for key in ("share_with_span", "spans_per_response", "latents_per_response")]
        [0.5, 1.0, 1.5]
        >>> usage["adjacent_cosine"].item(), usage["share_ended_by_budget"].item()
        (0.0, 0.5)
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, tokens: LatentTokens, splits: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(set(splits)) != len(splits):
            raise ConfigError(f"splits must be named once each, got {splits!r}")
        self.tokens, self.splits = tokens, tuple(splits)
        for name in SUMS:
            zeros = torch.zeros(max(len(self.splits), 1), dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(
        self,
        responses: Tensor,
        latents: Tensor | None = None,
        latent_mask: Tensor | None = None,
        span_ids: Tensor | None = None,
        ended_by_budget: Tensor | None = None,
        splits: Sequence[str] | None = None,
    ) -> None:
        """Count a batch of rollouts.

        Args:
            responses: (N, R) token ids, right-padded with any id but START.
            latents: (N, S, H) recorded latents in order of emission, or None.
            latent_mask: (N, S) bool, True at latents; required with `latents`.
            span_ids: (N, S) int64, 0-based number of each latent's span within its response, arbitrary at padding;
                required with `latents`.
            ended_by_budget: (N, M) bool, whether the budget ended span m of a response, arbitrary for spans that do not
                exist; None if unknown.
            splits: N names of splits; required if the metric was built with splits, else not allowed.

        Raises:
            BatchError: shapes, latents or span ids do not match the responses, or splits are missing, unknown or not
                allowed; then nothing is counted.
        """
        sums = _latent_usage_update(
            self.tokens,
            responses,
            latents,
            latent_mask,
            span_ids,
            ended_by_budget,
            self._split_numbers(splits, len(responses)),
            max(len(self.splits), 1),
        )
        for name, values in sums.items():
            setattr(self, name, getattr(self, name) + values.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Shares and means, see the class.

        Raises:
            BatchError: there are no responses.
        """
        return _latent_usage_compute({name: getattr(self, name) for name in SUMS}, self.splits)

    def _split_numbers(self, splits: Sequence[str] | None, number: int) -> Tensor:
        """(N,) int64, index of each response's split."""
        if splits is None and not self.splits:
            return torch.zeros(number, dtype=torch.int64)
        if splits is None or not self.splits:
            raise BatchError(f"this LatentUsage was built with splits={self.splits}, update() got splits={splits!r}")
        unknown = sorted(set(splits) - set(self.splits))
        if unknown or len(splits) != number:
            raise BatchError(
                f"splits must name one of {list(self.splits)} for each of {number} responses, got {len(splits)} names, "
                f"unknown: {unknown}"
            )
        return torch.tensor([self.splits.index(split) for split in splits], dtype=torch.int64)
