"""Penalty for repetitive responses."""

import re
from functools import lru_cache

import torch
from torch import Tensor

from futurel1.rewards.base import Reward, RewardInputs
from futurel1.rewards.responses import normalize_response

REPETITION_LIMIT = 0.5
"""A response with a higher score is repetitive."""

_GRAM = 4
_WINDOWS = (50, 25)
_SPECIAL_TOKEN = re.compile(r"<\|.*?\|>")
_TAG = re.compile("</?(?:think|reason|answer)>")


# Cached because accuracy and repetition both score every response of a rollout batch.
@lru_cache(maxsize=1024)
def repetition_score(response: str) -> float:
    """Share of a response that is repetition, by the rule of the released code.

    Args:
        response: a decoded response, including special tokens.

    Returns:
        0 to 1, the largest of: the share of repeated 4-grams; from 100 words on, the share covered by the longest run
        of immediate repeats of one window of 50 or 25 words; and, with more than two lines of over 10 characters, the
        share of repeated lines. 0 below five words.
    """
    text = normalize_response(response)
    words = _TAG.sub(" ", _SPECIAL_TOKEN.sub(" ", text)).split()
    if len(words) <= _GRAM:
        return 0.0
    grams = list(zip(*(words[start:] for start in range(_GRAM)), strict=False))
    rates = [1 - len(set(grams)) / len(grams)]
    if len(words) >= 2 * max(_WINDOWS):
        rates += [_repeated_words(words, window) / len(words) for window in _WINDOWS]
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 10]
    if len(lines) > 2:
        rates.append(1 - len(set(lines)) / len(lines))
    return max(rates)


def _repeated_words(words: list[str], window: int) -> int:
    """Words in the longest run of one window and its immediate repeats; 0 without a repeat."""
    longest = run = 0
    for word, later in zip(words, words[window:], strict=False):
        run = run + 1 if word == later else 0
        longest = max(longest, run)
    return (longest // window + 1) * window if longest >= window else 0


class RepetitionPenalty(Reward):
    """Repetitiveness of a response; a penalty, so its weight is negative or 0.

    With weight 0, as in both presets, repetition acts through `AccuracyReward`, which is -1 above its limit.
    """

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32, 0 to 1, see `repetition_score`.
        """
        scores = [repetition_score(response) for response in inputs.responses]
        return torch.tensor(scores, dtype=torch.float32, device=inputs.group_ids.device)
