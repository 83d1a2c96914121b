"""Rewards of rollouts, and the judge that rewards and benchmarks may ask; all independent of Lightning.

PyTorch is imported when a reward is first used, so that the judge stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from futurel1.rewards.judge import Judge, Verdict
from futurel1.rewards.judge_prompts import AnswerItem, ResponseItem
from futurel1.rewards.judge_stats import JudgeError, JudgeStats

if TYPE_CHECKING:
    from futurel1.rewards.accuracy import AccuracyReward
    from futurel1.rewards.base import Reward, RewardInputs, RewardOutput
    from futurel1.rewards.composite import CompositeReward
    from futurel1.rewards.contrastive import OutcomeContrastiveReward
    from futurel1.rewards.diversity import TemporalDiversityReward
    from futurel1.rewards.format import FormatReward
    from futurel1.rewards.length import LengthPenalty, OverlongPenalty
    from futurel1.rewards.repetition import RepetitionPenalty

__all__ = [
    "AccuracyReward",
    "AnswerItem",
    "CompositeReward",
    "FormatReward",
    "Judge",
    "JudgeError",
    "JudgeStats",
    "LengthPenalty",
    "OutcomeContrastiveReward",
    "OverlongPenalty",
    "RepetitionPenalty",
    "ResponseItem",
    "Reward",
    "RewardInputs",
    "RewardOutput",
    "TemporalDiversityReward",
    "Verdict",
]

_FILES = {
    "AccuracyReward": "accuracy",
    "CompositeReward": "composite",
    "FormatReward": "format",
    "LengthPenalty": "length",
    "OutcomeContrastiveReward": "contrastive",
    "OverlongPenalty": "length",
    "RepetitionPenalty": "repetition",
    "Reward": "base",
    "RewardInputs": "base",
    "RewardOutput": "base",
    "TemporalDiversityReward": "diversity",
}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
