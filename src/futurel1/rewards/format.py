"""Reward for the format of interleaved reasoning."""

import re
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.metrics.functional import plain_answer
from futurel1.rewards.base import Reward, RewardInputs, RewardVariant
from futurel1.rewards.responses import SPAN, collapse_blanks, normalize_response

# (?a: restricts case folding to ASCII: other letters that fold to those of a tag name do not make a tag.
_PLAIN = r"(?:(?!</?(?ai:reason|answer|ans)>|<\|latent_).)*"
_CONTENT = {"paper": (_PLAIN, _PLAIN), "released": ("(?:(?!<reason>).)*?", ".*?")}
"""Allowed contents of a reason and of the answer."""

_SPAN = {"paper": r"<\|latent_start\|>(?:<\|latent\|>)*<\|latent_end\|>", "released": re.escape(SPAN)}
"""Pattern of a span: with latents and nothing else in it, or as `normalize_response` leaves it."""


class FormatReward(Reward):
    """1 when a response is ``(L R)+ A`` or ``R (L R)+ A``, else 0 (Future-L1, arXiv 2606.05769).

    L is a complete span, R one ``<reason>..</reason>``, A one ``<answer>..</answer>``; only blanks and chat terminators
    may stand between them. A span must be in the rollout's span table (`inputs.spans()`): a response that spells
    further spans out in ordinary text gets 0. Inputs without latents have no table, so spans in their text count.

    The benchmarks can read every answer that this reward accepts: the tags of A must be written exactly as here,
    without the blanks that tags of R may contain, and an answer of one letter is an upper-case ASCII letter.

    Args:
        order: ``"both"``, or ``"reason_first"`` to accept only ``R (L R)+ A``.
        min_spans: complete spans that a response needs; with fewer it gets 0.
        variant: ``"paper"``: the above, and R and A hold no tags; ``"released"``: as the released code, which takes
            spans from the text only, with any content, allows blanks in all tags, any answer (also further answers in
            it), and any reason without another ``<reason>``. `min_spans`, which that code lacks, counts spans of the
            table here too.

    Raises:
        ConfigError: an invalid order, number or variant.
    """

    def __init__(
        self,
        order: Literal["both", "reason_first"] = "both",
        min_spans: int = 0,
        variant: RewardVariant = "paper",
    ) -> None:
        if min_spans < 0:
            raise ConfigError(f"min_spans must be at least 0, got {min_spans}")
        if order not in ("both", "reason_first"):
            raise ConfigError(f"order must be 'both' or 'reason_first', got {order!r}")
        if variant not in _CONTENT:
            raise ConfigError(f"variant must be 'paper' or 'released', got {variant!r}")
        self.order = order
        self.min_spans = min_spans
        self.variant = variant
        in_reason, in_answer = _CONTENT[variant]
        reason = f"<reason>{in_reason}</reason>"
        first = f"(?:{reason})" + ("?" if order == "both" else "")
        pairs = f"(?:{_SPAN[variant]}{reason}){{{max(1, min_spans)},}}"
        self.pattern = re.compile(f"{first}{pairs}<answer>({in_answer})</answer>", re.DOTALL)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32, 0 or 1.

        Raises:
            BatchError: latents without `span_ids` and `span_counts`.
        """
        # The released code does not use the span table.
        spans = inputs.spans() if self.variant == "paper" or self.min_spans else None
        counts = [None] * len(inputs) if spans is None else spans.tolist()
        fits = self._fits if self.variant == "paper" else self._fits_released
        matches = [fits(text, count) for text, count in zip(inputs.responses, counts, strict=True)]
        return torch.tensor(matches, dtype=torch.float32, device=inputs.group_ids.device)

    def _fits(self, text: str, count: int | None) -> bool:
        collapsed = collapse_blanks(text)
        match = self.pattern.fullmatch(collapsed)
        # Every span of the table is in the text, so any further one is spelled out in ordinary text.
        if match is None or (count is not None and len(re.findall(_SPAN["paper"], collapsed)) > count):
            return False
        letter = plain_answer(match[1])
        readable = re.fullmatch("[a-z]", letter) is None or letter.upper() in match[1]
        return readable and "<answer>" in text and "</answer>" in text

    def _fits_released(self, text: str, count: int | None) -> bool:
        enough = count is None or count >= self.min_spans
        return enough and self.pattern.fullmatch(normalize_response(text)) is not None
