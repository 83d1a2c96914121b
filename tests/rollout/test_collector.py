"""Collecting rollout batches: what is kept, what waits, what is counted; nothing depends on ranks or restarts."""

import json
import logging
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from stand_ins import NAN, Policy, Prompts, Ranks, assert_equal, stored

from futurel1.errors import CheckpointError, ConfigError
from futurel1.interrupts import Stopped, defer, watched
from futurel1.losses import PolicyLoss
from futurel1.rollout.collector import RolloutCollector, RolloutError, RolloutSettings
from processes import run_ranks

WRONG, HALF, RIGHT = (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)


def mixed(index):
    """Two of five groups are kept: indices 1, 2, 6, 7, 11, 12, ..."""
    return (WRONG, HALF, HALF, RIGHT, RIGHT)[index % 5]


def make(accuracy=mixed, *, source=None, policy=None, settings=None, **options):
    names = ("micro_batches", "rank", "world_size", "log_samples")
    given = {name: options.pop(name) for name in names if name in options}
    settings = settings or RolloutSettings(**{"batch_size": 4, **options})
    return RolloutCollector(policy or Policy(accuracy), source or Prompts(), settings, **given)


def indices(batch):
    """Draws by minibatch and micro-batch."""
    return [[[group.prompt_index for group in part] for part in parts] for parts in batch.micro_batches]


def flat(batch):
    return [group for parts in batch.micro_batches for part in parts for group in part]


# ---------------------------------------------------------------------- the filter


@pytest.mark.parametrize("branches", [2, 3, 5, 8, 10, 20])
def test_the_bounds_themselves_are_outside(branches):
    settings = RolloutSettings()
    for right in range(branches + 1):
        group = Policy(lambda index, right=right: [1.0] * right + [0.0] * (branches - right)).group(0)
        # in whole numbers: 1 of 10 is exactly the lower bound, 9 of 10 exactly the upper one
        expected = (
            "dropped_hard" if 10 * right <= branches else "dropped_easy" if 10 * right >= 9 * branches else "kept"
        )
        assert settings.outcome(group) == expected, f"{right} of {branches}"


def test_any_part_the_total_or_nothing_can_decide():
    group = Policy(lambda index: RIGHT).group(0)  # format is 0 and 0.25, the total 0.9 and 0.925
    assert RolloutSettings(filter_key="accuracy").outcome(group) == "dropped_easy"
    assert RolloutSettings(filter_key="format").outcome(group) == "kept"
    assert RolloutSettings(filter_key="format", filter_low=0.125).outcome(group) == "dropped_hard"
    assert RolloutSettings(filter_key="total", filter_high=0.92).outcome(group) == "kept"
    assert RolloutSettings(filter_key="total", filter_high=0.91).outcome(group) == "dropped_easy"
    assert RolloutSettings(filter_key="none").outcome(group) == "kept"
    with pytest.raises(ConfigError, match=r"there are total, accuracy, format.* \(none: keep all groups\)"):
        RolloutSettings(filter_key="acc").outcome(group)


def test_a_rollout_without_a_reward_is_neither_wrong_nor_right():
    assert RolloutSettings().outcome(Policy(lambda index: (1.0, 1.0, NAN)).group(0)) == "dropped_easy"
    assert RolloutSettings().outcome(Policy(lambda index: (0.0, 0.0, NAN)).group(0)) == "dropped_hard"
    assert RolloutSettings().outcome(Policy(lambda index: (1.0, 0.0, NAN)).group(0)) == "kept"
    for key in ("accuracy", "total", "none"):
        group = Policy(lambda index: (1.0, NAN, NAN)).group(0)
        assert RolloutSettings(filter_key=key).outcome(group) == "dropped_failed"


