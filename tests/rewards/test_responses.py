"""Reading a response: its form, its first answer, and that rewards and benchmarks read the same."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.metrics.functional import extract_answer, extract_option, plain_answer
from futurel1.rewards import AccuracyReward, FormatReward
from futurel1.rewards.responses import first_answer, normalize_response
from rollouts import make_inputs

L, R, A = "<|latent_start|><|latent|><|latent|><|latent_end|>", "<reason>then</reason>", "<answer>B</answer>"


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
    begin = time.process_time()
    for variant in ("paper", "released"):
        FormatReward(variant=variant)(make_inputs([text, L + text, L + R + "<answer>" + text]))  # type: ignore[arg-type]
    AccuracyReward()(make_inputs([text]))
    assert time.process_time() - begin < 5


EMPTY = "<|latent_start|><|latent_end|>"
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
