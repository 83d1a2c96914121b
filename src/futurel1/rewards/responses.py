"""How rewards read a response; the rules are those of the released code (`docs/rewards.md`)."""

import re

SPAN = "<|latent_start|><|latent|><|latent_end|>"
"""How every complete span reads after `normalize_response`."""

_TERMINATORS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|eot|>", "<|eot_id|>")
_END = "<|latent_end|>"
_COMPLETE_SPAN = re.compile(r"<\|latent_start\|>.*?<\|latent_end\|>", re.DOTALL)


def collapse_blanks(text: str) -> str:
    """A response without chat terminators and without blanks around ``<``, ``>`` and ``/``."""
    for token in _TERMINATORS:
        text = text.replace(token, "")
    return "".join(piece.strip() for piece in re.split("([<>/])", text))


def normalize_response(text: str) -> str:
    """A response as rewards read it; takes time linear in its length, whatever was written.

    Args:
        text: a decoded response, special tokens kept.

    Returns:
        The text without chat terminators and without blanks around ``<``, ``>`` and ``/``, each complete span with one
        LATENT in it.
    """
    text = collapse_blanks(text)
    # A START behind the last END would be searched to the end of the text for nothing.
    closed, end, rest = text.rpartition(_END)
    return _COMPLETE_SPAN.sub(SPAN, closed + end) + rest


def first_answer(text: str) -> str:
    """Content of the first ``<answer>..</answer>`` of a normalized response, ``""`` without a complete one."""
    inside, closing, _ = text.partition("<answer>")[2].partition("</answer>")
    return inside.strip() if closing else ""
