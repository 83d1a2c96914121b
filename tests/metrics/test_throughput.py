"""Tokens and seconds per sample against plain means."""

import pytest
import torch

from futurel1.errors import BatchError
from futurel1.metrics import Throughput


def test_means_over_batches_timed_as_a_whole_or_by_sample():
    metric = Throughput()
    metric.update(torch.tensor([10, 30]), 5.0)
    metric.update([20, 0, 40], torch.tensor([1.0, 2.0, 4.0]))
    metric.update([], 0.0)
    scores = metric.compute()
    assert scores["tokens_per_sample"] == 100 / 5
    assert scores["seconds_per_sample"].item() == pytest.approx(12 / 5)
    assert scores["samples"] == 5


@pytest.mark.parametrize(
    ("tokens", "seconds", "message"),
    [
        ([1, -2], 1.0, r"whole numbers of at least 0"),
        ([1.5], 1.0, r"whole numbers"),
        (torch.ones(2, 2, dtype=torch.long), 1.0, r"\(N,\) whole numbers"),
        ([1, 2], [1.0], r"one per sample \(2\), got shape \(1,\)"),
        ([1, 2], float("nan"), r"finite and at least 0"),
        ([1, 2], [1.0, -1.0], r"finite and at least 0"),
        ([], 1.0, r"1.0 seconds were given for a batch of no samples"),
    ],
)
def test_a_wrong_batch_is_an_error_and_counts_nothing(tokens, seconds, message):
    metric = Throughput()
    with pytest.raises(BatchError, match=message):
        metric.update(tokens, seconds)
    assert (metric.samples, metric.tokens, metric.seconds) == (0, 0, 0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_computing_without_samples_is_an_error():
    with pytest.raises(BatchError, match="Throughput has no samples"):
        Throughput().compute()
