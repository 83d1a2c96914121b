"""The train loader of reinforcement learning: when it collects, what it hands out, and how it goes on after a stop."""

import pytest
import torch
from stand_ins import Policy, Prompts, assert_equal, stored

from futurel1.errors import ConfigError
from futurel1.rollout import ExperienceLoader, RolloutCollector
from futurel1.rollout.collector import RolloutSettings

SETTINGS = {"batch_size": 4, "num_minibatches": 2, "num_epochs": 2}
MICRO = 2
PER_ROLLOUT_BATCH = 8
BATCHES = 3
"""Rollout batches of an epoch."""


def make(*, policy=None, micro_batches=MICRO, batches=BATCHES, position=None, limit=None, **settings):
    chosen = RolloutSettings(**{**SETTINGS, **settings})
    policy = policy or Policy(lambda index: (1.0, 0.0) if index % 3 else (0.0, 0.0))
    collector = RolloutCollector(policy, Prompts(size=9), chosen, micro_batches=micro_batches)
    more = {} if limit is None else {"limit": limit}
    return ExperienceLoader(collector, batches, position, **more)


def plain(experience):
    """What an update sees of a micro-batch; features are made again after a restart."""
    given = {**vars(experience), "prompt": vars(experience.prompt), "rollout": vars(experience.rollout)}
    return {name: value for name, value in given.items() if name not in ("vision", "statistics")}


def train(loader, first=0, stop=None):
    """Run passes without end, with an update after every `MICRO` micro-batches; (place, micro-batch) before `stop`."""
    place = first
    policy = loader.collector.sampler
    while True:
        for experience in loader:
            yield plain(experience)
            place += 1
            policy.version = place // MICRO
            if place == stop:
                return


def test_it_is_sized():
    assert make().per_rollout_batch == PER_ROLLOUT_BATCH
    assert len(make()) == BATCHES * PER_ROLLOUT_BATCH
    assert len(make(num_epochs=1, num_minibatches=1, micro_batches=3)) == 9


def test_a_rollout_batch_is_collected_when_its_first_micro_batch_is_asked_for():
    loader = make()
    policy = loader.collector.sampler
    passed = iter(loader)
    assert policy.calls == []
    for place in range(2 * PER_ROLLOUT_BATCH):
        policy.version = place // MICRO
        experience = next(passed)
        assert loader.collector.collected == 1 + place // PER_ROLLOUT_BATCH
        # with statistics once
        assert bool(experience.statistics) == (place % PER_ROLLOUT_BATCH == 0)
    # the second one was answered by the weights after four updates
    fresh = loader.collector._current[-1]
    assert_equal(fresh.rollout, type(policy).group(policy_at(policy, 4), fresh.prompt_index).rollout)


def policy_at(policy, version):
    policy.version = version
    return policy


def test_every_pass_hands_out_the_same_minibatches():
    loader = make()
    seen = list(loader)
    assert len(seen) == len(loader)
    # whatever the number of passes, the reference runs once
    assert len(loader.collector.sampler.called("score_reference")) == BATCHES * PER_ROLLOUT_BATCH // 2
    for number in range(BATCHES):
        ids = [part.prompt.sample_ids for part in seen[number * PER_ROLLOUT_BATCH :][:PER_ROLLOUT_BATCH]]
        assert ids[:4] == ids[4:]
        assert len({name for part in ids[:4] for name in part}) == 4
        totals = [part.total_tokens for part in seen[number * PER_ROLLOUT_BATCH :][:PER_ROLLOUT_BATCH]]
        assert totals[0] == totals[1] == totals[4] == totals[5]
        assert totals[2] == totals[3] == totals[6] == totals[7]


