"""What is logged of a rollout batch; with all that a collector samples, in `test_collector.py`."""

import math
from dataclasses import replace

import pytest
import torch
from stand_ins import NAN, Policy

from futurel1.losses import group_advantages
from futurel1.models.policies import VonMisesFisherLatents
from futurel1.rollout.rollout_statistics import deviations, means, summary, within_groups


def test_means_weigh_rollouts_and_not_groups():
    small, large = Policy(lambda index: (1.0,)).group(0), Policy(lambda index: (0.0, 0.0, 1.0)).group(1)
    logged = means([summary(small), summary(large)])
    assert logged["reward/accuracy"] == logged["reward/correct"] == 0.5
    assert logged == means([summary(large), summary(small)])


def test_rollouts_without_a_reward_count_as_failed_only():
    logged = means([summary(Policy(lambda index: (1.0, NAN, NAN, 0.0)).group(0))])
    assert logged["rollout/failed"] == 2
    assert logged["reward/accuracy"] == 0.5
    assert all(math.isfinite(value) for value in logged.values())


def test_without_accuracy_nothing_is_right():
    group = Policy(lambda index: (1.0, 0.0)).group(0)
    with_accuracy = means([summary(group)])
    del group.parts["accuracy"]
    logged = means([summary(group)])
    assert with_accuracy.keys() - logged.keys() == {"reward/accuracy", "reward/correct"}
    assert logged["reward/total"] == pytest.approx(with_accuracy["reward/total"])


def test_nothing_sampled_is_nothing_logged():
    assert means([]) == {}


# ---------------------------------------------------------------------- within groups


def group_of(parts, weights, *, valid=None, latents=None, mask=None, kind="grpo"):
    """A group with these reward parts by name, and latents (G, S, H) if they matter."""
    group = Policy(lambda index: [0.0] * len(next(iter(parts.values())))).group(0)
    group.parts = {name: torch.tensor(values) for name, values in parts.items()}
    group.valid = torch.ones_like(group.valid) if valid is None else torch.tensor(valid)
    group.rewards = sum(weights[name] * part for name, part in group.parts.items() if weights[name])
    group.advantages = group_advantages(group.rewards, torch.zeros(len(group.valid)).long(), group.valid, kind)
    if latents is not None:
        latents = torch.tensor(latents)
        full = torch.ones(latents.shape[:2], dtype=torch.bool)
        mask = full if mask is None else torch.tensor(mask)
        group.rollout = replace(group.rollout, latents=latents, latent_mask=mask)
    return group


def test_shares_of_the_advantage_are_covariances_over_the_variance_of_the_total():
    weights = {"accuracy": 1.0, "other": 0.5, "unused": 0.0}
    parts = {"accuracy": [1.0, 1.0, 0.0, 0.0], "other": [0.0, 2.0, 0.0, 2.0], "unused": [5.0, 0.0, 0.0, 0.0]}
    logged = within_groups([deviations(group_of(parts, weights), weights)])
    # the two are uncorrelated; weighted, each deviates by 0.5
    assert logged["advantage_share/accuracy"] == pytest.approx(0.5, abs=1e-6)
    assert logged["advantage_share/other"] == pytest.approx(0.5, abs=1e-6)
    assert "advantage_share/unused" not in logged
    assert logged["group_std/accuracy"] == pytest.approx((1 / 3) ** 0.5)
    assert logged["group_std/other"] == pytest.approx((4 / 3) ** 0.5)
    assert logged["group_std/unused"] == pytest.approx(2.5)
    assert logged["group_std/total"] == pytest.approx((2 / 3) ** 0.5)
    assert logged["accuracy_r2/advantage"] == pytest.approx(0.5, abs=1e-6)
    assert logged["accuracy_r2/other"] == 0
    assert logged["accuracy_r2/unused"] == pytest.approx(1 / 3)


