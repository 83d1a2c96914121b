"""Whole videos: which frames are shown, at which seconds, in how many tokens."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_samples import ASSISTANT, SYSTEM, asked, decoded, framed, parsed, supervised, whole
from codings import encode, moving_frames, plain_decode
from PIL import Image

from futurel1.data import Turn, Video, frame_pool
from futurel1.data.chat import ChatEncoder
from futurel1.data.samples import Sample
from futurel1.data.video.pyav import PyAVReader
from futurel1.errors import ConfigError


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


@pytest.mark.parametrize("options", [{}, {"video_max_frames": 3}, {"video_fps": 8.0, "video_frame_tokens": 4}])
def test_length_bounds_whole_videos_closely(processor, clips, options):
    videos = (Video(clips["closed"]), Video(clips["mkv"]))
    sample = Sample("x:1", (Turn("user", (*videos, "What?")), Turn("assistant", ("It moves.",))), None, {})
    encoder = ChatEncoder(processor, **options)
    tokens = len(encoder.encode(sample))
    assert tokens <= encoder.length(sample) <= tokens + 4


def test_whole_videos_show_the_right_frames(processor, clips, frame_number):
    sample = Sample("x:1", (Turn("user", (Video(clips["closed"]), "?")), Turn("assistant", ("a",))), None, {})
    encoded = ChatEncoder(processor, video_max_frames=4).encode(sample)
    # (blocks, patches, channels, frames of a block, pixels)
    values = encoded.pixel_values_videos.view(2, 16, 3, 2, -1)
    greys = [round(float(values[block, :, :, frame].mean() * 0.5 + 0.5) * 255) for block in (0, 1) for frame in (0, 1)]
    assert [frame_number(Image.new("RGB", (2, 2), (grey,) * 3)) for grey in greys] == [0, 16, 31, 47]


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


def test_number_of_frames_of_a_video_can_be_set(encoder, clips, frame_number, monkeypatch):
    wanted = []

    def read(reader: PyAVReader, numbers: list[int], convert: Any) -> dict[int, Any]:
        shown = original(reader, numbers, lambda _, pixels: frame_number(Image.fromarray(pixels)))
        assert shown == {number: number for number in numbers}
        wanted.append(list(numbers))
        return original(reader, numbers, convert)

    original = PyAVReader.read
    monkeypatch.setattr(PyAVReader, "read", read)
    for number, expected in [
        (32, np.linspace(0, 47, 32).round().astype(int).tolist()),
        (3, [0, 24, 47]),
        (2, [0, 47]),
        (200, list(range(48))),
    ]:
        sized = ChatEncoder(encoder.processor, video_num_frames=number, video_fps=0.1, video_max_frames=2)
        sample = asked(Video(clips["closed"]), "What?")
        encoded = sized.encode_prompt(sample)
        assert wanted.pop() == expected
        assert encoded.video_grid_thw.tolist() == [[-(-len(expected) // 2), 4, 4]]
        assert len(encoded) <= sized.length(sample) + len(encoder.processor.tokenizer(ASSISTANT)["input_ids"])
    with pytest.raises(ConfigError, match="video_num_frames must be at least 2, got 1"):
        ChatEncoder(encoder.processor, video_num_frames=1)
