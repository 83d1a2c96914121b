"""FutureBench accuracy against a plain count, and its interval against the binomial distribution."""

import math

import pytest
import torch
from simulated import SPLITS, make_questions

from futurel1.errors import BatchError, ConfigError
from futurel1.metrics import FutureBenchAccuracy
from futurel1.metrics.functional import extract_option, wilson_interval


def counted(questions, protocol, split=None):
    """Number of samples, of correct ones, of unanswered ones."""
    rows = [
        (extract_option(response, protocol), answer)
        for response, answer, name in zip(*questions.values(), strict=True)
        if split in (None, name)
    ]
    return len(rows), sum(chosen == answer for chosen, answer in rows), sum(not chosen for chosen, _ in rows)


def batches(questions, size):
    number = len(questions["answers"])
    return [{key: value[i : i + size] for key, value in questions.items()} for i in range(0, number, size)]


def test_scores_equal_a_plain_count():
    questions, metric = make_questions(101, seed=1), FutureBenchAccuracy()
    for batch in batches(questions, 7):
        metric.update(**batch)
    scores = metric.compute()
    assert scores["samples"] == 101
    for protocol in ("paper", "strict"):
        number, correct, unanswered = counted(questions, protocol)
        assert scores[f"{protocol}/accuracy"].item() == pytest.approx(100 * correct / number)
        assert scores[f"{protocol}/unanswered"] == unanswered > 0
        assert scores[f"{protocol}/accuracy_low"] < 100 * correct / number < scores[f"{protocol}/accuracy_high"]
        for split in SPLITS:
            number, correct, _ = counted(questions, protocol, split)
            assert scores[f"samples/{split}"] == number
            if number:
                assert scores[f"{protocol}/{split}"].item() == pytest.approx(100 * correct / number)
            else:
                assert split == "hop3"
                assert scores[f"{protocol}/{split}"].isnan()
                assert scores[f"{protocol}/{split}_low"].isnan()
    assert scores["paper/accuracy"] != scores["strict/accuracy"]


def test_keys_do_not_depend_on_the_data():
    metric, other = FutureBenchAccuracy(), FutureBenchAccuracy()
    metric.update(["<answer>A</answer>"], ["A"], ["hop2"])
    other.update(**make_questions(20, seed=2))
    ends = ("", "_low", "_high")
    expected = {f"{p}/{name}{end}" for p in ("paper", "strict") for name in ("accuracy", *SPLITS) for end in ends}
    expected |= {"paper/unanswered", "strict/unanswered", "samples", *(f"samples/{split}" for split in SPLITS)}
    assert set(metric.compute()) == set(other.compute()) == expected
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in metric.compute().values())


def test_options_reach_the_strict_protocol():
    metric = FutureBenchAccuracy()
    options = [{"A": "Ann waits", "B": "rain", "C": "he runs", "D": "snow"}] * 2
    metric.update(["<answer>he runs</answer>", "<answer>he jumps</answer>"], ["C", "C"], ["hop1", "hop1"], options)
    scores = metric.compute()
    assert (scores["strict/accuracy"], scores["strict/unanswered"]) == (50, 1)


def test_direct_protocol_alone():
    metric = FutureBenchAccuracy(protocols=["direct"])
    metric.update(["B", "the C"], ["B", "B"], ["hop1", "hop5"])
    scores = metric.compute()
    assert (scores["direct/hop1"], scores["direct/hop5"], scores["direct/accuracy"]) == (100, 0, 50)
    assert not any(key.startswith("paper") for key in scores)


