"""From a record to token ids, labels and pixels: layout, labels, sizes, frames, refusals."""

import multiprocessing
import pickle
import re
import resource
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codings import encode, moving_frames, plain_decode
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from futurel1 import LatentReasoner
from futurel1.data import Turn, Video, chat, frame_pool, media, parse_record
from futurel1.data.chat import ChatEncoder, default_system_prompt, hint_size, video_frame_size
from futurel1.data.collate import Fetched, SFTCollator
from futurel1.data.samples import RecordFileError, Sample
from futurel1.data.video.pyav import PyAVReader
from futurel1.datamodules.loading import count_totals
from futurel1.errors import CheckpointError, ConfigError, MediaError, MissingFileError, RecordError
from futurel1.losses import LatentSFTLoss
from futurel1.models import IGNORE, load_processor
from futurel1.models.backbones.tiny import tiny_processor
from rounding import assert_same_but_rounding

SYSTEM = f"<|im_start|>system\n{default_system_prompt()}<|im_end|>\n"
FOUR_PADS = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
"""A frame of 48 x 64 pixels: rounded to 64 x 64, two by two visual tokens."""
TWO_LATENTS = "<|latent_start|><|latent|><|latent|><|latent_end|>\n"
"""The same as a hint: floored to 32 x 64."""


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor("tiny-random")


@pytest.fixture(scope="module")
def encoder(processor) -> ChatEncoder:
    return ChatEncoder(processor)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of image files: `now.png`, `soon.png`, `late.png` of 48 x 64, `wide.png` of 180 x 320."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, grey in (("now", 10), ("soon", 120), ("late", 240)):
        Image.new("RGB", (64, 48), (grey,) * 3).save(folder / f"{name}.png")
    Image.new("RGB", (320, 180), (60,) * 3).save(folder / "wide.png")
    return folder


def parsed(raw: dict[str, Any], folder: Path = Path("/")) -> Sample:
    return parse_record(raw, file="data.json", number=1, folder=folder)


def framed(video: Path) -> Sample:
    """Two observed frames, two hints, three thoughts."""
    return parsed(
        {
            "video": str(video),
            "image": [1, 3],
            "reasoning_image": [5, 8],
            "conversations": [
                {"from": "human", "value": "frame_1\n<image>\nframe_2 <image>\n What happens next? "},
                {
                    "from": "gpt",
                    "value": "THOUGHT 0: The ball moves. <image>\nTHOUGHT 1: It turns. <image> THOUGHT 2: Then stops.",
                },
            ],
            "answer": " It stops. ",
        }
    )


def unlabelled(video: Path) -> Sample:
    """Two observed frames, three to imagine, no texts."""
    return parsed({"video": str(video), "image": [1, 3], "reasoning_image": [5, 6, 8]})


def pathed(folder: Path, **changes: Any) -> Sample:
    raw: dict[str, Any] = {
        "image": ["now.png"],
        "reasoning_image": ["soon.png"],
        "conversations": [
            {"from": "human", "value": "<image>What happens next?"},
            {"from": "gpt", "value": "The ball moves.<image>"},
        ],
        "answer": "B",
    }
    return parsed(raw | changes, folder)


def decoded(encoder: ChatEncoder, ids: torch.Tensor) -> str:
    return encoder.processor.tokenizer.decode(ids)


def supervised(encoder: ChatEncoder, encoded) -> str:
    return decoded(encoder, encoded.input_ids[encoded.labels != IGNORE])


# ---------------------------------------------------------------------------------------------------- layout, labels


def test_frame_indexed_layout_is_exact(encoder, clips):
    encoded = encoder.encode(framed(clips["closed"]))
    assert decoded(encoder, encoded.input_ids) == (
        SYSTEM
        + f"<|im_start|>user\nframe_1{FOUR_PADS}frame_2{FOUR_PADS}What happens next?<|im_end|>\n"
        + f"<|im_start|>assistant\n<reason>The ball moves.</reason>\n{TWO_LATENTS}<reason>It turns.</reason>\n"
        + f"{TWO_LATENTS}<reason>Then stops.</reason>\n<answer>It stops.</answer><|im_end|>\n"
    )
    assert encoded.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 4]]
    assert encoded.hint_grid_thw.tolist() == [[1, 2, 4], [1, 2, 4]]
    assert encoded.pixel_values.shape[0] == 32
    assert encoded.hint_pixel_values.shape[0] == 16
    assert encoded.pixel_values_videos is encoded.video_grid_thw is encoded.video_seconds_per_grid is None


def test_upstream_layout_is_exact(encoder, clips):
    sample = parsed(
        {
            "video": str(clips["closed"]),
            "question": "What happens next?",
            "answer": "The gate opens. <rimage> He walks. <ans>He leaves.</ans>",
            "question_images_index": [2],
            "reasoning_images_index": [7],
        }
    )
    assert decoded(encoder, encoder.encode(sample).input_ids) == (
        SYSTEM + f"<|im_start|>user\n{FOUR_PADS}What happens next?<|im_end|>\n"
        f"<|im_start|>assistant\n<reason>The gate opens.</reason>\n{TWO_LATENTS}<reason>He walks.</reason>\n"
        "<answer>He leaves.</answer><|im_end|>\n"
    )


def test_path_based_layout_is_exact(encoder, pictures):
    assert decoded(encoder, encoder.encode(pathed(pictures)).input_ids) == (
        SYSTEM + f"<|im_start|>user\n{FOUR_PADS}What happens next?<|im_end|>\n"
        f"<|im_start|>assistant\n<reason>The ball moves.</reason>\n{TWO_LATENTS}<answer>B</answer><|im_end|>\n"
    )


def test_chat_layout_has_no_tags_and_labels_every_assistant_turn(encoder, pictures):
    sample = parsed(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image> What is it?"},
                {"role": "assistant", "content": " A ball. "},
                {"role": "user", "content": "And then? <image>"},
                {"role": "assistant", "content": "It falls."},
            ],
            "images": ["now.png", "late.png"],
        },
        pictures,
    )
    encoded = encoder.encode(sample)
    assert decoded(encoder, encoded.input_ids) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{FOUR_PADS}What is it?<|im_end|>\n"
        f"<|im_start|>assistant\nA ball.<|im_end|>\n<|im_start|>user\nAnd then?{FOUR_PADS}<|im_end|>\n"
        "<|im_start|>assistant\nIt falls.<|im_end|>\n"
    )
    assert supervised(encoder, encoded) == "A ball.<|im_end|>\nIt falls.<|im_end|>\n"
    assert encoded.hint_pixel_values is encoded.hint_grid_thw is None


