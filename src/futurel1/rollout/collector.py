"""Collects rollout batches: prompts are answered, scored and filtered until a batch is full.

All decisions are made for all ranks together and in the order of the prompts, so that a rollout batch does not depend
on the number of processes.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from futurel1.data.encoded import EncodedSample
from futurel1.errors import ConfigError, FutureL1Error
from futurel1.interrupts import Stopped, requested
from futurel1.models.policies import LatentPolicy
from futurel1.rollout.experience import Experience, Group, join_groups
from futurel1.rollout.rollout_statistics import deviations, means, summary, within_groups
from futurel1.rollout.settings import KEPT, NO_FILTER, OUTCOMES, SKIPPED, RolloutSettings

logger = logging.getLogger(__name__)


class RolloutError(FutureL1Error, RuntimeError):
    """A rollout batch cannot be collected: no group passes the filter, or too many rewards fail."""


class PromptSource(Protocol):
    """An endless stream of prompts; an index always gives the same prompt."""

    def take(self, first: int, count: int, rank: int, world_size: int) -> Iterable[tuple[int, EncodedSample | None]]:
        """Prompts of the indices `first + rank`, `first + rank + world_size`, ... below `first + count`.

        Returns:
            (prompt index, prompt) pairs; the prompt is None for an unusable record, which was reported.
        """
        ...


class RolloutSampler(Protocol):
    """Interface that the collector needs of a policy; :class:`futurel1.rollout.GroupSampler` implements it."""

    @property
    def device(self) -> torch.device:
        """Device on which rollouts are sampled and trained on."""
        ...

    @property
    def latent_policy(self) -> LatentPolicy:
        """The policy that latents are sampled from."""
        ...

    @property
    def pad_token_id(self) -> int:
        """Id that pads prompts and responses."""
        ...

    @property
    def reward_weights(self) -> Mapping[str, float]:
        """Weight of each reward part in the total."""
        ...

    def on_collect(self) -> None:
        """Prepare for sampling a rollout batch; all ranks call it."""
        ...

    def sample_groups(self, prompts: Sequence[tuple[int, EncodedSample]]) -> tuple[list[Group], list[dict[str, Any]]]:
        """Answer and reward prompts: one group per prompt, and one plain record per rollout for the sample log."""
        ...

    def prompt_features(self, sample: EncodedSample) -> Any:
        """Features of a prompt for its group; None if they are computed with every forward pass."""
        ...

    def score_behaviour(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """(N, R) and (N, S) log-probabilities under the current policy, without gradient."""
        ...

    def on_score_reference(self) -> None:
        """Prepare for scoring under the reference; all ranks call it."""
        ...

    def score_reference(self, experience: Experience) -> Tensor | None:
        """(N, R) log-probabilities under the frozen reference; None without one."""
        ...


@dataclass
class RolloutBatch:
    """This rank's share of a rollout batch.

    Attributes:
        micro_batches: groups per minibatch and micro-batch; a micro-batch may be empty.
        total_tokens: tokens per minibatch, over all micro-batches and ranks.
        statistics: numbers to log, the same on all ranks.
    """

    micro_batches: list[list[list[Group]]]
    total_tokens: list[int]
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass
class _Sampled:
    """This rank's samples for a rollout batch so far.

    Attributes:
        kept: groups that passed the filter, including leftovers of earlier batches.
        next_index: index of the next prompt to sample.
        rounds: number of rounds of prompts.
        tally: number of prompts by outcome.
        summaries: summaries of all groups, kept or not.
    """

    kept: list[Group]
    next_index: int
    rounds: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    summaries: list[dict[str, float]] = field(default_factory=list)


def gather(value: Any) -> list[Any]:
    """Every rank's value, in order of rank; pickled, so use it for small values."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class RolloutCollector:
    """Samples, scores and filters until a rollout batch is full.

    Args:
        sampler: the policy.
        source: the prompts.
        settings: see :class:`RolloutSettings`.
        micro_batches: micro-batches per minibatch and rank (the Trainer's accumulation).
        rank: rank of this process.
        world_size: number of processes.
        log_samples: called with the number of the rollout batch and plain records of its rollouts.

    Raises:
        ConfigError: `batch_size` is not a multiple of `world_size`.
    """

    def __init__(
        self,
        sampler: RolloutSampler,
        source: PromptSource,
        settings: RolloutSettings,
        *,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        log_samples: Callable[[int, Sequence[dict[str, Any]]], None] | None = None,
    ) -> None:
        if settings.batch_size % world_size:
            raise ConfigError(
                f"rollout.batch_size={settings.batch_size} prompts cannot be shared evenly among {world_size} "
                "processes; choose a multiple"
            )
        self.sampler = sampler
        self.source = source
        self.settings = settings
        self.micro_batches = micro_batches
        self.rank = rank
        self.world_size = world_size
        self._log_samples = log_samples
        self._next_index = 0
        self._collected = 0
        self._leftovers: list[Group] = []
        self._current: list[Group] = []
        self._restored_current: Sequence[Mapping[str, Any]] | None = None
        self._stand_in: Group

    @property
    def collected(self) -> int:
        """Number of rollout batches collected so far."""
        return self._collected

    # ------------------------------------------------------------------ collecting

    def collect(self) -> RolloutBatch:
        """Collect the next rollout batch.

        Raises:
            RolloutError: no group passed the filter in `max_rounds` rounds, or too many rewards failed.
        """
        began = time.perf_counter()
        for group in self._current:
            group.vision = None  # the batch is used up, and features take most of its memory
        self.sampler.on_collect()
        # The state changes only at the end: a run that fails here resumes from before this batch.
        sampled = _Sampled(list(self._leftovers), self._next_index)
        indices = self._sample_rounds(sampled)
        totals: Counter[str] = Counter()
        for part in gather(dict(sampled.tally)):
            totals.update(part)
        self._check_size(len(indices), sampled.rounds, totals)
        chosen = sorted(indices)[: self.settings.batch_size]
        leftovers = [group for group in sampled.kept if group.prompt_index > chosen[-1]]
        current, stand_in = self._exchange(
            [group for group in sampled.kept if group.prompt_index <= chosen[-1]], chosen
        )
        batch = self._arrange(current, chosen)
        self._score(batch, leftovers)
        rows = [row for part in gather(sampled.summaries) for row in part]
        compared = gather([deviations(group, self.sampler.reward_weights) for group in current])
        batch.statistics = {
            **means(rows),
            **within_groups([row for part in compared for row in part]),
            **{f"prompts/{name}": float(totals[name]) for name in OUTCOMES},
            "prompts/sampled": float(sum(totals.values())),
            "prompts/leftover": float(len(indices) - len(chosen)),
            "rollout/rounds": float(sampled.rounds),
            "rollout/groups": float(len(chosen)),
            "rollout/seconds": time.perf_counter() - began,
        }
        self._next_index, self._collected = sampled.next_index, self._collected + 1
        self._current, self._stand_in, self._leftovers = current, stand_in, leftovers
        self._restored_current = None
        return batch

    def _sample_rounds(self, sampled: _Sampled) -> list[int]:
        """Sample rounds of prompts until enough groups are kept; returns the prompt indices of all ranks' groups."""
        size = self.settings.batch_size
        while True:
            indices = [index for part in gather([group.prompt_index for group in sampled.kept]) for index in part]
            if len(indices) >= size or sampled.rounds == self.settings.max_rounds:
                return indices
            _leave_if_stopped()
            sampled.rounds += 1
            groups = self._sample_round(sampled.next_index, sampled.tally)
            sampled.next_index += size
            sampled.summaries += [summary(group) for group in groups]
            for group in groups:
                outcome = self.settings.outcome(group)
                sampled.tally[outcome] += 1
                if outcome == KEPT:
                    sampled.kept.append(group)
            self._check_failures(groups)

    def _sample_round(self, first: int, tally: Counter[str]) -> list[Group]:
        prompts = []
        for index, sample in self.source.take(first, self.settings.batch_size, self.rank, self.world_size):
            if sample is None:
                tally[SKIPPED] += 1
            else:
                prompts.append((index, sample))
        groups, records = self.sampler.sample_groups(prompts)
        if self._log_samples is not None:
            self._log_samples(self._collected, records)
        return groups

    def _check_failures(self, groups: Sequence[Group]) -> None:
        counts = gather((sum(int((~group.valid).sum()) for group in groups), sum(len(group.valid) for group in groups)))
        failed, rollouts = sum(part[0] for part in counts), sum(part[1] for part in counts)
        if rollouts and failed > self.settings.max_failed * rollouts:
            raise RolloutError(
                f"{failed} of {rollouts} rollouts have no reward (a judge that is down, or a reward that returns NaN): "
                f"more than max_failed={self.settings.max_failed}. Nothing was trained on them; repair the reward and "
                "resume"
            )

    def _check_size(self, count: int, rounds: int, totals: Mapping[str, int]) -> None:
        """Raise an error for a rollout batch without groups, and warn about one that is not full."""
        settings = self.settings
        if not count:
            passed = f"{settings.filter_low} < mean {settings.filter_key} < {settings.filter_high}"
            rule = NO_FILTER if settings.filter_key == NO_FILTER else passed
            raise RolloutError(
                f"none of {sum(totals.values())} prompts is left after {rounds} rounds (filter: {rule}): "
                f"{describe(totals)}. Choose easier or harder prompts, a wider filter, or filter_key: none"
            )
        if count < settings.batch_size:
            logger.warning(
                "rollout batch %d has %d of %d groups after %d rounds (max_rounds): %s",
                self._collected, count, settings.batch_size, rounds, describe(totals),
            )  # fmt: skip

    def _owner(self, place: int, count: int) -> tuple[int, int]:
        """Minibatch and rank of a group, given its place among the chosen groups and their number."""
        return place * self.settings.num_minibatches // count, place % self.world_size

    def _exchange(self, groups: list[Group], chosen: Sequence[int]) -> tuple[list[Group], Group]:
        """Move every chosen group to the rank that trains on it, which balances the work.

        Returns:
            This rank's groups, and a stand-in to compute on (with weight 0) where other ranks have more micro-batches.
        """
        owner = {index: self._owner(place, len(chosen))[1] for place, index in enumerate(chosen)}
        own = [index for index in chosen if owner[index] == self.rank]
        wanted = own or [chosen[0]]
        some_idle = len(set(owner.values())) < self.world_size
        mine = {group.prompt_index: group for group in groups if group.prompt_index in wanted}
        copied = chosen[0] if some_idle else None
        moving = [group for group in groups if group.prompt_index not in own or group.prompt_index == copied]
        # One group per rank at a time, because pixels and features move along.
        for place in range(max(gather(len(moving)))):
            for parcel in gather(self._packed(moving[place]) if place < len(moving) else None):
                if parcel is not None and parcel[0]["prompt_index"] in wanted and parcel[0]["prompt_index"] not in mine:
                    state, sample, vision = parcel
                    group = self._restored(state, sample)
                    group.vision = vision
                    mine[group.prompt_index] = group
        return [mine[index] for index in own], mine[wanted[0]]

    @staticmethod
    def _packed(group: Group) -> tuple[dict[str, Any], EncodedSample, Any]:
        return group.state_dict(), group.sample, group.vision

    def _restored(self, state: Mapping[str, Any], sample: EncodedSample) -> Group:
        return Group.from_state_dict(state, sample, self.sampler.latent_policy, self.sampler.device)

    def _arrange(self, current: Sequence[Group], chosen: Sequence[int]) -> RolloutBatch:
        """Divide this rank's groups into minibatches and micro-batches, deterministically."""
        minibatch_of = {index: self._owner(place, len(chosen))[0] for place, index in enumerate(chosen)}
        minibatches: list[list[Group]] = [[] for _ in range(self.settings.num_minibatches)]
        for group in current:
            minibatches[minibatch_of[group.prompt_index]].append(group)
        arranged, totals = [], []
        for groups in minibatches:
            totals.append(sum(gather(sum(group.num_tokens for group in groups))))
            edges = [len(groups) * part // self.micro_batches for part in range(self.micro_batches + 1)]
            arranged.append([groups[start:end] for start, end in pairwise(edges)])
        return RolloutBatch(arranged, totals)

    # ------------------------------------------------------------------ scores

    def _score(self, batch: RolloutBatch, leftovers: list[Group]) -> None:
        """Score the groups that later policies will train on, while the policy that sampled them is current."""
        settings = self.settings
        behind = [] if settings.is_on_policy else [part for parts in batch.micro_batches for part in parts if part]
        chunk = max(1, settings.batch_size // (self.world_size * settings.num_minibatches * self.micro_batches))
        behind += [leftovers[start : start + chunk] for start in range(0, len(leftovers), chunk)]
        for groups in behind:
            self._remember_behaviour(groups)
        self._remember_reference(batch)

    def _remember_behaviour(self, groups: Sequence[Group]) -> None:
        """Score a micro-batch under the policy that sampled it; groups of earlier policies keep their scores."""
        if any(group.old_log_probs is None for group in groups):
            log_probs, latent_log_probs = self.sampler.score_behaviour(self._join(groups))
            self._share(groups, log_probs, "old_log_probs")
            self._share(groups, latent_log_probs, "old_latent_log_probs")

    def _remember_reference(self, batch: RolloutBatch) -> None:
        """Score every micro-batch under the reference, once for all passes; all ranks have to call it."""
        self.sampler.on_score_reference()
        for groups in (part for parts in batch.micro_batches for part in parts if part):
            reference = self.sampler.score_reference(self._join(groups))
            if reference is not None:
                self._share(groups, reference, "reference_log_probs")

    @staticmethod
    def _share(groups: Sequence[Group], values: Tensor, name: str) -> None:
        """Store (N, R) or (N, S) values in those groups that have none yet."""
        row = 0
        for group in groups:
            mask = group.rollout.latent_mask if name == "old_latent_log_probs" else group.rollout.response_mask
            rows = slice(row, row + len(mask))
            row += len(mask)
            if getattr(group, name) is None:
                setattr(group, name, values[rows, : mask.shape[1]].clone())

    def _join(
        self, groups: Sequence[Group], total_tokens: int = 1, statistics: Mapping[str, float] | None = None
    ) -> Experience:
        return join_groups(
            groups,
            pad_token_id=self.sampler.pad_token_id,
            device=self.sampler.device,
            total_tokens=total_tokens,
            statistics=statistics,
        )

    def experience(self, groups: Sequence[Group], total_tokens: int, statistics: Mapping[str, float]) -> Experience:
        """Join groups into a micro-batch; without groups (other ranks have more), a stand-in with weight 0."""
        if not groups:
            stand_in = self._join([self._stand_in], max(1, total_tokens), statistics)
            stand_in.valid = torch.zeros_like(stand_in.valid)
            return stand_in
        return self._join(groups, max(1, total_tokens), statistics)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream, current rollout batch and leftovers of all ranks; all ranks have to call it."""
        groups = {
            name: sorted(
                (state for part in gather([group.state_dict() for group in held]) for state in part),
                key=lambda state: int(state["prompt_index"]),
            )
            for name, held in (("current", self._current), ("leftovers", self._leftovers))
        }
        if self._restored_current is not None:
            groups["current"] = list(self._restored_current)
        return {"prompt_index": self._next_index, "collected": self._collected, **groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, which may come from another number of ranks.

        The current batch is mostly used up, so its prompts are encoded only when :meth:`current_batch` needs them. One
        is encoded here, to check that the records are the same.
        """
        self._next_index, self._collected = state["prompt_index"], state["collected"]
        self._current, self._restored_current = [], state["current"]
        self._load(state["current"][-1:])
        leftovers = [item for item in state["leftovers"] if item["prompt_index"] % self.world_size == self.rank]
        self._leftovers = self._load(leftovers)

    def _load(self, states: Sequence[Mapping[str, Any]]) -> list[Group]:
        groups = []
        for state in states:
            ((_, sample),) = self.source.take(state["prompt_index"], 1, 0, 1)
            if sample is None:
                raise RolloutError(f"the record of {state['id']} can no longer be used; restore it to resume")
            group = self._restored(state, sample)
            group.vision = self.sampler.prompt_features(sample)
            groups.append(group)
        return groups

    def current_batch(self) -> RolloutBatch:
        """The last collected rollout batch, for a run that was stopped inside it; all ranks have to call it."""
        if self._restored_current is not None:
            states = list(self._restored_current)
            mine = [state for place, state in enumerate(states) if self._owner(place, len(states))[1] == self.rank]
            self._current = self._load(mine)
            self._stand_in = (self._current or self._load(states[:1]))[0]
            self._restored_current = None
        chosen = sorted(index for part in gather([group.prompt_index for group in self._current]) for index in part)
        batch = self._arrange(self._current, chosen)
        self._remember_reference(batch)
        return batch


def _leave_if_stopped() -> None:
    """Stop all ranks together if one of them was asked to; nothing of this rollout batch is kept."""
    for signum in gather(requested()):
        if signum is not None:
            raise Stopped(signum)


def describe(tally: Mapping[str, int]) -> str:
    """Counts of outcomes as text."""
    return ", ".join(f"{tally.get(name, 0)} {name.replace('_', ' ')}" for name in OUTCOMES)
