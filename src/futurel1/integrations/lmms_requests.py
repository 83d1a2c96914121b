"""Requests of lmms-eval: the turns of their prompts, and how their responses are generated."""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from futurel1.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from PIL import Image

    from futurel1.data import Turn

__all__ = ["Generation", "Query", "RequestReader", "generation_of", "picture_bytes"]

logger = logging.getLogger(__name__)

_PARAGRAPH = "\n\n"
"""lmms-eval's stop string for tasks without one; it would end reasoning after its first paragraph."""
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_GENERATION_KEYS = (
    "do_sample", "max_new_tokens", "min_p", "num_beams", "temperature", "top_k", "top_p", "until",
)  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """Generation settings of a request, from its `gen_kwargs`."""

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """One prompt: its name, its turns, how to answer it, and the key for lmms-eval's cache hook."""

    name: str
    turns: "tuple[Turn, ...]"
    generation: Generation
    key: tuple[Any, ...] = field(default=(), compare=False)


class RequestReader:
    """Reads the requests of one call of lmms-eval and gives each a unique name.

    Args:
        documents: the documents by task, split and number.
        max_new_tokens: most tokens of a response, overriding the tasks; None: the task's number, or 2,048.
    """

    def __init__(self, documents: Mapping[str, Any], max_new_tokens: int | None) -> None:
        self._documents = documents
        self._max_new_tokens = max_new_tokens
        self._seen: Counter[str] = Counter()

    def query(self, args: Sequence[Any]) -> Query:
        """The prompt of a request for one response.

        Args:
            args: (context, gen_kwargs, doc_to_visual, doc_id, task, split), or in the chat interface (context,
                doc_to_messages, gen_kwargs, doc_id, task, split).
        """
        context, second, third, doc_id, task, split = args
        name, document = self._name(doc_id, task, split), self._documents[task][split][doc_id]
        if callable(second):
            return Query(name, _message_turns(second(document), name), self._generation(third), (context, third))
        turns = _simple_turns(context, third(document) if callable(third) else third, name)
        return Query(name, turns, self._generation(second), (context, second))

    def rounds(self, args: Sequence[Any]) -> Generator[Query, list[str], Any]:
        """Generator of the prompts of a request's rounds; after each prompt it must be sent the responses so far.

        Args:
            args: (context, gen_kwargs, doc_to_visual, doc_to_text, doc_id, task, split), or in the chat interface
                (context, doc_to_messages, gen_kwargs, doc_id, task, split). From the second round on, `doc_to_text`
                returns (visuals, text, whether to stop, responses so far, state) and `doc_to_messages` (messages,
                whether to stop, responses so far, state).

        Returns:
            The responses, possibly rewritten by the task.
        """
        chat = callable(args[1])
        if chat:
            context, to_messages, kwargs, doc_id, task, split = args
        else:
            context, kwargs, to_visual, to_text, doc_id, task, split = args
        document, name = self._documents[task][split][doc_id], self._name(doc_id, task, split)
        generation = self._generation(kwargs)
        if chat:
            turns = _message_turns(to_messages(document), name)
        else:
            turns = _simple_turns(context, to_visual(document) if callable(to_visual) else to_visual, name)
        number, state = 0, None
        while True:
            responses = yield Query(f"{name}, round {number + 1}", turns, generation, (context, kwargs, number))
            number += 1
            follow: Callable[..., Any] = to_messages if chat else to_text
            reply = follow(document, round_idx=number, previous_output=responses, previous_round_info=state)
            if not isinstance(reply, tuple) or len(reply) != (4 if chat else 5):
                return responses
            *prompt, stop, previous, state = reply
            if stop:
                return previous
            turns = _message_turns(prompt[0], name) if chat else _simple_turns(prompt[1], prompt[0], name)

    def continuation(self, args: Sequence[Any]) -> tuple[Query, str]:
        """The prompt and the continuation of a request for a likelihood.

        Args:
            args: (context, doc_to_target or continuation, doc_to_visual, doc_id, task, split), or (context,
                continuation).
        """
        context, target, *rest = args
        name, visuals = "a request without a document", None
        if rest:
            to_visual, doc_id, task, split = rest
            name = self._name(doc_id, task, split)
            document = self._documents[task][split][doc_id]
            visuals = to_visual(document) if callable(to_visual) else to_visual
            target = target(document) if callable(target) else target
        return Query(name, _simple_turns(context, visuals, name), Generation(1)), str(target)

    def _generation(self, kwargs: Mapping[str, Any]) -> Generation:
        return generation_of(kwargs, self._max_new_tokens)

    def _name(self, doc_id: Any, task: str, split: str) -> str:
        name = f"{task}/{split}:{doc_id}"
        self._seen[name] += 1
        # Sampling is seeded by the name, so a repeated request needs another name to get another sample.
        return name if self._seen[name] == 1 else f"{name} ({self._seen[name]})"


