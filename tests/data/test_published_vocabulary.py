"""Records in the chat format with the published tokenizer: its ids, labels and lengths."""

from dataclasses import replace

import pytest
import torch
from chat_samples import asked, framed, parsed, pathed, supervised, unlabelled, whole
from PIL import Image

from futurel1.data import Turn
from futurel1.data.chat import ChatEncoder
from futurel1.data.chat_text import default_system_prompt
from futurel1.data.samples import Sample
from futurel1.models import IGNORE
from rounding import assert_same_but_rounding

IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO = 151_644, 151_645, 151_652, 151_653, 151_655, 151_656
LATENT, LATENT_START, LATENT_END = 151_669, 151_670, 151_671
USER, ASSISTANT, SYSTEM, NEWLINE = 872, 77_091, 8_948, 198
SECONDS = 6_486
"""The token " seconds"."""


@pytest.fixture(scope="module")
def published(published_processor):
    return ChatEncoder(published_processor)


def words(encoder, text):
    return encoder.processor.tokenizer(text)["input_ids"]


# ---------------------------------------------------------------------- the published layout


def test_image_turns_have_the_ids_of_the_published_template(published, pictures):
    """`<|im_start|>user\\n` images and texts as they come `<|im_end|>\\n`, for every role."""
    sample = parsed(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "A gate."},
                {"role": "user", "content": "And <image>?"},
                {"role": "assistant", "content": "门。"},
            ],
            "images": ["now.png", "late.png"],
        },
        pictures,
    )
    picture = [VISION_START, *[IMAGE] * 70, VISION_END]  # 48 x 64 pixels become 224 x 320, at least 65,536
    encoded = published.encode(sample)
    assert encoded.input_ids.tolist() == [
        IM_START, SYSTEM, NEWLINE, *words(published, "Be brief."), IM_END, NEWLINE,
        IM_START, USER, NEWLINE, *picture, *words(published, "What is it?"), IM_END, NEWLINE,
        IM_START, ASSISTANT, NEWLINE, *words(published, "A gate."), IM_END, NEWLINE,
        IM_START, USER, NEWLINE, *words(published, "And"), *picture, *words(published, "?"), IM_END, NEWLINE,
        IM_START, ASSISTANT, NEWLINE, *words(published, "门。"), IM_END, NEWLINE,
    ]  # fmt: skip
    assert encoded.image_grid_thw.tolist() == [[1, 14, 20]] * 2
    assert supervised(published, encoded) == "A gate.<|im_end|>\n门。<|im_end|>\n"


def test_ids_are_those_that_the_stock_processor_makes(published, pictures):
    content = [{"type": "image"}, {"type": "text", "text": "What happens next?"}]
    messages = [{"role": "system", "content": default_system_prompt()}, {"role": "user", "content": content}]
    text = published.processor.apply_chat_template(messages, add_generation_prompt=True)
    stock = published.processor(text=[text], images=[Image.open(pictures / "now.png")], return_tensors="pt")
    prompt = published.encode_prompt(pathed(pictures))
    assert torch.equal(prompt.input_ids, stock["input_ids"][0])
    assert torch.equal(prompt.image_grid_thw, stock["image_grid_thw"])
    assert_same_but_rounding(prompt.pixel_values, stock["pixel_values"])


def test_a_whole_video_is_a_timestamp_and_a_bracket_per_pair_of_frames(published, clips):
    encoded = published.encode(whole(clips["closed"]))  # 48 frames at 8 per second
    grid = encoded.video_grid_thw[0].tolist()
    ids = encoded.input_ids.tolist()
    start = ids.index(USER) + 2
    stamps = [place for place, token in enumerate(ids) if token == SECONDS]
    assert len(stamps) == grid[0] == 6
    assert ids[start : start + 7] == [*words(published, "<0.2 seconds>"), VISION_START]
    block = grid[1] * grid[2] // 4
    for stamp in stamps:
        assert ids[stamp + 2 : stamp + 4 + block] == [VISION_START, *[VIDEO] * block, VISION_END]
    assert ids.count(VIDEO) == grid[0] * block
    assert ids.count(VISION_START) == ids.count(VISION_END) == grid[0]
    assert supervised(published, encoded) == "a<|im_end|>\n"


# ---------------------------------------------------------------------- labels


def test_labels_are_the_response_without_latents(published, clips):
    encoded = published.encode(framed(clips["closed"]))
    span = "<|latent_start|><|latent_end|>\n"
    assert supervised(published, encoded) == (
        f"<reason>The ball moves.</reason>\n{span}<reason>It turns.</reason>\n{span}<reason>Then stops.</reason>\n"
        "<answer>It stops.</answer><|im_end|>\n"
    )
    labelled = encoded.labels != IGNORE
    assert encoded.labels[labelled].tolist() == encoded.input_ids[labelled].tolist()
    left_out = encoded.input_ids[encoded.prompt_length :][~labelled[encoded.prompt_length :]]
    assert set(left_out.tolist()) == {LATENT}
    # the line break behind a span is a token of its own, whatever comes next
    response = encoded.input_ids[encoded.prompt_length :]
    ends = (response == LATENT_END).nonzero()[:, 0]
    assert response[ends + 1].tolist() == [NEWLINE] * 2


@pytest.mark.parametrize("response", ["\nA gate.", "\n\n", " \n 门", "", " A gate.", "\tA", "\u3000门"])
def test_the_header_of_a_response_does_not_depend_on_the_response(published_processor, response):
    """The tokenizer merges line breaks: "assistant", two of them and "A" has no token for the first one."""
    verbatim = ChatEncoder(published_processor, strip_text=False)
    turns = (Turn("user", ("What?",)), Turn("assistant", (response,)))
    sample = Sample("x:1", turns, None, {})
    encoded, prompt = verbatim.encode(sample), verbatim.encode_prompt(sample)
    assert encoded.input_ids[: encoded.prompt_length].tolist() == prompt.input_ids.tolist()
    assert prompt.input_ids[-3:].tolist() == [IM_START, ASSISTANT, NEWLINE]
    assert supervised(verbatim, encoded) == f"{response}<|im_end|>\n"
    assert verbatim.length(sample) == len(encoded)


def test_turns_that_are_not_learned_have_no_labels(published):
    turns = (
        Turn("user", ("门?",)),
        Turn("assistant", ("No.",), loss=False),
        Turn("user", ("?",)),
        Turn("assistant", ("👍🏽",)),
    )
    encoded = published.encode(Sample("x:1", turns, None, {}))
    assert supervised(published, encoded) == "👍🏽<|im_end|>\n"


def test_texts_are_composed_before_they_become_tokens(published):
    composed = published.encode_prompt(asked("caf\u00e9 \u1100\u1161")).input_ids
    assert torch.equal(published.encode_prompt(asked("cafe\u0301 \uac00")).input_ids, composed)


# ---------------------------------------------------------------------- lengths


def test_the_system_prompt_of_the_paper(published):
    assert len(words(published, default_system_prompt())) == 93


@pytest.mark.parametrize(("make", "tokens"), [(framed, 304), (unlabelled, 278)])
def test_lengths_of_records(published, clips, make, tokens):
    sample = make(clips["closed"])
    assert published.length(sample) == len(published.encode(sample)) == tokens


def test_length_of_a_video_is_an_upper_bound(published, clips):
    for text in ("?", "Look: ", "门。"):
        sample = replace(whole(clips["closed"]), turns=(Turn("user", (text, *whole(clips["closed"]).turns[0].parts)),))
        assert 0 <= published.length(sample) - len(published.encode_prompt(sample)) + 3 <= 8
