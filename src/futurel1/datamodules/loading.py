"""Plan which records form which batch on which rank before an epoch starts, and resume exactly in mid-epoch."""

import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from futurel1.data import SFTBatch
from futurel1.data.collate import SFTCollator, SFTDataset
from futurel1.data.fetching import fetch
from futurel1.data.mixtures import Mixture, shard_order
from futurel1.errors import ConfigError
from futurel1.models import IGNORE, LatentTokens, find_spans, learned_latents

Totals = tuple[int, int]
Steps = list[list[list[int]]]
"""Per step, per rank, the record numbers of its batch."""


def plan_batches(
    size: int,
    *,
    batch_size: int,
    world_size: int = 1,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    lengths: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    tokens_per_batch: int | None = None,
    mixture: Mixture | None = None,
    shards: Sequence[range] = (),
    shuffle_shards: int = 16,
) -> Steps:
    """Plan one epoch for all ranks.

    Every record occurs in the plan exactly once, in a mixture as often as that draws it. Where ranks would get unequal
    numbers of batches, the gap is filled with ``~i``: record `i` without labels, which keeps ranks in step and weighs
    nothing.

    Args:
        size: number of records.
        batch_size: rows per batch and rank, if `tokens_per_batch` is not given. Rank `r` takes the `r`-th part of each
            run of ``batch_size * world_size`` records, so that a global batch does not depend on the number of ranks.
        world_size: number of ranks.
        seed: seed of the order.
        epoch: number of the epoch; every epoch has another order.
        shuffle: random order; False: the order of the records.
        lengths: (size,) tokens of each record, for `tokens_per_batch`.
        tokens_per_batch: most padded tokens (rows times longest row) of a batch; records of similar length go together.
        mixture: draws the records of the epoch, `size` of them; not with `tokens_per_batch`.
        shards: numbers of the records of each packed shard, which are then read one window after the other; not with
            `tokens_per_batch` or `mixture`.
        shuffle_shards: shards of a window, whose records are shuffled together.

    Returns:
        Per step, per rank, the record numbers of its batch.

    Raises:
        ConfigError: a number below 1, lengths that are missing or not one per record, or a record longer than the
            budget.
    """
    if min(size, batch_size, world_size) < 1:
        raise ConfigError(f"size, batch_size and world_size must be at least 1, got {size}, {batch_size}, {world_size}")
    generator = random.Random(f"{seed}:{epoch}")
    order = list(range(size)) if mixture is None else mixture.draw(epoch, shuffle)
    if tokens_per_batch is None:
        if shuffle and shards and mixture is None:
            order = shard_order(shards, shuffle_shards, generator)
        elif shuffle:
            generator.shuffle(order)
        step = batch_size * world_size
        runs = [order[i : i + step] for i in range(0, size, step)]
        steps = [[run[r * batch_size : (r + 1) * batch_size] for r in range(world_size)] for run in runs]
    else:
        if tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
        if lengths is None or len(lengths) != size:
            given = "none" if lengths is None else len(lengths)
            raise ConfigError(f"tokens_per_batch needs the length of each of {size} records, got {given}")
        # Epochs reorder the same batches, because a Trainer reads a loader's length only once.
        if shuffle:
            random.Random(f"{seed}:pack").shuffle(order)
        batches = _pack(order, lengths, tokens_per_batch)
        if shuffle:
            generator.shuffle(batches)
        steps = [batches[i : i + world_size] for i in range(0, len(batches), world_size)]
        steps[-1] += [[] for _ in range(world_size - len(steps[-1]))]
    return [[batch or [~order[0]] for batch in step] for step in steps]


POOL_BATCHES = 64
"""Size, in batches, of a pool of records sorted by length: random order across pools, similar lengths within one."""