def test_ratios_are_taken_to_the_policy_that_sampled_in_every_pass():
    loader = make()
    seen = list(train(loader, stop=2 * PER_ROLLOUT_BATCH))
    for place, experience in enumerate(seen):
        number, inside = divmod(place, PER_ROLLOUT_BATCH)
        # The first group of the second rollout batch was left over from the first.
        waited = number == 1 and inside % (PER_ROLLOUT_BATCH // 2) == 0
        version = 0 if waited else number * PER_ROLLOUT_BATCH // MICRO
        rollout = experience["rollout"]
        found = experience["old_log_probs"][rollout["response_mask"]]
        torch.testing.assert_close(found, (-version - rollout["responses"] / 1000)[rollout["response_mask"]])


def test_a_pass_that_is_cut_short_goes_on_in_the_next_one():
    whole = list(train(make(), stop=20))
    cut = make(limit=lambda: 5)
    assert_equal(list(train(cut, stop=20)), whole)
    assert cut.collector.collected == 3
    assert len(list(make(limit=lambda: 5.0))) == 5
    assert list(make(limit=lambda: 0)) == []
    assert len(list(make(limit=lambda: 1000))) == len(cut)


@pytest.mark.parametrize("settings", [{}, {"num_epochs": 1, "num_minibatches": 1}])
@pytest.mark.parametrize("limit", [None, 7])
def test_a_run_that_was_killed_goes_on_with_the_very_next_micro_batch(settings, limit):
    cut = None if limit is None else lambda: limit
    stop = 20
    whole = list(train(make(limit=cut, **settings), stop=stop))
    for killed in range(1, stop):
        first = make(limit=cut, **settings)
        list(train(first, stop=killed))
        state = stored(first.collection_state())
        second = make(limit=cut, **settings)
        second.collector.sampler.version = killed // MICRO
        second.restore(state)
        assert_equal(second.collection_state(), state)  # saved again before anything was asked for
        found = list(train(second, first=killed, stop=min(stop, killed + 5)))
        assert_equal(found, whole[killed : killed + 5])


def test_the_trainer_says_where_it_stands():
    place = [0, 0]
    whole = list(train(make(), stop=PER_ROLLOUT_BATCH + 1))
    first = make(position=lambda: tuple(place))
    assert_equal(list(train(first, stop=PER_ROLLOUT_BATCH + 1)), whole)
    state = stored(first.collection_state())
    # Stopped during the first micro-batch of a rollout batch: it is repeated, and its rollouts are not made again.
    second = make(position=lambda: tuple(place))
    second.restore(state)
    place[:] = [0, PER_ROLLOUT_BATCH]
    assert_equal(plain(next(iter(second))), whole[-1])
    assert second.collector.sampler.called("sample_groups") == []
    # At the end of an epoch nothing is left to do, the next one has its full length.
    place[:] = [0, len(first)]
    assert list(second) == []
    third = make(position=lambda: tuple(place))
    place[:] = [0, 0]
    list(third)
    place[:] = [1, 0]
    assert len(list(third)) == len(third)
    assert third.collector.collected == 2 * BATCHES


def test_other_settings_do_not_continue_an_epoch():
    first = make()
    list(train(first, stop=3))
    state = stored(first.collection_state())
    second = make(num_minibatches=1)
    second.restore(state)
    with pytest.raises(
        ConfigError, match=r"a rollout batch made 8 micro-batches, and now makes 4. Resume with the same"
    ):
        next(iter(second))
    # between two epochs the accumulation may change, as the number of devices does
    epoch = make(batches=1)
    list(epoch)
    third = make(batches=1, micro_batches=1, position=lambda: (1, 0))
    third.restore(stored(epoch.collection_state()))
    assert len(list(third)) == 4
    assert third.collector.collected == 2


@pytest.mark.parametrize("position", [(0, PER_ROLLOUT_BATCH), (2, 0)])
def test_a_position_without_its_rollouts_is_an_error(position):
    loader = make(position=lambda: position)
    number = position[0] * BATCHES + position[1] // PER_ROLLOUT_BATCH
    wanted = f"cannot continue with rollout batch {number}, counted from 0: 0 were collected. Resume with the same"
    with pytest.raises(ConfigError, match=wanted):
        next(iter(loader))
