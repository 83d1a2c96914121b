"""What is read from responses and judges' replies: golden cases, cases by hand, and properties."""

import json
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.errors import BatchError, ConfigError, RecordError
from futurel1.metrics.functional import (
    coerce_scores,
    extract_answer,
    extract_option,
    futurebench_prompt,
    gold_option,
    judged_scores,
    plain_answer,
    sanitize_response,
)

OPTIONS = {"A": "The man leaves", "B": "A dog barks", "C": "Player B scores.", "D": "nothing"}
FRAGMENTS = [
    *("<answer>", "</answer>", "<ANSWER>", "<ans>", "</ans>", "<reason>", "</reason>", "<rea", "son>", "<", ">", "/"),
    *(
        "<|latent|>",
        "<|latent_start|>",
        "<|im_end|>",
        "<|",
        "|>",
        "A",
        "D",
        "(C).",
        "cat",
        "Ball",
        " ",
        "\n",
        "\u017f",
        "ans",
    ),
]
responses = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["3", "4.4", "-1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
)


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "misc.json").read_text())


@pytest.mark.parametrize(
    ("key", "function"),
    [
        ("thinking", extract_option),
        ("direct", lambda text: extract_option(text, protocol="direct")),
        ("coerce", coerce_scores),
        ("sanitize", sanitize_response),
        ("answer_span", extract_answer),
        ("fb_prompt", futurebench_prompt),
    ],
)
def test_golden_cases(cases, key, function):
    assert cases[key]
    assert [function(given) for given, _ in cases[key]] == [expected for _, expected in cases[key]]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("\n (D). \n", "D"),
        ("Answer: C", "C"),
        ("The answer is D", "D"),
        ("C) the man goes", "C"),
        ("option A because it falls", "A"),
        ("A, I think", "A"),
        ("A. It falls", "A"),
        ("D and again D", "D"),
        ("A man goes", ""),
        ("A or B", ""),
        ("A is right", "A"),
        ("A man goes, so B", ""),
        ("A man goes, so A", "A"),
        ("A the boy sits down", "A"),
        ("option A man", "A"),
        ("A rather large dog", ""),
        ("B. A man leaves", "B"),
        ("(B) A man leaves", "B"),
        ("B: A man leaves, not C", ""),
        ("B. A could be right too", ""),
        ("C, B. A man leaves", ""),
        ("(A) or (B)", ""),
        ("CAT", ""),
        ("the Ball", ""),
        ("A's", ""),
        ("D-day", ""),
        ("b", ""),
        ("E", ""),
        ("", ""),
    ],
)
def test_strict_letters(answer, expected):
    assert extract_option(f"<reason>B, C</reason><answer>{answer}</answer>", "strict") == expected


@pytest.mark.parametrize(
    "between",
    [" not ", " rather than ", " instead of ", " but not ", ", not ", " or ", " and ", "/", ". Not ", " is wrong, so ",
     "而不是", "或", "、", "，不选", "ではなく", "가 아니라 "],
)  # fmt: skip
def test_strict_gives_no_answer_for_two_letters_whichever_they_are(between):
    for first, second in product("ABCD", repeat=2):
        for frame in ("{}", "It is {}", "The answer is {}.", "答案是{}。", "（{}）"):
            answer = f"<answer>{frame.format(first + between + second)}</answer>"
            assert extract_option(answer, "strict") == ("" if first != second else first)


@pytest.mark.parametrize(
    "frame",
    ["{}", "{}。", "（{}）", "“{}”", "「{}」", "【{}】。", "《{}》", "‘{}’", "'{}'", "*{}*", "__{}__", "{}．", "{}：",
     "答案是{}", "答案：{}。", "选{}", "选项{}", "我选择{}，因为他停下了", "{}项", "{}是对的", "答えは{}です",
     "정답은 {}입니다",
     "คำตอบคือ{}", "उत्तर है{}", "Ответ: {}", "الجواب: {}", "\\boxed{{{}}}", "{}<|im_end|>", "\u3000{}\u3000"],
)  # fmt: skip
def test_strict_reads_a_letter_in_every_script(frame):
    for letter, expected in zip("ABCD\uff21\uff22\uff23\uff24", "ABCDABCD", strict=True):
        assert extract_option(f"<answer>{frame.format(letter)}</answer>", "strict") == expected


