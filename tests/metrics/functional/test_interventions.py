"""What do(z) changes: accuracies, flips and texts of two lists of predictions."""

from __future__ import annotations

from typing import Any

import pytest

from futurel1.errors import RecordError
from futurel1.metrics.functional import intervention_effect


def record(name: str, answer: str, response: str = "same", expected: str = "A") -> dict[str, Any]:
    return {"id": name, "response": response, "answer": answer, "expected": expected}


def test_flips_and_shares() -> None:
    base = [record(str(n), answer) for n, answer in enumerate("AAAABBB")]
    changed = [
        record("0", "A"), record("1", "B", "other"), record("2", "C", "other"), record("3", ""),
        record("4", "A", "other"), record("5", "C"), record("6", "B"),
    ]  # fmt: skip
    effect = intervention_effect(base, changed[::-1])
    assert effect == {
        "accuracy_base": 4 / 7, "accuracy": 2 / 7, "drop": pytest.approx(2 / 7), "right_to_wrong": 3,
        "wrong_to_right": 1, "changed_text": 3 / 7, "n": 7,
    }  # fmt: skip
    back = intervention_effect(changed, base)
    assert (back["right_to_wrong"], back["wrong_to_right"], back["drop"]) == (1, 3, pytest.approx(-2 / 7))


def test_the_same_predictions_show_no_effect() -> None:
    base = [record("a", "A"), record("b", "B")]
    effect = intervention_effect(base, base)
    assert effect == {
        "accuracy_base": 0.5, "accuracy": 0.5, "drop": 0, "right_to_wrong": 0, "wrong_to_right": 0, "changed_text": 0,
        "n": 2,
    }  # fmt: skip


def test_numbers_of_latents_are_no_text() -> None:
    def changed(one: str, other: str) -> float:
        return intervention_effect([record("a", "A", one)], [record("a", "A", other)])["changed_text"]

    assert changed("x [imagined frame 1: 4 latents] y", "x [imagined frame 1: 0 latents] y") == 0
    assert changed("x [imagined frame 1: 4 latents] y", "x [imagined frame 1: 1 latent] z") == 1
    assert changed("x [imagined frame 1: 4 latents]", "x") == 1


def test_answers_of_words_are_compared_without_case_and_punctuation() -> None:
    base = [record("a", " The gate opens. ", expected="the gate opens"), record("b", "「门打开。」", expected="门打开")]
    assert intervention_effect(base, base)["accuracy"] == 1
    wrong = [record("a", "5%", expected="5"), record("b", "", expected="?")]
    assert intervention_effect(wrong, wrong)["accuracy"] == 0


@pytest.mark.parametrize(
    ("base", "changed", "message"),
    [
        ([record("a", "A")], [record("b", "A")], r"only in base are \['a'\] \(1 in all\), only in changed \['b'\]"),
        ([record("a", "A"), record("b", "A")], [record("a", "A")], r"only in base are \['b'\]"),
        ([record("a", "A")] * 2, [record("a", "A")], "base has 'a' twice, again as record 2"),
        ([record("a", "A")], [record("a", "A", expected="B")], "expected to be 'A' in base and 'B' in changed"),
        ([record("a", "A")], [{"id": "a", "response": "x"}], r"changed, record 1 \('a'\) has no answer, expected"),
        ([], [], "no predictions"),
    ],
)
def test_predictions_that_cannot_be_compared(base: Any, changed: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        intervention_effect(base, changed)