def generation_of(kwargs: Mapping[str, Any], max_new_tokens: int | None) -> Generation:
    """Read generation settings from `gen_kwargs`.

    Args:
        kwargs: a task's `gen_kwargs`.
        max_new_tokens: most tokens of a response, overriding `kwargs`; None: the number in `kwargs`, or 2,048.

    Raises:
        ConfigError: `kwargs` ask for beam search.
    """
    given = {key: value for key, value in kwargs.items() if value is not None}
    unknown = tuple(sorted(given.keys() - set(_GENERATION_KEYS)))
    if unknown:
        _warn_once(f"gen_kwargs {', '.join(unknown)} are not used; {', '.join(_GENERATION_KEYS)} are")
    if int(given.get("num_beams", 1)) != 1:
        raise ConfigError(f"gen_kwargs num_beams={given['num_beams']}: there is no beam search over latents; use 1")
    temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
    sample = bool(given.get("do_sample", temperature > 0)) and temperature > 0
    if temperature > 0 and not sample:
        _warn_once(f"gen_kwargs temperature={temperature} with do_sample=False: decoding is greedy")
    until = given.get("until", ())
    until = (until,) if isinstance(until, str) else tuple(until)
    limit = max_new_tokens if max_new_tokens is not None else int(given.get("max_new_tokens", 2048))
    stops = tuple(text for text in until if text and text != _PARAGRAPH)
    if not sample:
        return Generation(limit, until=stops)
    return Generation(
        limit,
        do_sample=True,
        temperature=temperature,
        top_p=float(given.get("top_p", 1.0)),
        top_k=int(given.get("top_k", 0)),
        min_p=float(given.get("min_p", 0.0)),
        until=stops,
    )


def _simple_turns(context: str, visuals: Any, name: str) -> "tuple[Turn, ...]":
    from futurel1.data import Turn

    # Markers in the text are placeholders for other models; here, visuals precede the text.
    parts = (*_visual_parts(visuals, name), context.replace("<image>", ""))
    return (Turn("user", parts),)


def _message_turns(messages: Sequence[Mapping[str, Any]], name: str) -> "tuple[Turn, ...]":
    from futurel1.data import Turn

    turns = []
    for message in messages:
        content = message["content"]
        parts: list[Any] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type", "text")
            if kind == "text":
                parts.append(part["text"])
            elif kind in ("image", "video"):
                if part.get("start_time") is not None or part.get("end_time") is not None:
                    raise _unusable(part, name)
                parts += _visual_parts(part["url"], name)
            else:
                raise _unusable(part, name)
        if message["role"] == "assistant":
            # The encoder reads a prompt only up to its first response, so everything after this turn would be lost.
            raise RecordError(f"{name}: the messages hold an assistant turn; only prompts without one can be answered")
        turns.append(Turn(message["role"], tuple(parts)))
    return tuple(turns)


def _visual_parts(visuals: Any, name: str) -> list[Any]:
    """Convert a task's visuals (pictures, paths, and lists of them) to frames and videos."""
    from PIL import Image

    from futurel1.data import Frame, Video

    if visuals is None:
        return []
    if isinstance(visuals, list | tuple):
        return [part for visual in visuals for part in _visual_parts(visual, name)]
    if isinstance(visuals, Image.Image):
        return [Frame(Path(f"{name}, an image"), None, picture_bytes(visuals))]
    if isinstance(visuals, str | Path):
        path = Path(visuals)
        return [Frame(path, None) if path.suffix.lower() in _IMAGE_SUFFIXES else Video(path)]
    raise _unusable(visuals, name)


def _unusable(visual: Any, name: str) -> RecordError:
    return RecordError(
        f"{name}: {type(visual).__name__} {str(visual)[:120]!r} cannot be shown; only PIL images and the paths of "
        "images and of whole videos can"
    )


def picture_bytes(image: "Image.Image") -> bytes:
    """Encode an opened picture losslessly as an upright PNG."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    stream = BytesIO()
    (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(stream, format="PNG")
    return stream.getvalue()


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
