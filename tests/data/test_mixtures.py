"""Mixtures: shares of an epoch, no record drawn again before its turn, the same draws from the same seed."""

from collections import Counter
from itertools import accumulate, pairwise

import pytest
from example_records import rows, write_lines
from hypothesis import given
from hypothesis import strategies as st

from futurel1.data import open_records
from futurel1.data.mixtures import Mixture, MixtureSource
from futurel1.errors import ConfigError


def mixture(sizes, weights, seed=0, numbers=None):
    bounds = pairwise(accumulate(sizes, initial=0))
    sources = [
        MixtureSource(f"s{place}", range(*bound), weight)
        for place, (bound, weight) in enumerate(zip(bounds, weights, strict=True))
    ]
    return Mixture(sources, seed=seed, numbers=numbers)


@given(st.lists(st.tuples(st.integers(5, 40), st.floats(0.2, 5)), min_size=1, max_size=4), st.booleans())
def test_an_epoch_has_the_share_of_each_source_and_goes_on_where_the_last_stopped(parts, shuffle):
    sizes, weights = zip(*parts, strict=True)
    mixed = mixture(sizes, weights)
    ends = list(accumulate(sizes, initial=0))
    drawn = Counter()
    for epoch in range(5):
        order = mixed.draw(epoch, shuffle)
        assert len(order) == len(mixed) == sum(sizes)
        for number, (first, stop) in enumerate(pairwise(ends)):
            count = sum(first <= record < stop for record in order)
            assert count == mixed.counts[number]
            assert abs(count - sum(sizes) * weights[number] / sum(weights)) < 1
        drawn.update(order)
        for first, stop in pairwise(ends):
            times = [drawn[record] for record in range(first, stop)]
            assert max(times) - min(times) <= 1


def test_draws_are_those_of_the_seed_and_every_pass_has_its_own_order():
    first = [mixture([10, 30], [3, 1]).draw(epoch) for epoch in range(3)]
    assert [mixture([10, 30], [3, 1]).draw(epoch) for epoch in range(3)] == first
    assert mixture([10, 30], [3, 1], seed=1).draw(0) != first[0]
    assert mixture([10, 30], [3, 1]).counts == (30, 10)
    passes = [tuple(first[0][start : start + 10]) for start in (0, 10, 20)]
    assert len(set(passes)) == 3
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert sorted(record for epoch in first for record in epoch if record >= 10) == list(range(10, 40))
    assert mixture([2, 4], [2, 1]).draw(0, shuffle=False) == [0, 1, 0, 1, 2, 3]
    assert mixture([2, 4], [2, 1]).draw(1, shuffle=False) == [0, 1, 0, 1, 4, 5]


def test_a_part_of_the_records_is_mixed_by_position():
    mixed = mixture([4, 6], [1, 1], numbers=[1, 3, 4, 8, 9])
    assert (mixed.sizes, mixed.counts) == ((2, 3), (3, 2))
    assert mixed.draw(0, shuffle=False) == [0, 1, 0, 2, 3]
    with pytest.raises(ConfigError, match=r"^s0: no record in this split"):
        mixture([4, 6], [1, 1], numbers=[5, 6])
    with pytest.raises(ConfigError, match=r"^s1: weight 0\.001 is less than one sample an epoch"):
        mixture([4, 6], [1, 0.001])


def test_weights_are_read_with_the_records(tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(3):
        write_lines(tmp_path / f"many/{number}.jsonl", rows(number, number + 1))
    one = write_lines(tmp_path / "one.jsonl", rows(9, 11))
    entries = [{"path": str(tmp_path / "many"), "weight": 1}, {"path": [str(one)], "weight": 2.5}]
    source = open_records(entries)
    assert [(part.name, part.records, part.weight) for part in source.mixed] == [
        (str(tmp_path / "many"), range(3), 1.0),
        (str(one), range(3, 5), 2.5),
    ]
    assert str(Mixture(source.mixed, seed=0)).endswith(
        f"{one}: 4 of 5 samples an epoch (80.0%) from 2 records, weight 2.5"
    )
    assert open_records([tmp_path / "many", one]).mixed == ()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["b.jsonl", {"path": "a.jsonl", "weight": 1}], r"^b\.jsonl: no weight, beside records with one"),
        ([{"path": "a.jsonl", "wieght": 1}], r"not the path and the weight of records"),
        ([{"path": "", "weight": 1}], r"not the path and the weight of records"),
        ([{"path": "a.jsonl", "weight": 0}], r"^a\.jsonl: weight 0 is not a number above 0"),
        ([{"path": "a.jsonl", "weight": float("nan")}], r"^a\.jsonl: weight nan is not"),
        ([{"path": "a.jsonl", "weight": "2"}], r"^a\.jsonl: weight '2' is not"),
    ],
)
def test_weights_that_say_nothing(entries, message):
    with pytest.raises(ConfigError, match=message):
        open_records(entries)
