"""The share of a response that repeats itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.rewards import RepetitionPenalty
from futurel1.rewards.repetition import repetition_score
from rollouts import make_inputs


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
