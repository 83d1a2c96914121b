"""What is logged of a rollout batch; with all that a collector samples, in `test_collector.py`."""

import math

import pytest
from stand_ins import NAN, Policy

from futurel1.rollout.rollout_statistics import means, summary


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
