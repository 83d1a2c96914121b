"""From a video and a question to an answer."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from futurel1 import EventPredictor, LatentReasoner
from futurel1.data import read_frames
from futurel1.errors import ConfigError, MediaError, MissingFileError, RecordError
from futurel1.predictor import prompt_of
from futurel1.rollout import SamplingSettings
from futurel1.worlds import write_world

SHORT = SamplingSettings(max_new_tokens=4)
QUESTION = "Imagine the zones after 2 steps."


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("world")
    write_world(out, train=0, test=3, size=64, kinds=["zone"], progress=False)
    return sorted((out / "videos").glob("*.mp4"))


@pytest.fixture(scope="module")
def predictor() -> EventPredictor:
    return EventPredictor.from_pretrained("tiny", device="cpu")


def test_three_lines_from_a_video_to_an_answer(predictor: EventPredictor, videos: list[Path]) -> None:
    answer = predictor(videos[0], QUESTION)
    assert answer.question == QUESTION
    assert len(answer.answer.split(", ")) == 3  # three shapes
    assert answer.votes == {answer.answer: 1.0}
    assert answer.finish_reason == "eos"
    assert len(answer.spans) == 2
    for span in answer.spans:
        assert span.latents.shape == (len(span), predictor.reasoner.hidden_size)
        assert span.latents.dtype == torch.float32
        assert span.latents.isfinite().all()
    assert 0 < answer.spans[0].position < answer.spans[1].position < answer.tokens
    assert answer.text.count("[imagined frame") == 2
    printed = str(answer)
    assert f"answer: {answer.answer}" in printed
    assert f"for {answer.tokens} tokens, {sum(map(len, answer.spans))} of them latents" in printed
    shown = read_frames(videos[0], [0])[0]
    assert [frame.size for frame in answer.frames] == [shown.size] * 4
    assert pickle.loads(pickle.dumps(answer)).answer == answer.answer
    record = answer.to_dict()
    assert record["spans"] == [{"latents": len(span), "position": span.position} for span in answer.spans]
    assert record["answer"] == answer.answer
    assert {"frames", "_shown"}.isdisjoint(record)


def test_a_list_of_questions_is_answered_like_single_ones(predictor: EventPredictor, videos: list[Path]) -> None:
    questions = [(video, QUESTION) for video in videos]
    together = predictor(questions, batch_size=2)
    alone = [predictor(video, question) for video, question in questions]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in together}) == 3
    mixed = predictor([(videos[0], "Where?", ["left", "right"]), (videos[1], "What?")], sampling=SHORT)
    assert [answer.options for answer in mixed] == [("left", "right"), ()]


def test_frames_of_any_kind_are_the_same_prompt(predictor: EventPredictor, videos: list[Path]) -> None:
    pictures = list(predictor(videos[0], "What?", sampling=SHORT).frames)
    array = np.stack([np.asarray(picture) for picture in pictures])
    texts = {
        predictor(frames, QUESTION).text
        for frames in (videos[0], str(videos[0]), pictures, array, torch.from_numpy(array.copy()))
    }
    assert len(texts) == 1
    answer = predictor(array, QUESTION)
    assert all(np.array_equal(frame, picture) for frame, picture in zip(answer.frames, pictures, strict=True))


def test_frames_of_a_whole_clip_are_thinned_out_to_the_pool(predictor: EventPredictor, videos: list[Path]) -> None:
    every = read_frames(videos[0], range(10))
    assert predictor(every, QUESTION).text != predictor(every[:4], QUESTION).text
    whole = EventPredictor(predictor.reasoner)  # no pool frames: all that is given
    assert len(whole(every, "What?", sampling=SHORT).frames) == 10
    assert len(whole(videos[0], "What?", sampling=SHORT).frames) <= 16


def test_branches_vote(predictor: EventPredictor, videos: list[Path]) -> None:
    sampling = SamplingSettings(max_new_tokens=24, seed=3)
    answer = predictor(videos[0], "Where?", options=["left", "right", "up"], branches=5, sampling=sampling)
    assert sum(answer.votes.values()) == pytest.approx(1)
    assert answer.answer == next(iter(answer.votes))
    again = predictor(videos[0], "Where?", options=["left", "right", "up"], branches=5, sampling=sampling)
    assert (again.votes, again.text) == (answer.votes, answer.text)  # seeded


def test_what_is_drawn_depends_on_the_question_alone(predictor: EventPredictor, videos: list[Path]) -> None:
    asked = [(video, "Where?", ["left", "right", "up"]) for video in videos]
    ways: dict[str, Any] = {"branches": 4, "sampling": SamplingSettings(max_new_tokens=12, seed=3)}
    together = predictor(asked, **ways, batch_size=2)
    turned = predictor(asked[::-1], **ways, batch_size=3)[::-1]
    alone = [predictor(video, question, options=options, **ways) for video, question, options in asked]
    for others in (turned, alone):
        assert [(own.votes, own.text) for own in others] == [(own.votes, own.text) for own in together]


def test_up_to_twenty_six_options(videos: list[Path]) -> None:
    options = [f"place {number}" for number in range(26)]
    sample = prompt_of(videos[0], "Where?", options, ())
    assert sample.info.options is not None
    assert sample.info.options["Z"] == "place 25"
    text = sample.turns[0].parts[-1]
    assert isinstance(text, str)
    assert text.splitlines()[:3] == ["Where?", "A. place 0", "B. place 1"]
    assert text.splitlines()[-2] == "Z. place 25"


@pytest.mark.parametrize(("options", "message"), [
    (["one"], "2 to 26 texts"),
    ([str(number) for number in range(27)], "2 to 26 texts"),
    (["The gate", "the gate."], "differ in nothing but case or punctuation"),
])  # fmt: skip
def test_options_have_to_be_told_apart(options: list[str], message: str, videos: list[Path]) -> None:
    with pytest.raises(ConfigError, match=message):
        prompt_of(videos[0], "Where?", options, ())


@pytest.mark.parametrize(("video", "message"), [
    ([], "got list"),
    (3, "got int"),
    (["a.mp4"], "got str"),
    (np.zeros((2, 8, 8, 3)), r"\(2, 8, 8, 3\) float64"),
    (np.zeros((2, 3, 8, 8), np.uint8), r"\(2, 3, 8, 8\) uint8"),
    (torch.zeros(8, 8, 3, dtype=torch.uint8), r"\(8, 8, 3\) uint8"),
])  # fmt: skip
def test_what_is_no_video_is_named(video: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prompt_of(video, "What?", (), ())


def test_errors_name_what_was_given(predictor: EventPredictor, videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(MediaError, match=r"text\.mp4"):
        predictor(tmp_path / "text.mp4", "What?")
    with pytest.raises(MissingFileError, match=r"nowhere\.mp4"):
        predictor("nowhere.mp4", "What?")
    with pytest.raises(ConfigError, match="question is empty"):
        predictor(videos[0], " ")
    with pytest.raises(ConfigError, match="branches and batch_size are at least 1"):
        predictor(videos[0], "What?", branches=0)
    with pytest.raises(ConfigError, match="each has its own options"):
        predictor([(videos[0], "What?")], options=["a", "b"])  # type: ignore[call-overload]
    for wrong in (videos[0], [videos[0]], [(videos[0],)], []):
        with pytest.raises(ConfigError, match=r"give a question, or a list|list of questions is empty"):
            predictor(wrong)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="from 1 to 8"):
        EventPredictor(predictor.reasoner, pool_frames=[0])
    with pytest.raises(RecordError, match="more than max_length=10"):
        EventPredictor(predictor.reasoner, max_length=10)(videos[0], "What?")
    bare = LatentReasoner.from_pretrained("tiny@random")
    bare.processor = None
    with pytest.raises(ConfigError, match="no tokenizer"):
        EventPredictor(bare)
    with pytest.raises(ConfigError, match="no tokenizer"):
        _ = bare.tokenizer


def test_a_notebook_shows_text_as_text(predictor: EventPredictor, videos: list[Path]) -> None:
    answer = predictor(videos[0], "<script>alert(1)</script> & 'what'?", sampling=SHORT)
    page = answer.to_html()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in page
    assert page.count("<img") >= 4  # the frames that it was shown
    shown = answer._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert shown.count('"') == 6  # nothing of the page ends the attribute


def test_grayscale_and_transparent_pictures_become_rgb(predictor: EventPredictor) -> None:
    pictures = [Image.new("L", (64, 64), 90), Image.new("RGBA", (64, 64), (255, 0, 0, 0))]
    shown = predictor(pictures, "What?", sampling=SHORT).frames
    assert [picture.mode for picture in shown] == ["RGB", "RGB"]
    assert shown[1].getpixel((0, 0)) == (255, 255, 255)


def test_the_shipped_weights_say_once_what_they_know_of(
    videos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(*asked: Any, predictor: EventPredictor) -> int:
        caplog.clear()
        predictor([(video, "What next?") for video in asked], sampling=SamplingSettings(max_new_tokens=1))
        return sum("knows only its own world" in text for text in caplog.messages)

    tiny = EventPredictor.from_pretrained("tiny", device="cpu")
    assert warned(*videos[:2], predictor=tiny) == 0
    foreign = tmp_path / "holiday.mp4"
    foreign.write_bytes(videos[0].read_bytes())
    assert warned(videos[0], foreign, predictor=tiny) == 1
    assert warned(foreign, predictor=tiny) == 0
    pictures = [Image.new("RGB", (64, 64))] * 4
    assert warned(pictures, predictor=EventPredictor.from_pretrained("tiny", device="cpu")) == 1
    # any other weights may know more
    assert warned(foreign, predictor=EventPredictor(LatentReasoner.from_pretrained("tiny"))) == 0
