"""Items to judge, and the request that asks a judge about one of them.

The candidate's text is enclosed in lines that carry a code which the text cannot contain.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from futurel1.errors import ConfigError, MediaError, MissingFileError, RecordError

if TYPE_CHECKING:
    from PIL import Image

    ImageSource = bytes | str | Path | Image.Image

__all__ = ["AnswerItem", "RequestSettings", "ResponseItem", "candidate_texts", "system_text"]

_OWN_FIELDS = ("model", "messages", "temperature", "seed", "max_tokens", "stream", "n")
_IMAGE_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class AnswerItem:
    """An answer to be judged right or wrong.

    Attributes:
        question: the question, with its options.
        ground_truth: the right answer.
        prediction: the answer of the model.
    """

    question: str
    ground_truth: str
    prediction: str


@dataclass(frozen=True)
class ResponseItem:
    """A TwiFF-Bench response to be scored. An image is the content of a file, a path or a PIL image.

    Attributes:
        question: the question; images replace its `<image>` markers, or precede it if it has none.
        ground_truth: the right answer.
        reasoning: the model's reasoning, without tags and latents.
        answer: the model's answer.
        question_images: images of the question, in order.
        reference_reasoning: the benchmark's reasoning; images replace its `<rimage>` markers, or precede it.
        reference_images: images of the reference reasoning, in order.
    """

    question: str
    ground_truth: str
    reasoning: str
    answer: str
    question_images: Sequence[ImageSource] = ()
    reference_reasoning: str = ""
    reference_images: Sequence[ImageSource] = ()


def candidate_texts(item: AnswerItem | ResponseItem) -> tuple[str, ...]:
    """The texts written by the model that is judged."""
    return (item.prediction,) if isinstance(item, AnswerItem) else (item.reasoning, item.answer)


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """The judge's model and its parameters; :class:`~futurel1.rewards.Judge` documents them.

    Raises:
        ConfigError: invalid settings.
    """

    model: str
    temperature: float | None
    seed: int | None
    max_tokens: int | None
    extra_body: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model must name the judge's model, got an empty string")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature is not None and not self.temperature >= 0:
            raise ConfigError(f"temperature must not be negative, got {self.temperature}")
        if taken := sorted(set(self.extra_body) & set(_OWN_FIELDS)):
            raise ConfigError(
                f"extra_body must not set {', '.join(taken)}: use the judge's own arguments, where it has one"
            )

    def body(self, system_text: str, item: AnswerItem | ResponseItem, label: str) -> bytes:
        """The body of the request about an item: everything that can change the verdict, and nothing else.

        Args:
            system_text: the judge's instructions.
            item: the item to judge.
            label: names the item in errors.

        Raises:
            MediaError: an image cannot be read.
            MissingFileError: an image file does not exist.
            RecordError: a text has markers, but not one per image.
        """
        content = _answer_content(item) if isinstance(item, AnswerItem) else _response_content(item, label)
        parameters = {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens}
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system_text}, {"role": "user", "content": content}],
            **{name: value for name, value in parameters.items() if value is not None},
            **self.extra_body,
        }
        # ASCII with escapes can also carry lone surrogates, which a broken decode can leave in a model's text.
        return json.dumps(body, sort_keys=True).encode("ascii")


def system_text(file: str | Path | None, built_in: str) -> str:
    """Read a judge's instructions.

    Args:
        file: text file; None: the built-in text.
        built_in: file name of the built-in text.

    Raises:
        ConfigError: the file is empty.
        MissingFileError: the file is not there.
    """
    if file is None:
        return (files("futurel1.rewards") / "templates" / built_in).read_text(encoding="utf-8").strip()
    if not Path(file).is_file():
        raise MissingFileError(f"there is no prompt file {file}; leave it out for the built-in text ({built_in})")
    text = Path(file).read_text(encoding="utf-8").strip()
    if not text:
        raise ConfigError(f"the prompt file {file} is empty; leave it out for the built-in text ({built_in})")
    return text


def _answer_content(item: AnswerItem) -> str:
    code = _boundary_code(item.question, item.ground_truth, item.prediction)
    blocks = {"QUESTION": item.question, "GROUND TRUTH": item.ground_truth, "MODEL ANSWER": item.prediction}
    parts = [_block(name, text, code) for name, text in blocks.items()]
    return "\n\n".join([*parts, "Is the model's answer correct? Reply with yes or no."])


def _response_content(item: ResponseItem, label: str) -> list[dict[str, Any]]:
    """Message parts in order: question, reference reasoning, ground truth, the model's reasoning, its answer."""
    code = _boundary_code(item.question, item.reference_reasoning, item.ground_truth, item.reasoning, item.answer)
    question = _split_at_images(item.question, "<image>", item.question_images, f"{label}, question")
    reference = _split_at_images(
        item.reference_reasoning, "<rimage>", item.reference_images, f"{label}, reference_reasoning"
    )
    parts: list[str | dict[str, Any]] = [
        f"{_edge('BEGIN', 'QUESTION', code)}\n", *question, f"\n{_edge('END', 'QUESTION', code)}\n\n",
        f"{_edge('BEGIN', 'REFERENCE REASONING', code)}\n", *reference,
        f"\n{_edge('END', 'REFERENCE REASONING', code)}\n\n",
        _block("GROUND TRUTH", item.ground_truth, code), "\n\n",
        _block("MODEL REASONING", item.reasoning, code), "\n\n",
        _block("MODEL ANSWER", item.answer, code), "\n\n",
        "Reply with the JSON object.",
    ]  # fmt: skip
    content: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, str):
            content.append(part)
        elif content and content[-1]["type"] == "text":
            content[-1]["text"] += part
        else:
            content.append({"type": "text", "text": part})
    return content