def test_unlabelled_layout_is_spans_alone(encoder, clips):
    encoded = encoder.encode(unlabelled(clips["closed"]))
    assert decoded(encoder, encoded.input_ids) == (
        SYSTEM + f"<|im_start|>user\nframe_1{FOUR_PADS}frame_3{FOUR_PADS}Imagine what comes next.<|im_end|>\n"
        f"<|im_start|>assistant\n{TWO_LATENTS * 3}<|im_end|>\n"
    )
    assert supervised(encoder, encoded) == "<|latent_start|><|latent_end|>\n" * 3 + "<|im_end|>\n"
    assert encoded.input_ids[encoded.prompt_length] == encoder.tokens.start_id
    assert encoded.image_grid_thw.tolist() == [[1, 4, 4]] * 2
    assert encoded.hint_grid_thw.tolist() == [[1, 2, 4]] * 3
    prompt = encoder.encode_prompt(unlabelled(clips["closed"]))
    assert torch.equal(prompt.input_ids, encoded.input_ids[: encoded.prompt_length])


def test_unlabelled_spans_show_the_frames_to_imagine(encoder, clips):
    def pixels(*hints: int) -> torch.Tensor:
        record = {"video": str(clips["closed"]), "image": [1, 3], "reasoning_image": list(hints)}
        return encoder.encode(parsed(record)).hint_pixel_values

    assert torch.equal(encoder.encode(unlabelled(clips["closed"])).hint_pixel_values, pixels(5, 6, 8))
    assert torch.equal(pixels(5, 6, 8), torch.cat([pixels(5), pixels(6), pixels(8)]))
    assert not torch.equal(pixels(5), pixels(6))


def test_unlabelled_video_trains_beside_labelled_records(clips):
    reasoner = LatentReasoner.from_pretrained("tiny-random")
    encoder = ChatEncoder(reasoner.processor)
    samples = [encoder.encode(make(clips["closed"])) for make in (unlabelled, framed)]
    batch = SFTCollator(encoder.pad_token_id)([Fetched(samples=[sample], skipped=[]) for sample in samples])
    alone = SFTCollator(encoder.pad_token_id)([Fetched(samples=samples[:1], skipped=[])])
    output, own = LatentSFTLoss()(reasoner, batch), LatentSFTLoss()(reasoner, alone)
    assert own.span.tolist() == [0, 0, 1, 1, 2, 2]
    assert output.span.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    # three of START, END and newline, then the end mark and its newline
    assert own.num_tokens == 3 * 3 + 2
    assert own.loss.isfinite()
    assert_same_but_rounding(output.predicted[:6], own.predicted)
    weights = [weight for weight in reasoner.parameters() if weight.requires_grad]
    for part in (own.ce, own.latent):
        gradients = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
        assert sum(gradient.abs().sum() for gradient in gradients if gradient is not None) > 0


def test_labels_are_the_response_without_latents_and_nothing_before_it(encoder, clips):
    encoded = encoder.encode(framed(clips["closed"]))
    span = "<|latent_start|><|latent_end|>\n"
    assert supervised(encoder, encoded) == (
        f"<reason>The ball moves.</reason>\n{span}<reason>It turns.</reason>\n{span}<reason>Then stops.</reason>\n"
        "<answer>It stops.</answer><|im_end|>\n"
    )
    labelled = encoded.labels != IGNORE
    assert torch.equal(encoded.labels[labelled], encoded.input_ids[labelled])
    assert not labelled[: encoded.prompt_length].any()
    # after the header nothing but LATENT is left out
    left_out = encoded.input_ids[encoded.prompt_length :][~labelled[encoded.prompt_length :]]
    assert left_out.tolist() == [encoder.tokens.latent_id] * 4


def test_prompt_part_is_the_conversation_without_the_response(encoder, clips):
    sample = framed(clips["closed"])
    encoded, prompt = encoder.encode(sample), encoder.encode_prompt(sample)
    text = SYSTEM + f"<|im_start|>user\nframe_1{FOUR_PADS}frame_2{FOUR_PADS}What happens next?<|im_end|>\n"
    assert decoded(encoder, prompt.input_ids) == text + "<|im_start|>assistant\n"
    assert torch.equal(encoded.input_ids[: encoded.prompt_length], prompt.input_ids)
    assert torch.equal(encoded.pixel_values, prompt.pixel_values)
    assert prompt.prompt_length == len(prompt)
    assert (prompt.labels == IGNORE).all()
    assert prompt.hint_pixel_values is prompt.hint_grid_thw is None


