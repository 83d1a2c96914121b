"""Prompts as messages of a chat endpoint, with the number of tokens that the endpoint has to count in them."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from futurel1.data import Frame, Sample
from futurel1.data.chat import ChatEncoder
from futurel1.data.chat_text import ASSISTANT_HEADER
from futurel1.data.media import media_sources
from futurel1.data.samples import Part, PromptInfo, Turn
from futurel1.image_formats import open_image

__all__ = ["MediaForm", "RequestEncoder", "ServerPrompt"]

MediaForm = Literal["data", "paths"]
_SENT_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION = 0x0112
_UPRIGHT = 1


@dataclass
class ServerPrompt:
    """A prompt for a chat endpoint.

    Attributes:
        sample_id: `<file name>:<record number>`.
        messages: the messages as JSON.
        tokens: number of prompt tokens that our encoder counts.
        text_tokens: the same with one token per picture and video.
        sources: files and embedded images that the prompt shows.
        info: what a metric or a writer needs to know of the record.
    """

    sample_id: str
    messages: bytes = field(repr=False)
    tokens: int
    text_tokens: int
    sources: tuple[str, ...] = ()
    info: PromptInfo = field(default_factory=PromptInfo)


class RequestEncoder:
    """Writes prompts as messages; picklable, so that it runs in loader workers.

    Pictures are sent at their own size, because the endpoint's processor resizes them as ours does. A picture in a file
    is sent as it is if every decoder reads the same upright pixels from it; else, and if it is a frame of a video, it
    is sent as PNG.

    Args:
        encoder: the encoder of the own loop, which checks and counts prompts.
        tokenizer: the tokenizer that the endpoint has, which may not know the latent tokens.
        media: ``data``: pictures and videos are part of the request; ``paths``: files are named by ``file://``, and
            have to be there for the endpoint too.
    """

    def __init__(self, encoder: ChatEncoder, tokenizer: Any, media: MediaForm = "data") -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.media = media

    def encode_prompt(self, sample: Sample) -> ServerPrompt:
        """Write the messages before the first response of a sample.

        Raises:
            RecordError: text with control strings, or more than `max_length` tokens.
            MediaError: an image or video that cannot be read.
            MissingFileError: an image or video that is not there.
        """
        prompt, urls, tokens = self.encoder.convert_pictures(sample, self._picture_url)
        text = self.encoder.layout.text(prompt, ()) + ASSISTANT_HEADER
        text_tokens = len(self.tokenizer(text)["input_ids"])
        if any(not isinstance(part, str | Frame) for turn in prompt.turns for part in turn.parts):
            encoded = self.encoder.encode_prompt(prompt)  # only the processor knows how many tokens a video has
            own = len(self.encoder.processor.tokenizer(text)["input_ids"])
            count = len(encoded) + text_tokens - own
        else:
            count = text_tokens + sum(tokens) - len(tokens)
            self.encoder.check_length(prompt, count)
        return ServerPrompt(
            sample_id=prompt.id,
            messages=json.dumps(self._messages(prompt, urls)).encode("ascii"),
            tokens=count,
            text_tokens=text_tokens,
            sources=media_sources(prompt),
            info=prompt.info,
        )

    def _messages(self, prompt: Sample, urls: Sequence[str]) -> list[dict[str, Any]]:
        pictures = iter(urls)
        system = self.encoder.system_prompt
        messages: list[dict[str, Any]] = []
        if system and not any(turn.role == "system" for turn in prompt.turns):
            messages.append({"role": "system", "content": system})
        return [*messages, *({"role": turn.role, "content": self._content(turn, pictures)} for turn in prompt.turns)]

    def _content(self, turn: Turn, pictures: Iterator[str]) -> str | list[dict[str, Any]]:
        strip = self.encoder.layout.strip_text and turn.role != "system"
        if all(isinstance(part, str) for part in turn.parts):
            return "".join(part.strip() if strip else part for part in turn.parts if isinstance(part, str))
        content: list[dict[str, Any]] = []
        for part in turn.parts:
            if not isinstance(part, str):
                content.append(self._medium(part, pictures))
                continue
            text = part.strip() if strip else part
            if content and content[-1]["type"] == "text":
                content[-1]["text"] += text
            elif text:
                content.append({"type": "text", "text": text})
        return content

    def _medium(self, part: Part, pictures: Iterator[str]) -> dict[str, Any]:
        if isinstance(part, Frame):
            return {"type": "image_url", "image_url": {"url": next(pictures)}}
        assert not isinstance(part, str)
        if self.media == "paths":
            return {"type": "video_url", "video_url": {"url": _file_url(part.path)}}
        kind = mimetypes.guess_type(part.path.name)[0] or "video/mp4"
        return {"type": "video_url", "video_url": {"url": _data_url(kind, part.path.read_bytes())}}

    def _picture_url(self, frame: Frame, picture: Image.Image) -> str:
        if frame.pool_index is None:
            data = frame.data
            kind = _plain_kind(frame.path if data is None else BytesIO(data))
            if kind is not None and data is None and self.media == "paths":
                return _file_url(frame.path)
            if kind is not None:
                return _data_url(kind, frame.path.read_bytes() if data is None else data)
        stream = BytesIO()
        picture.save(stream, format="PNG", compress_level=1)
        return _data_url("image/png", stream.getvalue())


def _plain_kind(source: Path | BytesIO) -> str | None:
    """The media type of a picture in which all decoders see the same upright RGB pixels; None for others."""
    with open_image(source) as stored:
        plain = stored.mode == "RGB" and not stored.has_transparency_data
        upright = stored.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        return _SENT_AS_THEY_ARE.get(str(stored.format)) if plain and upright else None


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _file_url(path: Path) -> str:
    return path.resolve().as_uri()