def _boundary_code(*texts: str) -> str:
    """A code that no text can contain, because it depends on all of them; equal items share it, as the cache needs."""
    return hashlib.sha256(json.dumps(texts).encode("ascii")).hexdigest()[:16]


def _edge(side: Literal["BEGIN", "END"], name: str, code: str) -> str:
    return f"===== {side} {name} {code} ====="


def _block(name: str, text: str, code: str) -> str:
    return f"{_edge('BEGIN', name, code)}\n{text}\n{_edge('END', name, code)}"


def _split_at_images(text: str, marker: str, images: Sequence[ImageSource], label: str) -> list[str | dict[str, Any]]:
    """Split a text at its markers and insert the images; without markers, the images precede the text."""
    pictures = [
        {"type": "image_url", "image_url": {"url": _data_url(image, f"{label}, image {number}")}}
        for number, image in enumerate(images)
    ]
    texts = text.split(marker)
    if len(texts) == 1:
        return [*pictures, text]
    if len(texts) - 1 != len(pictures):
        raise RecordError(
            f"{label}: {len(texts) - 1} {marker} markers for {len(pictures)} images; give one image per marker, or a "
            "text without markers"
        )
    parts: list[str | dict[str, Any]] = [texts[0]]
    for picture, following in zip(pictures, texts[1:], strict=True):
        parts += [picture, following]
    return parts


def _data_url(image: ImageSource, label: str) -> str:
    """Encode a picture as a data URL: unchanged if browsers know its format, else as PNG."""
    from PIL import Image, UnidentifiedImageError

    from futurel1.image_formats import open_image

    if isinstance(image, (str, Path)):
        file = Path(image)
        if not file.is_file():
            raise MissingFileError(f"{label}: there is no file {file}")
        label, image = f"{label} ({file})", file.read_bytes()
    if isinstance(image, bytes):
        data = image
        try:
            image = open_image(BytesIO(data))
            image.load()
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise MediaError(f"{label}: not a readable picture ({error}); replace it or leave the item out") from error
        if image.format in _IMAGE_TYPES:
            return f"data:{_IMAGE_TYPES[image.format]};base64,{base64.b64encode(data).decode()}"
    stream = BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
