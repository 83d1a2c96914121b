"""Prompts of RL records, training records and FutureBench records: what is asked, what is known, what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from futurel1.data import Frame, RecordSource, Sample, Turn, Video, open_records, parse_rl_prompt
from futurel1.data.benchmarks import parse_futurebench
from futurel1.data.chat import ChatEncoder
from futurel1.data.prompts import PromptDataset, parse_prompt
from futurel1.data.samples import PromptInfo, RawRecord, RecordFileError
from futurel1.errors import RecordError
from futurel1.metrics.functional import futurebench_prompt
from futurel1.models import load_processor

INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."
OPTIONS = {"A": "up", "B": "down"}
RL = {"problem": "What next?\nA. up\nB. down", "answer": "<answer>B</answer>", "videos": ["good.mp4"],
      "problem_type": "multiple choice"}  # fmt: skip
OPEN = {"problem": "What next?", "answer": "It falls.", "images": ["now.png"], "problem_type": "free-form"}
TURNS = [{"from": "human", "value": "<image> What next?"}, {"from": "gpt", "value": "It moves.<image>"}]
FRAMED = {"video": "good.mp4", "image": [2], "reasoning_image": [5], "conversations": TURNS, "answer": "B",
          "options": OPTIONS, "question_type": "hop2"}  # fmt: skip
UPSTREAM = {"video": "good.mp4", "question": "What next?", "answer": "Up. <rimage> <ans>It falls.</ans>",
            "question_images_index": [2], "reasoning_images_index": [7]}  # fmt: skip
PATHS = {"image": ["now.png"], "reasoning_image": ["not_there.png"], "conversations": TURNS, "answer": "B"}
CHAT = {"messages": [{"role": "user", "content": "<video>What next?"},
                     {"role": "assistant", "content": "<answer> It falls. </answer>"}],
        "videos": ["good.mp4"]}  # fmt: skip
BENCH = {"id": "q1", "video_path": "good.mp4", "question_type": "hop1",
         "qa": {"Question": "What next?", "Options": dict.fromkeys("ABCD", "up"), "Answer": "d"}}  # fmt: skip
KINDS = {"rl": RL, "open": OPEN, "framed": FRAMED, "upstream": UPSTREAM, "paths": PATHS, "chat": CHAT, "bench": BENCH}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `good.mp4`, `more.mp4` and `now.png`; the videos are never opened."""
    made = tmp_path / "data"
    made.mkdir()
    for name in ("good.mp4", "more.mp4"):
        (made / name).write_bytes(b"a clip")
    Image.new("RGB", (64, 48), (9, 9, 9)).save(made / "now.png")
    return made


