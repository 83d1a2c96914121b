"""Answers in one form, and votes over them."""

import pytest

from futurel1.metrics.functional import answer_of, elect, elect_each, expected_answer, vote

OPTIONS = {"A": "left", "B": "right", "C": "up", "D": "down"}


def test_votes_rank_answers_and_put_silence_last() -> None:
    texts = ["nothing", "none", "nope", "<answer>B</answer>", "<answer> right </answer>", "<answer>A</answer>"]
    assert vote(texts, OPTIONS) == pytest.approx({"B": 2 / 6, "A": 1 / 6, "": 3 / 6})
    assert next(iter(vote(texts, OPTIONS))) == "B"
    assert answer_of("<reason>x</reason><answer> The gate opens. </answer>") == "The gate opens."
    assert vote(["<answer>Top left.</answer>", "<answer>top left</answer>"]) == {"Top left.": 1.0}
    assert answer_of("<answer><|latent_start|><|latent_end|> left</answer>") == "left"
    five = {**OPTIONS, "E": "yellow"}
    ballots = ["<answer>E</answer>", "<answer>yellow</answer>", "<answer>(E)</answer>", "<answer>A</answer>"]
    assert vote(ballots, five) == {"E": 0.75, "A": 0.25}
    ballots = [
        "<answer>（E）。</answer>",
        "< answer >“yellow”</ answer >",
        "<answer>「Ｅ」</answer>",
        "<answer>答案是E</answer>",
    ]
    assert vote(ballots, five) == {"E": 0.75, "": 0.25}
    assert vote(["<answer>左。</answer>", "<answer>“左”</answer>", "<answer>左!</answer>"]) == {"左。": 1.0}
    assert vote(["<answer>-5</answer>", "<answer>5</answer>"]) == {"-5": 0.5, "5": 0.5}
    # no answer is no option, even where an option's text is nothing but punctuation
    assert vote(["no idea"], {**five, "E": "?"}) == {"": 1.0}


def test_the_truth_is_written_as_answers_are() -> None:
    options = {"A": "the gate opens", "B": "nothing"}
    assert expected_answer("The gate opens.", options) == "A"
    assert expected_answer("B", options) == "B"
    assert expected_answer("it rains", options) == "it rains"
    assert expected_answer("it rains") == "it rains"
    assert expected_answer(None) is None


def test_the_first_response_that_gave_the_winning_answer_is_elected() -> None:
    texts = ["nothing", "<answer>A</answer>", "so <answer>right</answer>", "<answer>B</answer>"]
    place, votes = elect(texts, OPTIONS)
    assert place == 2
    assert next(iter(votes)) == "B"


def test_each_prompt_elects_among_its_own_branches() -> None:
    texts = ["<answer>B</answer>", "<answer>A</answer>", "<answer>A</answer>", "", "<answer>x</answer>", ""]
    elected = elect_each(texts, 3, [{"A": "left", "B": "right"}, None])
    assert [row for row, _ in elected] == [1, 4]
    assert elected[0][1] == pytest.approx({"A": 2 / 3, "B": 1 / 3})
