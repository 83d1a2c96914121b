"""TwiFF-Bench means against plain ones."""

import pytest

from futurel1.errors import BatchError
from futurel1.metrics import TwiFFBenchScore


def test_means_leave_failures_out():
    metric = TwiFFBenchScore()
    metric.update([[3, 4], [5, 0], None, [7, 2], [-1, 3]])
    metric.update(["5, 5", [True, 2, 1], [[4], 2.5]])
    scores = {key: value.item() for key, value in metric.compute().items()}
    cot, answer = (3 + 5 + 2 + 4) / 4, (4 + 0 + 1 + 2) / 4
    assert scores == {"cot": cot, "answer": answer, "average": (cot + answer) / 2, "samples": 4, "failures": 4}


def test_only_failures_give_nan_and_their_count():
    metric = TwiFFBenchScore()
    metric.update([None, [6, 6]])
    scores = metric.compute()
    assert all(scores[key].isnan() for key in ("cot", "answer", "average"))
    assert (scores["samples"], scores["failures"]) == (0, 2)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_samples_are_an_error_and_reset_forgets():
    metric = TwiFFBenchScore()
    assert metric([[1, 2]])["cot"] == 1
    metric.reset()
    with pytest.raises(BatchError, match="TwiFFBenchScore has no samples to compute from"):
        metric.compute()