@pytest.fixture
def source(folder: Path) -> Callable[..., RecordSource]:
    def source(*records: Any, data_root: Path | None = None) -> RecordSource:
        (folder / "rl.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        return open_records(folder / "rl.jsonl", parse=partial(parse_rl_prompt, data_root=data_root))

    return source


@pytest.fixture
def ask(source: Callable[..., RecordSource]) -> Callable[..., Sample]:
    """Parse one RL record, `RL` with changes; None takes a field away."""
    return lambda **changes: source({**RL, **changes})[0]


def parts(sample: Sample) -> list[str]:
    """What the user says: texts, and the names of media files."""
    (turn,) = sample.turns
    assert turn.role == "user"
    return [part if isinstance(part, str) else f"[{part.path.name}]" for part in turn.parts]


# ---------------------------------------------------------------------------------------------------- what is asked


def test_multiple_choice_puts_the_video_first_and_the_instruction_last(ask):
    sample = ask(id="q7", reference_length=120)
    assert parts(sample) == ["[good.mp4]", f"What next?\nA. up\nB. down\n{INSTRUCTION}"]
    assert sample.id == "rl.jsonl:1"
    assert sample.answer is None
    assert sample.info == PromptInfo(
        id="q7",
        question="What next?\nA. up\nB. down",
        answer="B",
        question_type="multiple choice",
        reference_length=120,
    )


def test_the_instruction_is_that_of_the_benchmark():
    assert futurebench_prompt(BENCH["qa"]).endswith(f"\n{INSTRUCTION}")


def test_open_questions_have_no_instruction(source):
    sample = source(OPEN)[0]
    assert parts(sample) == ["[now.png]", "What next?"]
    assert (sample.info.answer, sample.info.question_type) == ("It falls.", "free-form")
    assert source({**OPEN, "problem_type": None})[0].info.question_type is None


@pytest.mark.parametrize("written", ["multiple choice", "Multiple Choice", "multiple-choice", " MULTIPLE_CHOICE "])
def test_spellings_of_multiple_choice_are_one(ask, written):
    sample = ask(problem_type=written)
    assert sample.info.question_type == "multiple choice"
    assert parts(sample)[-1].endswith(INSTRUCTION)


def test_an_instruction_that_is_there_is_not_repeated(ask):
    assert parts(ask(problem=f"What next? {INSTRUCTION}"))[-1] == f"What next? {INSTRUCTION}"


def test_media_stand_where_their_markers_do(source):
    record = {**OPEN, "problem": "First <video>, then <image>\nand <video>. What next?",
              "videos": ["good.mp4", "more.mp4"]}  # fmt: skip
    sample = source(record)[0]
    assert parts(sample) == ["First ", "[good.mp4]", ", then ", "[now.png]", "\nand ", "[more.mp4]", ". What next?"]
    assert [type(part) for part in sample.turns[0].parts if not isinstance(part, str)] == [Video, Frame, Video]
    assert sample.info.question == "First , then \nand . What next?"


def test_without_markers_videos_come_first_and_images_second(ask):
    sample = ask(videos=["good.mp4", "more.mp4"], images=["now.png"])
    assert parts(sample)[:3] == ["[good.mp4]", "[more.mp4]", "[now.png]"]


def test_a_marker_may_end_the_problem(ask):
    assert parts(ask(problem="A. up B. down?\n<video>")) == ["A. up B. down?\n", "[good.mp4]", f"\n{INSTRUCTION}"]


def test_embedded_images_are_read_from_the_record(folder):
    stream = BytesIO()
    Image.new("RGB", (64, 64), "navy").save(stream, "PNG")
    image = {"bytes": stream.getvalue(), "path": None}
    pq.write_table(pa.Table.from_pylist([{**OPEN, "images": [image, image]}]), folder / "rl.parquet")
    sample = open_records(folder / "rl.parquet", parse=parse_rl_prompt)[0]
    assert [frame.data for frame in sample.observed] == [stream.getvalue()] * 2
    assert [str(frame.path) for frame in sample.observed] == [f"rl.parquet, record 1, image {n}" for n in (1, 2)]


# ---------------------------------------------------------------------------------------------------- options, answers


@pytest.mark.parametrize(
    "options", [OPTIONS, ["up", "down"], ["A. up", "B. down"], ["(A) up", "B: down "], {**OPTIONS, "C": None}]
)
def test_options_are_appended_where_the_problem_lacks_them(ask, options):
    sample = ask(problem="What comes up next?", options=options)
    assert sample.info.options == OPTIONS
    assert parts(sample)[-1] == f"What comes up next?\nA. up\nB. down\n{INSTRUCTION}"
    assert sample.info.question == "What comes up next?\nA. up\nB. down"
    assert parts(ask(options=options))[-1] == f"What next?\nA. up\nB. down\n{INSTRUCTION}"
    assert parts(ask(problem="What next? (A) up (B) down", options=options))[-1].count("up") == 1


def test_options_alone_make_a_question_multiple_choice(ask):
    sample = ask(problem_type=None, options=OPTIONS)
    assert sample.info.question_type == "multiple choice"
    assert parts(sample)[-1].endswith(INSTRUCTION)


@pytest.mark.parametrize("empty", [[], {}, {"A": None}, None])
def test_empty_options_are_none(source, empty):
    sample = source({**OPEN, "options": empty})[0]
    assert sample.info.options is None


@pytest.mark.parametrize("written", ["B", " b ", "(B)", "B.", "<answer>B</answer>", "<answer> B. down</answer>\n"])
def test_the_letter_of_an_answer_is_found(ask, written):
    assert ask(answer=written).info.answer == "B"


def test_the_text_of_an_option_is_its_letter(ask):
    assert ask(answer="Down", options=OPTIONS).info.answer == "B"


PEOPLE = {
    "A": "D. Moss leaves the pitch",
    "B": "A. Larsen scores",
    "C": "B. White is sent off",
    "D": "Nobody moves.",
}


@pytest.mark.parametrize("named", [PEOPLE, list(PEOPLE.values())])
@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A. Larsen scores", "B"),
        (" a. larsen  SCORES. ", "B"),
        ("<answer>B. White is sent off</answer>", "C"),
        ("D. Moss leaves the pitch", "A"),
        ("B. A. Larsen scores", "B"),
        ("(C) B. White is sent off", "C"),
        ("D: nobody moves", "D"),
        ("nobody moves.", "D"),
        ("A", "A"),
        ("(d)", "D"),
    ],
)
def test_the_text_of_an_option_goes_before_a_leading_letter(ask, named, answer, letter):
    assert ask(answer=answer, options=named).info.answer == letter


