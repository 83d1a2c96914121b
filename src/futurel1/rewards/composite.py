"""Weighted sum of several rewards."""

import math
from dataclasses import replace
from importlib import import_module

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.rewards.accuracy import AccuracyReward
from futurel1.rewards.base import Reward, RewardInputs, RewardOutput, RewardVariant
from futurel1.rewards.contrastive import OutcomeContrastiveReward
from futurel1.rewards.diversity import TemporalDiversityReward
from futurel1.rewards.format import FormatReward
from futurel1.rewards.judge import Judge
from futurel1.rewards.length import LengthPenalty
from futurel1.rewards.repetition import RepetitionPenalty

ACCURACY = "accuracy"
"""Name of the reward that is computed first and tells the others which answers are correct."""


class CompositeReward:
    """Weighted sum of rewards (Future-L1, arXiv 2606.05769).

    The reward named ``accuracy`` is computed first; the others read it as `inputs.correct`. Penalties return positive
    values and have negative weights; a reward of weight 0 is only computed and reported.

    Args:
        rewards: rewards by name; a string ``"module:callable"`` names your own function or other callable.
        weights: weight of each reward, by the same names.

    Raises:
        ConfigError: names that differ, a weight that is not finite, a ``"module:callable"`` that cannot be imported.
    """

    def __init__(self, rewards: dict[str, Reward | str], weights: dict[str, float]) -> None:
        if not rewards:
            raise ConfigError("rewards is empty; name at least one")
        if set(rewards) != set(weights):
            raise ConfigError(
                "rewards and weights must have the same names; without a weight: "
                f"{sorted(set(rewards) - set(weights))}, without a reward: {sorted(set(weights) - set(rewards))}"
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ConfigError(f"weights.{name} must be a finite number, got {weight}")
        self.rewards = {name: _resolve(name, reward) for name, reward in rewards.items()}
        self.weights = dict(weights)

    @classmethod
    def preset(
        cls,
        name: RewardVariant = "paper",
        *,
        judge: Judge | None = None,
        rewards: dict[str, Reward | str] | None = None,
        weights: dict[str, float] | None = None,
    ) -> "CompositeReward":
        """The six rewards of Future-L1: accuracy, format, length, repetition, contrastive and diversity.

        Args:
            name: ``"paper"``: as in its equations; ``"released"``: as in the released code, with its length penalty and
                with the weights that the paper gives the two latent terms (the code sets them to 0).
            judge: judges answers that fail the rule; None: they are wrong.
            rewards: further rewards, or replacements of the six by name.
            weights: weights of those, or other weights of the six.

        Raises:
            ConfigError: an unknown name, a judge next to an accuracy reward that would not ask it, or as for the class.
        """
        if name not in ("paper", "released"):
            raise ConfigError(f"the reward presets are 'paper' and 'released', got {name!r}")
        if judge is not None and ACCURACY in (rewards or {}):
            raise ConfigError("judge and rewards.accuracy are both given; give the judge to that reward")
        six: dict[str, Reward | str] = {
            ACCURACY: AccuracyReward(judge),
            "format": FormatReward(variant=name),
            "length": LengthPenalty(),
            "repetition": RepetitionPenalty(),
            "contrastive": OutcomeContrastiveReward(variant=name),
            "diversity": TemporalDiversityReward(),
        }
        six_weights = {
            ACCURACY: 0.9,
            "format": 0.1,
            "length": -0.001 if name == "released" else 0.0,
            "repetition": 0.0,
            "contrastive": 0.2,
            "diversity": 0.1,
        }
        return cls({**six, **(rewards or {})}, {**six_weights, **(weights or {})})

    @torch.no_grad()
    def __call__(self, inputs: RewardInputs) -> RewardOutput:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            Total, parts, and which totals are valid.

        Raises:
            ConfigError: a reward does not return a tensor of N numbers.
            JudgeError: the endpoint refuses the calls, or too many of them fail.
        """
        parts: dict[str, Tensor] = {}
        for name in sorted(self.rewards, key=lambda name: name != ACCURACY):
            parts[name] = self._part(name, inputs)
            if name == ACCURACY:
                inputs = replace(inputs, correct=parts[name])
        total = torch.zeros(len(inputs), device=inputs.group_ids.device)
        valid = torch.ones_like(total, dtype=torch.bool)
        for name, part in parts.items():
            if self.weights[name]:
                total += self.weights[name] * part
                valid &= part.isfinite()
        return RewardOutput(total.masked_fill(~valid, torch.nan), parts, valid)

    def _part(self, name: str, inputs: RewardInputs) -> Tensor:
        part = self.rewards[name](inputs)
        if not isinstance(part, Tensor) or part.shape != (len(inputs),) or part.is_complex():
            got = f"{part.dtype} of shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise ConfigError(
                f"rewards.{name} must return a tensor of {len(inputs)} numbers, one per rollout, got {got}"
            )
        return part.to(inputs.group_ids.device, torch.float32)


def _resolve(key: str, reward: Reward | str) -> Reward:
    """Return the reward itself, or the callable that a string names."""
    found: object = reward
    if isinstance(reward, str):
        module_name, _, name = reward.partition(":")
        if not module_name or not name:
            raise ConfigError(f"rewards.{key} must be a reward or 'module:callable', got {reward!r}")
        try:
            module = import_module(module_name)
        except ImportError as error:
            raise ConfigError(
                f"rewards.{key}: {reward!r} cannot be imported ({error}); is the folder of the module on PYTHONPATH?"
            ) from error
        if not hasattr(module, name):
            raise ConfigError(f"rewards.{key}: module {module_name!r} has no {name!r}")
        found = getattr(module, name)
    if isinstance(found, type):
        raise ConfigError(f"rewards.{key}: {found.__name__} is a class; give an instance, or class_path and init_args")
    if not callable(found):
        raise ConfigError(f"rewards.{key}: {reward!r} is not callable, but a {type(found).__name__}")
    return found  # type: ignore[return-value]
