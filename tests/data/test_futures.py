"""Future frames of prompts: of a record's own reasoning, and of its counterfactual."""

from pathlib import Path
from typing import Any

import pytest

from futurel1.data.futures import FUTURES, counterfactual_answer, counterfactual_future, true_future
from futurel1.data.prompts import parse_prompt
from futurel1.data.samples import RawRecord
from futurel1.errors import RecordError

FRAMED: dict[str, Any] = {
    "video": "good.mp4",
    "image": [1, 3],
    "reasoning_image": [5, 7],
    "conversations": [
        {"from": "human", "value": "<image>\n<image> What next?"},
        {"from": "gpt", "value": "It moves.<image>Then on.<image>"},
    ],
    "answer": "up",
    "counterfactual": {"video": "other.mp4", "reasoning_image": [5, 6], "answer": " down "},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.mp4").touch()
    return tmp_path


def raw(folder: Path, **changes: Any) -> RawRecord:
    return RawRecord(FRAMED | changes, folder / "a.jsonl", 4, folder, "a.jsonl")


def test_both_futures_of_a_record(folder: Path) -> None:
    record = raw(folder)
    prompt = parse_prompt(record)
    assert prompt.hints == ()
    true, other = (FUTURES[name](record, prompt, None) for name in ("true", "counterfactual"))
    assert [(frame.path.name, frame.pool_index) for frame in true] == [("good.mp4", 5), ("good.mp4", 7)]
    assert [(frame.path.name, frame.pool_index) for frame in other] == [("other.mp4", 5), ("other.mp4", 6)]
    assert (prompt.info.answer, prompt.info.counterfactual) == ("up", "down")


def test_a_record_of_one_future(folder: Path) -> None:
    record = raw(folder, counterfactual=None)
    prompt = parse_prompt(record)
    assert counterfactual_future(record, prompt) == ()
    assert counterfactual_answer(record) is prompt.info.counterfactual is None
    chat = RawRecord({"problem": "What?", "answer": "A"}, folder / "a.jsonl", 1, folder, "a.jsonl")
    assert true_future(chat, prompt) == ()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("other.mp4", r"a.jsonl, record 4, field 'counterfactual': str where an object with video"),
        ({"video": "b.mp4", "reasoning_image": [9], "answer": "x"}, r"'counterfactual.reasoning_image' = \[9\]"),
        ({"reasoning_image": [5], "answer": "x"}, r"'counterfactual.video' = None: missing"),
        ({"video": "../b.mp4", "reasoning_image": [5], "answer": "x"}, "outside data_root"),
    ],
)
def test_a_counterfactual_that_cannot_be_used_is_named(folder: Path, other: Any, message: str) -> None:
    record = raw(folder, counterfactual=other)
    with pytest.raises(RecordError, match=message):
        counterfactual_future(record, parse_prompt(raw(folder)), folder)


def test_a_counterfactual_without_an_answer_is_no_prompt(folder: Path) -> None:
    with pytest.raises(RecordError, match=r"'counterfactual.answer' = None: missing"):
        parse_prompt(raw(folder, counterfactual={"video": "other.mp4", "reasoning_image": [5, 6]}))
