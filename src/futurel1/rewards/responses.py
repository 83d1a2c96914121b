"""Parsing of responses for rewards, by the rules of the released code (`docs/rewards.md`)."""

import re

SPAN = "<|latent_start|><|latent|><|latent_end|>"
"""Text of every complete span after `normalize_response`."""

_TERMINATORS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|eot|>", "<|eot_id|>")
_END = "<|latent_end|>"
_COMPLETE_SPAN = re.compile(r"<\|latent_start\|>.*?<\|latent_end\|>", re.DOTALL)


def collapse_blanks(text: str) -> str:
    """A response without chat terminators and without blanks around ``<``, ``>`` and ``/``."""
    for token in _TERMINATORS:
        text = text.replace(token, "")
    return "".join(piece.strip() for piece in re.split("([<>/])", text))


def normalize_response(text: str) -> str:
    """Normalize a response for the rewards, in time linear in its length.

    Args:
        text: a decoded response, including special tokens.

    Returns:
        The text without chat terminators and without blanks around ``<``, ``>`` and ``/``; each complete span holds one
        LATENT.
    """
    text = collapse_blanks(text)
    # Search only up to the last END: a START after it would make the search run to the end of the text in vain.
    closed, end, rest = text.rpartition(_END)
    return _COMPLETE_SPAN.sub(SPAN, closed + end) + rest


def first_answer(text: str) -> str:
    """Content of the first ``<answer>..</answer>`` of a normalized response, ``""`` without a complete one."""
    inside, closing, _ = text.partition("<answer>")[2].partition("</answer>")
    return inside.strip() if closing else ""
