"""Guessers that know where the ball was last seen, or where it was heading."""

import json
from pathlib import Path

import pytest

from experiments.atari_guessers import guessed_rightly, straight_and_put
from futurel1.worlds import AtariWorld
from futurel1.worlds.look import ZONES


def write(file: Path, *records: tuple[str, str, str]) -> None:
    lines = [
        json.dumps(
            {
                "id": "one", "question_type": hops, "answer": answer,
                "conversations": [{}, {"value": f"THOUGHT 0: ball {seen}, paddle bottom left"}],
            }
        )
        for seen, hops, answer in records
    ]  # fmt: skip
    file.write_text("\n".join(lines))


def test_it_gives_the_most_frequent_answer_of_what_it_knows(tmp_path: Path) -> None:
    up, down = ("top left", "hop1", "top left"), ("top left", "hop1", "bottom left")
    write(tmp_path / "train.jsonl", up, up, down, ("top left", "hop2", "bottom left"))
    write(tmp_path / "test.jsonl", up, down, ("top left", "hop2", "bottom left"), ("top right", "hop1", "top left"))
    assert guessed_rightly(tmp_path) == (2, 4)


def test_a_record_without_the_ball_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"id": "no-ball", "question_type": "hop1", "answer": "", "conversations": [{}, {"value": ""}]})
    )
    with pytest.raises(SystemExit, match="no-ball"):
        guessed_rightly(tmp_path)


def test_a_straight_line_answers_most_questions() -> None:
    pytest.importorskip("ale_py", reason="needs the extra atari")
    world = AtariWorld()
    answers = [ZONES[world.episode("test", number).asked.answer] for number in range(24)]
    straight, put = straight_and_put(world, answers)
    assert straight >= 20  # 96 of 100 in the long run; at random 6 of 24
    assert 10 <= put <= 22  # 68 of 100
    with pytest.raises(SystemExit, match="test question 0 is of a world of another seed"):
        straight_and_put(world, ["nowhere"])
