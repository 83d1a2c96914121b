"""The train loader of reinforcement learning: iterating over it collects rollouts."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from futurel1.errors import ConfigError
from futurel1.rollout.collector import RolloutBatch, RolloutCollector
from futurel1.rollout.experience import Experience

_REMEDY = (
    "Resume with the same rollout.batch_size, num_minibatches, num_epochs and accumulate_grad_batches, or start a new "
    "run from the weights (model.init_from)"
)


class ExperienceLoader:
    """Yields micro-batches of experience; requesting the first of a rollout batch collects that batch.

    It has a length because Lightning prefetches from loaders without one, and would sample the next rollout batch
    *before* the update. Its `state_dict` tells Lightning that it can be resumed. The rollouts are in its
    `collection_state`, which its owner saves, because Lightning restores loaders only from some checkpoints.

    Args:
        collector: collects rollout batches.
        batches_per_epoch: number of rollout batches per pass.
        position: returns the epoch and the number of its micro-batches that are done, called when a pass begins; None:
            this loader's own count.
        limit: returns the number of micro-batches after which a pass is cut short, called when it begins.
    """

    def __init__(
        self,
        collector: RolloutCollector,
        batches_per_epoch: int,
        position: Callable[[], tuple[int, int]] | None = None,
        limit: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.collector = collector
        self._batches_per_epoch = batches_per_epoch
        self._position = position
        self._limit = limit
        self._done = 0
        self._restored: Mapping[str, Any] | None = None

    @property
    def per_rollout_batch(self) -> int:
        """Number of micro-batches per rollout batch."""
        settings = self.collector.settings
        return settings.num_epochs * settings.num_minibatches * self.collector.micro_batches

    def __len__(self) -> int:
        return self._batches_per_epoch * self.per_rollout_batch

    def __iter__(self) -> Iterator[Experience]:
        length = int(min(len(self), self._limit()))
        if length < 1:
            return
        epoch, done = divmod(self._done, length) if self._position is None else self._position()
        if self._restored is not None:
            self._check(self._restored["per_rollout_batch"], within_epoch=0 < done < length)
            self.collector.load_state_dict(self._restored["collector"])
            self._restored = None
        first, last = epoch * length + done, (epoch + 1) * length
        batch: RolloutBatch | None = None
        for place in range(first, last):
            number, inside = divmod(place, self.per_rollout_batch)
            if batch is None or inside == 0:
                batch = self._rollout_batch(number)
            minibatch, part = divmod(inside, self.collector.micro_batches)
            minibatch %= len(batch.micro_batches)
            self._done = place + 1
            yield self.collector.experience(
                batch.micro_batches[minibatch][part],
                batch.total_tokens[minibatch],
                batch.statistics if inside == 0 else {},
            )

    def _rollout_batch(self, number: int) -> RolloutBatch:
        if number == self.collector.collected:
            return self.collector.collect()
        if number == self.collector.collected - 1:
            return self.collector.current_batch()
        raise ConfigError(
            f"cannot continue with rollout batch {number}, counted from 0: {self.collector.collected} were collected. "
            f"{_REMEDY}"
        )

    def _check(self, per_rollout_batch: int, within_epoch: bool) -> None:
        if within_epoch and per_rollout_batch != self.per_rollout_batch:
            raise ConfigError(
                f"cannot continue inside of an epoch: a rollout batch made {per_rollout_batch} micro-batches, and now "
                f"makes {self.per_rollout_batch}. {_REMEDY}"
            )

    def state_dict(self) -> dict[str, int]:
        """Number of micro-batches yielded so far."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the saved number of micro-batches (with `position`: at that position)."""
        self._done = state["done"]

    def collection_state(self) -> dict[str, Any]:
        """State of the collector; all ranks have to call it."""
        if self._restored is not None:
            return dict(self._restored)
        return {
            "done": self._done,
            "per_rollout_batch": self.per_rollout_batch,
            "collector": self.collector.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after the last yielded micro-batch (with `position`: at that position).

        Prompts of pending rollouts are encoded again when the next micro-batch is requested.
        """
        self._done, self._restored = state["done"], state
