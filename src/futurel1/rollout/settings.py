"""Settings of sampling and of rollout batches; in YAML their keys are under `sampling` and `rollout`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from futurel1.errors import ConfigError
from futurel1.losses.policy import ADVANTAGES, Advantage
from futurel1.models.decoding import Sampling
from futurel1.models.tokens import SpanBudget

if TYPE_CHECKING:
    from futurel1.rollout.experience import Group

KEPT, EASY, HARD, FAILED, SKIPPED = "kept", "dropped_easy", "dropped_hard", "dropped_failed", "skipped"
OUTCOMES = (KEPT, EASY, HARD, FAILED, SKIPPED)
NO_FILTER = "none"
"""A word instead of null: in nested settings, jsonargparse reads a `null` on the command line as the text "None"."""
MAX_SEED = 2**31
"""Seeds are below this limit, so that a seed and a 32-bit prompt index fit into one 64-bit number."""


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are sampled.

    Args:
        max_new_tokens: maximum number of tokens per response, latents included.
        temperature: divides the logits before a token is sampled; log-probabilities are recorded at this temperature.
        top_p: sample among the fewest most likely tokens that together have at least this probability.
        span_budget: ``checkpoint``, ``fixed`` (exactly `span_latents`) or ``loose`` (at most `span_latents`).
        span_latents: latents per span for ``fixed`` and ``loose``.
        seed: seed of the samples.
        slots: prompts that are decoded at once, 0 for as many as a batch has; when all responses to one have ended, the
            next prompt takes its place, if need be one of the next batch. Rollouts use `rollout.generation_batch_size`
            instead.
        compile: compile the decoding step, and replay it as a CUDA graph on CUDA; before the first step that takes
            minutes, which the log tells.

    Raises:
        ConfigError: a value outside its range.
    """

    max_new_tokens: int = 2048
    temperature: float = 0.9
    top_p: float = 0.99
    span_budget: Literal["checkpoint", "fixed", "loose"] = "checkpoint"
    span_latents: int = 8
    seed: int = 0
    slots: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.slots < 0:
            raise ConfigError(f"slots must be at least 0 (as many as a batch has), got {self.slots}")
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"seed must be at least 0 and below {MAX_SEED}, got {self.seed}")
        Sampling(True, self.temperature, top_p=self.top_p)  # raises for values outside their range
        self.budget()

    def budget(self) -> SpanBudget | None:
        """Latents per span; None leaves it to the checkpoint."""
        return None if self.span_budget == "checkpoint" else SpanBudget(self.span_budget, self.span_latents)

    def arguments(self) -> dict[str, Any]:
        """All but the seed, as keyword arguments of :meth:`futurel1.models.LatentReasoner.generate`."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "budget": self.budget(),
            "slots": self.slots or None,
            "compile": self.compile,
        }


@dataclass(frozen=True)
class RolloutSettings:
    """How rollout batches are collected and used (LA-DAPO; Future-L1, arXiv 2606.05769, Section 3.3).

    Args:
        num_rollouts: G, responses per prompt.
        batch_size: number of groups in a rollout batch, over all ranks.
        generation_batch_size: number of prompts that a device decodes at once; when all responses to one have ended,
            the next prompt takes its place.
        num_minibatches: number of optimizer steps per pass over a rollout batch.
        num_epochs: number of passes over a rollout batch.
        advantage: ``grpo`` (divided by the group's std), ``dr_grpo`` (not divided) or ``rloo`` (leave one out).
        filter_key: reward part (or ``total``) whose group mean decides whether a group is kept; ``none`` keeps all.
        filter_low: groups with this mean or a lower one are too hard.
        filter_high: groups with this mean or a higher one are too easy.
        max_rounds: maximum number of rounds of `batch_size` prompts for one rollout batch.
        max_failed: the run stops if more than this share of a round's rollouts has no reward.

    Raises:
        ConfigError: a value outside its range.
    """

    num_rollouts: int = 8
    batch_size: int = 64
    generation_batch_size: int = 8
    num_minibatches: int = 1
    num_epochs: int = 1
    advantage: Advantage = "grpo"
    filter_key: str = "accuracy"
    filter_low: float = 0.1
    filter_high: float = 0.9
    max_rounds: int = 20
    max_failed: float = 0.5

    def __post_init__(self) -> None:
        if self.num_rollouts < 2:
            raise ConfigError(f"num_rollouts must be at least 2, got {self.num_rollouts}: advantages compare rollouts")
        for name in ("batch_size", "generation_batch_size", "num_minibatches", "num_epochs", "max_rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_minibatches > self.batch_size:
            raise ConfigError(
                f"num_minibatches={self.num_minibatches} of a rollout batch of {self.batch_size} groups leaves empty "
                "ones; choose fewer"
            )
        if self.advantage not in ADVANTAGES:
            raise ConfigError(f"advantage is one of {', '.join(ADVANTAGES)}, got {self.advantage!r}")
        if not self.filter_low < self.filter_high:
            raise ConfigError(f"filter_low must be below filter_high, got {self.filter_low} and {self.filter_high}")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed is a share between 0 and 1, got {self.max_failed}")

    @property
    def is_on_policy(self) -> bool:
        """Whether a rollout batch is used for a single update, so that the current policy sampled all of it."""
        return self.num_minibatches * self.num_epochs == 1

    def outcome(self, group: Group) -> str:
        """Whether a group is kept, or why not: one of `OUTCOMES`.

        Raises:
            ConfigError: `filter_key` names no part of the group's reward.
        """
        if int(group.valid.sum()) < 2:
            return FAILED
        key = self.filter_key
        if key == NO_FILTER:
            return KEPT
        self.check_filter(group.parts)
        values = group.rewards if key == "total" else group.parts[key]
        # A part without a weight may have failed although the total is known.
        values = values[group.valid & values.isfinite()]
        if len(values) < 2:
            return FAILED
        # In float64, a mean of 1 in 10 equals 0.1 instead of being slightly above.
        mean = float(values.double().mean())
        if mean <= self.filter_low:
            return HARD
        return EASY if mean >= self.filter_high else KEPT

    def check_filter(self, parts: Iterable[str]) -> None:
        """Raise a `ConfigError` unless `filter_key` is ``total``, ``none`` or one of these reward parts."""
        known = ["total", *parts]
        if self.filter_key not in (NO_FILTER, *known):
            raise ConfigError(
                f"filter_key={self.filter_key!r} is no reward part; there are {', '.join(known)} "
                f"({NO_FILTER}: keep all groups)"
            )