@pytest.mark.parametrize("answer", ["ＣＡＴ", "Ｂ２", "CAT项", "2B型", "É́B", "BÉ", "B\u0302", "Ａ＿Ｂ", "选AB"])
def test_strict_reads_no_letter_out_of_a_word_in_any_script(answer):
    assert extract_option(f"<answer>{answer}</answer>", "strict") == ""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The man leaves", "A"),
        ("the man  leaves.", "A"),
        ("A dog barks", "B"),
        ("B. A dog barks", "B"),
        ("Player B scores", "C"),
        ("C: Player B scores.", "C"),
        ("(D) - nothing", "D"),
        ("A the man leaves", "A"),
        ("A\nThe man leaves.", "A"),
        ("A – the man leaves", "A"),
        ("Ａ：“The man leaves”。", "A"),
        ("B A dog barks", "B"),
        ("C Player B scores", "C"),
        ("Option B: A dog barks", "B"),
        ("答案是B。A dog barks", "B"),
        ("D. The man leaves", ""),
        ("D the man leaves", ""),
        ("B) A dog barks", "B"),
        ("(B) A dog barks", "B"),
        ("(B: A dog barks)", "B"),
        ("**B)** A dog barks.", "B"),
        ("D) The man leaves", ""),
        ("(D) The man leaves", ""),
        ("(D: The man leaves).", ""),
        ("**D** The man leaves", ""),
        ("A nothing", ""),
        ("The man leaves or nothing", ""),
        ("C", "C"),
    ],
)
def test_strict_option_texts(answer, expected):
    assert extract_option(f"<ANSWER>{answer}</ANSWER>", "strict", OPTIONS) == expected


def test_strict_reads_option_texts_without_blanks():
    options = {"A": "男孩坐下", "B": "男孩站起来", "C": "他摔倒", "D": "5"}
    for answer in (
        "男孩站起来",
        "「男孩站起来」。",
        "B男孩站起来",
        "B、男孩站起来",
        "（B）男孩站起来",
        "选项B：男孩站起来",
    ):
        assert extract_option(f"<answer>{answer}</answer>", "strict", options) == "B"
    for answer in ("A男孩站起来", "A：男孩站起来。", "D -男孩坐下"):
        assert extract_option(f"<answer>{answer}</answer>", "strict", options) == ""


def test_strict_keeps_signs_that_change_a_value():
    options = {"A": "5", "B": "-5", "C": ".5", "D": "5%"}
    for letter, text in options.items():
        for answer in (text, f"{letter}. {text}", f"{letter}) {text}.", f"{letter}: “{text}”"):
            assert extract_option(f"<answer>{answer}</answer>", "strict", options) == letter


def test_strict_gives_no_answer_for_a_text_that_two_options_share():
    same = OPTIONS | {"D": "the man leaves"}
    assert extract_option("<answer>The man leaves</answer>", "strict", same) == ""
    assert extract_option("<answer>D. The man leaves</answer>", "strict", same) == "D"


@pytest.mark.parametrize(
    "texts",
    [("C++", "Java", "Go", "D#"), ("B+", "A-", "O", "AB"), ("C#", "B♭", "A-", "D+"), ("U.S.A.", "A.I.", "D.C.", "C°")],
)
def test_strict_reads_signs_behind_a_letter_as_the_text_of_an_option(texts):
    options = dict(zip("ABCD", texts, strict=True))
    for letter, text in options.items():
        for answer in (text, f"“{text}”", f"**{text}**"):
            assert extract_option(f"<answer>{answer}</answer>", "strict", options) == letter
        if text not in ("Java", "Go"):
            assert extract_option(f"<answer>{text}</answer>", "strict") == ""


@pytest.mark.parametrize("answer", ["A+B", "A + B", "A+ B", "B#, C++", "It is U.S.A.", "C.I.A"])
def test_strict_reads_no_letter_out_of_signs_and_initials(answer):
    assert extract_option(f"<answer>{answer}</answer>", "strict") == ""


@pytest.mark.parametrize("word", ["правильно", "верно, потому что", "είναι σωστό", "ճիշտ է"])
def test_strict_reads_an_article_before_latin_words_only(word):
    assert extract_option(f"<answer>A {word}</answer>", "strict") == "A"


@pytest.mark.parametrize(
    "answer",
    ["B - A man leaves", "B – A man leaves", "B — A man leaves", "B—A man leaves", "B, A man leaves",
     "B\nA man leaves.", "B.\n\nA man leaves", 'B. "A man"', "B: **A man leaves**", "**B** A man leaves",
     "**B**. A boy walks down", "The answer is B. A man leaves the room", "Final answer: **B**. A boy walks down",
     "Option B: A man leaves", "So the correct option is (B) A man leaves", "答案是B。A man leaves"],
)  # fmt: skip
def test_strict_reads_an_article_behind_a_label(answer):
    assert extract_option(f"<answer>{answer}</answer>", "strict") == "B"


@pytest.mark.parametrize(
    "answer",
    ["B, A", "B or A", "A not B", "A man goes, so B", "B\nA", "B - A", "B / A man leaves", "B, A is right",
     "B or A man leaves", "B & A man leaves", "Not B. A man leaves", "C - B - A man leaves", "B A man leaves"],
)  # fmt: skip
def test_strict_gives_no_answer_where_the_second_letter_may_be_one(answer):
    assert extract_option(f"<answer>{answer}</answer>", "strict") == ""