def test_a_part_without_a_weight_that_failed_keeps_nothing():
    group = Policy(lambda index: HALF).group(0)
    group.parts["judge"] = torch.tensor([NAN, 1.0])
    assert group.valid.all()
    assert RolloutSettings(filter_key="judge").outcome(group) == "dropped_failed"
    group.parts["judge"] = torch.tensor([NAN, NAN])
    assert RolloutSettings(filter_key="judge").outcome(group) == "dropped_failed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"max_rounds": 0}, "max_rounds must be at least 1, got 0"),
        ({"num_minibatches": 5}, "num_minibatches=5 of a rollout batch of 4 groups leaves empty ones"),
        ({"filter_low": 0.9}, "filter_low must be below filter_high, got 0.9 and 0.9"),
        ({"max_failed": 1.5}, "max_failed is a share between 0 and 1, got 1.5"),
        (
            {"world_size": 3},
            "rollout.batch_size=4 prompts cannot be shared evenly among 3 processes; choose a multiple",
        ),
    ],
)
def test_impossible_settings_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


# ---------------------------------------------------------------------- one rollout batch


def test_rounds_go_on_until_the_batch_is_full_and_what_is_left_over_waits():
    collector = make()
    first = collector.collect()
    # indices 0..3 keep 1 and 2; 4..7 keep 6 and 7
    assert indices(first) == [[[1, 2, 6, 7]]]
    assert first.statistics["rollout/rounds"] == 2
    assert collector.collected == 1
    # 8..11 keep 11; 12..15 keep 12; 16..19 keep 16, 17
    assert indices(collector.collect()) == [[[11, 12, 16, 17]]]
    # 20..23 keep 21, 22; 24..27 keep 26, 27
    assert indices(collector.collect()) == [[[21, 22, 26, 27]]]


def test_leftovers_come_first_and_can_fill_a_batch_without_sampling():
    policy = Policy(lambda index: HALF if index >= 3 else RIGHT)
    collector = make(policy=policy)
    first = collector.collect()  # 3; then 4..7, of which 7 waits
    assert indices(first) == [[[3, 4, 5, 6]]]
    assert first.statistics["prompts/leftover"] == 1
    second = collector.collect()
    assert indices(second) == [[[7, 8, 9, 10]]]
    assert second.statistics["prompts/leftover"] == 1
    assert second.statistics["prompts/sampled"] == 4

    collector = make(policy=Policy(lambda index: HALF), batch_size=4)
    state = collector.state_dict()
    state["leftovers"] = [Policy(lambda index: HALF).group(index).state_dict() for index in range(5)]
    collector.load_state_dict(state)
    third = collector.collect()
    assert indices(third) == [[[0, 1, 2, 3]]]
    assert collector.sampler.called("sample_groups") == []
    assert third.statistics["rollout/rounds"] == third.statistics["prompts/sampled"] == 0
    assert "reward/total" not in third.statistics


def test_leftovers_are_scored_under_the_policy_that_sampled_them():
    policy = Policy(lambda index: HALF if index >= 3 else RIGHT)
    collector = make(policy=policy)
    first = collector.collect()
    assert all(group.old_log_probs is None for group in flat(first))
    policy.version = 1  # an update
    batch = collector.collect()
    waited, *fresh = flat(batch)
    assert torch.equal(waited.old_log_probs, -waited.rollout.responses / 1000)
    assert torch.equal(waited.old_latent_log_probs, waited.rollout.latents.sum(dim=-1).double())
    assert all(group.old_log_probs is None for group in fresh)
    policy.version = 2
    (still,) = collector._leftovers
    assert torch.equal(still.old_log_probs, -1 - still.rollout.responses / 1000)
    experience = collector.experience(batch.micro_batches[0][0], batch.total_tokens[0], {})
    mask = experience.rollout.response_mask
    assert not experience.old_log_probs[:2][mask[:2]].isnan().any()
    assert experience.old_log_probs[2:][mask[2:]].isnan().all()
    # each was scored once, however long it waits
    assert policy.called("score_behaviour") == [("records:7",), ("records:11",)]