def test_prompt_has_no_pictures_of_later_turns(encoder, pictures):
    sample = parsed(
        {
            "messages": [
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "A ball."},
                {"role": "user", "content": "<image>And that?"},
                {"role": "assistant", "content": "A wall."},
            ],
            "images": ["now.png", "wide.png"],
        },
        pictures,
    )
    prompt = encoder.encode_prompt(sample)
    pads = int((prompt.input_ids == encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum())
    assert pads == 4
    assert prompt.image_grid_thw.tolist() == [[1, 4, 4]]


def test_videos_are_expanded_to_blocks_with_timestamps(encoder, clips):
    sample = parsed(
        {
            "messages": [
                {"role": "user", "content": "<video>What happens?"},
                {"role": "assistant", "content": "It moves."},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": "It stops."},
            ],
            "videos": [str(clips["closed"])],
        }
    )
    encoded = ChatEncoder(encoder.processor, video_max_frames=4).encode(sample)
    # frames 0, 16, 31, 47 at 8 per second: seconds 0, 2, 3.875, 5.875, in pairs
    block = "<|vision_start|><|video_pad|><|video_pad|><|video_pad|><|video_pad|><|vision_end|>"
    assert decoded(encoder, encoded.input_ids) == (
        SYSTEM + f"<|im_start|>user\n<1.0 seconds>{block}<4.9 seconds>{block}What happens?<|im_end|>\n"
        "<|im_start|>assistant\nIt moves.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n"
        "<|im_start|>assistant\nIt stops.<|im_end|>\n"
    )
    assert encoded.video_grid_thw.tolist() == [[2, 4, 4]]
    assert supervised(encoder, encoded) == "It moves.<|im_end|>\nIt stops.<|im_end|>\n"
    assert encoded.pixel_values is None


def test_video_frames_follow_fps_up_to_the_maximum(processor, clips):
    def blocks(**options: Any) -> int:
        sample = Sample("x:1", (Turn("user", (Video(clips["closed"]), "?")), Turn("assistant", ("a",))), None, {})
        return int(ChatEncoder(processor, **options).encode(sample).video_grid_thw[0, 0])

    assert blocks() == 6  # 6 seconds, 2 frames each, 2 frames per block
    assert blocks(video_fps=1.0) == 3
    assert blocks(video_fps=0.01) == 1
    assert blocks(video_fps=100.0, video_max_frames=9) == 5  # the ninth is doubled


def test_short_video_beside_a_long_one_keeps_the_tokens_per_frame(processor, tmp_path, write_clip):
    big = [np.full((256, 256, 3), 7, np.uint8)] * 24
    long, short = write_clip(tmp_path / "long.mp4", big), write_clip(tmp_path / "short.mp4", big[:2])
    sample = Sample("x:1", (Turn("user", (Video(long), Video(short), "?")), Turn("assistant", ("a",))), None, {})
    encoder = ChatEncoder(processor, video_frame_tokens=16)
    encoded = encoder.encode(sample)
    assert encoded.video_grid_thw.tolist() == [[3, 8, 8], [1, 8, 8]]
    assert encoder.length(sample) >= len(encoded)


def test_video_of_one_frame_is_one_block(processor, tmp_path, write_clip):
    clip = write_clip(tmp_path / "one.mp4", [np.full((64, 64, 3), 7, np.uint8)])
    sample = Sample("x:1", (Turn("user", (Video(clip), "?")), Turn("assistant", ("a",))), None, {})
    assert ChatEncoder(processor).encode(sample).video_grid_thw.tolist() == [[1, 4, 4]]


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(4, 64))
def test_video_frames_never_exceed_their_tokens(height, width, budget):
    rows, columns = (side // 32 for side in video_frame_size(height, width, budget))
    assert 1 <= rows * columns <= budget
    if max(height, width) <= 2 * min(height, width) and budget >= 12:
        assert rows * columns >= 4


# ---------------------------------------------------------------------------------------------------- latents


@pytest.mark.parametrize(("height", "width"), [(180, 320), (360, 640), (720, 1280), (1080, 1920)])
def test_sixteen_to_nine_gives_the_reference_numbers(height, width):
    assert hint_size(height, width, 4) == (32, 64)
    if height >= 360:
        assert hint_size(height, width, 32) == (128, 224)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 64), st.sampled_from([28, 32]))
@example(32, 5000, 2, 32)
@example(5000, 1, 1, 32)
@example(40, 3200, 32, 32)
def test_hint_size_keeps_the_budget_in_whole_units_without_enlarging(height, width, budget, unit):
    rows, columns = hint_size(height, width, budget, unit)
    assert rows % unit == columns % unit == 0
    assert unit * unit <= rows * columns <= budget * unit * unit
    assert rows <= max(height, unit)
    assert columns <= max(width, unit)


def test_small_frames_are_not_enlarged_and_multiples_stay():
    assert hint_size(10, 10, 64) == (32, 32)
    assert hint_size(33, 63, 64) == (32, 32)
    assert hint_size(96, 96, 64) == (96, 96)
    assert hint_size(96, 96, 9) == (96, 96)
    assert hint_size(480, 480, 9) == (96, 96)


def test_hint_size_refuses_no_budget():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        hint_size(100, 100, 0)