def _pack(order: list[int], lengths: np.ndarray[Any, np.dtype[np.int64]], budget: int) -> list[list[int]]:
    longest = int(lengths.max())
    if longest > budget:
        raise ConfigError(
            f"record {int(lengths.argmax()) + 1} of {len(lengths)} has {longest} tokens, more than "
            f"tokens_per_batch={budget}; raise tokens_per_batch, or drop the record"
        )
    pool_size = max(1, POOL_BATCHES * budget // max(1, int(lengths.mean())))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool_size):
        batch: list[int] = []
        for number in sorted(order[start : start + pool_size], key=lambda number: int(lengths[number])):
            # Records are sorted by length, so the newest record is the longest of its batch.
            if batch and (len(batch) + 1) * int(lengths[number]) > budget:
                batches.append(batch)
                batch = []
            batch.append(number)
        batches.append(batch)
    return batches


class PlannedLoader:
    """A sized, stateful loader of planned batches that carry the token totals of their optimizer step.

    `state_dict` counts batches that were yielded, not batches that workers prefetched, so a run resumed in the middle
    of an epoch continues with the very next record. Under a Trainer, `position` takes precedence over the loader's own
    count: Lightning restores a loader's state only for some checkpoints (not for those of an epoch's end), and repeats
    the batch during which an exception checkpoint was written.

    Args:
        dataset: encoded records.
        plan: epoch to steps to ranks to record numbers, see :func:`plan_batches`.
        rank: rank of this process in the plan.
        tokens: latent token ids, to count latents.
        pad_token_id: id that fills the padding.
        num_workers: processes that decode and encode.
        window: returns the number of batches per optimizer step (gradient accumulation); called for every step.
        reduce: sums (tokens, latents) over ranks.
        fixed_epoch: always use the plan of epoch 0 (validation).
        position: returns the epoch and the number of its finished batches; called when a pass begins. None: use the
            loader's own count.
        limit: returns the number of batches after which an epoch is cut short; called when a pass begins.
    """

    def __init__(
        self,
        dataset: SFTDataset,
        plan: Callable[[int], Steps],
        *,
        rank: int,
        tokens: LatentTokens,
        pad_token_id: int,
        num_workers: int = 0,
        window: Callable[[], int] = lambda: 1,
        reduce: Callable[[Totals], Totals] = lambda totals: totals,
        fixed_epoch: bool = False,
        position: Callable[[], tuple[int, int]] | None = None,
        limit: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.dataset = dataset
        self._plan = plan
        self._rank = rank
        self._tokens = tokens
        self._collate = SFTCollator(pad_token_id)
        self._num_workers = num_workers
        self._window = window
        self._reduce = reduce
        self._fixed_epoch = fixed_epoch
        self._position = position
        self._limit = limit
        self._started = False
        self._resuming = False
        self._epoch, self._done = 0, 0
        self._steps = plan(0)
        self._digest = _digest(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def _go_to(self, epoch: int, done: int) -> None:
        if epoch != self._epoch:
            self._steps = self._plan(epoch)
            self._digest = _digest(self._steps)
        self._epoch, self._done = epoch, done

    def state_dict(self) -> dict[str, int]:
        """Epoch, number of its batches that were yielded, and a digest of its plan."""
        return {"epoch": self._epoch, "batches": self._done, "plan": self._digest}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last batch that had been yielded when `state` was taken.

        Raises:
            ConfigError: `state` is from the middle of an epoch whose plan differs from the one here.
        """
        epoch, done = state["epoch"], state["batches"]
        self._go_to(epoch, done)
        if done and state["plan"] != self._digest:
            raise ConfigError(
                f"cannot continue after batch {done} of epoch {epoch}: its batches ({len(self)} here) are not those of "
                "the interrupted run, records would be missed or repeated. Resume with the same data, weights, seed, "
                "shuffle, tokens_per_batch and batch_size x devices, or start a new run from the weights "
                "(model.init_from)"
            )
        self._resuming = True

    def _enter_epoch(self) -> None:
        if self._position is not None:
            epoch, done = self._position()
            self._go_to(0 if self._fixed_epoch else epoch, done)
            return
        finished = self._done >= len(self._steps)
        fresh = not self._started and not self._resuming
        if not fresh and (finished or not self._resuming):
            self._go_to(self._epoch + (0 if self._fixed_epoch else 1), 0)
        self._started, self._resuming = True, False

    def __iter__(self) -> Iterator[SFTBatch]:
        # A generator: nothing happens before the first batch is requested, however many iterators are made.
        self._enter_epoch()
        end = int(min(len(self._steps), self._limit()))
        numbers = [step[self._rank] for step in self._steps[self._done : end]]
        pin_memory = torch.cuda.is_available()
        fetched = fetch(self.dataset, numbers, self._collate, num_workers=self._num_workers, pin_memory=pin_memory)
        batches = map(_without_stand_ins, numbers, fetched)
        while self._done < end:
            # Windows are aligned to the epoch, like the Trainer's accumulation.
            window = self._window()
            held = [next(batches) for _ in range(min(window - self._done % window, end - self._done))]
            tokens, latents = self._reduce(count_totals(held, self._tokens))
            for batch in held:
                self._done += 1
                yield replace(batch, total_tokens=tokens, total_latents=latents)


def _without_stand_ins(numbers: list[int], batch: SFTBatch) -> SFTBatch:
    """Remove the names from a batch that only keeps ranks in step, so that no record is reported twice."""
    only_fills = all(number < 0 for number in numbers) or len(batch.skipped) == len(numbers)
    return replace(batch, sample_ids=()) if only_fills else batch


def _digest(steps: Steps) -> int:
    """Digest of the records of each step, independent of the ranks that have them."""
    digest = 0
    for step in steps:
        numbers = [number for batch in step for number in batch if number >= 0]
        digest = zlib.crc32(np.array([len(numbers), *numbers], dtype=np.int64).tobytes(), digest)
    return digest


def count_totals(batches: Sequence[SFTBatch], tokens: LatentTokens) -> Totals:
    """Count labelled tokens and latents of learned turns in some batches: the denominators of an optimizer step."""
    labelled = sum(
        int(((batch.labels[:, 1:] != IGNORE) & (batch.labels[:, 1:] != tokens.latent_id)).sum()) for batch in batches
    )
    latents = sum(
        int(learned_latents(find_spans(batch.input_ids, tokens), batch.input_ids, batch.labels, tokens).sum())
        for batch in batches
    )
    return labelled, latents


def sum_over_ranks(totals: Totals, device: torch.device) -> Totals:
    """Sum counts over all ranks; in a single process, return them unchanged."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return totals
    tensor = torch.tensor(totals, device=device)
    torch.distributed.all_reduce(tensor)
    first, second = tensor.tolist()
    return int(first), int(second)


Stage = Literal["train", "val", "test", "predict"]