@pytest.mark.parametrize("answer", ["A. nobody moves", "A. A. Larsen scores", "B. Somebody else scores", "(C) x"])
def test_a_label_that_contradicts_its_text_is_refused(ask, answer):
    with pytest.raises(
        RecordError, match=r"record 1, field 'answer' = .*: its text is not that of option [ABC], '.*' *"
    ):
        ask(answer=answer, options=PEOPLE)


@pytest.mark.parametrize(
    ("options", "answer", "letters"),
    [
        ({"A": "up", "B": "Up."}, "up ", None),  # the exact text of one
        ({"A": "up", "B": "Up."}, "UP", "A and B"),
        ({"A": "up", "B": "up"}, "up", "A and B"),
        ({"A": "B", "B": "A"}, "A", "A and B"),
        ({"A": "A", "B": "B"}, "A", None),
    ],
)
def test_a_ground_truth_that_means_two_options_is_refused(ask, options, answer, letters):
    if letters is None:
        assert ask(answer=answer, options=options).info.answer == "A"
        return
    with pytest.raises(RecordError, match=rf"field 'answer' = .*: it means several options, {letters}; write the lett"):
        ask(answer=answer, options=options)


def test_labels_are_compared_with_options_that_only_the_problem_lists(ask):
    problem = "Who?\n" + "\n".join(f"{letter}. {text}" for letter, text in PEOPLE.items())
    for answer, letter in (("A. Larsen scores", "B"), ("D. Moss leaves the pitch", "A"), ("D. nobody moves", "D"),
                           ("B. Somebody", "B"), ("B", "B")):  # fmt: skip
        assert ask(problem=problem, answer=answer).info.answer == letter
    with pytest.raises(RecordError, match="its text is not that of option A"):
        ask(problem=problem, answer="A. nobody moves")


@given(st.permutations(["A. Larsen scores", "B. White", "C. Ito", "leaves", "stays"]), st.sampled_from("ABCDE"))
def test_every_option_is_found_by_its_text(tmp_path_factory, texts, letter):
    folder = tmp_path_factory.getbasetemp()
    (folder / "clip.mp4").write_bytes(b"a clip")
    raw = {**RL, "problem": "Who?", "videos": ["clip.mp4"], "options": texts, "answer": texts["ABCDE".index(letter)]}
    info = parse_rl_prompt(RawRecord(raw, folder / "a.json", 1, folder, "a.json")).info
    assert info.answer == letter
    # labels are labels only where all of them stand in their own place
    labelled = texts[:3] == ["A. Larsen scores", "B. White", "C. Ito"]
    read = ["Larsen scores", "White", "Ito", *texts[3:]] if labelled else texts
    assert info.options == dict(zip("ABCDE", read, strict=True))


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (["x", "B. White is sent off", "y"], ["x", "B. White is sent off", "y"]),
        (["A. Larsen", "y"], ["A. Larsen", "y"]),
        (["J. Moss", "K. White"], ["J. Moss", "K. White"]),
        (["A. up", "B. B. White"], ["up", "B. White"]),
        ({"A": "A. up", "B": "B. down"}, ["up", "down"]),
        ({"A": "A. up", "B": "down"}, ["A. up", "down"]),
        (["A. up", "B. down", "C. left", "All of the above"], ["up", "down", "left", "All of the above"]),
        (["up", "B. down", "C. left"], ["up", "down", "left"]),
        (["A. up", "B. down", "A. Larsen"], ["A. up", "B. down", "A. Larsen"]),
        ({"A": "B. Larsen", "B": "A. White"}, ["B. Larsen", "A. White"]),
    ],
)
def test_labels_are_taken_off_where_they_are_those_of_their_places(ask, options, read):
    assert ask(problem="Who?", options=options, answer="A").info.options == dict(zip("ABCD", read, strict=False))


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (["A+", "A-"], "A-", "B"),
        (["A", "-A"], "-A", "B"),
        (["B", "C", "C++"], "C++", "C"),
        (["C#", "x", "C++"], "C#", "A"),
        (["x", "(A)"], "(A)", "B"),
        ({"A": "B. Larsen", "B": "A. White"}, "A. White", "B"),
        ({"A": "B. Larsen", "B": "A. White"}, "A. B. Larsen", "A"),
        (["up", "B. down"], "down", "B"),
        (["A. up", "B. down", "C. left", "All of the above"], "down", "B"),
        (["A. up", "B. down", "C. left", "All of the above"], "All of the above", "D"),
    ],
)
def test_the_exact_text_of_an_option_is_its_letter(ask, options, answer, letter):
    assert ask(problem="Which?", options=options, answer=answer).info.answer == letter


