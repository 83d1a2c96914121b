"""The text of a conversation in the chat format of the Qwen-VL family, images and videos as placeholders.

Each turn is ``<|im_start|>role\\n{content}<|im_end|>\\n``. An assistant turn of a hinted record consists of its
thoughts as ``<reason>..</reason>``, one span of LATENT tokens per hint frame, then ``<answer>..</answer>`` (Future-L1,
arXiv 2606.05769, Fig. 10); that of an unlabelled video consists of its spans only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from futurel1.data.samples import Frame, Part, Sample, Turn
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.models import LATENT, LATENT_END, LATENT_START, LATENT_TOKENS
from futurel1.shipped_configs import shipped_file

__all__ = [
    "ASSISTANT_HEADER",
    "CONTROL_STRINGS",
    "IMAGE_PAD",
    "IM_END",
    "ChatText",
    "default_system_prompt",
    "first_response",
    "system_prompt_of",
]

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
ASSISTANT_HEADER = f"{IM_START}assistant\n"
IMAGE_PAD = "<|image_pad|>"
IMAGE = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
CONTROL_STRINGS = (
    IM_START, IM_END, "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>", *LATENT_TOKENS,
)  # fmt: skip
"""Strings that a record's text may not contain: they would be read as structure, not as text."""
SYSTEM_CONTROL_STRINGS = tuple(text for text in CONTROL_STRINGS if text not in (LATENT_START, LATENT_END))
"""Strings that a system turn may not contain; it may name the latent brackets, as the paper's does."""
RESPONSE_TAGS = ("<reason>", "</reason>", "<answer>", "</answer>")
"""Tags that a hinted record's thoughts and answer may not contain: this module adds them."""


@dataclass(frozen=True)
class ChatText:
    """Writes conversations in the chat format.

    Attributes:
        system_prompt: the system turn of records that have none; "" for no such turn.
        video: placeholder of a whole video.
        strip_text: strip the text parts of user and assistant turns.
    """

    system_prompt: str
    video: str
    strip_text: bool

    def text(self, sample: Sample, latents_per_hint: Sequence[int]) -> str:
        """The whole conversation as one string, images and videos as unexpanded placeholders.

        Args:
            sample: the record.
            latents_per_hint: LATENT tokens of each hint, in order.

        Raises:
            RecordError: a text contains control strings of the chat format.
        """
        latents = iter(latents_per_hint)
        turns = list(sample.turns)
        if not any(turn.role == "system" for turn in turns) and self.system_prompt:
            system = f"{IM_START}system\n{self.system_prompt}{IM_END}\n"
        else:
            system = ""
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        pieces = [system]
        for number, turn in enumerate(turns):
            _check_text(sample, turn)
            if _is_hinted(sample, turn):
                content = self._response(turn, latents)
                if number == last and sample.answer is not None:
                    _check_control(sample, "answer", "answer", sample.answer, (*CONTROL_STRINGS, *RESPONSE_TAGS))
                    content += f"<answer>{sample.answer}</answer>"
            else:
                strip = self.strip_text and turn.role != "system"
                content = "".join(self._part(part, strip) for part in turn.parts)
            pieces.append(f"{IM_START}{turn.role}\n{content}{IM_END}\n")
        return "".join(pieces)

    def _response(self, turn: Turn, latents: Iterator[int]) -> str:
        return "".join(
            f"<reason>{part}</reason>\n" if isinstance(part, str)
            else f"{LATENT_START}{LATENT * next(latents)}{LATENT_END}\n"
            for part in turn.parts
        )  # fmt: skip

    def _part(self, part: Part, strip: bool) -> str:
        if isinstance(part, str):
            return part.strip() if strip else part
        return IMAGE if isinstance(part, Frame) else self.video


def default_system_prompt() -> str:
    """The interleaved-reasoning instruction of the paper (Fig. 10), which a user can replace with a file."""
    return (files("futurel1.data") / "templates" / "interleaved.txt").read_text(encoding="utf-8").strip()


def system_prompt_of(path: str | Path | None, processor: Any) -> str:
    """The system prompt in the file `path`; without a path, the checkpoint's own, else the paper's."""
    if path is None:
        prompt, place = getattr(processor, "system_prompt", None), "the checkpoint's system_prompt.txt"
        if prompt is None:
            return default_system_prompt()
    else:
        given = Path(path).expanduser()
        file = given if given.is_file() else shipped_file(path) or given  # as shipped configurations name it
        if not file.is_file():
            raise MissingFileError(f"no system prompt file {file}; leave system_prompt out for the usual wording")
        place = f"system prompt file {file}"
        try:
            prompt = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    found = [control for control in SYSTEM_CONTROL_STRINGS if control in prompt]
    if found:
        raise ConfigError(f"{place} contains {found[0]}, which the chat format reads as structure")
    return str(prompt)


def _is_hinted(sample: Sample, turn: Turn) -> bool:
    """Whether an assistant turn consists of thoughts and latents: its record has an answer, or it holds hint frames."""
    if turn.role != "assistant":
        return False
    return sample.answer is not None or any(isinstance(part, Frame) for part in turn.parts)


def first_response(sample: Sample) -> int:
    """Number of turns before the first response; a context-only assistant turn is no response unless it is hinted."""
    places = (
        place
        for place, turn in enumerate(sample.turns)
        if turn.role == "assistant" and (turn.loss or _is_hinted(sample, turn))
    )
    return next(places, len(sample.turns))


def _check_text(sample: Sample, turn: Turn) -> None:
    for part in turn.parts:
        if isinstance(part, str):
            controls = SYSTEM_CONTROL_STRINGS if turn.role == "system" else CONTROL_STRINGS
            if _is_hinted(sample, turn):
                controls = (*CONTROL_STRINGS, *RESPONSE_TAGS)
            _check_control(sample, turn.field, f"{turn.role} turn", part, controls)


def _check_control(sample: Sample, field: str, where: str, text: str, controls: Sequence[str]) -> None:
    found = [control for control in controls if control in text]
    if found:
        named = f" from field '{field}'" if field else ""
        raise RecordError(
            f"{sample.id}: the {where} contains {found[0]}, which the chat format reads as structure; remove it{named} "
            "(spans and images are made from hints and markers)"
        )