def test_strict_needs_an_answer_block():
    assert [extract_option(text, "strict") for text in ("B", "<answer>B", "B</answer>")] == ["", "", ""]


def test_unknown_protocol_is_an_error():
    with pytest.raises(ConfigError, match=r"'paper', 'strict', 'direct'.*'lenient'"):
        extract_option("<answer>B</answer>", "lenient")


@given(responses)
def test_options_of_any_text_are_letters(text):
    for protocol in ("paper", "strict", "direct"):
        assert extract_option(text, protocol, OPTIONS) in {"", "A", "B", "C", "D"}


@given(responses)
def test_strict_and_paper_agree_on_a_lone_letter_wherever_it_stands(text):
    block = "<answer> C </answer>"
    if "<ans" not in text.lower():
        assert {extract_option(text + block, protocol) for protocol in ("paper", "strict")} == {"C"}


@pytest.mark.parametrize("opening", ["<answer>", "< answer >", "<\n answer>", "<ANSWER >", "<\u00a0answer>", "< Ans >"])
@pytest.mark.parametrize("slash", ["/", " / ", "/\t", "\u3000/"])
def test_answer_tags_may_have_blanks_in_them(opening, slash):
    text = f"<reason>A</reason>{opening} B {opening.replace('<', '<' + slash)}"
    assert extract_answer(text) == "B"
    assert extract_option(text, "strict") == "B"
    assert sanitize_response(text) == "A\n<answer>B</answer>"
    assert extract_option(text, "paper") == ("B" if opening == "<answer>" and slash == "/" else "")


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("（Ｂ）。", "b"),
        ("“He opens　the gate”", "he opens the gate"),
        ("**He opens\n the Gate.**", "he opens the gate"),
        ("‏B‏", "b"),
        ("¿Qué?", "qué"),
        ("1 / 2", "1/2"),
        ("－５", "-5"),
        ("-5", "-5"),
        ("(.5)", ".5"),
        ("...5 m.", ".5 m"),
        ("5 %.", "5 %"),
        ("½", "½"),
        ("6′", "6′"),
        ("…", ""),
        ("（）", ""),
    ],
)
def test_plain_answers(answer, plain):
    assert plain_answer(answer) == plain


@pytest.mark.parametrize(
    ("answer", "other"),
    [("5!", "5"), ("5!!", "5!"), ("5'", '5"'), ("5'", "5"), ("6’", "6"), ("[0,1)", "(0,1]"), ("[0,1)", "[0,1]"),
     ("(0,1)", "(0,1]"), ("f'", "f"), ("f''", "f'"), ("C*", "C"), ("x = f'", "x = f"), ("n!", "n"),
     ("(a) or (b)", "a) or (b")],
)  # fmt: skip
def test_signs_of_a_value_make_another_answer(answer, other):
    assert plain_answer(answer) != plain_answer(other)
    for frame in ("“{}”", "({})", "**{}**", '"{}"', " {}. ", "【{}】。", "'{}'", "„{}“", "({}.)"):
        assert plain_answer(frame.format(answer)) == plain_answer(answer)


@pytest.mark.parametrize(
    "answer",
    ["“B”", "（B）", "B。", "**B**", "B!", "B)", "(B).", "**(B)**", "“B”!", "**B**!", "„B“", "»B«", "'B'.", "((B))",
     "`B`", "[B]", "B:"],
)  # fmt: skip
def test_a_letter_with_marks_around_it_is_the_letter(answer):
    assert plain_answer(answer) == "b"


@given(st.text(max_size=20) | st.text(alphabet="a5!'\"*()[.“” ", max_size=9))
def test_plain_answers_of_plain_answers_are_the_same(text):
    assert plain_answer(plain_answer(text)) == plain_answer(text)


@given(responses)
def test_sanitizing_twice_changes_nothing_and_leaves_one_block_at_most(text):
    clean = sanitize_response(text)
    assert sanitize_response(clean) == clean
    lowered = clean.lower()
    assert not any(tag in lowered for tag in ("<reason>", "</reason>", "<ans>", "</ans>", "<|latent|>", "<|im_end|>"))
    assert lowered.count("<answer>") == lowered.count("</answer>") <= 1
    assert clean == clean.strip()