@pytest.mark.parametrize(
    "answer",
    ["B. down!", 'B. "down"', "B. down because it falls", "down,", "'down'", "Ｂ", "B．down", "B、down", "B - down",
     "[B] down", "**B**", "**B.** down", "（Ｂ）down", "B: DOWN.", "B. it goes down", '"B"', "[B]"],
)  # fmt: skip
def test_harmless_differences_do_not_contradict_a_label(ask, answer):
    options = ["up", "down", "left", "right"]
    assert ask(problem="Which?", options=options, answer=answer).info.answer == "B"


@pytest.mark.parametrize(
    "answer", ["B. down", "C. it goes down", "B. sideways", "A. down left because", "A、B", "A - B"]
)
def test_the_text_of_another_option_contradicts_a_label(ask, answer):
    with pytest.raises(RecordError, match="its text is not that of option"):
        ask(problem="Which?", options=["down", "up", "left", "down left"], answer=answer)


@pytest.mark.parametrize("answer", ["A、B", "A - B", "A. C", "+B", "-B"])
def test_several_letters_or_signs_are_no_letter(ask, answer):
    with pytest.raises(RecordError, match="not the letter of an option"):
        ask(problem="Which?", answer=answer)


def test_labels_in_another_order_are_refused(ask):
    with pytest.raises(RecordError, match=r"field 'options' = \['B. up', 'A. down'\]: labels in the order B, A; put"):
        ask(options=["B. up", "A. down"])


@pytest.mark.parametrize(
    ("problem", "options", "listed"),
    [
        ("Is it A. Smith or J. B. Jones?", ["Smith", "Jones"], False),
        ("Does A. B. Smith pass (A) or (B)?", ["to the left", "to the right"], False),
        ("A. Smith runs.\nB. Jones waits.\nWho scores?", ["Smith", "Jones"], False),
        ("What? A. up and away B. down", ["up", "down"], False),
        ("What next?\nA. up\nB. down", ["up", "down"], True),
        ("What next? (A) up, (B) down.", ["up", "down"], True),
        ("What next?\n(a) Up\n(b)  Down", ["up", "down"], True),
        ("What next?\nA) He goes\nup.\nB) down", ["He goes up", "down."], True),
        ("What next? A: 3 (out of 5) B: x*", ["3 (out of 5)", "x*"], True),
    ],
)
def test_options_are_listed_unless_the_problem_does(ask, problem, options, listed):
    said = parts(ask(problem=problem, options=options, answer="A"))[-1]
    lines = "".join(f"\n{letter}. {text}" for letter, text in zip("AB", options, strict=True))
    assert said == f"{problem}{'' if listed else lines}\n{INSTRUCTION}"


