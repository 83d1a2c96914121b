"""How a token is chosen from logits: greedily, or at random under top-k, top-p and min-p."""

from dataclasses import dataclass

import torch
from torch import Tensor

from futurel1.errors import ConfigError

LARGE_VOCABULARY = 2**13
"""Number of words above which truncation finds more bits per round, and looks among the `LIKELIEST` first."""
LIKELIEST = 2**10
"""Number of tokens among which all are that truncation keeps, unless a distribution is flat."""


def looks_are_free(tensor: Tensor) -> bool:
    """Whether a branch on the values of a tensor costs nothing: the host waits for a GPU, and it breaks a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


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
            logits: (N, V) float32, already divided by `scale`.
            uniform: (N, 1) float64 random numbers in the open interval from 0 to 1.

        Returns:
            (N,) int64 token ids.
        """
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities, tokens = self.kept(logits.softmax(dim=-1))
        # Cumulated in vocabulary order, not by likelihood: rounding may swap two almost equally likely tokens, which
        # would change samples near their boundary.
        cumulative = probabilities.cumsum(dim=-1)
        place = uniform * cumulative[:, -1:]
        picked = torch.searchsorted(cumulative, place, right=True).clamp(max=cumulative.shape[-1] - 1)
        return (picked if tokens is None else tokens.gather(1, picked))[:, 0]

    def kept(self, probabilities: Tensor) -> tuple[Tensor, Tensor | None]:
        """Zero the tokens that top_k, top_p and min_p exclude.

        On a CPU, passes over a large vocabulary cost more than all the rest of a step of a small model. So there the
        likeliest tokens are tried first: if the last of them is excluded, so are all others.

        Args:
            probabilities: (N, V) float32.

        Returns:
            (N, K) float64 probabilities, and the (N, K) ids of their tokens, ascending; None instead of 0 to V - 1.
        """
        if not (self.top_k or self.top_p < 1 or self.min_p):
            return probabilities.double(), None
        total = probabilities.sum(dim=-1, keepdim=True, dtype=torch.float64)
        if probabilities.shape[-1] > LARGE_VOCABULARY and looks_are_free(probabilities):
            tokens = probabilities.topk(LIKELIEST, sorted=False).indices.sort(dim=-1).values
            likeliest = probabilities.gather(1, tokens).double()
            kept = self._truncate(likeliest, total)
            if (kept.where(kept > 0, torch.inf).amin(dim=-1) > likeliest.amin(dim=-1)).all():
                return kept, tokens
        return self._truncate(probabilities.double(), total), None

    def _truncate(self, probabilities: Tensor, total: Tensor) -> Tensor:
        """Zero the tokens that top_k, top_p and min_p exclude, in this order as in `transformers`.

        Args:
            probabilities: (N, K) float64 with the precision of float32: the likeliest tokens, or all.
            total: (N, 1) float64, their sum over all tokens.
        """
        if 0 < self.top_k < probabilities.shape[-1]:
            wanted = torch.full_like(probabilities[:, :1], self.top_k)
            probabilities = _keep_likeliest(probabilities, torch.ones_like(probabilities), wanted)
            total = probabilities.sum(dim=-1, keepdim=True)
        # Skipped for top_p = 1, which keeps every token even if rounding brings their sum above 1.
        if self.top_p < 1:
            probabilities = _keep_likeliest(probabilities, probabilities, self.top_p * total)
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
