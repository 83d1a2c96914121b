"""Counterfactuals of the world of events: what is the same, what differs, and that answers are true."""

from collections import Counter

import numpy as np
import pytest
from world_reading import decoded, records_of, zone_name

from futurel1.data import frame_pool
from futurel1.errors import ConfigError
from futurel1.worlds import make_event_episode, make_forks, write_world
from futurel1.worlds.collisions import continued, simulate
from futurel1.worlds.event_questions import fitting
from futurel1.worlds.event_scenes import arenas

COUNT = 6


@pytest.fixture(scope="module")
def forks():
    return [*make_forks(COUNT, size=64, kinds=("zone",)), *make_forks(COUNT, size=64)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("forks"), train=0, test=0, counterfactual=3, size=64, progress=False)


def test_going_on_without_a_push_is_the_same_scene():
    episodes = [make_event_episode("train", number) for number in range(24)]
    assert any(episode.states.gate_open[4] for episode in episodes)
    assert any(episode.states.flips[4].any() for episode in episodes)
    for episode in episodes:
        states = episode.states
        again = continued(states, 4, states.velocities[4][None], arenas([episode.layout]))
        for name, array in vars(again).items():
            assert np.array_equal(array[0], getattr(states, name)), name


def test_futures_begin_with_the_same_pixels_and_end_in_another_answer(forks):
    for fork in forks:
        one, other = fork.episode, fork.other
        assert np.array_equal(one.render(range(5)), other.render(range(5)))
        assert not np.array_equal(one.render([5]), other.render([5]))
        assert (one.question, one.options) == (other.question, other.options)
        assert one.answer != other.answer
        assert one.asked.hop in (1, 2, 3)


def test_right_options_are_unambiguous_in_every_clip(forks):
    for fork in forks:
        for episode in (fork.episode, fork.other, *fork.changed):
            if episode.variant in ("", "moved"):  # simulated from the start
                first = (episode.states.positions[None, 0], episode.states.velocities[None, 0])
                again = simulate(*first, arenas([episode.layout]))
                assert np.array_equal(again.positions[0], episode.states.positions)
            scene = type(episode.states)(**{name: array[None] for name, array in vars(episode.states).items()})
            assert fitting(episode.asked, scene, episode.layout).all(), episode.id
            if episode.asked.kind == "zone":
                place = episode.states.positions[4 + episode.asked.hop, episode.asked.target]
                assert episode.options[episode.answer] == zone_name(place)


def test_what_is_changed_is_only_that(forks):
    for fork in forks:
        one, (back, moved, recoloured) = fork.episode, fork.changed
        assert [change.variant for change in fork.changed] == ["reversed", "moved", "recoloured"]
        assert {change.question for change in fork.changed} == {one.question}
        assert np.array_equal(back.render([1, 2, 3, 4]), one.render([4, 3, 2, 1]))
        assert set(back.states.gate_open[:5]) == {one.states.gate_open[1]}
        others = [shape for shape in range(3) if shape != one.asked.target]
        assert np.array_equal(moved.states.positions[0, others], one.states.positions[0, others])
        assert not np.array_equal(moved.states.positions[0], one.states.positions[0])
        assert moved.answer != one.answer
        assert np.array_equal(recoloured.states.positions, one.states.positions)
        assert recoloured.answer == one.answer
        pillar = (recoloured.render() != one.render()).any(axis=-1)
        assert 0 < pillar.mean() <= 0.3**2 + 0.02


def test_a_reversed_world_goes_on_as_it_came(forks):
    """Where nothing was hit, the next frame is the one before the first."""
    free = 0
    for fork in forks:
        one, back = fork.episode.states, fork.changed[0].states
        if not (one.contacts[1].any() or one.wall_hits[1].any() or one.gate_hits[1].any()):
            np.testing.assert_allclose(back.positions[5], one.positions[0], atol=1e-9)
            free += 1
    assert free > 2


def test_a_seed_gives_the_same_ones_whatever_the_number(forks):
    again = list(make_forks(3, size=64, kinds=("zone",)))
    assert [fork.episode for fork in again] == [fork.episode for fork in forks[:3]]
    assert np.array_equal(again[2].other.states.positions, forks[2].other.states.positions)
    other = next(iter(make_forks(1, seed=1, size=64, kinds=("zone",))))
    assert not np.array_equal(other.episode.states.positions, forks[0].episode.states.positions)
    assert list(make_forks(0)) == []
    for wrong in ({"count": -1}, {"count": 1, "seed": -1}, {"count": 1, "size": 33}):
        with pytest.raises(ConfigError):
            next(make_forks(**wrong))


def test_answers_are_spread_over_letters(forks):
    for answers in (Counter(fork.episode.answer for fork in forks), Counter(fork.other.answer for fork in forks)):
        assert len(answers) == 4
        assert max(answers.values()) < 1.5 * COUNT


def test_records_name_both_futures(written, forks):
    records = records_of(written.counterfactual)
    assert [record["id"] for record in records] == [fork.episode.id for fork in forks[COUNT : COUNT + 3]]
    for record, fork in zip(records, forks[COUNT:], strict=False):
        other = record["counterfactual"]
        assert other["reasoning_image"] == record["reasoning_image"] == list(fork.episode.asked.hints)
        assert other["answer"] == fork.other.options[fork.other.answer] != record["answer"]
        assert other["answer"] in record["options"].values()
        places = fork.episode.positions(fork.episode.asked.hints) / 64
        for shape, colour in enumerate(fork.episode.asked.colours):
            told = [frame[colour % 3] for frame in record["future_positions"]]
            np.testing.assert_allclose(told, places[:, shape], atol=1e-4)
        here, there = (decoded(written.root / video, frame_pool(10)) for video in (record["video"], other["video"]))
        assert np.array_equal(here[:4], there[:4])  # also after encoding
        assert not np.array_equal(here[4:], there[4:])
        assert np.abs(there - fork.other.render().astype(float)).mean() < 3
    for number, change in enumerate(("reversed", "moved", "recoloured")):
        changed = records_of(written.root / f"counterfactual_{change}.jsonl")
        assert [record["id"] for record in changed] == [f"{record['id']}-{change}" for record in records]
        assert [record["counterfactual"]["video"] for record in changed] == [record["video"] for record in records]
        assert [record["counterfactual"]["answer"] for record in changed] == [record["answer"] for record in records]
        episode = forks[COUNT].changed[number]
        shown = decoded(written.root / changed[0]["video"], frame_pool(10))
        assert np.abs(shown - episode.render().astype(float)).mean() < 3
    assert len(list(written.videos.glob("*.mp4"))) == written.written == 3 * 5
    again = write_world(written.root, train=0, test=0, counterfactual=3, size=64, progress=False)
    assert (again.written, again.kept) == (0, 15)


def test_only_the_world_of_events_has_counterfactuals(tmp_path):
    with pytest.raises(ConfigError, match="counterfactual=2: the task next_zone has no such clips"):
        write_world(tmp_path, task="next_zone", counterfactual=2)
