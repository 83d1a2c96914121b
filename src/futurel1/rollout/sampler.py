"""Samples responses of the policy, rewards them and scores them."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from futurel1.data import PromptBatch
from futurel1.data.encoded import EncodedSample
from futurel1.data.samples import PromptInfo
from futurel1.interrupts import raise_if_requested
from futurel1.losses import group_advantages
from futurel1.models.decoding import PromptSource, Rollout
from futurel1.models.policies import LatentPolicy
from futurel1.models.transcript import Transcript, transcripts
from futurel1.rewards import CompositeReward, RewardInputs, RewardOutput
from futurel1.rollout.experience import (
    Experience,
    Group,
    join_rollouts,
    move_vision,
    prompt_batch,
)
from futurel1.rollout.policy_models import PolicyModels, rollout_scores
from futurel1.rollout.settings import RolloutSettings, SamplingSettings

logger = logging.getLogger(__name__)
SECONDS_OF_SILENCE = 30.0
"""Time between log messages while rollouts are sampled and the Trainer's progress bar stands still."""
SEED_STRIDE = 2**32
"""Distance between the sampling seeds of two seeds; below this number of prompts they do not overlap."""


class GroupSampler:
    """Samples groups of rollouts and rewards them; a :class:`futurel1.rollout.RolloutSampler`.

    Args:
        models: the policy and the reference.
        reward: reward of rollouts.
        latent_policy: how latents are sampled.
        rollout: number of rollouts per prompt, number of prompts at once, and how rewards become advantages.
        sampling: how responses are sampled.
        precision: context of the forward passes, such as the Trainer's autocast, because collecting runs outside the
            Trainer's steps.
    """

    def __init__(
        self,
        models: PolicyModels,
        reward: CompositeReward,
        latent_policy: LatentPolicy,
        rollout: RolloutSettings,
        sampling: SamplingSettings,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.models = models
        self.reward = reward
        self.latent_policy = latent_policy
        self.rollout = rollout
        self.sampling = sampling
        self._precision = precision
        self._tokenizer = models.policy.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Device on which rollouts are sampled and trained on."""
        return self.models.device

    @property
    def pad_token_id(self) -> int:
        """Id that pads prompts and responses."""
        return int(self._tokenizer.pad_token_id)

    @property
    def reward_weights(self) -> Mapping[str, float]:
        """Weight of each reward part in the total."""
        return self.reward.weights

    @contextmanager
    def _no_grad(self) -> Iterator[None]:
        with self._precision(), torch.no_grad():
            yield

    def on_collect(self) -> None:
        """Prepare for sampling with the current weights; all ranks have to call it."""
        self.models.refresh()

    # ------------------------------------------------------------------ sampling

    def sample_groups(self, prompts: Sequence[tuple[int, EncodedSample]]) -> tuple[list[Group], list[dict[str, Any]]]:
        """Sample `num_rollouts` responses per prompt and reward them.

        Args:
            prompts: pairs of an index in the stream of prompts and the prompt.

        Returns:
            One group per prompt, and one plain record per rollout: prompt index, id, prompt, response, answer and
            reward parts.
        """
        if not prompts:
            return [], []
        rollouts, visions, texts = self._answer(prompts)
        infos = [sample.info for _, sample in prompts]
        output = self.rewarded(join_rollouts(rollouts, self.pad_token_id), texts, infos)
        groups = []
        branches = self.rollout.num_rollouts
        group_ids = torch.arange(len(prompts), device=self.device).repeat_interleave(branches)
        advantages = group_advantages(output.total, group_ids, output.valid, self.rollout.advantage)
        for place, (prompt_index, sample) in enumerate(prompts):
            rows = slice(place * branches, (place + 1) * branches)
            groups.append(
                Group(
                    prompt_index=prompt_index,
                    sample=sample,
                    rollout=rollouts[place],
                    parts={name: values[rows] for name, values in output.parts.items()},
                    rewards=output.total[rows],
                    valid=output.valid[rows],
                    advantages=advantages[rows],
                    vision=visions[place],
                )
            )
        return groups, list(_records(groups, texts))

    def _answer(
        self, prompts: Sequence[tuple[int, EncodedSample]]
    ) -> tuple[list[Rollout], list[Any], list[Transcript]]:
        """Rollouts and, if they stay valid, features of every prompt; the text of every rollout."""
        rollouts: list[Rollout] = []
        visions: list[Any] = []
        texts: list[Transcript] = []
        # Features of a trainable tower are stale after the next update.
        keep = not self.models.policy.vision_is_trainable

        def sources() -> Iterator[PromptSource]:
            for prompt_index, sample in prompts:
                if not torch.distributed.is_initialized():  # several ranks stop together, between rounds
                    raise_if_requested()
                vision = self._encode(sample)
                visions.append(move_vision(vision, torch.device("cpu")) if keep else None)
                seed = self.sampling.seed * SEED_STRIDE + prompt_index
                yield PromptSource(prompt_batch([sample], self.pad_token_id, self.device), seed, vision)

        settings = {**self.sampling.arguments(), "slots": self.rollout.generation_batch_size}
        said = time.monotonic()
        with self._no_grad(), self.models.merged():
            for rollout in self.models.sampling.generate_each(
                sources(), num_branches=self.rollout.num_rollouts, do_sample=True, latent_policy=self.latent_policy,
                **settings,
            ):  # fmt: skip
                texts += transcripts(rollout, self._tokenizer)
                rollouts.append(rollout)
                if time.monotonic() - said > SECONDS_OF_SILENCE:
                    said = time.monotonic()
                    logger.info("rollouts: %d of %d prompts of this round are answered", len(rollouts), len(prompts))
        return rollouts, visions, texts

    def _encode(self, sample: EncodedSample) -> Any:
        """Features of a prompt by itself: in a batch they would be rounded in another way for every batch."""
        return self.models.sampling.encode(prompt_batch([sample], self.pad_token_id, self.device))

    def prompt_features(self, sample: EncodedSample) -> Any:
        """Features that a group of this prompt has, to the bit; None if the vision tower is trained."""
        if self.models.policy.vision_is_trainable:
            return None
        with self._no_grad():
            return move_vision(self._encode(sample), torch.device("cpu"))

    def answer_greedily(self, batch: PromptBatch) -> dict[str, Tensor]:
        """Decode one greedy response per prompt, with latents as predicted.

        Returns:
            (B,) columns: every reward part, ``reward``, ``response_length`` and ``spans``.
        """
        with self.models.merged():
            rollout = self.models.sampling.generate(
                batch, max_new_tokens=self.sampling.max_new_tokens, budget=self.sampling.budget(),
                seed=self.sampling.seed,
            )  # fmt: skip
        texts = transcripts(rollout, self._tokenizer)
        output = self.rewarded(rollout, texts, batch.info)
        return {
            **output.parts,
            "reward": output.total,
            "response_length": rollout.response_mask.sum(dim=1),
            "spans": torch.tensor([float(len(text.spans)) for text in texts], device=self.device),
        }

    def rewarded(self, rollout: Rollout, texts: Sequence[Transcript], infos: Sequence[PromptInfo]) -> RewardOutput:
        """Rewards of all rollouts of several prompts at once, so that a judge gets all of them together."""
        branches = rollout.num_branches
        rows = [info for info in infos for _ in range(branches)]
        lengths = [-1 if info.reference_length is None else info.reference_length for info in rows]
        table = rollout.span_table
        return self.reward(
            RewardInputs(
                responses=[text.text for text in texts],
                answers=[str(info.answer) for info in rows],
                problems=[str(info.question) for info in rows],
                group_ids=torch.arange(len(infos), device=rollout.responses.device).repeat_interleave(branches),
                response_lengths=rollout.response_mask.sum(dim=1),
                reference_lengths=torch.tensor(lengths, device=rollout.responses.device),
                latents=rollout.latents,
                latent_mask=rollout.latent_mask,
                span_ids=rollout.span_ids,
                span_counts=torch.bincount(table[table[:, 3] >= 0, 0], minlength=len(rollout)),
            )
        )

    # ------------------------------------------------------------------ scoring

    def score_behaviour(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """(N, R) and (N, S) log-probabilities under the current policy, without gradient."""
        with self._no_grad():
            scores = rollout_scores(self.models.sampling, experience)
        return scores.log_probs, scores.latent_log_probs

    def on_score_reference(self) -> None:
        """Prepare for :meth:`score_reference`; all ranks have to call it."""
        self.models.prepare_reference()

    def score_reference(self, experience: Experience) -> Tensor | None:
        """(N, R) log-probabilities under the start weights; None without a KL term."""
        with self._no_grad():
            scores = self.models.reference_scores(experience)
        return None if scores is None else scores.log_probs


def _records(groups: Sequence[Group], texts: Sequence[Transcript]) -> Iterator[dict[str, Any]]:
    written = iter(texts)
    for group in groups:
        for row in range(len(group.rollout)):
            text = next(written)
            numbers = {name: values[row] for name, values in group.parts.items()}
            numbers = {"reward": group.rewards[row], **numbers, "advantage": group.advantages[row]}
            plain = {name: float(value) for name, value in numbers.items()}
            yield {
                "prompt_index": group.prompt_index,
                "id": group.sample.sample_id,
                "prompt": group.sample.info.question,
                "response": text.readable,
                "answer": group.sample.info.answer,
                "finish_reason": text.finish_reason,
                **{name: value if math.isfinite(value) else None for name, value in plain.items()},
            }