@given(letter=st.sampled_from("ABCDEFG"), around=st.sampled_from(["{}", "({})", "{}.", "<answer>{}</answer>", " {} "]))
def test_any_letter_survives_any_wrapping(letter, around, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    (folder / "clip.mp4").write_bytes(b"a clip")
    raw = {**RL, "videos": ["clip.mp4"], "answer": around.format(letter)}
    assert parse_rl_prompt(RawRecord(raw, folder / "a.json", 1, folder, "a.json")).info.answer == letter


# ---------------------------------------------------------------------------------------------------- other kinds


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_is_asked_and_expected(source, kind):
    sample = source(KINDS[kind])[0]
    assert sample.info.question
    assert sample.info.answer
    assert sample.info.reference_length is None
    assert source({**KINDS[kind], "reference_length": 7})[0].info.reference_length == 7


@pytest.mark.parametrize("kind", ["framed", "upstream", "paths", "chat"])
def test_training_records_are_asked_as_their_own_parser_does(source, folder, kind):
    sample = source(KINDS[kind])[0]
    own = parse_prompt(RawRecord(KINDS[kind], folder / "rl.jsonl", 1, folder, "rl.jsonl"))
    assert sample.turns == own.turns
    assert sample.info == own.info
    assert sample.hints == ()


def test_answers_of_training_records_lose_their_tags_too(source):
    assert source({**PATHS, "answer": "<answer>B</answer>"})[0].info.answer == "B"


def test_benchmark_records_are_asked_as_their_own_parser_does(source, folder):
    sample = source(BENCH)[0]
    own = parse_futurebench(RawRecord(BENCH, folder / "rl.jsonl", 1, folder, "rl.jsonl"))
    assert sample.turns == own.turns
    assert sample.info == replace(own.info, question_type="hop1")
    assert sample.info.answer == "D"


def test_files_may_mix_all_kinds(source):
    samples = list(source(*KINDS.values()))
    assert [sample.id for sample in samples] == [f"rl.jsonl:{number}" for number in range(1, 1 + len(KINDS))]
    assert [sample.info.answer for sample in samples] == ["B", "It falls.", "B", "It falls.", "B", "It falls.", "D"]


def test_mixed_parquet_has_nulls_for_fields_of_other_kinds(folder):
    rows = [RL, FRAMED, BENCH, {**FRAMED, "image": None}]
    columns = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pylist([columns | row for row in rows]), folder / "mixed.parquet")
    source = open_records(folder / "mixed.parquet", parse=parse_rl_prompt)
    assert [source[number].info.answer for number in range(3)] == ["B", "B", "D"]
    with pytest.raises(RecordError, match=r"mixed\.parquet, record 4, field 'image' = None: no observed frame"):
        source[3]


def test_prompts_of_all_kinds_are_encoded(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "now.png")
    (tmp_path / "rl.json").write_text(json.dumps([OPEN, {**PATHS, "question_type": "hop2"}]))
    dataset = PromptDataset(
        open_records(tmp_path / "rl.json", parse=parse_rl_prompt), ChatEncoder(load_processor("tiny@random"))
    )
    for index in (0, 1):
        text = dataset.encoder.processor.tokenizer.decode(dataset[index].input_ids)
        assert text.endswith("<|vision_end|>What next?<|im_end|>\n<|im_start|>assistant\n")
        assert dataset[index].info.question == "What next?"


