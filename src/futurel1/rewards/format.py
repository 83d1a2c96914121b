"""Whether a response has the shape of interleaved reasoning."""

import re
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.metrics.functional import plain_answer
from futurel1.rewards.base import Reward, RewardInputs, RewardVariant
from futurel1.rewards.responses import SPAN, collapse_blanks, normalize_response

# ASCII: letters that merely fold to the letters of a tag name make no tag.
_PLAIN = r"(?:(?!</?(?ai:reason|answer|ans)>|<\|latent_).)*"
_CONTENT = {"paper": (_PLAIN, _PLAIN), "released": ("(?:(?!<reason>).)*?", ".*?")}
"""What may stand in a reason and in the answer."""

_SPAN = {"paper": r"<\|latent_start\|>(?:<\|latent\|>)*<\|latent_end\|>", "released": re.escape(SPAN)}
"""How a span reads: with its latents and nothing else, or as `normalize_response` leaves it."""


class FormatReward(Reward):
    """1 when a response is ``(L R)+ A`` or ``R (L R)+ A``, else 0 (Future-L1, arXiv 2606.05769).

    L is a complete span, R one ``<reason>..</reason>``, A one ``<answer>..</answer>``; nothing but blanks and chat
    terminators may stand between them. A span is one of the rollout's span table (`inputs.spans()`): a response that
    spells further ones out in ordinary text gets 0. Inputs without latents have no table; their text is believed.

    The benchmarks read every answer that this reward accepts: the tags of A stand as they are written here, without the
    blanks that R may have inside its tags, and an answer of one letter is an upper-case letter of ASCII.

    Args:
        order: ``"both"``, or ``"reason_first"`` for ``R (L R)+ A`` alone.
        min_spans: complete spans that a response needs; with fewer it is 0.
        variant: ``"paper"``: the above, and R and A hold no tags; ``"released"``: as the released code, in which a span
            is what the text calls one and may hold anything, all tags may have blanks in them, the answer may hold
            anything, further answers too, and a reason anything but another ``<reason>``. `min_spans`, which that code
            does not have, counts spans of the table here too.

    Raises:
        ConfigError: a value outside its choices.
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
        # The released code knows no table.
        spans = inputs.spans() if self.variant == "paper" or self.min_spans else None
        counts = [None] * len(inputs) if spans is None else spans.tolist()
        fits = self._fits if self.variant == "paper" else self._fits_released
        matches = [fits(text, count) for text, count in zip(inputs.responses, counts, strict=True)]
        return torch.tensor(matches, dtype=torch.float32, device=inputs.group_ids.device)

    def _fits(self, text: str, count: int | None) -> bool:
        collapsed = collapse_blanks(text)
        match = self.pattern.fullmatch(collapsed)
        # Every span of the table is in the text, so one more there is spelled out.
        if match is None or (count is not None and len(re.findall(_SPAN["paper"], collapsed)) > count):
            return False
        letter = plain_answer(match[1])
        readable = re.fullmatch("[a-z]", letter) is None or letter.upper() in match[1]
        return readable and "<answer>" in text and "</answer>" in text

    def _fits_released(self, text: str, count: int | None) -> bool:
        enough = count is None or count >= self.min_spans
        return enough and self.pattern.fullmatch(normalize_response(text)) is not None