def test_counts_and_means_are_those_of_all_that_was_sampled():
    table = {0: (1.0, 1.0, 1.0), 1: (1.0, 0.0, NAN), 2: (0.0, 0.0, 0.0), 3: (NAN, NAN, 1.0), 5: (1.0, 1.0, 0.0)}
    policy = Policy(lambda index: table.get(index, (0.0, 0.0, 1.0)))
    written = []
    collector = make(
        policy=policy, source=Prompts(broken=[4]), log_samples=lambda number, records: written.append((number, records))
    )
    batch = collector.collect()
    assert indices(batch) == [[[1, 5, 6, 7]]]
    statistics = batch.statistics
    assert {name.removeprefix("prompts/"): statistics[name] for name in statistics if "prompts/" in name} == {
        "sampled": 8, "kept": 4, "dropped_easy": 1, "dropped_hard": 1, "dropped_failed": 1, "skipped": 1, "leftover": 0
    }  # fmt: skip
    groups = [policy.group(index) for index in (0, 1, 2, 3, 5, 6, 7)]
    rollouts = [group.rollout for group in groups]
    accuracy = torch.cat([group.parts["accuracy"] for group in groups])
    totals = torch.cat([group.rewards for group in groups])
    lengths = torch.cat([rollout.response_mask.sum(dim=1) for rollout in rollouts]).double()
    valid = totals.isfinite()
    expected = {
        "reward/accuracy": accuracy[valid].mean(),
        "reward/total": totals[valid].mean(),
        "reward/std": totals[valid].std(correction=0),
        "rollout/failed": 3,
        "rollout/tokens": lengths.sum(),
        "rollout/response_length": lengths.mean(),
        "rollout/response_length_std": lengths.std(correction=0),
        "rollout/cut_share": (lengths == 6).double().mean(),
        "rollout/latents": sum(int(rollout.latent_mask.sum()) for rollout in rollouts) / 21,
        "rollout/spans": sum(len(rollout.span_table) for rollout in rollouts) / 21,
        "rollout/span_share": sum(len(rollout.span_table[:, 0].unique()) for rollout in rollouts) / 21,
        "rollout/rounds": 2,
        "rollout/groups": 4,
    }
    assert {name: statistics[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5
    )
    kept = [group.rewards[group.valid].std() for group in groups if group.prompt_index in (1, 5, 6, 7)]
    assert statistics["group_std/total"] == pytest.approx(float(torch.stack(kept).mean()))
    assert statistics["advantage_share/accuracy"] + statistics["advantage_share/format"] == pytest.approx(1)
    assert statistics["rollout/seconds"] > 0
    assert [(number, len(records)) for number, records in written] == [(0, 12), (0, 9)]


def test_a_part_that_failed_here_and_there_has_the_mean_of_what_is_known():
    class Judged(Policy):
        def group(self, index, sample=None):
            group = super().group(index, sample)
            group.parts["judge"] = torch.tensor([NAN if index == 1 else 0.5, 1.0])
            return group

    batch = make(policy=Judged(lambda index: HALF)).collect()
    assert batch.statistics["reward/judge"] == pytest.approx((3 * 0.5 + 4 * 1.0) / 7)
    assert batch.statistics["rollout/failed"] == 0


def test_failed_rollouts_are_masked_and_weigh_nothing():
    collector = make(lambda index: (1.0, 0.0, NAN, 0.0))
    batch = collector.collect()
    assert batch.statistics["rollout/failed"] == 4
    (part,) = batch.micro_batches[0]
    experience = collector.experience(part, batch.total_tokens[0], batch.statistics)
    assert experience.valid.tolist() == [True, True, False, True] * 4
    assert not experience.advantages[2::4].any()
    assert experience.advantages.isfinite().all()
    # neither for the mean that the others are compared with
    rewards = torch.tensor([0.9, 0.025, 0.075])
    assert experience.advantages[[0, 1, 3]].tolist() == pytest.approx(
        ((rewards - rewards.mean()) / rewards.std()).tolist(), abs=1e-4
    )
    rollout = experience.rollout
    trained = (rollout.chosen_mask | rollout.slot_mask) & experience.valid[:, None]
    assert batch.total_tokens == [int(trained.sum())]


def test_a_reward_that_fails_too_often_stops_the_run():
    assert make(lambda index: (NAN, NAN, 1.0, 0.0)).collect().statistics["rollout/failed"] == 8
    collector = make(lambda index: (NAN, NAN, NAN, 0.0) if index else (NAN, NAN, 1.0, 0.0), max_failed=0.5)
    before = collector.state_dict()
    with pytest.raises(RolloutError, match=r"11 of 16 rollouts have no reward.*more than max_failed=0.5.*resume"):
        collector.collect()
    assert_equal(collector.state_dict(), before)
    with pytest.raises(RolloutError, match="1 of 8 rollouts"):
        make(lambda index: (NAN, 1.0) if index == 0 else HALF, max_failed=0.0).collect()


def test_a_stop_keeps_nothing_of_an_unfinished_batch():
    policy = Policy(mixed)  # two rounds fill a batch
    collector, whole = make(policy=policy), make()
    before = collector.state_dict()
    sample = policy.sample_groups
    policy.sample_groups = lambda prompts: (signal.raise_signal(signal.SIGTERM), sample(prompts))[1]
    with watched():
        defer()
        with pytest.raises(Stopped):
            collector.collect()
    assert len(policy.called("sample_groups")) == 1
    assert_equal(collector.state_dict(), before)
    policy.sample_groups = sample
    assert indices(collector.collect()) == indices(whole.collect())


def test_a_batch_that_does_not_fill_is_used_and_said(caplog):
    collector = make(lambda index: HALF if index in (2, 9) else WRONG, max_rounds=3, num_minibatches=2)
    with caplog.at_level(logging.WARNING):
        batch = collector.collect()
    assert indices(batch) == [[[2]], [[9]]]
    assert batch.statistics["rollout/groups"] == 2
    assert batch.statistics["rollout/rounds"] == 3
    assert "rollout batch 0 has 2 of 4 groups after 3 rounds (max_rounds): 2 kept, 0 dropped easy, 10 dropped hard" in (
        caplog.text
    )
    assert collector.state_dict()["prompt_index"] == 12


def test_a_batch_of_nothing_is_an_error_that_says_why():
    collector = make(lambda index: WRONG if index % 2 else RIGHT, max_rounds=2, source=Prompts(broken=[7]))
    before = collector.state_dict()
    wanted = (
        r"none of 8 prompts is left after 2 rounds \(filter: 0.1 < mean accuracy < 0.9\): 0 kept, 4 dropped easy, "
        r"3 dropped hard, 0 dropped failed, 1 skipped. Choose easier or harder"
    )
    with pytest.raises(RolloutError, match=wanted):
        collector.collect()
    assert_equal(collector.state_dict(), before)
    with pytest.raises(RolloutError, match=r"\(filter: none\): .* 8 skipped"):
        make(source=Prompts(broken=range(1000)), max_rounds=2, filter_key="none").collect()


@pytest.mark.parametrize("call", ["on_collect", "sample_groups", "score_behaviour", "score_reference"])
def test_nothing_changes_when_collecting_fails(call):
    policy, calm = (Policy(lambda index: HALF if index >= 3 else RIGHT) for _ in range(2))
    collector, undisturbed = make(policy=policy, num_minibatches=2), make(policy=calm, num_minibatches=2)
    assert_equal(indices(collector.collect()), indices(undisturbed.collect()))
    before = stored(collector.state_dict())
    policy.broken = {call}
    with pytest.raises(RuntimeError, match=f"{call} failed"):
        collector.collect()
    assert_equal(collector.state_dict(), before)
    policy.broken = set()
    for _ in range(2):
        assert_equal(
            [vars(group) for group in flat(collector.collect())], [vars(g) for g in flat(undisturbed.collect())]
        )


# ---------------------------------------------------------------------- minibatches and micro-batches


@pytest.mark.parametrize(
    ("minibatches", "micro_batches", "expected"),
    [
        (1, 1, [[[0, 1, 2, 3, 4, 5]]]),
        (1, 4, [[[0], [1, 2], [3], [4, 5]]]),
        (3, 2, [[[0], [1]], [[2], [3]], [[4], [5]]]),
        (4, 1, [[[0, 1]], [[2]], [[3, 4]], [[5]]]),
        (2, 4, [[[], [0], [1], [2]], [[], [3], [4], [5]]]),
    ],
)
def test_groups_are_divided_evenly_and_in_order(minibatches, micro_batches, expected):
    collector = make(lambda index: HALF, batch_size=6, num_minibatches=minibatches, micro_batches=micro_batches)
    batch = collector.collect()
    assert indices(batch) == expected
    for parts, total in zip(batch.micro_batches, batch.total_tokens, strict=True):
        assert total == sum(group.num_tokens for part in parts for group in part) > 0
    assert indices(collector.current_batch()) == expected
    assert collector.current_batch().total_tokens == batch.total_tokens


def test_what_later_updates_train_on_is_scored_while_the_policy_is_the_current_one():
    for settings in ({"num_epochs": 2}, {"num_minibatches": 2}):
        policy = Policy(lambda index: HALF)
        policy.version = 3
        batch = make(policy=policy, **settings).collect()
        for group in flat(batch):
            assert torch.equal(group.old_log_probs, -3 - group.rollout.responses / 1000)
        # in the micro-batches that they are trained in, so that the first ratio is 1 to the last bit
        wanted = [tuple(group.sample.sample_id for group in part) for parts in batch.micro_batches for part in parts]
        assert policy.called("score_behaviour") == wanted


def test_the_reference_scores_every_micro_batch_once_whatever_the_number_of_passes():
    policy = Policy(lambda index: HALF)
    collector = make(policy=policy, num_minibatches=2, micro_batches=2, num_epochs=3)
    batch = collector.collect()
    for _ in range(3):
        for parts, total in zip(batch.micro_batches, batch.total_tokens, strict=True):
            for part in parts:
                experience = collector.experience(part, total, {})
                mask = experience.rollout.response_mask
                assert torch.equal(experience.reference_log_probs[mask], -experience.rollout.responses[mask] / 10)
    assert policy.called("score_reference") == [("records:0",), ("records:1",), ("records:2",), ("records:3",)]
    without = make(policy=Policy(lambda index: HALF, reference=False))
    batch = without.collect()
    assert without.experience(batch.micro_batches[0][0], 9, {}).reference_log_probs is None


def test_an_empty_micro_batch_weighs_nothing():
    collector = make(lambda index: HALF, num_minibatches=2, micro_batches=3)
    batch = collector.collect()
    assert indices(batch) == [[[], [0], [1]], [[], [2], [3]]]
    experience = collector.experience(batch.micro_batches[1][0], batch.total_tokens[1], {"a": 1.0})
    assert not experience.valid.any()
    assert experience.total_tokens == batch.total_tokens[1]
    assert experience.statistics == {"a": 1.0}
    mask = experience.rollout.chosen_mask & experience.valid[:, None]
    log_probs = torch.zeros(mask.shape, requires_grad=True)
    densities = torch.zeros(experience.rollout.latent_mask.shape, dtype=torch.float64, requires_grad=True)
    output = PolicyLoss()(
        log_probs, densities, advantages=experience.advantages, mask=mask, width=3,
        latent_mask=experience.rollout.latent_mask & experience.valid[:, None], total=experience.total_tokens,
        old_log_probs=experience.old_log_probs, old_latent_log_probs=experience.old_latent_log_probs,
        reference_log_probs=experience.reference_log_probs,
    )  # fmt: skip
    output.loss.backward()
    assert output.loss == output.text.count == output.kl == 0
    assert not log_probs.grad.any()
    # the group itself is left as it is
    assert all(group.valid.all() for group in flat(batch))


def test_a_step_without_any_token_divides_by_one():
    collector = make(lambda index: HALF)
    batch = collector.collect()
    assert collector.experience(batch.micro_batches[0][0], 0, {}).total_tokens == 1


# ---------------------------------------------------------------------- state


@pytest.mark.parametrize("settings", [{}, {"num_minibatches": 2, "num_epochs": 2}])
@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_a_killed_collector_goes_on_as_if_nothing_had_happened(settings, killed_after):
    def groups_of(collector, numbers):
        found = []
        for number in numbers:
            collector.sampler.version = number
            batch = collector.collect()
            timeless = {name: value for name, value in batch.statistics.items() if name != "rollout/seconds"}
            found.append(([vars(group) for group in flat(batch)], indices(batch), batch.total_tokens, timeless))
        return found

    def fresh():
        return make(lambda index: HALF if index % 7 else RIGHT, source=Prompts(size=11), **settings)

    whole = fresh()
    wanted = groups_of(whole, range(5))
    first = fresh()
    groups_of(first, range(killed_after))
    state = stored(first.state_dict())
    second = fresh()
    second.load_state_dict(state)
    assert_equal(second.state_dict(), state)
    if killed_after:
        again = second.current_batch()
        assert indices(again) == wanted[killed_after - 1][1]
        assert again.total_tokens == wanted[killed_after - 1][2]
        assert again.statistics == {}
        for group, other in zip(flat(again), flat(first.current_batch()), strict=True):
            assert group.vision is None  # made again, from the prompt that was encoded again
            assert_equal({**vars(group), "vision": other.vision}, vars(other))
    found = groups_of(second, range(killed_after, 5))
    for group in (group for groups, *_ in [*found, *wanted] for group in groups):
        group.pop("vision")
    assert_equal(found, wanted[killed_after:])
    whole_state, second_state = whole.state_dict(), second.state_dict()
    assert_equal(second_state, whole_state)


def test_a_state_does_not_fit_other_records():
    policy = Policy(lambda index: HALF)
    collector = make(policy=policy)
    collector.collect()
    state = stored(collector.state_dict())
    with pytest.raises(CheckpointError, match=r"rollouts of records:\d, but that place in the data is now records:0"):
        make(source=Prompts(size=1)).load_state_dict(state)

    def go_on():
        broken = make(source=Prompts(broken=[2]))
        broken.load_state_dict(state)
        broken.current_batch()

    with pytest.raises(RolloutError, match="the record of records:2 can no longer be used; restore it to resume"):
        go_on()


# ---------------------------------------------------------------------- ranks


@pytest.fixture
def ranks(monkeypatch):
    return Ranks(monkeypatch)


def uneven(index):
    """Three of four groups of some stretches are kept, and none of others."""
    return HALF if index % 4 and index // 6 % 3 else WRONG


def story(rank, world_size, *, batches=3, state=None, settings=None, accuracy=uneven, micro_batches=1):
    """What a rank sees of some rollout batches."""
    policy = Policy(accuracy)
    chosen = {"batch_size": 8, **(settings or {})}
    collector = make(policy=policy, rank=rank, world_size=world_size, micro_batches=micro_batches, **chosen)
    if state is not None:
        collector.load_state_dict(state)
    seen = []
    for number in range(batches):
        policy.version = collector.collected
        batch = collector.collect()
        seen.append(
            {
                "indices": indices(batch),
                "totals": batch.total_tokens,
                "statistics": {k: v for k, v in batch.statistics.items() if k != "rollout/seconds"},
                "groups": {group.prompt_index: {**vars(group)} for group in flat(batch)},
                "number": number,
            }
        )
    return {"seen": seen, "state": stored(collector.state_dict()), "collector": collector}


def minibatch_draws(results, number):
    """Sorted indices of every minibatch of a rollout batch, over all ranks."""
    parts = [result["seen"][number]["indices"] for result in results]
    return [sorted(index for part in same for micro in part for index in micro) for same in zip(*parts, strict=True)]


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("settings", [{}, {"num_minibatches": 3}, {"max_rounds": 2, "num_minibatches": 2}])
def test_a_rollout_batch_is_the_same_whatever_the_number_of_ranks(ranks, world_size, settings):
    (alone,) = ranks(1, lambda rank: story(rank, 1, settings=settings))
    together = ranks(world_size, lambda rank: story(rank, world_size, settings=settings))
    for number, wanted in enumerate(alone["seen"]):
        assert minibatch_draws(together, number) == minibatch_draws([alone], number)
        for result in together:
            seen = result["seen"][number]
            assert seen["totals"] == wanted["totals"]
            assert seen["statistics"] == pytest.approx(wanted["statistics"])
            for index, group in seen["groups"].items():
                assert_equal(group, wanted["groups"][index])  # features included
        # balanced: no rank has two groups more than another
        for part in range(len(wanted["indices"])):
            counts = [sum(map(len, result["seen"][number]["indices"][part])) for result in together]
            assert max(counts) - min(counts) <= 1
        counts = [len(result["seen"][number]["groups"]) for result in together]
        assert max(counts) - min(counts) <= 1
    for result in together:
        assert_equal(result["state"], alone["state"])


def test_ranks_without_a_group_get_one_that_weighs_nothing(ranks):
    # one group in all, sampled by rank 1 of 4 and trained on by rank 0
    def work(rank):
        policy = Policy(lambda index: HALF if index == 5 else WRONG)
        collector = make(policy=policy, rank=rank, world_size=4, batch_size=4, max_rounds=2, micro_batches=2)
        batch = collector.collect()
        parts = [collector.experience(part, batch.total_tokens[0], {}) for part in batch.micro_batches[0]]
        state = stored(collector.state_dict())
        restored = make(policy=policy, rank=rank, world_size=4, batch_size=4, micro_batches=2)
        restored.load_state_dict(state)
        again = restored.current_batch()
        parts += [restored.experience(part, again.total_tokens[0], {}) for part in again.micro_batches[0]]
        return indices(batch), indices(again), parts

    for rank, (found, again, parts) in enumerate(ranks(4, work)):
        assert found == again == ([[[], [5]]] if rank == 0 else [[[], []]])
        for part, weighs in zip(parts, [False, rank == 0] * 2, strict=True):
            assert part.prompt.sample_ids == ("records:5",)
            assert bool(part.valid.any()) == weighs
            assert part.total_tokens == Policy(lambda index: HALF).group(5).num_tokens


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), (4, 2)])
def test_a_state_goes_on_with_another_number_of_ranks(ranks, before, after):
    settings = {"num_minibatches": 2}
    (whole,) = ranks(1, lambda rank: story(rank, 1, batches=4, settings=settings))
    first = ranks(before, lambda rank: story(rank, before, batches=2, settings=settings))
    assert_equal(first[0]["state"], first[-1]["state"])
    second = ranks(after, lambda rank: story(rank, after, batches=2, settings=settings, state=first[0]["state"]))
    for number in (0, 1):
        assert minibatch_draws(second, number) == minibatch_draws([whole], number + 2)
        for result in second:
            seen, wanted = result["seen"][number], whole["seen"][number + 2]
            assert seen["totals"] == wanted["totals"]
            for index, group in seen["groups"].items():
                assert_equal({**group, "vision": None}, {**wanted["groups"][index], "vision": None})
    assert_equal(second[0]["state"], whole["state"])


