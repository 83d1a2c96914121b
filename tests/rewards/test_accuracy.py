"""Accuracy by rule."""

import pytest
import torch

from futurel1.errors import ConfigError
from futurel1.rewards import AccuracyReward
from rollouts import RIGHT, make_inputs


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("B", "B", 1),
        ("b", "<answer>B</answer>", 1),
        (" (B). ", "B", 1),
        ("B", "<answer> b </answer><|im_end|>", 1),
        ("He opens  the Gate.", "he opens the gate", 1),
        ("1 / 2", "1/2", 1),
        ("（B）", "B", 1),
        ("B。", "B", 1),
        ("“B”", "B", 1),
        ("‘B’.", "B", 1),
        ("「B」", "<answer>（b）</answer>", 1),
        ("【B】。", "B", 1),
        ("《B》", "B", 1),
        ("«B».", "B", 1),
        ("Ｂ．", "B", 1),
        ("B।", "B", 1),
        ("B۔", "B", 1),
        ("\u200fB\u200f", "B", 1),
        ("他打开门。", "“他打开门”", 1),
        ("He opens the gate。", "he opens the gate", 1),
        ("－５", "-5", 1),
        ("－５", "5", 0),
        (".5", "5", 0),
        ("5%", "5", 0),
        ("5′", "5", 0),
        ("5!", "5", 0),
        ("5'", '5"', 0),
        ("[0,1)", "(0,1]", 0),
        ("f'", "f", 0),
        ("C*", "C", 0),
        ("B!", "B", 1),
        ("He leaves!", "“He leaves”", 1),
        ("（C）", "B", 0),
        ("B）C", "B", 0),
        ("。", "", 0),
        ("C", "B", 0),
        ("B) the gate", "B", 0),
        ("-5", "5", 0),
        ("", "", 0),
        ("...", "()", 0),
    ],
)
def test_rule(answer: str, truth: str, value: float) -> None:
    inputs = make_inputs([f"<answer>{answer}</answer>"], answers=[truth])
    assert AccuracyReward()(inputs).tolist() == [value]


def test_first_of_several_answers_counts_and_no_answer_is_wrong() -> None:
    responses = ["<answer>B</answer><answer>C</answer>", "<answer>C</answer><answer>B</answer>", "B", "<answer>B"]
    assert AccuracyReward()(make_inputs(responses)).tolist() == [1, 0, 0, 0]
    # The released code reads a missing answer as the word None.
    assert AccuracyReward()(make_inputs(["he walks"], answers=["None"])).tolist() == [0]


def test_a_repetitive_response_gets_minus_one() -> None:
    repetitive = "<reason>" + "he walks on and " * 20 + "</reason><answer>B</answer>"
    assert AccuracyReward()(make_inputs([repetitive, RIGHT])).tolist() == [-1, 1]
    assert AccuracyReward(repetition_limit=1.0)(make_inputs([repetitive, RIGHT])).tolist() == [1, 1]
    with pytest.raises(ConfigError, match=r"repetition_limit.*1\.5"):
        AccuracyReward(repetition_limit=1.5)


def test_known_accuracy_is_returned() -> None:
    inputs = make_inputs([RIGHT, RIGHT, RIGHT], correct=torch.tensor([0.0, -1.0, torch.nan], dtype=torch.float64))
    values = AccuracyReward()(inputs)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor([0.0, -1.0, torch.nan]), equal_nan=True)
