"""Whether a response has the shape of interleaved reasoning."""

import re
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.rewards.base import Reward, RewardInputs, RewardVariant
from futurel1.rewards.responses import SPAN, normalize_response

_PLAIN = r"(?:(?!</?reason>|</?answer>|<\|latent_).)*"
_CONTENT = {"paper": (_PLAIN, _PLAIN), "released": ("(?:(?!<reason>).)*?", ".*?")}
"""What may stand in a reason and in the answer."""


class FormatReward(Reward):
    """1 when a response is ``(L R)+ A`` or ``R (L R)+ A``, else 0 (Future-L1, arXiv 2606.05769).

    L is a complete span, R one ``<reason>..</reason>``, A one ``<answer>..</answer>``; nothing but blanks and chat
    terminators may stand between them.

    Args:
        order: ``"both"``, or ``"reason_first"`` for ``R (L R)+ A`` alone.
        min_spans: complete spans that a response needs; with fewer it is 0.
        variant: ``"paper"``: R and A hold no tags; ``"released"``: as the released code, in which the answer may hold
            anything, further answers too, and a reason anything but another ``<reason>``.

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
        in_reason, in_answer = _CONTENT[variant]
        reason = f"<reason>{in_reason}</reason>"
        first = f"(?:{reason})" + ("?" if order == "both" else "")
        pairs = f"(?:{re.escape(SPAN)}{reason}){{{max(1, min_spans)},}}"
        self.pattern = re.compile(f"{first}{pairs}<answer>{in_answer}</answer>", re.DOTALL)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32, 0 or 1.
        """
        matches = [self.pattern.fullmatch(normalize_response(text)) is not None for text in inputs.responses]
        return torch.tensor(matches, dtype=torch.float32, device=inputs.group_ids.device)