@given(responses)
def test_answer_is_a_part_of_the_text_without_a_closing_tag(text):
    answer = extract_answer(text)
    assert answer in text
    assert answer == answer.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lead <reason>a</reason> mid <reason>b</reason> end", "a\n\nb\n\nlead  mid  end"),
        ("lead\n<reason>a</reason>\nmid\n\n<reason>b</reason> end", "a\n\nb\n\nlead mid end"),
        ("<reason>a\nb</reason>\n<answer>x</answer> end", "a\nb\n\nend\n<answer>x</answer>"),
        ("lead <reason>a</reason> <reason>open <answer>x</answer>", "a\n\nlead  open\n<answer>x</answer>"),
        ("lead < reason >a< / REASON ><reason> </reason>", "a\n\nlead"),
        ("lead <reason></reason> mid", "lead  mid"),
        ("<reason>open <answer>x</answer>", "open\n<answer>x</answer>"),
        ("one\n\ntwo <answer>x</answer>", "one\n\ntwo\n<answer>x</answer>"),
        ("<|latent_start|><|latent|>\n<reason>a</reason>\n<answer>x</answer><|im_end|>", "a\n<answer>x</answer>"),
        # Removing one tag may put another together.
        (
            "lead <reason>a</reason> mid <answer>x</answer><reason>b</rea<|latent|>son><an<ans>swer>5</answer>",
            "a\n\nb\n\nlead  mid 5\n<answer>x</answer>",
        ),
        ("<reason>a <</reason>reason> b", "a  b"),
    ],
)  # fmt: skip
def test_sanitizing_puts_reasons_first_and_the_rest_on_one_line(text, expected):
    assert sanitize_response(text) == expected


def test_parsing_is_fast_on_hostile_texts():
    hostile = ["<answer>" * 20_000, "<|" * 50_000, "<reason>" * 20_000 + "</answer>", "A" * 100_000, "(" * 100_000]
    hostile += [
        "A a " * 25_000,
        "B. A a " * 15_000,
        "<" + " " * 100_000,
        "é" + "\u0301" * 100_000 + "B",
        " ." * 50_000 + "B",
        "B" + "." * 100_000 + "A a",
        "A.B. " * 20_000,
        "(" * 50_000 + ")" * 50_000,
        "5" + "'" * 100_000,
        "'*" * 50_000,
    ]
    start = time.process_time()
    for text in hostile:
        sanitize_response(text)
        extract_option(f"<answer>{text}</answer>", "strict", OPTIONS)
    assert time.process_time() - start < 5


def test_prompt_appends_options_that_the_question_lacks():
    record = {"Question": "What next?", "Options": {"A": "one", "B": "two", "C": "three", "D": "four"}}
    assert futurebench_prompt(record) == (
        "\nWhat next?\nA. one\nB. two\nC. three\nD. four\n"
        "Please provide only the single option letter within the <answer> </answer> tags."
    )
    halfway = record | {"Question": "What next? A) one"}
    assert "\nD. four\n" in futurebench_prompt(halfway)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"Options": {}}, r"'Question' must be a text, got None"),
        ({"Question": " "}, r"'Question' must be a text, got ' '"),
        ({"Question": "What?", "Options": {"A": "x", "B": "y", "C": "z"}}, r"must map A, B, C and D to texts.*What\?"),
        ({"Question": "What?", "Options": ["x", "y", "z", "w"]}, r"must map A, B, C and D"),
    ],
)
def test_unusable_questions_are_errors(record, message):
    with pytest.raises(RecordError, match=message):
        futurebench_prompt(record)


def test_ground_truths():
    assert [gold_option(text) for text in ("B", "d", "(C).", "<answer> a </answer>", "（Ｂ）")] == [*"BDCAB"]
    for wrong in ("", "E", "AB", "A B"):
        with pytest.raises(BatchError, match="one of the letters A, B, C, D"):
            gold_option(wrong)


@given(json_values)
def test_scores_of_any_reply_are_two_whole_numbers_or_none(value):
    found = coerce_scores(value)
    if found is None:
        assert judged_scores(value) is None
        return
    assert len(found) == 2
    assert all(type(number) is int for number in found)
    assert coerce_scores(found) == found
    judged = judged_scores(value)
    assert judged is None or (judged == found and all(0 <= number <= 5 for number in judged))


def test_scores_out_of_range_are_refused_before_rounding():
    assert [judged_scores(value) for value in ([0, 5], ["4.6", 0.4], [5.1, 3], [-0.2, 3], [6, 1], "5, 5")] == [
        [0, 5],
        [5, 0],
        None,
        None,
        None,
        None,
    ]


def test_scores_skip_what_is_not_finite_and_read_replies_of_any_depth():
    assert coerce_scores(["nan", float("inf"), None, {"a": 1}, 2, [[3]]]) == [2, 3]
    deep = [1, 2]
    for _ in range(100_000):
        deep = [deep]
    found = coerce_scores(deep)
    while len(deep) == 1:  # taken apart by hand: freeing it recursively is Python's business, not this test's
        deep = deep[0]
    assert found == [1, 2]