# ---------------------------------------------------------------------------------------------------- what is refused

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "problem no text": ({"problem": 3}, r"field 'problem' = 3: int where a string is expected; write a string"),
    "only markers": ({"problem": "<video> "}, r"field 'problem' = '<video>': empty question; write the question"),
    "no answer": ({"answer": None}, r"field 'answer' = None: missing; add a string 'answer'"),
    "blank answer": ({"answer": " "}, r"field 'answer' = ' ': empty"),
    "blank in tags": ({"answer": "<answer> </answer>"}, r"field 'answer' = ' ': empty"),
    "open tag": ({"answer": "<answer>B"},
        r"field 'answer' = '<answer>B': not one pair of answer tags.*write <answer>B"),
    "two answers": ({"answer": "<answer>B</answer><answer>C</answer>"},
        r"field 'answer' = .*not one pair of answer tags"),
    "text around": ({"answer": "It is <answer>B</answer>"}, r"field 'answer' = .*not one pair of answer tags"),
    "no letter": ({"answer": "down"},
        r"field 'answer' = 'down': not the letter of an option; write one of A, B, C and"),
    "letter outside": ({"answer": "E", "options": OPTIONS},
        r"field 'answer' = 'E': not the letter.*write one of A, B$"),
    "no media": ({"videos": None}, r"field 'videos' = None: no video and no image; list files in videos or images"),
    "empty media": ({"videos": []}, r"field 'videos' = \[\]: no video and no image"),
    "videos no list": ({"videos": "good.mp4"}, r"field 'videos' = 'good.mp4': str where a list is expected"),
    "image no path": ({"images": [3]}, r"field 'images' = 3: not an image; embed its bytes"),
    "too many markers": ({"problem": "<video><video>?"},
        r"field 'videos' = \['good.mp4'\]: 1 given, but the problem has 2 "
                         r"<video> markers; write one <video> for each"),
    "marker of others": ({"problem": "<image>?"},
        r"field 'videos' = .*: 1 given, but the problem has 0 <video> markers"),
    "unmarked image": ({"problem": "<video>?", "images": ["now.png"]},
        r"field 'images' = .*: 1 given, but .* 0 <image>"),
    "options no object": ({"options": "A. up"}, r"field 'options' = 'A. up': neither an object nor a list"),
    "option no text": ({"options": {"A": 3}}, r"field 'options\.A' = 3: int where a string is expected"),
    "blank option": ({"options": ["up", " "]}, r"field 'options\.B' = ' ': empty"),
    "option names": ({"options": {"first": "up"}},
        r"field 'options' = .*'first' is not a letter; name the options A, B"),
    "many options": ({"options": ["x"] * 27}, r"field 'options' = .*: 27 options; write at most 26"),
    "type with options": ({"problem_type": "ocr", "options": OPTIONS},
        r"field 'problem_type' = 'ocr': a record with opt"),
    "type no text": ({"problem_type": 1}, r"field 'problem_type' = 1: int where a string is expected"),
    "length zero": ({"reference_length": 0}, r"field 'reference_length' = 0: not a number of tokens; write an integer"),
    "length true": ({"reference_length": True}, r"field 'reference_length' = True: not a number of tokens"),
    "length huge": ({"reference_length": 2**31}, r"field 'reference_length' = 2147483648: not a number of tokens"),
    "length text": ({"reference_length": "9"}, r"field 'reference_length' = '9': not a number of tokens"),
    "two kinds": ({"qa": BENCH["qa"]}, r"'problem' and 'qa' belong to different kinds of record; write it as an RL"),
    "two other kinds": ({"messages": []}, r"'problem' and 'messages' belong to different kinds of record"),
    "no kind": ({"problem": None}, r"unknown shape, its keys are: answer, problem_type, videos; write it as an RL rec.*"
                r"a training record .* or a FutureBench record"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_record_is_named(source, kind):
    changes, says = BAD[kind]
    with pytest.raises(RecordError, match=r"rl\.jsonl, record 2(, |: )" + says):
        source(RL, {**RL, **changes})[1]


def test_unlabelled_videos_have_nothing_to_answer(source):
    record = {"video": "good.mp4", "image": [1, 2], "reasoning_image": [5]}
    with pytest.raises(
        RecordError,
        match=r"rl\.jsonl, record 2, field 'video' = 'good\.mp4': a video without a question, so there is nothing to "
        r"answer; add 'conversations' and 'answer', or keep it for supervised",
    ):
        source(RL, {**record, "problem": None, "conversations": None})[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_and_a_system_turn_of_every_kind(source, kind):
    sample = source({**KINDS[kind], "id": "q7", "system": " Be brief.\n"})[0]
    assert sample.info.id == "q7"
    assert sample.turns[0] == Turn("system", (" Be brief.\n",))
    assert sample.turns[1:] == source({**KINDS[kind], "id": "q7"})[0].turns
    assert source({**KINDS[kind], "id": [1]})[0].info.id == "[1]"
    assert source({**KINDS[kind], "id": float("nan")})[0].info.id is None


@pytest.mark.parametrize(
    ("kind", "key", "wrong"),
    [("rl", "videos", "video"), ("open", "images", "image"), ("rl", "problem_type", "problemtype"),
     ("rl", "answer", "Answer"), ("bench", "video_path", "vide_path"), ("paths", "reasoning_image", "reasoning_images"),
     ("bench", "question_type", "questionType")],
)  # fmt: skip
def test_misspelt_keys_are_named_whatever_the_kind(source, kind, key, wrong):
    record = {name: value for name, value in KINDS[kind].items() if name != key} | {wrong: KINDS[kind][key]}
    with pytest.raises(RecordError, match=rf"record 1, field '{wrong}' = .*looks like '{key}'"):
        source(record)[0]


def test_a_draft_is_context_of_the_prompt(source):
    turns = [*CHAT["messages"], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    turns[1] = {"role": "assistant", "content": "It rises.", "loss": False}
    sample = source({**CHAT, "messages": turns})[0]
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "user"]
    assert (sample.info.question, sample.info.answer) == ("What next?\nSure?", "Yes.")


@pytest.mark.parametrize("kind", KINDS)
def test_missing_media_are_named_whatever_the_kind(source, kind):
    gone = json.loads(json.dumps(KINDS[kind]).replace("good.mp4", "gone.mp4").replace("now.png", "gone.png"))
    with pytest.raises(RecordFileError, match=r"rl\.jsonl, record 1.*there is no file .*gone\.(mp4|png); put it there"):
        source(gone)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_data_root_holds_whatever_the_kind(source, folder, kind):
    inner = folder / "inner"
    inner.mkdir()
    with pytest.raises(RecordError, match=r"rl\.jsonl, record 1, field .*outside data_root"):
        source(KINDS[kind], data_root=inner)[0]
    assert source(KINDS[kind], data_root=folder)[0].info.answer