@pytest.mark.parametrize(("budget", "number"), [(1, 1), (2, 1), (4, 2), (32, 28)])
def test_hints_get_their_own_number_of_latents(processor, tmp_path, budget, number):
    Image.new("RGB", (1280, 720)).save(tmp_path / "hd.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "now.png")
    encoder = ChatEncoder(processor, max_latent_tokens=budget)
    encoded = encoder.encode(pathed(tmp_path, reasoning_image=["hd.png"]))
    assert int((encoded.input_ids == encoder.tokens.latent_id).sum()) == number
    assert int(encoded.hint_grid_thw.prod()) == 4 * number == len(encoded.hint_pixel_values)


def test_fixed_latents_gives_exactly_that_many(processor, pictures, clips):
    encoder = ChatEncoder(processor, max_latent_tokens=5, fixed_latents=True)
    for sample in (pathed(pictures), pathed(pictures, reasoning_image=["wide.png"])):
        text = decoded(encoder, encoder.encode(sample).input_ids)
        assert "<|latent_start|>" + "<|latent|>" * 5 + "<|latent_end|>\n" in text
        assert text.count("<|latent|>") == 5
    assert int((encoder.encode(framed(clips["closed"])).input_ids == encoder.tokens.latent_id).sum()) == 10


def test_one_latent_can_be_a_whole_frame(processor, clips):
    """Features of the frame in its own size, pooled; the smaller picture of an L_max of 1 is something else."""
    reasoner = LatentReasoner.from_pretrained("tiny-random")
    reasoner.settings = replace(reasoner.settings, fixed_latent_budget=True, max_latent_token=1)
    whole = ChatEncoder(processor, max_latent_tokens=64).encode(framed(clips["closed"]))
    pooled = ChatEncoder(processor, max_latent_tokens=1, fixed_latents=True, max_hint_tokens=64)
    encoded = pooled.encode(framed(clips["closed"]))
    assert torch.equal(encoded.hint_pixel_values, whole.hint_pixel_values)
    assert int((encoded.input_ids == pooled.tokens.latent_id).sum()) == len(encoded.hint_grid_thw) == 2
    batch = SFTCollator(pooled.pad_token_id)([Fetched([encoded], [])])
    with torch.no_grad():
        target = LatentSFTLoss()(reasoner, batch).target
        features = reasoner.encode_hints(whole.hint_pixel_values, whole.hint_grid_thw)
    means = [rows.mean(dim=0) for rows in torch.split(features.embeds, list(features.counts))]
    torch.testing.assert_close(target, torch.stack(means))
    assert pooled.length(framed(clips["closed"])) == len(encoded)


@pytest.mark.parametrize("options", [{"max_hint_tokens": 4}, {"max_hint_tokens": 0, "fixed_latents": True}])
def test_hint_tokens_that_cannot_be_pooled_are_refused(processor, options):
    with pytest.raises(ConfigError, match=r"max_hint_tokens=\d: a number from 1, with fixed_latents: true"):
        ChatEncoder(processor, **options)


# ---------------------------------------------------------------------------------------------------- length


def test_length_is_the_number_of_tokens(processor, clips, pictures):
    samples = [
        framed(clips["closed"]),
        pathed(pictures, image=["wide.png"], reasoning_image=["wide.png"]),
        pathed(pictures, answer="Ünïcode 猫 and more"),
        unlabelled(clips["closed"]),
    ]
    for encoder in (ChatEncoder(processor), ChatEncoder(processor, max_latent_tokens=7, fixed_latents=True)):
        for sample in samples:
            assert encoder.length(sample) == len(encoder.encode(sample))


@pytest.mark.parametrize("options", [{}, {"video_max_frames": 3}, {"video_fps": 8.0, "video_frame_tokens": 4}])
def test_length_bounds_whole_videos_closely(processor, clips, options):
    videos = (Video(clips["closed"]), Video(clips["mkv"]))
    sample = Sample("x:1", (Turn("user", (*videos, "What?")), Turn("assistant", ("It moves.",))), None, {})
    encoder = ChatEncoder(processor, **options)
    tokens = len(encoder.encode(sample))
    assert tokens <= encoder.length(sample) <= tokens + 4


def test_each_video_of_a_record_is_opened_once(encoder, clips, monkeypatch):
    opened = []
    original = media.open_video
    monkeypatch.setattr(media, "open_video", lambda path, backend: opened.append(path) or original(path, backend))
    video = Video(clips["closed"])
    sample = framed(clips["closed"])
    sample = replace(
        sample, turns=(replace(sample.turns[0], parts=(*sample.turns[0].parts, video, video)), sample.turns[1])
    )
    encoder.length(sample)
    encoder.encode(sample)
    assert opened == [clips["closed"]] * 2


def test_too_long_names_both_numbers(processor, clips):
    sample = framed(clips["closed"])
    tokens = len(ChatEncoder(processor).encode(sample))
    assert len(ChatEncoder(processor, max_length=tokens).encode(sample)) == tokens
    with pytest.raises(RecordError, match=rf"data.json:1: {tokens} tokens, more than max_length={tokens - 1};"):
        ChatEncoder(processor, max_length=tokens - 1).encode(sample)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("control", chat.CONTROL_STRINGS)
def test_control_strings_in_texts_are_refused(encoder, pictures, control):
    def turns(question: str, thought: str) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": thought}]}

    for field, changes in {
        "user turn": turns(f"<image>Is {control}?", "It is.<image>"),
        "assistant turn": turns("<image>Is it?", f"{control}<image>"),
        "answer": {"answer": f"B{control}"},
    }.items():
        with pytest.raises(RecordError) as raised:
            encoder.encode(pathed(pictures, **changes))
        assert f"data.json:1: the {field} contains {control}" in str(raised.value)


def test_system_turns_may_name_latent_brackets_and_nothing_else(encoder):
    def sample(system: str) -> Sample:
        turns = [("system", system), ("user", "What?"), ("assistant", "That.")]
        return parsed({"messages": [{"role": role, "content": text} for role, text in turns]})

    encoded = encoder.encode(sample("Think in <|latent_start|>pictures<|latent_end|>."))
    assert "<|latent_start|>pictures<|latent_end|>" in decoded(encoder, encoded.input_ids)
    assert supervised(encoder, encoded) == "That.<|im_end|>\n"
    for control in ("<|latent|>", "<|image_pad|>", "<|im_start|>", "<|im_end|>"):
        with pytest.raises(RecordError, match="the system turn contains"):
            encoder.encode(sample(f"Think {control}."))


@pytest.mark.parametrize(
    "prompt", ["Imagine, then answer.", "\n Imagine.\r\n\n", "answer\n", "", " ", "\ufeffA\u2028é"]
)
def test_system_prompt_file_is_used_to_the_byte(processor, pictures, tmp_path, prompt):
    file = tmp_path / "system.txt"
    file.write_bytes(prompt.encode())
    encoder = ChatEncoder(processor, system_prompt=str(file))
    assert encoder.system_prompt == prompt
    turn = f"<|im_start|>system\n{prompt}<|im_end|>\n" if prompt else ""
    assert encoder.text(pathed(pictures), [2]).startswith(f"{turn}<|im_start|>user\n")


def test_system_prompts_of_checkpoints_survive_to_the_byte(tmp_path):
    reasoner = LatentReasoner.from_pretrained("tiny-random")
    for number, prompt in enumerate(("Imagine.\n", "\r\n Imagine. ", "\n\n")):
        reasoner.processor.system_prompt = prompt
        assert load_processor(reasoner.save_pretrained(tmp_path / str(number))).system_prompt == prompt


@pytest.mark.parametrize("text", ["Be brief.", " Be brief.\n", "\tA\r\n"])
def test_a_system_turn_is_used_as_it_is_given(encoder, text):
    turns = [{"role": "user", "content": " What? "}, {"role": "assistant", "content": " That. "}]
    expected = f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
    for record in ({"system": text}, {"messages": [{"role": "system", "content": text}, *turns]}):
        sample = parsed({"messages": turns} | record)
        assert encoder.text(sample, ()) == f"{expected}<|im_start|>assistant\nThat.<|im_end|>\n"
        assert decoded(encoder, encoder.encode_prompt(sample).input_ids).endswith("<|im_start|>assistant\n")


def conversation(*turns: tuple[str, str, bool | None]) -> Sample:
    return parsed({"messages": [{"role": role, "content": text, "loss": loss} for role, text, loss in turns]})


def test_turns_that_are_not_to_be_learned_have_no_labels(encoder):
    turns = [("user", "What?"), ("assistant", "Draft."), ("user", "Better?"), ("assistant", "It."), ("user", "Sure?"),
             ("assistant", "Yes.")]  # fmt: skip
    whole = encoder.encode(conversation(*((*turn, None) for turn in turns)))
    for wanted in [(True, False, True), (False, True, True), (False, False, True), (True, True, True)]:
        losses = iter(wanted)
        sample = conversation(*((*turn, next(losses) if turn[0] == "assistant" else None) for turn in turns))
        encoded = encoder.encode(sample)
        assert torch.equal(encoded.input_ids, whole.input_ids)
        said = [text for text, kept in zip(("Draft.", "It.", "Yes."), wanted, strict=True) if kept]
        assert supervised(encoder, encoded) == "".join(f"{text}<|im_end|>\n" for text in said)
        assert encoded.labels[encoded.prompt_length] == encoded.input_ids[encoded.prompt_length]
        assert (encoded.labels[: encoded.prompt_length] == IGNORE).all()
        assert encoder.length(sample) == len(encoded)


def test_a_prompt_ends_at_the_first_response_that_is_learned(encoder):
    sample = conversation(("user", "What?", None), ("assistant", "Draft.", False), ("user", "Better?", None),
                          ("assistant", "It.", None))  # fmt: skip
    encoded = encoder.encode_prompt(sample)
    text = decoded(encoder, encoded.input_ids)
    assert text.endswith("assistant\nDraft.<|im_end|>\n<|im_start|>user\nBetter?<|im_end|>\n<|im_start|>assistant\n")
    assert torch.equal(encoder.encode(sample).input_ids[: len(encoded)], encoded.input_ids)


def drafted(pictures: Path, loss: bool) -> Sample:
    """Two responses with a hint each, the first of which may be left out of the loss."""
    turns = [
        {"from": "human", "value": "<image>Draft?"},
        {"from": "gpt", "value": "It moves.<image>", "loss": loss},
        {"from": "human", "value": "What happens next?"},
        {"from": "gpt", "value": "It falls.<image>"},
    ]
    return pathed(pictures, conversations=turns, reasoning_image=["soon.png", "late.png"])


def test_latents_of_turns_that_are_not_to_be_learned_are_not_aligned(encoder, pictures):
    samples = [drafted(pictures, loss) for loss in (True, False)]
    both, one = (SFTCollator(encoder.pad_token_id)([Fetched([encoder.encode(sample)], [])]) for sample in samples)
    assert torch.equal(both.input_ids, one.input_ids)
    assert torch.equal(both.hint_pixel_values, one.hint_pixel_values)  # the turn is read, hints included
    assert count_totals([both], encoder.tokens)[1] == 4
    tokens, latents = count_totals([one], encoder.tokens)
    assert latents == 2
    reasoner = LatentReasoner.from_pretrained("tiny-random")
    for feedback in ("teacher", "self"):
        objective = LatentSFTLoss(latent_feedback=feedback)
        with torch.no_grad():
            first, second = objective(reasoner, both), objective(reasoner, one)
        assert (second.num_tokens, second.num_latents) == (tokens, latents)
        assert torch.equal(second.predicted, first.predicted[2:])
        assert torch.equal(second.target, first.target[2:])
        assert second.span.tolist() == [0, 0]
    # the stand-in that keeps ranks in step stops before hints, whose pictures it has not
    assert decoded(encoder, encoder.encode_prompt(samples[1]).input_ids).count("assistant\n") == 1


@pytest.mark.parametrize("call", ["encode", "encode_prompt", "length"])
@pytest.mark.parametrize("damage", ["text", "cut", "gone", "folder", "empty"])
@pytest.mark.parametrize("case", ["video", "image", "videos", "images", "typed", "hint"])
def test_errors_of_media_name_record_and_field(encoder, clips, pictures, tmp_path, call, damage, case):
    if case == "hint" and call == "encode_prompt":
        pytest.skip("prompts have no hints")
    good = (clips["closed"] if "video" in case else pictures / "now.png").read_bytes()
    media = tmp_path / ("bad.mp4" if "video" in case else "bad.png")
    media.write_bytes(good)
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "r <image>"}]
    asked = {"role": "user", "content": [{"type": "image", "image": media.name}, {"type": "text", "text": "q"}]}
    hinted = {"image": ["good.png"], "reasoning_image": ["good.png"], "conversations": turns, "answer": "a"}
    (tmp_path / "good.png").write_bytes((pictures / "now.png").read_bytes())
    record: dict[str, Any] = {
        "video": hinted | {"video": media.name, "image": [1], "reasoning_image": [2]},
        "image": hinted | {"image": [media.name]},
        "hint": hinted | {"reasoning_image": [media.name]},
        "videos": {"messages": [{"role": "user", "content": "<video>q"}, {"role": "assistant", "content": "r"}],
                   "videos": [media.name]},
        "images": {"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "r"}],
                   "images": [media.name]},
        "typed": {"messages": [asked, {"role": "assistant", "content": "r"}]},
    }[case]  # fmt: skip
    sample = parsed(record, tmp_path)
    media.unlink()
    if damage == "folder":
        media.mkdir()
    elif damage != "gone":
        media.write_bytes({"text": b"some text", "cut": good[: len(good) // 2], "empty": b""}[damage])
    field = {"hint": "reasoning_image", "typed": "messages.content"}.get(case, case)
    error = RecordFileError if damage == "gone" else MediaError
    with pytest.raises(error, match=rf"^data\.json, record 1, field '{field}': .*{media.name}"):
        getattr(encoder, call)(sample)


def test_errors_of_embedded_images_name_record_and_field(encoder):
    turns = [{"role": "user", "content": "<image><image>q"}, {"role": "assistant", "content": "r"}]
    sample = parsed({"messages": turns, "images": [b"no image", b"no image either"]})
    with pytest.raises(MediaError, match=r"^data\.json, record 1, image 1: not a readable image .*\(field 'images'\)"):
        encoder.encode(sample)


def test_errors_of_the_file_system_are_of_the_record(encoder, pictures, monkeypatch):
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(pictures / "now.png"))

    monkeypatch.setattr(media, "read_image", denied)
    with pytest.raises(MediaError, match=r"data\.json, record 1, field 'image': .*Permission denied"):
        encoder.encode(pathed(pictures))


def test_media_of_no_record_are_named_by_their_path_alone(encoder, tmp_path):
    (tmp_path / "t.mp4").write_text("text")
    with pytest.raises(MediaError, match=r"^/.*t\.mp4: not an MP4"):
        encoder.encode_prompt(Sample("question", (Turn("user", (Video(tmp_path / "t.mp4"), "q")),), None, {}))


def test_system_prompt_file_is_checked(processor, tmp_path):
    with pytest.raises(MissingFileError, match=r"no system prompt file .*nowhere\.txt"):
        ChatEncoder(processor, system_prompt=tmp_path / "nowhere.txt")
    file = tmp_path / "system.txt"
    file.write_text("one<|im_end|>", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"system\.txt contains <\|im_end\|>"):
        ChatEncoder(processor, system_prompt=file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"system\.txt: byte 3 is not UTF-8"):
        ChatEncoder(processor, system_prompt=file)


def test_pictures_too_thin_for_the_processor_are_media_errors(encoder, tmp_path, pictures):
    Image.new("RGB", (2010, 10)).save(tmp_path / "thin.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "now.png")
    sample = pathed(tmp_path, image=["thin.png"], reasoning_image=["now.png"])
    for call in (encoder.encode, encoder.encode_prompt, encoder.length):
        with pytest.raises(MediaError, match=r"thin\.png: a picture of 2010 x 10 pixels"):
            call(sample)
    # as a hint it goes through our own resizing
    hinted = encoder.encode(pathed(tmp_path, reasoning_image=["thin.png"]))
    assert hinted.hint_grid_thw.tolist() == [[1, 2, 8]]


def test_tokenizer_without_latent_tokens_is_refused():
    with pytest.raises(CheckpointError, match="the tokenizer lacks"):
        ChatEncoder(tiny_processor())


@pytest.mark.parametrize(
    "options",
    [
        {"max_latent_tokens": 0},
        {"max_length": 0},
        {"video_max_frames": 1},
        {"video_fps": 0.0},
        {"video_fps": float("nan")},
        {"video_frame_tokens": 3},
    ],
)
def test_values_that_cannot_work_are_refused(processor, options):
    with pytest.raises(ConfigError, match="must be at least 1"):
        ChatEncoder(processor, **options)


# ---------------------------------------------------------------------------------------------------- pixels, calls


def test_encoder_is_picklable(encoder, clips):
    sample = framed(clips["closed"])
    first, second = encoder.encode(sample), pickle.loads(pickle.dumps(encoder)).encode(sample)
    assert torch.equal(first.input_ids, second.input_ids)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.hint_pixel_values, second.hint_pixel_values)


class Spy:
    """Calls pass through to the processor part and are recorded."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(kwargs)
        return self.target(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def test_each_frame_is_processed_as_it_is_decoded_and_each_video_decoded_once(
    processor, clips, frame_number, monkeypatch
):
    encoder = ChatEncoder(processor)
    reads = []
    original = PyAVReader.read

    def read(reader, numbers, convert):
        reads.append(sorted(numbers))
        return original(reader, numbers, convert)

    monkeypatch.setattr(PyAVReader, "read", read)
    whole, image = Spy(processor), Spy(processor.image_processor)
    whole.image_processor = image
    encoder.processor = whole
    encoder.encode(framed(clips["closed"]))

    pool = frame_pool(48)
    assert reads == [[pool[0], pool[2], pool[4], pool[7]]]
    assert all("images" not in call for call in whole.calls)
    assert [[frame_number(picture) for picture in call["images"]] for call in image.calls] == [
        [pool[0]], [pool[2]], [pool[4]], [pool[7]]
    ]  # fmt: skip
    assert [picture.size for call in image.calls for picture in call["images"]] == [(64, 48)] * 2 + [(64, 32)] * 2


def test_pixel_values_are_of_the_right_frames_in_order(encoder, clips, frame_number):
    encoded = encoder.encode(framed(clips["one_key"]))
    pool = frame_pool(48)

    def numbers(values: torch.Tensor, grid: torch.Tensor) -> list[int]:
        pieces = values.split(grid.prod(dim=-1).tolist())
        # patches are normalised by 0.5, 0.5
        greys = [round(float(piece.mean() * 0.5 + 0.5) * 255) for piece in pieces]
        return [frame_number(Image.new("RGB", (2, 2), (grey,) * 3)) for grey in greys]

    assert numbers(encoded.pixel_values, encoded.image_grid_thw) == [pool[0], pool[2]]
    assert numbers(encoded.hint_pixel_values, encoded.hint_grid_thw) == [pool[4], pool[7]]


def test_whole_videos_show_the_right_frames(processor, clips, frame_number):
    sample = Sample("x:1", (Turn("user", (Video(clips["closed"]), "?")), Turn("assistant", ("a",))), None, {})
    encoded = ChatEncoder(processor, video_max_frames=4).encode(sample)
    # (blocks, patches, channels, frames of a block, pixels)
    values = encoded.pixel_values_videos.view(2, 16, 3, 2, -1)
    greys = [round(float(values[block, :, :, frame].mean() * 0.5 + 0.5) * 255) for block in (0, 1) for frame in (0, 1)]
    assert [frame_number(Image.new("RGB", (2, 2), (grey,) * 3)) for grey in greys] == [0, 16, 31, 47]


def test_damaged_and_missing_media_are_named(encoder, tmp_path, clips):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips["closed"].read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        encoder.encode(framed(cut))
    cut_sample = framed(cut)
    cut.unlink()
    with pytest.raises(MissingFileError, match=r"cut\.mp4"):
        encoder.encode(cut_sample)


# ---------------------------------------------------------------------------------------------------- cache keys


def test_cache_keys_tell_frames_sizes_and_uses_apart(processor, clips, tmp_path):
    encoder = ChatEncoder(processor, keys=True)
    assert encoder.encode(framed(clips["closed"])).image_keys == encoder.encode(framed(clips["closed"])).image_keys
    encoded = encoder.encode(framed(clips["closed"]))
    assert len(encoded.image_keys) == len(encoded.hint_keys) == 2
    assert len({*encoded.image_keys, *encoded.hint_keys}) == 4
    prompt = encoder.encode_prompt(framed(clips["closed"]))
    assert (prompt.image_keys, prompt.hint_keys) == (encoded.image_keys, ())
    assert ChatEncoder(processor).encode(framed(clips["closed"])).image_keys == ()

    # one picture as observed frame and as hint with the same grid: resized by other code, so not the same pixels
    Image.effect_noise((70, 70), 60).convert("RGB").save(tmp_path / "noise.png")
    both = encoder.encode(pathed(tmp_path, image=["noise.png"], reasoning_image=["noise.png"]))
    assert both.image_grid_thw.tolist() == both.hint_grid_thw.tolist()
    assert not torch.equal(both.pixel_values, both.hint_pixel_values)
    assert both.image_keys != both.hint_keys


def test_cache_keys_change_with_the_rules_of_encoding(processor, clips, monkeypatch):
    before = ChatEncoder(processor, keys=True).encode(framed(clips["closed"]))
    monkeypatch.setattr(chat, "ENCODING", chat.ENCODING + 1)
    after = ChatEncoder(processor, keys=True).encode(framed(clips["closed"]))
    assert not {*before.image_keys, *before.hint_keys} & {*after.image_keys, *after.hint_keys}


def test_cache_keys_change_with_the_file(processor, tmp_path):
    encoder = ChatEncoder(processor, keys=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "now.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "soon.png")
    before = encoder.encode(pathed(tmp_path)).image_keys
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "now.png")
    assert encoder.encode(pathed(tmp_path)).image_keys != before


# ---------------------------------------------------------------------------------------------------- other families


@pytest.fixture(scope="module")
def older_processor(processor) -> Any:
    """A processor of Qwen2.5-VL."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    sizes: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 1024, "longest_edge": 65536}, **sizes),
    )


def test_families_without_timestamps_get_one_block_and_seconds_per_grid(older_processor, clips):
    sample = Sample("x:1", (Turn("user", (Video(clips["closed"]), "?")), Turn("assistant", ("a",))), None, {})
    encoder = ChatEncoder(older_processor, video_max_frames=4)
    encoded = encoder.encode(sample)
    block = "<|vision_start|>" + "<|video_pad|>" * 8 + "<|vision_end|>"
    assert decoded(encoder, encoded.input_ids) == (
        SYSTEM + f"<|im_start|>user\n{block}?<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )
    # frames 0 to 47 at 8 per second in three steps, two frames a grid
    assert encoded.video_seconds_per_grid.tolist() == [pytest.approx(2 * 47 / 8 / 3)]
    assert len(encoded) <= encoder.length(sample) <= len(encoded) + 1


@pytest.mark.parametrize("answer", ["B</answer><answer>C", "<reason>because</reason> B", "B <|vision_pad|>"])
def test_an_answer_with_tags_of_its_own_is_refused(encoder: ChatEncoder, tmp_path: Path, answer: str) -> None:
    turns = (Turn("user", ("What next?",)), Turn("assistant", ("It moves.",)))
    with pytest.raises(RecordError, match="the answer contains"):
        encoder.text(Sample("a.jsonl:1", turns, answer, {}), [])


def test_cache_keys_change_with_the_image_processor(encoder: ChatEncoder) -> None:
    import copy

    other = copy.deepcopy(encoder.processor)
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert ChatEncoder(other)._image_settings != ChatEncoder(encoder.processor)._image_settings
    assert ChatEncoder(encoder.processor)._image_settings == encoder._image_settings


def test_a_checkpoint_brings_its_own_system_turn(tmp_path):
    reasoner = LatentReasoner.from_pretrained("tiny-random")
    assert ChatEncoder(reasoner.processor).system_prompt == default_system_prompt()
    reasoner.processor.system_prompt = "Look, then answer."
    again = LatentReasoner.from_pretrained(reasoner.save_pretrained(tmp_path / "own"))
    assert ChatEncoder(again.processor).system_prompt == "Look, then answer."
    (tmp_path / "given.txt").write_text("Answer.")
    assert ChatEncoder(again.processor, system_prompt=tmp_path / "given.txt").system_prompt == "Answer."
    again.processor.system_prompt = "<|im_start|>"
    with pytest.raises(ConfigError, match=r"system_prompt.txt contains"):
        ChatEncoder(again.processor)


# ---------------------------------------------------------------------------------------------------- times of videos


def whole(video: Path) -> Sample:
    return Sample("x:1", (Turn("user", (Video(video), "?")), Turn("assistant", ("a",))), None, {})


def stamps(encoder: ChatEncoder, video: Path) -> list[float]:
    """The seconds that are written into the prompt."""
    text = decoded(encoder, encoder.encode(whole(video)).input_ids)
    return [float(found) for found in re.findall(r"<(\d+\.\d) seconds>", text)]


def pair_means(times: Sequence[float]) -> list[float]:
    """What Qwen3-VL says of two frames that make one block: the middle of their times, to a tenth."""
    pairs = [*times, times[-1]] if len(times) % 2 else times
    return [
        pytest.approx((first + second) / 2, abs=0.0501) for first, second in zip(pairs[::2], pairs[1::2], strict=True)
    ]


SLOW_THEN_FAST = [*range(0, 30_000, 1000), *(30_000 + round(number * 1000 / 30) for number in range(90))]
FAST_THEN_SLOW = [*(round(number * 1000 / 30) for number in range(90)), *range(3000, 33_000, 1000)]
PAUSE = [*range(0, 2000, 100), *range(12_000, 14_000, 100)]


@pytest.mark.parametrize("times", [SLOW_THEN_FAST, FAST_THEN_SLOW, PAUSE], ids=["faster", "slower", "pause"])
@pytest.mark.parametrize("name", ["clip.webm", "clip.mp4", "clip.mkv"])
def test_prompts_state_each_frames_own_time(processor, older_processor, tmp_path, name, times):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    clip = encode(tmp_path / name, moving_frames(len(times)), codec, times=times, clock=Fraction(1, 1000))
    seconds = np.array(times) / 1000
    for maximum in (8, 16, 5):
        # As many as fit: 2 per second would be more than the maximum for clips this long.
        shown = seconds[np.linspace(0, len(times) - 1, maximum).round().astype(int)]
        assert stamps(ChatEncoder(processor, video_max_frames=maximum), clip) == pair_means(shown.tolist())
        encoded = ChatEncoder(older_processor, video_max_frames=maximum).encode(whole(clip))
        per_grid = 2 * (shown[-1] - shown[0]) / (maximum - 1)
        assert encoded.video_seconds_per_grid.tolist() == [pytest.approx(per_grid, abs=0.01)]
    # How many frames half a frame per second gives depends on how long the clip lasts.
    blocks = len(stamps(ChatEncoder(processor, video_fps=0.5, video_max_frames=60), clip))
    assert blocks == -(-int(0.5 * (seconds[-1] + 0.1)) // 2)


def test_a_carried_clip_of_varying_rate_has_its_right_times(processor):
    clip = Path(__file__).parent / "clips" / "variable_rate.webm"
    assert stamps(ChatEncoder(processor, video_max_frames=8), clip) == pytest.approx(
        [8.5, 30.4, 31.55, 32.7], abs=0.051
    )
    assert len(stamps(ChatEncoder(processor), clip)) == 8


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(("fps", "seconds"), [(30, 10), (25, 10), (24, 3), (60, 2), (10, 5)])
def test_a_constant_rate_gives_whole_numbers_of_frames(processor, tmp_path, suffix, fps, seconds):
    clip = encode(tmp_path / f"clip.{suffix}", moving_frames(fps * seconds, 32, 32), fps=fps, options={"bf": "2"})
    found = stamps(ChatEncoder(processor, video_max_frames=100), clip)
    numbers = np.linspace(0, fps * seconds - 1, 2 * seconds).round()
    assert len(found) == seconds
    assert found == pair_means((numbers / fps).tolist())


def test_frames_that_an_edit_list_hides_are_in_no_prompt(processor, coded):
    cut = coded("closed", "cut mp4")
    encoder = ChatEncoder(processor, video_max_frames=4)
    assert stamps(encoder, cut) == pair_means([0.0, 1.4, 2.9, 4.3])
    whole_clip = ChatEncoder(processor).encode(framed(coded("closed")))
    encoded = ChatEncoder(processor).encode(framed(cut))
    assert not torch.equal(encoded.pixel_values, whole_clip.pixel_values)
    pool = frame_pool(44)
    own = [Image.fromarray(plain_decode(cut)[pool[index]]) for index in (0, 2)]
    assert torch.equal(encoded.pixel_values, processor.image_processor(images=own, return_tensors="pt")["pixel_values"])


# ---------------------------------------------------------------------------------------------------- giant media


@pytest.fixture(scope="module")
def giant(tmp_path_factory) -> Path:
    """A clip of 4096 x 4096 pixels in a few kilobytes."""
    path = tmp_path_factory.mktemp("giant") / "giant.mp4"
    frames = [np.zeros((4096, 4096, 3), np.uint8)] * 9
    return encode(path, frames, options={"preset": "ultrafast", "tune": "zerolatency"})


def peak() -> int:
    """Most megabytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def added_memory(encoder: ChatEncoder, sample: Sample) -> int:
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork: with two, this would wait for ever
    before = peak()
    encoder.encode(sample)
    return peak() - before


def test_giant_frames_take_little_memory(processor, giant):
    """A frame has 50 MB as RGB and half of that as it is decoded, of which a few are held."""
    assert giant.stat().st_size < 100_000
    shown = ChatEncoder(processor, video_fps=100, video_max_frames=8)
    hints = parsed({"video": str(giant), "image": [1], "reasoning_image": [*range(1, 9)]})
    with multiprocessing.get_context("fork").Pool(1) as pool:
        # Eight at full size are 400 MB, and as much again as an array of all.
        assert pool.apply(added_memory, (shown, whole(giant))) < 300
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(added_memory, (ChatEncoder(processor, max_length=40_000), hints)) < 900


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_giant_picture_is_refused_before_it_is_decoded(encoder, tmp_path, monkeypatch):
    path = tmp_path / "giant.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 200_000
    loaded: list[Any] = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: loaded.append(image))
    sample = pathed(tmp_path, image=["giant.png"], reasoning_image=["giant.png"])
    with pytest.raises(MediaError, match=r"giant\.png: a picture of 13000 x 13000 pixels, more than 67108864 in all"):
        encoder.encode(sample)
    with pytest.raises(MediaError, match=r"giant\.png: a picture of 13000 x 13000 pixels"):
        encoder.length(sample)
    assert loaded == []


def test_a_picture_that_pillow_calls_a_bomb_is_an_error_of_the_library(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "bomb.png"
    Image.new("1", (64, 48)).save(path)
    with pytest.raises(MediaError, match=r"bomb\.png: a picture of too many pixels"):
        encoder.encode(pathed(tmp_path, image=["bomb.png"], reasoning_image=["bomb.png"]))


def test_frames_that_together_exceed_the_length_are_refused_before_all_are_decoded(processor, tmp_path, monkeypatch):
    clip = encode(tmp_path / "clip.mp4", moving_frames(20, 320, 320))
    turns = [{"from": "human", "value": "<image>" * 8 + "What?"}, {"from": "gpt", "value": "It moves."}]
    record = {"video": str(clip), "image": [*range(1, 9)], "conversations": turns, "answer": "B"}
    decoded_frames: list[int] = []
    original = PyAVReader._pixels
    monkeypatch.setattr(
        PyAVReader, "_pixels", lambda reader, frame: decoded_frames.append(frame.pts) or original(reader, frame)
    )
    # A frame has 64 tokens.
    with pytest.raises(RecordError, match=r"data\.json:1: 384 and more tokens, more than max_length=350; raise"):
        ChatEncoder(processor, max_length=350).encode(parsed(record))
    assert len(decoded_frames) == 6
    with pytest.raises(RecordError, match="384 and more tokens"):
        ChatEncoder(processor, max_length=350).encode_prompt(parsed(record))


def test_a_wrong_backend_lists_the_choices(processor):
    with pytest.raises(ConfigError, match="video_backend must be one of auto, pyav, decord, torchcodec, got 'opencv'"):
        ChatEncoder(processor, video_backend="opencv")
