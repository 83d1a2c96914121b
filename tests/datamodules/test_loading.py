"""Plans of batches, and the loader that follows them."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from futurel1.data import SFTBatch
from futurel1.data.collate import Fetched
from futurel1.data.encoded import EncodedSample
from futurel1.data.mixtures import Mixture, MixtureSource
from futurel1.data.samples import SkippedRecord
from futurel1.datamodules import PlannedLoader, plan_batches
from futurel1.datamodules.loading import count_totals
from futurel1.errors import ConfigError
from futurel1.models import LatentTokens

TOKENS = LatentTokens(start_id=901, latent_id=900, end_id=902)


# ---------------------------------------------------------------------------------------------------- plan_batches


def own(steps: list[list[list[int]]]) -> list[int]:
    """Records of a plan, without what only keeps ranks in step."""
    return [number for step in steps for batch in step for number in batch if number >= 0]


@st.composite
def plans(draw: st.DrawFn, budget: bool | None = None) -> dict[str, Any]:
    size = draw(st.integers(1, 60))
    options: dict[str, Any] = {
        "size": size,
        "batch_size": draw(st.integers(1, 5)),
        "world_size": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 5)),
        "epoch": draw(st.integers(0, 3)),
        "shuffle": draw(st.booleans()),
    }
    if draw(st.booleans()) if budget is None else budget:
        lengths = np.array(draw(st.lists(st.integers(1, 50), min_size=size, max_size=size)))
        options |= {"lengths": lengths, "tokens_per_batch": int(lengths.max()) + draw(st.integers(0, 150))}
    return options


def plan(options: dict[str, Any], **changes: Any) -> list[list[list[int]]]:
    merged = {**options, **changes}
    return plan_batches(merged.pop("size"), **merged)


@given(plans())
def test_every_record_stands_in_a_plan_exactly_once_and_ranks_have_equal_shares(options: dict[str, Any]) -> None:
    steps = plan(options)
    assert sorted(own(steps)) == list(range(options["size"]))
    assert {len(step) for step in steps} == {options["world_size"]}
    assert all(batch for step in steps for batch in step)


@given(plans())
def test_fillers_stand_only_where_a_rank_would_have_no_batch(options: dict[str, Any]) -> None:
    steps = plan(options)
    fillers = [(place, batch) for place, step in enumerate(steps) for batch in step if min(batch) < 0]
    assert all(len(batch) == 1 and ~batch[0] in range(options["size"]) for _, batch in fillers)
    assert {place for place, _ in fillers} <= {len(steps) - 1}
    # a whole step of fillers would be no step at all
    assert len(fillers) < options["world_size"]
    if options["world_size"] == 1:
        assert not fillers


@given(plans(budget=False))
def test_a_global_batch_is_the_same_records_in_order_whatever_the_number_of_ranks(options: dict[str, Any]) -> None:
    spread = plan(options)
    alone = plan(options, batch_size=options["batch_size"] * options["world_size"], world_size=1)
    assert [own([step]) for step in spread] == [own([step]) for step in alone]
    assert all(len(batch) <= options["batch_size"] for step in spread for batch in step)
    assert len(spread) == -(-options["size"] // (options["batch_size"] * options["world_size"]))


@given(plans(budget=True))
def test_padded_tokens_never_exceed_the_budget(options: dict[str, Any]) -> None:
    lengths, budget = options["lengths"], options["tokens_per_batch"]
    for step in plan(options):
        for batch in step:
            assert len(batch) * max(lengths[number if number >= 0 else ~number] for number in batch) <= budget


@given(plans())
def test_epochs_have_equal_numbers_of_batches_and_the_same_seed_the_same_plan(options: dict[str, Any]) -> None:
    steps = plan(options)
    assert plan(options) == steps
    assert len(plan(options, epoch=options["epoch"] + 1)) == len(steps)
    if not options["shuffle"]:
        assert plan(options, epoch=options["epoch"] + 1, seed=options["seed"] + 1) == steps


@given(plans(budget=False))
def test_a_mixture_is_drawn_the_same_for_every_number_of_ranks(options: dict[str, Any]) -> None:
    half = options["size"] // 2
    assume(half > 2)
    sources = [MixtureSource("a", range(half), 1.0), MixtureSource("b", range(half, options["size"]), 3.0)]
    mixture = Mixture(sources, seed=options["seed"])
    spread = plan(options, mixture=mixture)
    alone = plan(options, mixture=mixture, batch_size=options["batch_size"] * options["world_size"], world_size=1)
    assert [own([step]) for step in spread] == [own([step]) for step in alone]
    drawn = mixture.draw(options["epoch"], options["shuffle"])
    assert own(spread) == drawn if not options["shuffle"] else sorted(own(spread)) == sorted(drawn)


@given(plans(budget=False), st.integers(1, 4))
def test_packed_shards_are_read_one_window_after_the_other(options: dict[str, Any], window: int) -> None:
    bounds = [*range(0, options["size"], 5), options["size"]]
    shards = [range(first, stop) for first, stop in pairwise(bounds)]
    steps = plan(options, shards=shards, shuffle_shards=window)
    order = own(steps)
    assert sorted(order) == list(range(options["size"]))
    if not options["shuffle"]:
        assert order == list(range(options["size"]))
        return
    touched = list(dict.fromkeys(number // 5 for number in order))
    last = {number // 5: place for place, number in enumerate(order)}
    first = {shard: next(place for place, number in enumerate(order) if number // 5 == shard) for shard in touched}
    open_at = [sum(first[shard] <= place <= last[shard] for shard in touched) for place in range(len(order))]
    assert max(open_at) <= window
    assert plan(options, shards=shards, shuffle_shards=window) == steps


@pytest.mark.parametrize("budget", [None, 100])
def test_epochs_and_seeds_have_orders_of_their_own(budget: int | None) -> None:
    lengths = None if budget is None else np.arange(40) + 10
    orders = [
        own(plan_batches(40, batch_size=4, seed=seed, epoch=epoch, lengths=lengths, tokens_per_batch=budget))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert list(range(40)) not in orders


def test_without_shuffling_records_keep_their_order() -> None:
    assert own(plan_batches(11, batch_size=2, world_size=2, shuffle=False, epoch=3)) == list(range(11))


def test_similar_lengths_go_together() -> None:
    draw = random.Random(0)
    lengths = np.array([int(draw.lognormvariate(6, 0.8)) + 20 for _ in range(4000)])
    budget = 2 * int(lengths.max())

    def padding(batches: list[list[int]]) -> int:
        return sum(int(len(batch) * lengths[batch].max() - lengths[batch].sum()) for batch in batches)

    planned = [step[0] for step in plan_batches(4000, batch_size=1, lengths=lengths, tokens_per_batch=budget)]
    order = draw.sample(range(4000), 4000)
    size = 4000 // len(planned)
    random_batches = [order[start : start + size] for start in range(0, 4000, size)]
    assert padding(planned) < 0.1 * padding(random_batches)
    assert padding(planned) < 0.1 * lengths.sum()
    # yet lengths come in random order, not from short to long
    first, second = np.array_split([int(lengths[batch].max()) for batch in planned], 2)
    assert 0.7 < first.mean() / second.mean() < 1.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0, "batch_size": 1}, r"size, .* at least 1, got 0, 1, 1"),
        ({"size": 3, "batch_size": 0}, r"batch_size.* at least 1, got 3, 0, 1"),
        ({"size": 3, "batch_size": 1, "world_size": 0}, r"world_size must be at least 1, got 3, 1, 0"),
        ({"size": 3, "batch_size": 1, "tokens_per_batch": 0}, r"tokens_per_batch must be at least 1, got 0"),
        ({"size": 3, "batch_size": 1, "tokens_per_batch": 9}, r"length of each of 3 records, got none"),
        (
            {"size": 3, "batch_size": 1, "tokens_per_batch": 9, "lengths": np.array([1, 2])},
            r"length of each of 3 records, got 2",
        ),
        (
            {"size": 3, "batch_size": 1, "tokens_per_batch": 9, "lengths": np.array([4, 10, 9])},
            r"record 2 of 3 has 10 tokens, more than tokens_per_batch=9",
        ),
    ],
)
def test_errors_name_the_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(options)


# ---------------------------------------------------------------------------------------------------- PlannedLoader


class Numbers(Dataset[EncodedSample]):
    """Record `i` has `i + 2` labelled tokens and a span of `i % 3` latents; `broken` ones cannot be used."""

    def __init__(self, size: int, broken: tuple[int, ...] = ()) -> None:
        self.size = size
        self.broken = broken

    def sample(self, number: int) -> EncodedSample:
        record = number if number >= 0 else ~number
        span = [TOKENS.start_id, *[TOKENS.latent_id] * (record % 3), TOKENS.end_id]
        ids = torch.tensor([1, *span, *[5] * record])
        labels = ids.masked_fill(ids == TOKENS.latent_id, -100).index_fill(0, torch.tensor([0]), -100)
        if number < 0:
            ids = torch.tensor([1])
            labels = torch.tensor([-100])
        return EncodedSample(f"r{record}", ids, labels, 1)

    def __getitems__(self, numbers: list[int]) -> list[Fetched]:
        skipped = [SkippedRecord(f"r{number}", "RecordError", "broken") for number in numbers if number in self.broken]
        usable = [number for number in numbers if number not in self.broken]
        return [Fetched([self.sample(number) for number in usable or [~numbers[0]]], skipped)]


def by_number(size: int, batch_size: int = 1, **options: Any) -> Callable[[int], list[list[list[int]]]]:
    return partial(_by_number, size=size, batch_size=batch_size, **options)


def _by_number(epoch: int, size: int, **options: Any) -> list[list[list[int]]]:
    return plan_batches(size, epoch=epoch, **options)


def make(size: int = 10, batch_size: int = 1, *, broken: tuple[int, ...] = (), **options: Any) -> PlannedLoader:
    plan_options = {name: options.pop(name) for name in ("seed", "world_size", "shuffle") if name in options}
    settings: dict[str, Any] = {"rank": 0, "tokens": TOKENS, "pad_token_id": 0, **options}
    dataset: Any = Numbers(size, broken)
    return PlannedLoader(dataset, by_number(size, batch_size, **plan_options), **settings)


def names(batches: Any) -> list[str]:
    return [name for batch in batches for name in batch.sample_ids]


def expected(epoch: int, size: int = 10, **options: Any) -> list[str]:
    return [f"r{number}" for number in own(_by_number(epoch, size, **{"batch_size": 1, **options}))]


def totals(batches: list[SFTBatch]) -> list[tuple[int | None, int | None]]:
    return [(batch.total_tokens, batch.total_latents) for batch in batches]


def counted(batches: list[SFTBatch]) -> tuple[int, int]:
    """Totals by the definition of the data: record i has i + 2 labelled tokens and i % 3 latents."""
    numbers = [int(name[1:]) for name in names(batches)]
    return sum(number + 2 for number in numbers), sum(number % 3 for number in numbers)


@pytest.mark.parametrize(("size", "batch_size", "world_size", "length"), [(10, 1, 1, 10), (10, 3, 1, 4), (10, 2, 2, 3)])
def test_length_is_the_number_of_batches(size: int, batch_size: int, world_size: int, length: int) -> None:
    loader = make(size, batch_size, world_size=world_size)
    assert len(loader) == length == len(list(loader))


def test_a_loader_shows_its_ranks_part() -> None:
    parts = [names(make(10, 2, world_size=2, rank=rank)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(f"r{number}" for number in range(10))


@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_totals_are_the_sums_over_the_window(window: int) -> None:
    batches = list(make(10, window=lambda: window))
    assert names(batches) == expected(0)
    for start in range(0, 10, window):
        held = batches[start : start + window]
        assert totals(held) == [counted(held)] * len(held)


def test_totals_are_known_with_the_first_batch_of_the_window() -> None:
    stream = iter(make(10, window=lambda: 3))
    assert totals([next(stream)]) == [counted(list(islice(iter(make(10)), 3)))]


def test_totals_are_added_up_over_ranks() -> None:
    batches = list(make(4, window=lambda: 2, reduce=lambda own: (own[0] + 1000, own[1] + 100)))
    own_tokens, own_latents = counted(batches[:2])
    assert totals(batches[:2]) == [(own_tokens + 1000, own_latents + 100)] * 2


def test_a_window_may_change_between_steps() -> None:
    batches: list[SFTBatch] = []
    batches.extend(make(10, window=lambda: 4 if len(batches) >= 4 else 2))
    held = [batches[:2], batches[2:4], batches[4:8], batches[8:]]
    assert totals(batches) == [counted(part) for part in held for _ in part]


def test_windows_end_where_the_trainer_cuts_an_epoch_short() -> None:
    batches = list(make(10, window=lambda: 3, limit=lambda: 4))
    assert len(batches) == 4
    assert totals(batches[3:]) == [counted(batches[3:])]


def test_only_labelled_tokens_and_latents_in_spans_are_counted() -> None:
    dataset = Numbers(9)
    batch = next(iter(make(9, 9)))
    assert count_totals([batch], TOKENS) == counted([batch])
    assert count_totals([batch, batch], TOKENS) == tuple(2 * count for count in counted([batch]))
    assert int((dataset.sample(~8).labels != -100).sum()) == 0


@pytest.mark.parametrize("fixed", [False, True])
def test_each_pass_is_an_epoch(fixed: bool) -> None:
    loader = make(fixed_epoch=fixed)
    passes = [names(loader) for _ in range(3)]
    assert passes == [expected(0 if fixed else epoch) for epoch in range(3)]


def test_a_pass_that_is_broken_off_counts_as_one() -> None:
    loader = make()
    assert names(islice(iter(loader), 3)) == expected(0)[:3]
    assert names(loader) == expected(1)


@pytest.mark.parametrize(
    ("done", "window", "num_workers"),
    [(1, 1, 0), (4, 1, 0), (4, 3, 0), (6, 3, 0), (9, 4, 0), (4, 1, 2), (4, 3, 2)],  # workers fetch ahead
)
def test_a_fresh_loader_continues_with_the_very_next_batch(done: int, window: int, num_workers: int) -> None:
    loader = make(window=lambda: window, num_workers=num_workers)
    stream: Iterator[SFTBatch] = iter(loader)
    seen = names(islice(stream, done))
    state = loader.state_dict()
    fresh = make(window=lambda: window, num_workers=num_workers)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    rest = list(fresh)
    assert seen + names(rest) == expected(0)
    # windows stay where they were; one that was begun is normalised by what is left of it
    left = min(window - done % window, 10 - done)
    assert totals(rest[:left]) == [counted(rest[:left])] * left
    assert names(fresh) == expected(1)


def test_in_a_later_epoch_too() -> None:
    loader = make()
    list(loader)
    stream = iter(loader)
    assert names(islice(stream, 7)) == expected(1)[:7]
    fresh = make()
    fresh.load_state_dict(loader.state_dict())
    assert names(fresh) == expected(1)[7:]
    assert names(fresh) == expected(2)


def test_at_the_end_of_an_epoch_the_next_one_follows() -> None:
    loader = make()
    list(loader)
    fresh = make()
    fresh.load_state_dict(loader.state_dict())
    assert names(fresh) == expected(1)


def test_before_the_first_batch_nothing_has_happened() -> None:
    loader = make()
    state = loader.state_dict()
    fresh = make()
    fresh.load_state_dict(state)
    assert names(fresh) == expected(0)


def test_making_an_iterator_changes_nothing() -> None:
    loader = make()
    before = loader.state_dict()
    iter(loader)
    iter(loader)
    assert loader.state_dict() == before
    assert names(loader) == expected(0)
    iter(loader)
    resumed = make()
    resumed.load_state_dict({**before, "batches": 4})
    iter(resumed)
    assert names(resumed) == expected(0)[4:]


def test_state_is_of_plain_numbers() -> None:
    assert all(type(value) is int for value in make().state_dict().values())


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 11}, {"batch_size": 2}, {"world_size": 2}])
def test_the_middle_of_another_plan_cannot_be_continued(change: dict[str, Any]) -> None:
    loader = make()
    list(islice(iter(loader), 4))
    with pytest.raises(ConfigError, match=r"after batch 4 of epoch 0"):
        make(**change).load_state_dict(loader.state_dict())


def test_another_number_of_ranks_with_the_same_global_batch_can_be_continued() -> None:
    loader = make(12, 4)
    seen = names(islice(iter(loader), 2))
    ranks = [make(12, 2, world_size=2, rank=rank) for rank in (0, 1)]
    for rank in ranks:
        rank.load_state_dict(loader.state_dict())
    assert sorted(seen + names(ranks[0]) + names(ranks[1])) == sorted(expected(0, 12))


def test_the_trainers_position_goes_before_the_loaders_own_count() -> None:
    position = (2, 3)
    loader = make(position=lambda: position)
    loader.load_state_dict({**make().state_dict(), "batches": 0})
    assert names(loader) == expected(2)[3:]
    assert loader.state_dict()["epoch"] == 2
    position = (3, 10)
    assert names(loader) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_leaves_the_global_random_state_alone(num_workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make(4, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_that_only_keeps_ranks_in_step_names_no_record_and_weighs_nothing() -> None:
    batches = list(make(5, 2, world_size=2, rank=1, shuffle=False))
    assert [batch.sample_ids for batch in batches] == [("r2", "r3"), ()]
    assert totals(batches[1:]) == [(0, 0)]
    assert len(batches[1]) == 1


def test_a_stand_in_for_records_that_cannot_be_used_names_no_record() -> None:
    batches = list(make(4, 2, broken=(0, 1, 2), shuffle=False))
    assert [batch.sample_ids for batch in batches] == [(), ("r3",)]
    assert totals(batches)[0] == (0, 0)
    assert [len(batch.skipped) for batch in batches] == [2, 1]
