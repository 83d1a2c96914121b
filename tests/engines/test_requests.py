"""Prompts as messages: the same pixels, text and tokens as our own encoder's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_server import PretendedModel, picture, pictures
from PIL import Image

from futurel1.data import Frame, Sample, Turn, read_image
from futurel1.data.chat import ChatEncoder
from futurel1.data.samples import Part, RecordFileError, RecordTooLongError, Video
from futurel1.engines import RequestEncoder
from futurel1.models import LATENT_START
from futurel1.worlds import write_world


@pytest.fixture
def requests(encoder: ChatEncoder) -> RequestEncoder:
    return RequestEncoder(encoder, encoder.processor.tokenizer)


def sample(*parts: Part, role: Any = "user") -> Sample:
    return Sample("r.jsonl:1", (Turn(role, parts, field="messages"),), None, {})


def test_tokens_are_those_of_both_encoders(encoder: ChatEncoder, requests: RequestEncoder, picture_file: Path) -> None:
    frame = Frame(picture_file, None)
    turns = (
        Turn("system", (" Be brief. ",)),
        Turn("user", ("  Look.\nframe_1", frame, " and", frame, "What?  ")),
        Turn("assistant", (" Context. ",), loss=False),
        Turn("user", ("And now?",)),
    )
    for each in (sample(frame, "What?"), sample("Text alone."), Sample("r:1", turns, None, {})):
        made = requests.encode_prompt(each)
        assert made.tokens == len(encoder.encode_prompt(each))
        server = PretendedModel(encoder.processor)
        assert made.tokens == len(server.ids(json.loads(made.messages), whole=True))
        assert made.text_tokens == len(server.ids(json.loads(made.messages), whole=False))
        assert server.ids(json.loads(made.messages), whole=True) == encoder.encode_prompt(each).input_ids.tolist()


def test_pictures_reach_the_server_as_we_see_them(requests: RequestEncoder, picture_file: Path, tmp_path: Path) -> None:
    plain = Image.open(picture_file)
    turned = Image.Exif()
    turned[0x0112] = 6
    plain.save(tmp_path / "plain.jpg", quality=90)
    plain.save(tmp_path / "turned.jpg", exif=turned)
    plain.convert("RGBA").save(tmp_path / "clear.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(tmp_path / "half.png")
    plain.convert("P").save(tmp_path / "palette.png")
    plain.convert("L").save(tmp_path / "grey.png")
    plain.save(tmp_path / "picture.bmp")
    names = [
        "picture.png",
        "plain.jpg",
        "turned.jpg",
        "clear.png",
        "half.png",
        "palette.png",
        "grey.png",
        "picture.bmp",
    ]
    kinds = {}
    for form in ("data", "paths"):
        requests.media = form  # type: ignore[assignment]
        frames = [Frame(tmp_path / name, None) for name in names]
        embedded = Frame(Path("r.jsonl"), None, (tmp_path / "plain.jpg").read_bytes())
        made = json.loads(requests.encode_prompt(sample(*frames, embedded, "What?")).messages)
        shown = pictures({"messages": made})
        for name, seen in zip([*names, "plain.jpg"], shown, strict=True):
            assert seen.tobytes() == read_image(tmp_path / name).tobytes(), name
        urls = [part["image_url"]["url"] for part in made[1]["content"] if part["type"] == "image_url"]
        kinds[form] = [url.partition(";")[0].partition("/r")[0].partition("///")[0] for url in urls]
    png = "data:image/png"
    assert kinds["data"] == [png, "data:image/jpeg", *[png] * 6, "data:image/jpeg"]
    assert kinds["paths"] == ["file:", "file:", *[png] * 6, "data:image/jpeg"]


def test_frames_of_a_video_are_sent_as_data(requests: RequestEncoder, encoder: ChatEncoder, tmp_path: Path) -> None:
    write_world(tmp_path, train=1, test=1, size=64, progress=False)
    clip = next((tmp_path / "videos").glob("train-*.mp4"))
    requests.media = "paths"
    each = sample(Frame(clip, 1), Frame(clip, 8), "What?")
    made = requests.encode_prompt(each)
    seen = pictures({"messages": json.loads(made.messages)})
    _, own, tokens = encoder.convert_pictures(each, lambda frame, shown: shown.tobytes())
    assert [picture.tobytes() for picture in seen] == own
    assert made.tokens == len(encoder.encode_prompt(each)) == made.text_tokens + sum(tokens) - 2
    assert made.sources == (str(clip.resolve()),)

    whole = sample(Video(clip), "What?")
    made = requests.encode_prompt(whole)
    assert made.tokens == len(encoder.encode_prompt(whole))
    [url] = [part["video_url"]["url"] for part in json.loads(made.messages)[1]["content"] if "video_url" in part]
    assert url == clip.resolve().as_uri()
    requests.media = "data"
    inline = json.loads(requests.encode_prompt(whole).messages)[1]["content"][0]["video_url"]["url"]
    assert inline.startswith("data:video/mp4;base64,")


def test_a_server_without_latent_tokens_counts_their_names_as_text(encoder: ChatEncoder) -> None:
    """The paper's system turn names the brackets of latents, which only our tokenizer holds as one token each."""

    class Stock:
        """A tokenizer that knows no latent tokens."""

        def __call__(self, text: str) -> dict[str, list[int]]:
            hidden = text.replace(LATENT_START, "abc")
            return encoder.processor.tokenizer(hidden)  # type: ignore[no-any-return]

    each = sample(f"Say {LATENT_START} now.", role="system")
    ours = len(encoder.encode_prompt(each))
    made = RequestEncoder(encoder, Stock()).encode_prompt(each)
    assert (
        made.tokens
        == made.text_tokens
        == len(Stock()(f"<|im_start|>system\nSay {LATENT_START} now.<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    )
    assert made.tokens != ours


def test_what_our_encoder_refuses_is_refused(encoder: ChatEncoder, picture_file: Path, tmp_path: Path) -> None:
    short = ChatEncoder(encoder.processor, max_length=30)
    requests = RequestEncoder(short, encoder.processor.tokenizer)
    with pytest.raises(RecordTooLongError, match=r"r\.jsonl:1: \d+ tokens, more than max_length=30"):
        requests.encode_prompt(sample("word " * 60))
    with pytest.raises(RecordTooLongError, match="and more tokens"):
        requests.encode_prompt(sample(*[Frame(picture_file, None)] * 40))
    with pytest.raises(RecordFileError, match=r"field 'image': .*gone\.png"):
        requests.encode_prompt(sample(Frame(tmp_path / "gone.png", None, field="image")))
    with pytest.raises(ValueError, match="reads as structure"):
        requests.encode_prompt(sample("<|im_end|>"))
    assert picture(f"file://{picture_file}").size == (64, 32)
