"""Rewards that read the text alone."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rollouts import RIGHT, make_inputs

from futurel1.errors import ConfigError
from futurel1.rewards import AccuracyReward, FormatReward, LengthPenalty, OverlongPenalty, RepetitionPenalty
from futurel1.rewards.repetition import repetition_score
from futurel1.rewards.responses import first_answer, normalize_response

L, R, A = "<|latent_start|><|latent|><|latent|><|latent_end|>", "<reason>then</reason>", "<answer>B</answer>"


# Reading


def test_what_is_normalized() -> None:
    written = " < reason >he\n walks< / reason ><|im_end|>\n<|latent_start|>any thing<|latent_end|> "
    assert normalize_response(written + "<|latent_start|><|latent|>") == (
        "<reason>he\n walks</reason><|latent_start|><|latent|><|latent_end|><|latent_start|><|latent|>"
    )


@given(st.text(alphabet="<>/| \nab\u00a0", max_size=40))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize_response(normalize_response(text)) == normalize_response(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> B </answer><answer>C</answer>", "B"),
        ("<answer>B", ""),
        ("B</answer>", ""),
        ("</answer><answer>B</answer>", "B"),
        ("<Answer>B</Answer>", ""),
    ],
)
def test_first_answer(text: str, answer: str) -> None:
    assert first_answer(text) == answer


@pytest.mark.parametrize(
    "piece", ["<|latent_start|>", "<answer>", "<reason>", " ", "a " * 5, "<reason>a</reason></reason>"]
)
def test_time_is_bounded_whatever_was_written(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    begin = time.perf_counter()
    for variant in ("paper", "released"):
        FormatReward(variant=variant)(make_inputs([text, L + text, L + R + "<answer>" + text]))  # type: ignore[arg-type]
    AccuracyReward()(make_inputs([text]))
    assert time.perf_counter() - begin < 5


# Accuracy


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


# Format


@pytest.mark.parametrize(
    ("text", "both", "reason_first", "released"),
    [
        (L + R + A, 1, 0, 1),
        (R + L + R + A, 1, 1, 1),
        (f" {R}\n{L}\n{R}\n{L}\n{R}\n{A}<|im_end|>\n", 1, 1, 1),
        ("<|latent_start|><|latent_end|>" + R + A, 1, 0, 1),
        (L + "< reason >then< / reason >" + A, 1, 0, 1),
        (R + A, 0, 0, 0),
        (L + A, 0, 0, 0),
        (R + R + L + R + A, 0, 0, 0),
        (L + L + R + A, 0, 0, 0),
        (L + R + R + A, 0, 0, 0),
        (L + "<|latent_end|>" + R + A, 0, 0, 0),
        ("<|latent_start|><|latent|>" + R + A, 0, 0, 0),
        (L + R, 0, 0, 0),
        (L + R + "so " + A, 0, 0, 0),
        (L + R + A + "!", 0, 0, 0),
        ("", 0, 0, 0),
        # What only the released code accepts.
        (L + R + A + A, 0, 0, 1),
        (L + R + A + "or" + R + A, 0, 0, 1),
        (L + "<reason>a</reason> loose text </reason>" + A, 0, 0, 1),
        (L + "<reason>a" + L + "</reason>" + A, 0, 0, 1),
    ],
)
def test_format(text: str, both: float, reason_first: float, released: float) -> None:
    inputs = make_inputs([text])
    assert FormatReward()(inputs).tolist() == [both]
    assert FormatReward("reason_first")(inputs).tolist() == [reason_first]
    assert FormatReward(variant="released")(inputs).tolist() == [released]


def test_format_asks_for_spans() -> None:
    inputs = make_inputs([L + R + A, L + R + L + R + A, R + L + R + L + R + A])
    assert FormatReward(min_spans=2)(inputs).tolist() == [0, 1, 1]
    assert FormatReward(min_spans=3)(inputs).tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="min_spans"):
        FormatReward(min_spans=-1)


@given(st.lists(st.sampled_from("LRA"), max_size=9).map("".join))
def test_format_accepts_two_languages_only(letters: str) -> None:
    text = " ".join({"L": L, "R": R, "A": A}[letter] for letter in letters)
    body = letters.removeprefix("R").removesuffix("A")
    fits = letters.endswith("A") and len(body) > 0 and body == "LR" * (len(body) // 2)
    assert FormatReward()(make_inputs([text])).item() == fits
    assert FormatReward("reason_first")(make_inputs([text])).item() == (fits and letters[0] == "R")


# Repetition


def words(number: int, start: int = 0) -> list[str]:
    return [f"w{i}" for i in range(start, start + number)]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 0.0),
        ("a a a a", 0.0),  # below five words
        ("a a a a a", 0.5),  # one kind among two 4-grams
        (" ".join(words(200)), 0.0),
        # 25 words three times and 50 others: 50 / 122 of the 4-grams, 75 / 125 of the words
        (" ".join(words(25) * 3 + words(50, 100)), 75 / 125),
        # the same in under 100 words: windows are not looked at
        (" ".join(words(25) * 3), 47 / 72),
        # a window of 50 twice counts as a whole, of 60 does not
        (" ".join(words(50) * 2 + words(100, 100)), 0.5),
        (" ".join(words(60) * 2 + words(100, 100)), 57 / 217),
        ("one line of it\ntwo\none line of it\none line of it\nanother line here", 0.5),
    ],
)
def test_repetition_score(text: str, score: float) -> None:
    assert repetition_score(text) == pytest.approx(score, abs=1e-12)
    # Tags do not count as words, nor latents; only a line looks different with a tag in it.
    if "\n" not in text:
        tagged = f"<reason>{text}</reason><|latent_start|><|latent|><|latent|><|latent_end|><|im_end|>"
        assert repetition_score(tagged) == pytest.approx(score, abs=1e-12)
    assert RepetitionPenalty()(make_inputs([text])).item() == pytest.approx(score)


@given(st.lists(st.sampled_from("ab"), min_size=100, max_size=260), st.sampled_from([25, 50]))
def test_repeated_windows_against_a_search(text: list[str], window: int) -> None:
    from futurel1.rewards.repetition import _repeated_words

    best = 0
    for start in range(len(text)):
        block, count = text[start : start + window], 1
        while text[start + count * window : start + (count + 1) * window] == block:
            count += 1
        best = max(best, count * window if count > 1 and len(block) == window else 0)
    assert _repeated_words(text, window) == best


# Length


def test_length_penalties() -> None:
    lengths = torch.tensor([10, 50, 90, 100, 130])
    inputs = make_inputs([RIGHT] * 5, response_lengths=lengths, reference_lengths=torch.tensor([40, 40, 0, -1, 129]))
    assert LengthPenalty()(inputs).tolist() == [0, 10, 0, 0, 1]
    assert LengthPenalty()(make_inputs([RIGHT])).tolist() == [0]
    torch.testing.assert_close(OverlongPenalty(100, 80)(inputs), torch.tensor([0, 0.375, 0.875, 1, 1]))
    for buffer in (0, 101):
        with pytest.raises(ConfigError, match=rf"buffer must be from 1 to max_length \(100\), got {buffer}"):
            OverlongPenalty(100, buffer)


def test_choices_are_checked() -> None:
    with pytest.raises(ConfigError, match="order must be 'both' or 'reason_first', got 'rfirst'"):
        FormatReward("rfirst")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="variant must be 'paper' or 'released', got 'own'"):
        FormatReward(variant="own")  # type: ignore[arg-type]
