from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from futurel1.cli import main
from futurel1.worlds import write_world


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("world")
    write_world(out, train=1, test=1, size=64, progress=False)
    return str(out / "videos" / "test-00000.mp4")


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    main(["ask", *args])
    return capsys.readouterr().out


def test_answers_in_words_and_for_machines(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, video, "What happens next?", "--sampling.max_new_tokens", "2")
    assert "answer: (none)" in text  # no answer has only two tokens
    assert "time: " in text
    record = json.loads(said(capsys, video, "What happens next?", "--sampling.max_new_tokens", "2", "--json"))
    assert set(record) == {
        "question",
        "options",
        "answer",
        "text",
        "votes",
        "spans",
        "tokens",
        "finish_reason",
        "seconds",
    }
    assert record["tokens"] == 2
    assert record["finish_reason"] == "length"


def test_a_page_of_the_answer(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, video, "What happens next?", "--sampling.max_new_tokens", "2", "--html", str(tmp_path / "out.html"))
    page = (tmp_path / "out.html").read_text()
    assert "What happens next?" in page
    assert "<img" in page


@pytest.mark.slow
def test_the_shipped_backbone_imagines_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = ["--out", str(tmp_path), "--train", "0", "--test", "3", "--size", "64", "--footage", "false"]
    main(["world", "--kinds", "[zone]", *world])
    for number in range(3):
        clip = str(tmp_path / "videos" / f"test-{number:05d}.mp4")
        record = json.loads(said(capsys, clip, "Imagine the zones after 2 steps.", "--json"))
        assert len(record["spans"]) == 2
        assert record["finish_reason"] == "eos"
        told = record["answer"].split(", ")
        assert len(told) == 3  # three shapes
        assert all(re.fullmatch(r"\w+ (circle|square|triangle) (top|bottom) (left|right)", shape) for shape in told)


def test_what_the_shipped_backbone_is_shown_is_told(
    video: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    short = ("--sampling.max_new_tokens", "2", "--json")
    record = json.loads(said(capsys, video, "What happens next?", *short, "--pool_frames", "[1, 2, 3, 4]"))
    caplog.set_level(logging.INFO)
    assert json.loads(said(capsys, video, "What happens next?", *short))["text"] == record["text"]
    assert "pool_frames=[1, 2, 3, 4]" in caplog.text
    assert "Imagine the zones after 2 steps." in caplog.text  # there is no answer


def test_a_foreign_video_is_told_in_one_line(video: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = ("What happens next?", "--sampling.max_new_tokens", "2")
    main(["ask", video, *short])
    assert "its own world" not in caplog.text
    foreign = tmp_path / "holiday.mp4"
    foreign.write_bytes(Path(video).read_bytes())
    main(["ask", str(foreign), *short])
    (line,) = [text for text in caplog.messages if "its own world" in text]
    assert line.startswith("the tiny backbone knows only its own world, coloured shapes")
    assert "--model" in line
    assert "\n" not in line


def test_branches_and_options_and_pool_frames(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--options", "[left, right]", "--pool_frames", "[1, 2]", "--branches", "3", "--json"]
    record = json.loads(said(capsys, video, "Where?", *options, "--sampling.max_new_tokens", "4"))
    assert sum(record["votes"].values()) == pytest.approx(1)
    again = json.loads(said(capsys, video, "Where?", *options, "--sampling.max_new_tokens", "4"))
    assert again["text"] == record["text"]  # seeded


@pytest.mark.parametrize(("args", "message"), [
    (["nowhere.mp4", "What?"], "nowhere.mp4"),
    (["VIDEO", "  "], "the question is empty"),
    (["VIDEO", "What?", "--options", "[only one]"], "2 to 26"),
    (["VIDEO", "What?", "--pool_frames", "[9]"], "1 to 8"),
    (["VIDEO", "What?", "--max_length", "10"], "more than max_length=10"),
    (["VIDEO", "What?", "--model", "no/such"], "no/such"),
    (["VIDEO", "What?", "--device", "cuda:7"], "no usable GPU"),
    (["VIDEO", "What?", "--device", "tpu-x"], "--device tpu-x"),
])  # fmt: skip
def test_bad_input_is_one_line(video: str, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        main(["ask", *[video if arg == "VIDEO" else arg for arg in args]])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("futurel1: error: ")
    assert message in error


def test_a_broken_video_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(SystemExit):
        main(["ask", str(tmp_path / "text.mp4"), "What?"])
    assert "text.mp4" in capsys.readouterr().err