def test_forward_gives_the_batch_and_reset_forgets():
    metric = FutureBenchAccuracy()
    metric.update(["<answer>A</answer>"], ["B"], ["hop1"])
    assert metric(["<answer>B</answer>"], ["B"], ["hop1"])["paper/accuracy"] == 100
    assert metric.compute()["paper/accuracy"] == 50
    metric.reset()
    metric.update(["<answer>A</answer>"], ["A"], ["hop1"])
    assert metric.compute()["samples"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["x"], ["A", "B"], ["hop1"]), r"'responses': 1, 'answers': 2, 'splits': 1"),
        ((["x"], ["A"], ["hop1"], []), r"'options': 0"),
        ((["x", "y"], ["A", "B"], ["hop1", "hop4"]), r"unknown FutureBench splits \['hop4'\]; known are .*'hop5'"),
        ((["x", "y"], ["A", "yes"], ["hop1", "hop1"]), r"one of the letters A, B, C, D, got 'yes'"),
    ],
)
def test_a_wrong_batch_is_an_error_and_counts_nothing(arguments, message):
    metric = FutureBenchAccuracy()
    with pytest.raises(BatchError, match=message):
        metric.update(*arguments)
    assert not any(getattr(metric, f"outcomes_{split}") for split in SPLITS)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_computing_without_samples_is_an_error():
    with pytest.raises(BatchError, match="no samples to compute from: call update"):
        FutureBenchAccuracy().compute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocols": ["lenient"]}, "unknown protocols"),
        ({"protocols": []}, "protocols must be at least one name"),
        ({"splits": ["hop1", "hop1"]}, "splits must be at least one name, each once"),
    ],
)
def test_wrong_settings_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        FutureBenchAccuracy(**options)


def outcomes(number, correct):
    return torch.arange(number) < correct


def binomial(number, share):
    """(number + 1,) probabilities of each number of correct samples."""
    counts = torch.arange(number + 1, dtype=torch.float64)
    distribution = torch.distributions.Binomial(number, torch.tensor(share, dtype=torch.float64))
    return distribution.log_prob(counts).exp()


@pytest.mark.parametrize(
    ("number", "correct", "low", "high"),
    [
        (20, 20, 83.887, 100.0),
        (20, 0, 0.0, 16.113),
        (1, 1, 20.655, 100.0),
        (173, 172, 96.799, 99.898),
        (1056, 771, 70.254, 75.602),
    ],
)
def test_interval_equals_that_of_scipy(number, correct, low, high):
    assert wilson_interval(outcomes(number, correct)) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("number", [10, 20, 173, 489, 1056])
def test_interval_solves_the_equation_of_the_score_test(number):
    for correct in range(1, number, max(1, number // 20)):
        for end in wilson_interval(outcomes(number, correct), level=0.9):
            p = end / 100
            assert (correct / number - p) ** 2 == pytest.approx(1.6448536**2 * p * (1 - p) / number, rel=1e-5)


@pytest.mark.parametrize("number", [1, 2, 20, 173, 1056])
def test_interval_has_a_width_and_holds_the_share_at_the_edges_too(number):
    for correct in {0, 1, number // 2, number - 1, number}:
        low, high = wilson_interval(outcomes(number, correct))
        assert 0 <= low <= 100 * correct / number <= high <= 100
        assert high - low > 100 / (number + 4)


@pytest.mark.parametrize(
    ("number", "share"), [(173, 0.98), (173, 0.02), (173, 0.7), (1056, 0.73), (50, 0.97), (20, 0.9)]
)
def test_interval_covers_the_truth_about_95_percent_of_the_time(number, share):
    ends = [wilson_interval(outcomes(number, correct)) for correct in range(number + 1)]
    covers = torch.tensor([low <= 100 * share <= high for low, high in ends], dtype=torch.float64)
    assert 0.93 < float((covers * binomial(number, share)).sum()) < 0.98


def test_scores_that_are_all_right_or_all_wrong_have_an_interval():
    metric = FutureBenchAccuracy()
    metric.update(["<answer>B</answer>"] * 20, ["B"] * 20, ["hop1"] * 20)
    metric.update(["<answer>B</answer>"] * 20, ["C"] * 20, ["hop2"] * 20)
    scores = {key: value.item() for key, value in metric.compute().items()}
    for protocol in ("paper", "strict"):
        assert scores[f"{protocol}/hop1_low"] == pytest.approx(83.887, abs=1e-3)
        assert scores[f"{protocol}/hop1_high"] == 100
        assert scores[f"{protocol}/hop2_low"] == 0
        assert scores[f"{protocol}/hop2_high"] == pytest.approx(16.113, abs=1e-3)


def test_interval_without_samples_or_level():
    assert all(math.isnan(end) for end in wilson_interval(torch.zeros(0)))
    for level in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match=f"between 0 and 1, got {level}"):
            wilson_interval(torch.ones(10), level=level)
