"""Samples to encode, and how tests read what became of them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from futurel1.data import Turn, Video, parse_record
from futurel1.data.chat import ChatEncoder
from futurel1.data.chat_text import default_system_prompt
from futurel1.data.samples import Sample
from futurel1.models import IGNORE

SYSTEM = f"<|im_start|>system\n{default_system_prompt()}<|im_end|>\n"
FOUR_PADS = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
"""A frame of 48 x 64 pixels: rounded to 64 x 64, two by two visual tokens."""
TWO_LATENTS = "<|latent_start|><|latent|><|latent|><|latent_end|>\n"
"""The same as a hint: floored to 32 x 64."""


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


def whole(video: Path) -> Sample:
    return Sample("x:1", (Turn("user", (Video(video), "?")), Turn("assistant", ("a",))), None, {})


def asked(*parts: Any) -> Sample:
    return Sample("x:1", (Turn("user", parts),), None, {})


def png(colour: int, size: tuple[int, int] = (64, 48)) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (colour,) * 3).save(stream, "PNG")
    return stream.getvalue()


ASSISTANT = "<|im_start|>assistant\n"
