"""The endless stream of prompts: a place in it is always the same prompt, whoever asks, in whatever order."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from futurel1.data import SkippedRecord
from futurel1.data.encoded import EncodedSample
from futurel1.data.mixtures import Mixture, MixtureSource
from futurel1.data.prompts import PromptDataset
from futurel1.datamodules.rollout_prompts import PromptStream
from futurel1.errors import RecordError

SIZE = 7


class Numbered(PromptDataset):
    """Prompts that only have a name; those in `broken` cannot be used. `fetched` counts in this process alone."""

    def __init__(self, size=SIZE, broken=(), on_error="raise"):
        super().__init__(range(size), None, on_error=on_error)
        self.broken = broken
        self.fetched = Counter()

    def __getitem__(self, index):
        self.fetched[index] += 1
        if index in self.broken:
            raise RecordError(f"record {index} is broken")
        ids = torch.tensor([index])
        return EncodedSample(f"records:{index}", ids, ids, 1)

    def skip(self, index, error):
        return SkippedRecord(f"records:{index}", type(error).__name__, str(error))


def taken(stream, *place):
    return [(index, None if sample is None else sample.sample_id) for index, sample in stream.take(*place)]


def wanted(stream, indices):
    return [(index, f"records:{stream.number(index)}") for index in indices]


def test_every_pass_holds_every_record_once_in_an_order_of_its_own():
    stream = PromptStream(Numbered())
    orders = [[stream.number(index) for index in range(epoch * SIZE, (epoch + 1) * SIZE)] for epoch in range(6)]
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    again, other = PromptStream(Numbered()), PromptStream(Numbered(), seed=1)
    assert [again.number(index) for index in range(6 * SIZE)] == [number for order in orders for number in order]
    assert [other.number(index) for index in range(SIZE)] != orders[0]
    as_they_stand = PromptStream(Numbered(), shuffle=False)
    assert [as_they_stand.number(index) for index in range(10)] == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]


def test_a_mixture_has_its_shares_in_every_pass_wherever_it_is_entered():
    mixture = Mixture([MixtureSource("a", range(5), 1.0), MixtureSource("b", range(5, 7), 6.0)], seed=0)
    stream = PromptStream(Numbered(), mixture=mixture)
    order = [stream.number(index) for index in range(5 * SIZE)]
    passes = [Counter(order[start : start + SIZE]) for start in range(0, 5 * SIZE, SIZE)]
    assert all(numbers[5] == numbers[6] == 3 for numbers in passes)
    assert sorted(number for number in order if number < 5) == list(range(5))
    again = PromptStream(Numbered(), mixture=mixture)
    assert [again.number(index) for index in (20, 3, 33)] == [order[index] for index in (20, 3, 33)]
    as_they_stand = PromptStream(Numbered(), mixture=mixture, shuffle=False)
    assert [as_they_stand.number(index) for index in range(9)] == [0, 5, 6, 5, 6, 5, 6, 1, 5]


@given(
    runs=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=6),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_a_draw_is_the_same_prompt_in_whatever_order_one_asks(runs, world_size, seed):
    stream = PromptStream(Numbered(), seed=seed)
    for first, count in runs:
        shares = [taken(stream, first, count, rank, world_size) for rank in range(world_size)]
        assert sorted(pair for share in shares for pair in share) == wanted(stream, range(first, first + count))
        for rank, share in enumerate(shares):
            assert [index for index, _ in share] == list(range(first + rank, first + count, world_size))


def test_consecutive_rounds_go_on_in_one_stream(monkeypatch):
    stream = PromptStream(Numbered())
    starts = []
    start = PromptStream._start
    monkeypatch.setattr(
        PromptStream, "_start", lambda self, index, stride: (starts.append((index, stride)), start(self, index, stride))
    )
    for first in (4, 8, 12):
        assert taken(stream, first, 4, 1, 2) == wanted(stream, (first + 1, first + 3))
    assert starts == [(5, 2)]
    # after a jump, or with another number of ranks, it starts again
    assert taken(stream, 20, 4, 1, 2) == wanted(stream, (21, 23))
    assert taken(stream, 25, 2, 0, 1) == wanted(stream, (25, 26))
    assert starts == [(5, 2), (21, 2), (25, 1)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(num_workers):
    stream = PromptStream(Numbered(), num_workers=num_workers)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    # rounds, a prompt alone in between as on a resume, a jump back, a round that nobody reads to its end
    assert taken(stream, 0, 6, 0, 2) == wanted(stream, (0, 2, 4))
    assert taken(stream, 33, 1, 0, 1) == wanted(stream, (33,))
    assert taken(stream, 6, 6, 0, 2) == wanted(stream, (6, 8, 10))
    assert taken(stream, 2, 3) == wanted(stream, (2, 3, 4))
    index, sample = next(stream.take(5, 4))
    assert [(index, sample.sample_id)] == wanted(stream, (5,))
    assert taken(stream, 6, 2) == wanted(stream, (6, 7))
    assert taken(stream, 5, 2) == wanted(stream, (5, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_alone_is_fetched_alone_and_leaves_the_workers_at_work():
    dataset = Numbered()
    stream = PromptStream(dataset, num_workers=2)
    for index in (9, 3, 30):
        assert taken(stream, index, 1, 0, 1) == wanted(stream, (index,))
    assert sum(dataset.fetched.values()) == 3
    assert taken(stream, 0, 4) == wanted(stream, range(4))
    workers = stream._prompts
    assert taken(stream, 30, 1) == wanted(stream, (30,))
    assert taken(stream, 4, 1) == wanted(stream, (4,))
    assert taken(stream, 5, 2) == wanted(stream, (5, 6))
    assert stream._prompts is workers
    assert sum(dataset.fetched.values()) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_record_that_cannot_be_used_leaves_a_gap_and_is_reported(num_workers):
    reports = []
    stream = PromptStream(
        Numbered(broken=(2, 3), on_error="skip"), shuffle=False, num_workers=num_workers, report=reports.append
    )
    assert taken(stream, 0, 6) == [
        (0, "records:0"), (1, "records:1"), (2, None), (3, None), (4, "records:4"), (5, "records:5")
    ]  # fmt: skip
    assert taken(stream, SIZE + 2, 1) == [(SIZE + 2, None)]
    assert [[(record.id, record.message) for record in report] for report in reports] == [
        [("records:2", "record 2 is broken")], [("records:3", "record 3 is broken")],
        [("records:2", "record 2 is broken")],
    ]  # fmt: skip


def test_after_an_error_the_stream_starts_again_at_the_draw_that_is_asked_for():
    dataset = Numbered(broken=[2])
    stream = PromptStream(dataset, shuffle=False)
    with pytest.raises(RecordError, match="record 2 is broken"):
        taken(stream, 0, 5)
    with pytest.raises(RecordError, match="record 2 is broken"):
        taken(stream, 2, 3)
    dataset.broken.clear()
    assert taken(stream, 2, 3) == wanted(stream, (2, 3, 4))