def test_a_reward_that_follows_from_accuracy_has_an_r2_of_one_and_a_negative_share():
    """As R_ctr with equal latents: 1 / (1 + other wrong rollouts), so that wrong ones have more."""
    weights = {"accuracy": 0.9, "contrastive": 0.2}
    groups = [
        group_of({"accuracy": [1.0, 1.0, 0.0, 0.0], "contrastive": [1 / 3, 1 / 3, 1 / 2, 1 / 2]}, weights),
        group_of({"accuracy": [1.0, 0.0, 0.0, 0.0], "contrastive": [0.0, 1 / 3, 1 / 3, 1 / 3]}, weights),
    ]
    logged = within_groups([deviations(group, weights) for group in groups])
    assert logged["accuracy_r2/contrastive"] == logged["accuracy_r2/advantage"] == pytest.approx(1, abs=1e-6)
    shares = [0.2 / 6 / (0.9 - 0.2 / 6), 0.2 / 3 / (0.9 - 0.2 / 3)]
    assert logged["advantage_share/contrastive"] == pytest.approx(-sum(shares) / 2, abs=1e-5)
    assert logged["advantage_share/accuracy"] == pytest.approx(1 + sum(shares) / 2, abs=1e-5)


@pytest.mark.parametrize(("kind", "share"), [("grpo", 0.5), ("dr_grpo", 100 / 101)])
def test_groups_weigh_as_much_as_their_advantages(kind, share):
    """Divided by the std each group weighs the same; undivided, the group that differs more."""
    weights = {"a": 1.0, "b": 1.0}
    groups = [
        group_of({"a": [10.0, 0.0], "b": [0.0, 0.0]}, weights, kind=kind),
        group_of({"a": [0.0, 0.0], "b": [0.0, 1.0]}, weights, kind=kind),
        group_of({"a": [3.0, 3.0], "b": [0.0, 0.0]}, weights, kind=kind),
    ]
    rows = [deviations(group, weights) for group in groups]
    logged = within_groups(rows)
    assert logged["advantage_share/a"] == pytest.approx(share, abs=1e-5)
    assert logged["advantage_share/b"] == pytest.approx(1 - share, abs=1e-5)
    assert logged == within_groups(rows[::-1])
    assert not any("accuracy" in name for name in logged)


def test_rollouts_without_a_reward_are_compared_with_nobody():
    weights = {"accuracy": 1.0, "judge": 0.0}
    parts = {"accuracy": [1.0, 0.0, NAN, 0.0], "judge": [NAN, 1.0, 9.0, 3.0]}
    logged = within_groups([deviations(group_of(parts, weights, valid=[True, True, False, True]), weights)])
    assert logged["group_std/accuracy"] == pytest.approx((1 / 3) ** 0.5)
    assert logged["group_std/judge"] == pytest.approx(2**0.5)
    assert logged["advantage_share/accuracy"] == pytest.approx(1)


def test_latents_are_compared_with_those_at_the_same_place():
    weights = {"accuracy": 1.0}
    parts = {"accuracy": [1.0, 0.0, 0.0, 0.0]}
    latents = [[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -3.0]], [[0.0, 1.0], [9.0, 9.0]], [[7.0, 7.0], [7.0, 7.0]]]
    mask = [[True, True], [True, True], [True, False], [False, False]]
    logged = within_groups([deviations(group_of(parts, weights, latents=latents, mask=mask), weights)])
    # 1 and -1 between the first two, 0 between each of them and the third; the fourth imagines nothing
    assert logged["rollout/latent_cosine"] == pytest.approx(0, abs=1e-6)
    latents[1][1] = [0.0, 2.0]
    logged = within_groups([deviations(group_of(parts, weights, latents=latents, mask=mask), weights)])
    assert logged["rollout/latent_cosine"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("cosine", [0.95, 0.7])
def test_sampled_latents_of_one_prediction_have_the_square_of_the_policys_cosine(cosine):
    """The number that docs/reinforcement.md tells to compare with."""
    torch.manual_seed(0)
    latents = VonMisesFisherLatents(cosine).sample(torch.randn(1, 64).expand(200, 64))[:, None]
    weights = {"accuracy": 1.0}
    group = group_of({"accuracy": [0.0] * 200}, weights, latents=latents.tolist())
    assert within_groups([deviations(group, weights)])["rollout/latent_cosine"] == pytest.approx(cosine**2, abs=0.01)


def test_what_never_varies_is_nan_under_the_same_names():
    weights = {"accuracy": 0.9, "format": 0.1}
    flat = within_groups([deviations(group_of({"accuracy": [1.0, 1.0], "format": [1.0, 1.0]}, weights), weights)])
    varied = within_groups([deviations(group_of({"accuracy": [1.0, 0.0], "format": [1.0, 0.0]}, weights), weights)])
    assert flat.keys() == varied.keys()
    assert flat["group_std/total"] == 0
    assert math.isnan(flat["advantage_share/format"])
    assert math.isnan(flat["accuracy_r2/format"])