def test_an_error_of_a_reward_stops_all_ranks(ranks):
    def work(rank):
        collector = make(lambda index: (NAN, NAN) if index % 2 else HALF, rank=rank, world_size=2, max_failed=0.4)
        with pytest.raises(RolloutError, match="4 of 8 rollouts have no reward"):
            collector.collect()
        return collector.state_dict()["prompt_index"]

    assert ranks(2, work) == [0, 0]  # though all of rank 0's rewards are there


def process(rank, folder):
    """What each process does; writes what it saw to `rank{rank}.json`."""
    seen = story(rank, 2, settings={"num_minibatches": 2})["seen"]
    features = [[float(group["vision"].images.embeds[0, 0]) for group in part["groups"].values()] for part in seen]
    report = [{name: part[name] for name in ("indices", "totals", "statistics")} for part in seen]
    Path(folder, f"rank{rank}.json").write_text(json.dumps([report, features]))


@pytest.mark.slow
def test_two_processes_collect_what_two_threads_do(ranks, tmp_path):
    wanted = ranks(2, lambda rank: story(rank, 2, settings={"num_minibatches": 2}))
    run_ranks(process, str(tmp_path))
    held = Counter()
    for rank, result in enumerate(wanted):
        report, features = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for found, part, own in zip(report, result["seen"], features, strict=True):
            assert found["indices"] == part["indices"]
            assert found["totals"] == part["totals"]
            assert found["statistics"] == pytest.approx(part["statistics"])
            assert own == [float(index) for index in part["groups"]]
            held.update(list(part["groups"]))
    assert set(held.values()) == {1}
    assert len(held) == 3 * 8
