"""How a token is chosen from logits: greedily, or at random under top-k, top-p and min-p."""

from dataclasses import dataclass

import torch
from torch import Tensor

from futurel1.errors import ConfigError

LARGE_VOCABULARY = 2**13
"""Number of words above which truncation finds more bits per round."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits.

    Args:
        do_sample: sample at random; False takes the most likely token.
        temperature: divides the logits before sampling, above 0.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample among the fewest most likely tokens that together have at least this share of the probability that
            `top_k` leaves.
        min_p: sample among tokens with at least this fraction of the most likely token's probability.

    Raises:
        ConfigError: a value outside its range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}; for greedy use do_sample=False")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1 or self.top_k < 0:
            raise ConfigError(
                "top_p is in (0, 1], min_p in [0, 1] and top_k at least 0; got "
                f"{self.top_p}, {self.min_p}, {self.top_k}"
            )

    @property
    def scale(self) -> float:
        """Temperature of the recorded log-probabilities: 1 for greedy decoding."""
        return self.temperature if self.do_sample else 1.0

    def pick(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Choose tokens.

        Args:
            logits: (N, V) float32.
            uniform: (N, 1) float64 random numbers in the open interval from 0 to 1.

        Returns:
            (N,) int64 token ids.
        """
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = (logits / self.temperature).softmax(dim=-1).double()
        if self.top_k or self.top_p < 1 or self.min_p:
            probabilities = self._truncate(probabilities)
        # Cumulated in vocabulary order, not by likelihood: rounding may swap two almost equally likely tokens, which
        # would change samples near their boundary.
        cumulative = probabilities.cumsum(dim=-1)
        place = uniform * cumulative[:, -1:]
        return torch.searchsorted(cumulative, place, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]

    def _truncate(self, probabilities: Tensor) -> Tensor:
        """Zero the tokens that top_k, top_p and min_p exclude, in this order as in `transformers`.

        Args:
            probabilities: (N, V) float64 with the precision of float32.
        """
        if 0 < self.top_k < probabilities.shape[-1]:
            wanted = torch.full_like(probabilities[:, :1], self.top_k)
            probabilities = _keep_likeliest(probabilities, torch.ones_like(probabilities), wanted)
        # Skipped for top_p = 1, which keeps every token even if rounding brings their sum above 1.
        if self.top_p < 1:
            wanted = self.top_p * probabilities.sum(dim=-1, keepdim=True)
            probabilities = _keep_likeliest(probabilities, probabilities, wanted)
        if self.min_p:
            likeliest = probabilities.amax(dim=-1, keepdim=True)
            probabilities = probabilities.where(probabilities >= self.min_p * likeliest, 0)
        return probabilities


def _keep_likeliest(probabilities: Tensor, weights: Tensor, wanted: Tensor) -> Tensor:
    """Keep the fewest most likely tokens, at least one, whose weights reach a sum; of equally likely ones the first.

    A radix selection on the bits of the probabilities, whose order is that of the numbers: each round finds some bits
    of the last kept token's probability from a histogram of weights. Its cost depends on the size of the vocabulary
    only, where sorting a flat distribution is several times as expensive.

    Args:
        probabilities: (N, V) float64 with the precision of float32, at most 1.
        weights: (N, V) float64, equal for equal probabilities.
        wanted: (N, 1) float64, above 0.
    """
    bits = probabilities.float().view(torch.int32)
    # A float of at most 1 has 30 bits. A histogram should not be larger than what it counts.
    width = 15 if probabilities.shape[-1] > LARGE_VOCABULARY else 10
    buckets = 2**width
    last = torch.zeros_like(bits[:, :1])
    above = torch.zeros_like(wanted)
    for shift in range(30 - width, -1, -width):
        # Descending: bucket 0 is above the range of this round, and the last bucket below it.
        first = (last << width) + buckets
        bucket = (first - (bits >> shift)).clamp_(0, buckets + 1)
        histogram = weights.new_zeros(len(bits), buckets + 2).scatter_add_(1, bucket.long(), weights)
        reached = histogram.cumsum(dim=1)
        place = (reached < wanted).sum(dim=1, keepdim=True).clamp_(1, buckets)
        above = (reached - histogram).gather(1, place)
        last = first - place.int()
    tied = bits == last
    weight = weights.gather(1, tied.int().argmax(dim=1, keepdim=True))  # of the first of them
    # The tolerance is for sums of equal weights, whose rounding must not add one more.
    number = ((wanted - above) / weight * (1 - 1e-12)).ceil().clamp(min=1)
    return probabilities.where((bits > last) | (tied & (tied.cumsum(dim=-1, dtype=torch.int32) <= number)), 0)
