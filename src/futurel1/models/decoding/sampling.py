"""How a token is chosen from logits: greedily, or at random under top-k, top-p and min-p."""

from dataclasses import dataclass

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.models.noise import RowNoise

RANKED_TOKENS = 64
"""Number of most likely tokens that top_p ranks first."""


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

    def choose(self, logits: Tensor, noise: RowNoise) -> Tensor:
        """(N, V) float32 logits to (N,) chosen token ids."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = (logits / self.temperature).softmax(dim=-1).double()
        if self.top_k or self.top_p < 1 or self.min_p:
            probabilities = self._truncate(probabilities)
        # Cumulated in vocabulary order, not by likelihood: rounding may swap two almost equally likely tokens, which
        # would change samples near their boundary.
        cumulative = probabilities.cumsum(dim=-1)
        place = noise.uniform(1).to(cumulative.device) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, place, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]

    def _truncate(self, probabilities: Tensor) -> Tensor:
        """Zero the tokens that top_k, top_p and min_p exclude, in this order as in `transformers`."""
        if self.top_k or self.top_p < 1:
            probabilities = probabilities.where(self._among_likeliest(probabilities), 0)
        if self.min_p:
            likeliest = probabilities.amax(dim=-1, keepdim=True)
            probabilities = probabilities.where(probabilities >= self.min_p * likeliest, 0)
        return probabilities

    def _among_likeliest(self, probabilities: Tensor, count: int = RANKED_TOKENS) -> Tensor:
        """(N, V) bool, tokens that top_k and top_p keep; ties go to the lower token ids.

        To avoid sorting a large vocabulary, top_p ranks only the `count` most likely tokens. Rows that need more are
        ranked again with 32 times as many, then with all.
        """
        size = probabilities.shape[-1]
        count = min(self.top_k or count, size)
        ranked = probabilities.topk(count, dim=-1).values
        number = torch.full_like(ranked[:, :1], count, dtype=torch.int64)
        short: Tensor | None = None
        # Skipped for top_p = 1, which keeps every token even if rounding brings their sum above 1.
        if self.top_p < 1:
            mass = (ranked if self.top_k else probabilities).sum(dim=-1, keepdim=True)
            # a token is kept if the more likely ones do not yet reach top_p
            inside = ranked.cumsum(dim=-1) - ranked < self.top_p * mass
            number = inside.sum(dim=-1, keepdim=True).clamp(min=1)
            if not self.top_k and count < size:
                short = inside[:, -1].nonzero()[:, 0]
        last = ranked.gather(1, number - 1)
        above, tied = probabilities > last, probabilities == last
        kept = above | (tied & (tied.cumsum(dim=-1) <= number - above.sum(dim=-1, keepdim=True)))
        if short is not None and len(short):
            kept[short] = self._among_likeliest(probabilities[short], 32 * count if count == RANKED_TOKENS else size)
        return kept
