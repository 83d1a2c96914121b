"""Rewards that read the text alone."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rollouts import RIGHT, make_inputs
from torch import Tensor

from futurel1 import LatentReasoner
from futurel1.errors import BatchError, ConfigError
from futurel1.metrics.functional import extract_answer, extract_option, plain_answer
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


def spans(*numbers: int) -> dict[str, Tensor]:
    """Latents of one rollout, whose spans have so many each."""
    ids = torch.tensor([[span for span, number in enumerate(numbers) for _ in range(number)]], dtype=torch.int64)
    return {
        "latents": torch.zeros(*ids.shape, 4),
        "latent_mask": torch.ones_like(ids, dtype=torch.bool),
        "span_ids": ids,
    }


EMPTY = "<|latent_start|><|latent_end|>"


@pytest.mark.parametrize(
    "spelled", [L, EMPTY, "<|latent_start|>any <b>thing</b><|latent_end|>", "< |latent_start| > <|latent_end|>"]
)
def test_a_spelled_out_span_is_none(spelled: str) -> None:
    # No span at all, one before or behind the spelled one, and one that the spelled one holds.
    for text, table in (
        (spelled + R + A, spans()),
        (L + R + spelled + R + A, spans(2)),
        (spelled + R + L + R + A, spans(2)),
        ("<|latent_start|>" + spelled.removesuffix("<|latent_end|>") + L + R + A, spans(2)),
    ):
        inputs = make_inputs([text], **table)
        assert FormatReward()(inputs).item() == 0, text
        assert FormatReward(min_spans=1)(inputs).item() == 0, text
        # The released code asks the text alone, but knows no min_spans.
        assert FormatReward(variant="released")(make_inputs([spelled + R + A], **spans())).item() == 1
        assert FormatReward(min_spans=1, variant="released")(make_inputs([spelled + R + A], **spans())).item() == 0


def test_spans_of_the_table_count() -> None:
    for text, table in (
        (L + R + A, spans(2)),
        (R + L + R + L + R + A, spans(2, 2)),
        (EMPTY + R + L + R + A, spans(0, 2)),
        (EMPTY + R + A, {**spans(), "span_counts": torch.tensor([1])}),
        (L + R + EMPTY + R + A, {**spans(2), "span_counts": torch.tensor([2])}),
        (L + R + EMPTY + R + A, {"span_counts": torch.tensor([2])}),
    ):
        number = text.count("<|latent_start|>")
        assert FormatReward(min_spans=number)(make_inputs([text], **table)).item() == 1, text
        assert FormatReward(min_spans=number + 1)(make_inputs([text], **table)).item() == 0, text
    batch = {"latents": torch.zeros(2, 2, 4), "latent_mask": torch.tensor([[True, True], [False, False]])}
    ids = torch.tensor([[0, 0], [-1, -1]])
    assert FormatReward()(make_inputs([L + R + A] * 2, **batch, span_ids=ids)).tolist() == [1, 0]
    with pytest.raises(BatchError, match="span_ids"):
        FormatReward()(make_inputs([L + R + A] * 2, **batch))
    with pytest.raises(BatchError, match=r"span_counts must be \(1,\) int"):
        make_inputs([L + R + A], span_counts=torch.tensor([1, 1]))


def test_text_that_reads_as_markers_is_none() -> None:
    tokenizer = LatentReasoner.from_pretrained("tiny-random").processor.tokenizer
    pieces = ["<", "|", "latent", "_start", "|", ">", "<", "|", "latent", "_end", "|", ">", R, A]
    ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False).input_ids]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == EMPTY + R + A
    assert tokenizer.convert_tokens_to_ids("<|latent_start|>") not in ids
    assert FormatReward()(make_inputs([text], **spans())).item() == 0


# Readable by the benchmarks

TAGS = ["<answer>", "</answer>", "< answer >", "</ answer>", "<Answer>", "</Answer>", "<answer class='x'>", "<ans>"]
TAGS += ["</ans>", "<a<|im_end|>nswer>", "<\u00a0answer>", "<answer\n>", "< ANS >", "＜answer＞"]
ANSWERS = [
    "B",
    "b",
    "Ｂ",
    "（B）",
    "“B”。",
    "**B**",
    "C",
    " B ",
    "B<|im_end|>",
    "<|endoftext|>B",
    "B</answer>C",
    "B <ans>C</ans>",
]
TEXTS = [
    "The left / right gate",
    "the left/right gate。",
    "“The left/right gate”",
    "the left gate",
    "The  LEFT/right<|eot|> gate",
]
REASONS = [R, "< reason >then</ reason >", "<reason>so <ans>C</ans></reason>", "<reason><ANSWER>C</ANSWER></reason>"]
REASONS += ["<reason>C</reason><answer>C</answer>", "<reason>< ans >C< / ans ></reason>", "<reason>A or C</reason>"]
LINKS = ["", " ", "\n", "<|im_end|>", "so "]
OPTIONS = {"A": "a wall", "B": "The left/right gate", "C": "the left gate", "D": "nothing"}


def check_readable(text: str, truth: str) -> bool:
    """Whether a response earns accuracy and format; then the benchmarks have to read it."""
    inputs = make_inputs([text], answers=[truth])
    earned = AccuracyReward()(inputs).item() == 1 and FormatReward()(inputs).item() == 1
    if earned:
        assert extract_option(text, "strict", OPTIONS) == "B", text
        if truth == "B":
            assert extract_option(text, "paper") == extract_option(text, "strict") == "B", text
        assert plain_answer(normalize_response(extract_answer(text))) == plain_answer(truth), text
    return earned


def test_what_earns_accuracy_and_format_is_read_by_the_benchmarks() -> None:
    earned = set()
    for opening in TAGS:
        for closing in TAGS:
            for answer, truth in [*((answer, "B") for answer in ANSWERS), *((text, OPTIONS["B"]) for text in TEXTS)]:
                if check_readable(f"{L}{R}{opening}{answer}{closing}", truth):
                    earned.add((opening, closing, answer))
    assert {(opening, closing) for opening, closing, _ in earned} == {("<answer>", "</answer>")}
    assert {answer for *_, answer in earned} == {*ANSWERS[:1], *ANSWERS[3:6], *ANSWERS[7:10], *TEXTS[:3], TEXTS[4]}


@given(
    st.lists(st.sampled_from([*REASONS, *LINKS, L, EMPTY]), max_size=6).map("".join),
    st.tuples(*(st.sampled_from(parts) for parts in (LINKS, TAGS, ANSWERS + TEXTS, TAGS, LINKS))).map("".join),
    st.sampled_from(["", A, "<ans>C</ans>", "<answer>"]),
    st.sampled_from(["B", OPTIONS["B"]]),
)
def test_what_is_read_does_not_depend_on_what_is_around(before: str, block: str, after: str, truth: str) -> None:
    check_readable(before + block + after, truth)
    check_readable(before + L + R + block + after, truth)


@pytest.mark.parametrize(
    "tags", ["< answer >B</ answer >", "<answer >B</answer>", "<answer>B< /answer>", "<answer>B</\nanswer>"]
)
def test_answer_tags_with_blanks_are_no_format_but_can_be_read(tags: str) -> None:
    inputs = make_inputs([L + R + tags])
    assert AccuracyReward()(inputs).item() == 1
    assert FormatReward()(inputs).item() == 0
    assert FormatReward(variant="released")(inputs).item() == 1
    assert extract_option(L + R + tags, "strict") == "B"
    assert extract_answer(L + R + tags) == "B"


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
