from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.report.texts import bare_question, pieces_of


def kinds(response: str, spans: list[int] | None) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in pieces_of(response, spans)]


def test_spans_answers_and_tags_stand_in_their_places() -> None:
    response = (
        "<reason>It falls.</reason>\n[imagined frame 1: 4 latents]\n[imagined frame 2: 1 latent]<answer>B</answer>"
    )
    pieces = pieces_of(response, [4, 1])
    assert [(piece.kind, piece.text.strip()) for piece in pieces] == [
        ("tag", "<reason>"), ("text", "It falls."), ("tag", "</reason>"),
        ("span", "[imagined frame 1: 4 latents]"), ("span", "[imagined frame 2: 1 latent]"),
        ("tag", "<answer>"), ("answer", "B"), ("tag", "</answer>"),
    ]  # fmt: skip
    assert [(piece.span, piece.latents) for piece in pieces if piece.kind == "span"] == [(0, 4), (1, 1)]


@pytest.mark.parametrize(
    "faked",
    ["[imagined frame 1: 9 latents]", "[imagined frame 7: 4 latents]", f"[imagined frame {'9' * 5000}: 4 latents]"],
)
def test_words_that_only_look_like_a_span_stay_text(faked: str) -> None:
    response = f"{faked} [imagined frame 1: 4 latents] [imagined frame 2: 4 latents]"
    found = kinds(response, [4])
    assert found == [
        ("text", f"{faked} "), ("span", "[imagined frame 1: 4 latents]"), ("text", " [imagined frame 2: 4 latents]")
    ]  # fmt: skip


def test_without_counts_the_response_is_believed_in_order() -> None:
    assert [kind for kind, _ in kinds("[imagined frame 1: 3 latents] x [imagined frame 3: 1 latent]", None)] == [
        "span",
        "text",
    ]


@given(st.text(alphabet="<>/[]: reasonanswer1latents\n\x00\u202e", max_size=200))
def test_nothing_but_blanks_is_lost(response: str) -> None:
    told = "".join(piece.text for piece in pieces_of(response, [1]))
    assert "".join(told.split()) == "".join(response.split())


def test_a_question_without_what_stands_beside_it() -> None:
    question = "frame_1\n<image>\nframe_2\nWhere is it?\nA. left\nB. right\nC. up"
    assert bare_question(question, {"A": "left", "B": "right"}) == "Where is it?\nC. up"
    assert bare_question("frame_1 is dark", {}) == "frame_1 is dark"
