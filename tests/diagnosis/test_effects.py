"""What replacing latents does to answers, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from futurel1.diagnosis import effect_of
from futurel1.errors import RecordError


def answers(letters: str, expected: str = "AAAA", other: str | None = "BBBB") -> list[dict[str, Any]]:
    lines = [
        {"id": str(number), "response": f"It is {letter}.", "answer": letter.strip(), "expected": right}
        for number, (letter, right) in enumerate(zip(letters, expected, strict=True))
    ]
    return lines if other is None else [line | {"counterfactual": one} for line, one in zip(lines, other, strict=True)]


def test_answers_that_moved_and_where_to() -> None:
    effect = effect_of("swap", answers("AABC"), answers("BAB "))
    assert (effect.right, effect.total, effect.moved, effect.followed) == (1, 4, 2, 2)
    assert effect.accuracy == 0.25
    assert effect.per_question == ((0, False, True), (1, True, False), (2, False, True), (3, False, False))
    assert effect.changed_text == 0.5
    assert effect.difference is not None
    assert effect.difference.value == pytest.approx(-0.25)
    assert effect.gain is not None
    assert effect.gain.value == pytest.approx(0.25)  # one more than the one that was there before
    assert effect.gain.low <= 0.25 <= effect.gain.high


def test_the_control_is_the_replacement_that_says_it_most_often() -> None:
    controls = {"zero": answers("BAAA"), "noise": answers("BABA"), "mean": answers("CCCC")}
    effect = effect_of("swap", answers("AAAA"), answers("BBBA"), controls)
    assert (effect.followed, effect.control) == (3, "noise")
    assert effect.over_control is not None
    assert effect.over_control.value == pytest.approx(0.25)


def test_the_models_own_latents_have_no_difference() -> None:
    own = effect_of("none", answers("AABC"))
    assert (own.right, own.moved, own.followed, own.difference, own.gain) == (2, 0, 1, None, None)


def test_without_another_future_nothing_is_followed() -> None:
    effect = effect_of("zero", answers("AAAA", other=None), answers("BBBB", other=None))
    assert effect.followed is effect.gain is None
    assert effect.per_question[0] == (0, False, None)
    assert (effect.difference.low, effect.difference.high) == (-1, -1)  # type: ignore[union-attr]


def test_order_does_not_matter_and_questions_must_be_the_same() -> None:
    base, swapped = answers("AABC"), answers("BAB ")
    assert effect_of("swap", base, swapped[::-1]) == effect_of("swap", base, swapped)
    with pytest.raises(RecordError, match="predictions of the same samples"):
        effect_of("swap", base, swapped[1:])


def test_latents_that_stayed_the_models_own_are_added_up() -> None:
    lines = [line | {"own_latents": 2} for line in answers("AABC")]
    assert effect_of("oracle", answers("AABC"), lines).own_latents == 8
