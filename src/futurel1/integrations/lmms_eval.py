"""The reasoner as a model of lmms-eval, found through the entry-point group ``lmms_eval.models``.

    lmms-eval --model futurel1 --model_args pretrained=CHECKPOINT --tasks futurel1_futurebench \\
        --include_path "$(python -m futurel1.integrations.lmms_eval)"

Importing this module needs no lmms-eval; making a model without it is an error that says so. Written against lmms-eval
0.7.3.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from futurel1.errors import ConfigError, RecordError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from futurel1.data import Turn
    from futurel1.data.encoded import EncodedSample

__all__ = ["FutureL1", "FutureL1Chat", "manifest", "picture_bytes", "task_folder"]

logger = logging.getLogger(__name__)

MODEL_ID = "futurel1"
ResponseForm = Literal["tagged", "answer", "raw"]
_DTYPES = ("float32", "bfloat16", "float16")
_PARAGRAPH = "\n\n"
"""lmms-eval's stop string for tasks that name none; it would end every reasoning after its first paragraph."""
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_GENERATION_KEYS = (
    "do_sample", "max_new_tokens", "min_p", "num_beams", "temperature", "top_k", "top_p", "until",
)  # fmt: skip


def _find_base() -> tuple[Any, ImportError | None]:
    try:
        return import_module("lmms_eval.api.model").lmms, None
    except ImportError as error:
        return object, error


if TYPE_CHECKING:
    _BASE = object
    _MISSING: ImportError | None = None
else:
    _BASE, _MISSING = _find_base()


def manifest() -> Any:
    """The `ModelManifest` that the entry point hands to lmms-eval.

    Raises:
        ConfigError: lmms-eval is not installed.
    """
    try:
        registry = import_module("lmms_eval.models.registry_v2")
    except ImportError as error:
        raise _not_installed(error) from error
    return registry.ModelManifest(
        model_id=MODEL_ID,
        simple_class_path=f"{__name__}.FutureL1",
        chat_class_path=f"{__name__}.FutureL1Chat",
        aliases=("future_l1", "future-l1"),
    )


def task_folder() -> Path:
    """Folder of our tasks, for lmms-eval's `--include_path`."""
    return Path(__file__).resolve().parent / "lmms_tasks"


def picture_bytes(image: "Image.Image") -> bytes:
    """An opened picture as an upright PNG, without loss."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    stream = BytesIO()
    (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(stream, format="PNG")
    return stream.getvalue()


def _not_installed(error: ImportError) -> ConfigError:
    return ConfigError(f"this needs the package lmms-eval ({error}): pip install lmms-eval")


@dataclass(frozen=True)
class _Generation:
    """What a request's `gen_kwargs` ask for."""

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Query:
    """One prompt: what it is called, its turns, how to answer it, and the key of lmms-eval's cache hook."""

    name: str
    turns: "tuple[Turn, ...]"
    generation: _Generation
    key: tuple[Any, ...] = field(default=(), compare=False)


class FutureL1(_BASE):
    """A trained reasoner behind lmms-eval's "simple" interface: text, and what `doc_to_visual` returns before it.

    A task's `gen_kwargs` decide how responses are generated: `max_new_tokens`, `do_sample`, `temperature`, `top_p`,
    `top_k`, `min_p` and `until`. Without `do_sample` a temperature above 0 samples, and else decoding is greedy. A
    blank line in `until` is left out: lmms-eval puts it there for tasks that name no stop string.

    Args:
        pretrained: checkpoint folder, hub name, or ``tiny``.
        device: where to run; None: the GPU of this process, or the CPU.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        batch_size: prompts decoded together.
        max_batch_size: lmms-eval passes it; not used.
        attn_implementation: attention of `transformers`.
        max_new_tokens: most tokens of a response, latents included, in place of what tasks say: many of them allow no
            room for reasoning. None: the task's, or 2,048.
        max_num_frames: frames taken evenly over each video; with `fps`, most frames.
        fps: frames per second taken from videos; None: `max_num_frames`.
        frame_tokens: most merged tokens per frame.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        span_budget: ``checkpoint``, ``fixed`` (exactly `span_latents`) or ``loose`` (at most `span_latents`).
        span_latents: latents per span for ``fixed`` and ``loose``.
        seed: seed of the draws. Repeats of a request differ, and no sample depends on the batch.
        response: ``tagged``: ``<reason>`` and ``<answer>`` tags stay, the tokens of latent spans and of the chat format
            do not; ``answer``: what stands in the first ``<answer>`` tags, for tasks that expect a bare answer (the
            ``tagged`` text where there is none); ``raw``: everything. Our own tasks need ``tagged`` or ``raw``.

    Raises:
        ConfigError: lmms-eval is not installed, or settings that cannot work.
    """

    is_simple = True
    task_dict: Any
    cache_hook: Any

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        attn_implementation: str = "sdpa",
        max_new_tokens: int | None = None,
        max_num_frames: int = 32,
        fps: float | None = None,
        frame_tokens: int = 64,
        system_prompt: str | None = None,
        max_length: int = 16384,
        span_budget: Literal["checkpoint", "fixed", "loose"] = "checkpoint",
        span_latents: int = 8,
        seed: int = 0,
        response: ResponseForm = "tagged",
    ) -> None:
        if _MISSING is not None:
            raise _not_installed(_MISSING) from _MISSING
        super().__init__()
        import torch

        from futurel1.data.chat import ChatEncoder
        from futurel1.models import LatentReasoner, SpanBudget
        from futurel1.modules.start import usable_device

        if dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        if response not in get_args(ResponseForm):
            raise ConfigError(f"response must be one of {', '.join(get_args(ResponseForm))}, got {response!r}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size must be a number of at least 1, got {batch_size!r}")
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._device = torch.device(usable_device(device or "auto", f"cuda:{os.environ.get('LOCAL_RANK', '0')}"))
        self.batch_size_per_gpu = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.response: ResponseForm = response
        self.budget = None if span_budget == "checkpoint" else SpanBudget(span_budget, span_latents)
        self.reasoner: LatentReasoner = LatentReasoner.from_pretrained(
            pretrained, dtype=getattr(torch, dtype), attn_implementation=attn_implementation
        ).to(self._device)
        if self.reasoner.processor is None:
            raise ConfigError(f"{pretrained} has no tokenizer: lmms-eval needs a checkpoint with one")
        self.encoder = ChatEncoder(
            self.reasoner.processor,
            system_prompt=system_prompt,
            max_length=max_length,
            video_fps=2.0 if fps is None else fps,
            video_max_frames=max_num_frames,
            video_frame_tokens=frame_tokens,
            video_num_frames=max_num_frames if fps is None else None,
            strip_text=False,
        )

    @property
    def device(self) -> "torch.device":
        """Where the model runs."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Prompts decoded together."""
        return self.batch_size_per_gpu

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.reasoner.processor.tokenizer

    # ------------------------------------------------------------------ what lmms-eval calls

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, greedily unless their `gen_kwargs` ask for samples.

        Args:
            requests: N instances with `args` (context, gen_kwargs, doc_to_visual, doc_id, task, split), or of the chat
                interface (context, doc_to_messages, gen_kwargs, doc_id, task, split).

        Returns:
            N responses, as `response` says.
        """
        seen: Counter[str] = Counter()
        return self._answer([self._query(request.args, seen) for request in requests], "generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer requests over as many rounds as their task asks for; every round is a prompt of its own.

        Args:
            requests: N instances with `args` (context, gen_kwargs, doc_to_visual, doc_to_text, doc_id, task, split), or
                of the chat interface (context, doc_to_messages, gen_kwargs, doc_id, task, split). From the second
                round on, `doc_to_text` returns (visuals, text, whether to stop, responses so far, state) and
                `doc_to_messages` (messages, whether to stop, responses so far, state).

        Returns:
            The responses of every round, for each of the N requests.
        """
        seen: Counter[str] = Counter()
        rounds = [self._rounds(request.args, seen) for request in requests]
        responses: list[list[str]] = [[] for _ in rounds]
        queries = {number: next(each) for number, each in enumerate(rounds)}
        while queries:
            answers = self._answer(list(queries.values()), "generate_until_multi_round")
            following: dict[int, _Query] = {}
            for number, answer in zip(queries, answers, strict=True):
                responses[number].append(answer)
                try:
                    following[number] = rounds[number].send(list(responses[number]))
                except StopIteration as end:
                    # A task may rewrite what was answered, as the other models of lmms-eval let it.
                    if isinstance(end.value, list | tuple):
                        responses[number] = [str(each) for each in end.value]
            queries = following
        return responses

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """How likely continuations are as the response's first words, without any latents.

        lmms-eval's multiple choice takes the option with the *smallest* value, as its models return the loss. So does
        this one, whatever the base class' documentation says.

        Args:
            requests: N instances with `args` (context, doc_to_target or continuation, doc_to_visual, doc_id, task,
                split), or (context, continuation).

        Returns:
            Per request the mean negative log-probability of the continuation's tokens, and whether greedy decoding
            would have written them.

        Raises:
            RecordError: a continuation without tokens.
        """
        return [self._loss(request.args) for request in requests]

    # ------------------------------------------------------------------ requests

    def _query(self, args: Sequence[Any], seen: Counter[str]) -> _Query:
        context, second, third, doc_id, task, split = args
        name, document = self._name(doc_id, task, split, seen), self.task_dict[task][split][doc_id]
        if callable(second):
            return _Query(name, _message_turns(second(document), name), self._generation(third), (context, third))
        turns = _simple_turns(context, third(document) if callable(third) else third, name)
        return _Query(name, turns, self._generation(second), (context, second))

    def _rounds(self, args: Sequence[Any], seen: Counter[str]) -> Generator[_Query, list[str], Any]:
        """The queries of a request's rounds; it is sent the responses so far after each of them."""
        chat = callable(args[1])
        if chat:
            context, to_messages, kwargs, doc_id, task, split = args
        else:
            context, kwargs, to_visual, to_text, doc_id, task, split = args
        document, name = self.task_dict[task][split][doc_id], self._name(doc_id, task, split, seen)
        generation = self._generation(kwargs)
        if chat:
            turns = _message_turns(to_messages(document), name)
        else:
            turns = _simple_turns(context, to_visual(document) if callable(to_visual) else to_visual, name)
        number, state = 0, None
        while True:
            responses = yield _Query(f"{name}, round {number + 1}", turns, generation, (context, kwargs, number))
            number += 1
            follow: Callable[..., Any] = to_messages if chat else to_text
            reply = follow(document, round_idx=number, previous_output=responses, previous_round_info=state)
            if not isinstance(reply, tuple) or len(reply) != (4 if chat else 5):
                return responses
            *prompt, stop, previous, state = reply
            if stop:
                return previous
            turns = _message_turns(prompt[0], name) if chat else _simple_turns(prompt[1], prompt[0], name)

    def _name(self, doc_id: Any, task: str, split: str, seen: Counter[str]) -> str:
        name = f"{task}/{split}:{doc_id}"
        seen[name] += 1
        # Samples are told apart by name: a request that is repeated asks for another sample.
        return name if seen[name] == 1 else f"{name} ({seen[name]})"

    def _generation(self, kwargs: Mapping[str, Any]) -> _Generation:
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
        limit = self.max_new_tokens if self.max_new_tokens is not None else int(given.get("max_new_tokens", 2048))
        stops = tuple(text for text in until if text and text != _PARAGRAPH)
        if not sample:
            return _Generation(limit, until=stops)
        return _Generation(
            limit,
            do_sample=True,
            temperature=temperature,
            top_p=float(given.get("top_p", 1.0)),
            top_k=int(given.get("top_k", 0)),
            min_p=float(given.get("min_p", 0.0)),
            until=stops,
        )

    # ------------------------------------------------------------------ decoding

    def _answer(self, queries: Sequence[_Query], method: str) -> list[str]:
        """Answer queries in batches of equal settings, in their order."""
        from rich.console import Console
        from rich.progress import Progress

        groups: dict[_Generation, list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault(query.generation, []).append(number)
        answers: dict[int, str] = {}
        with Progress(console=Console(stderr=True), disable=self._rank != 0) as bar:
            line = bar.add_task("answering", total=len(queries))
            for generation, numbers in groups.items():
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    texts = self._decode([queries[number] for number in batch], generation)
                    for number, text in zip(batch, texts, strict=True):
                        answers[number] = text
                        self.cache_hook.add_partial(method, queries[number].key, text)
                    bar.advance(line, len(batch))
        return [answers[number] for number in range(len(queries))]

    def _decode(self, queries: Sequence[_Query], generation: _Generation) -> list[str]:
        from futurel1.data.collate import Fetched
        from futurel1.data.prompts import PromptCollator
        from futurel1.models.transcript import transcripts

        samples = [self._encode(query) for query in queries]
        prompt = PromptCollator(self.encoder.pad_token_id)([Fetched(samples, [])]).to(self._device)
        rollout = self.reasoner.generate(
            prompt,
            max_new_tokens=generation.max_new_tokens,
            do_sample=generation.do_sample,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            min_p=generation.min_p,
            budget=self.budget,
            seed=self.seed,
            stop_strings=generation.until,
        )
        texts = [transcript.text for transcript in transcripts(rollout, self.tokenizer)]
        return [_form(_cut(text, generation.until), self.response) for text in texts]

    def _encode(self, query: _Query) -> "EncodedSample":
        from futurel1.data import Sample

        return self.encoder.encode_prompt(Sample(query.name, query.turns, None, {}))

    def _loss(self, args: Sequence[Any]) -> tuple[float, bool]:
        import torch

        from futurel1.data.collate import Fetched
        from futurel1.data.prompts import PromptCollator

        context, target, *rest = args
        name, visuals = "a request without a document", None
        if rest:
            to_visual, doc_id, task, split = rest
            name = self._name(doc_id, task, split, Counter())
            document = self.task_dict[task][split][doc_id]
            visuals = to_visual(document) if callable(to_visual) else to_visual
            target = target(document) if callable(target) else target
        query = _Query(name, _simple_turns(context, visuals, name), _Generation(1))
        prompt = PromptCollator(self.encoder.pad_token_id)([Fetched([self._encode(query)], [])]).to(self._device)
        tokens = self.tokenizer(str(target), add_special_tokens=False, return_tensors="pt")["input_ids"]
        wanted = tokens[0].long().to(self._device)
        if not len(wanted):
            raise RecordError(f"{name}: the continuation {target!r} has no tokens, so it has no likelihood")
        ids = torch.cat([prompt.input_ids, wanted[None]], dim=1)
        with torch.no_grad():
            hidden = self.reasoner(ids, torch.ones_like(ids), self.reasoner.encode(prompt))
            logits = self.reasoner.logits(hidden[0, -1 - len(wanted) : -1]).float()
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        return float(loss), bool((logits.argmax(dim=-1) == wanted).all())


class FutureL1Chat(FutureL1):
    """The same behind lmms-eval's "chat" interface: the turns that `doc_to_messages` returns, which it prefers.

    A system turn of the task takes the place of `system_prompt`. `multiple_choice` and `loglikelihood` tasks exist in
    the simple interface only: run them with `--force_simple`.

    Args: see :class:`FutureL1`.
    """

    is_simple = False


def _simple_turns(context: str, visuals: Any, name: str) -> "tuple[Turn, ...]":
    from futurel1.data import Turn

    # Markers in the text are other models' placeholders; what they stand for is shown before the text.
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
            # The encoder reads a prompt up to its first response, so earlier ones would be lost.
            raise RecordError(f"{name}: the messages hold an assistant turn; only prompts without one can be answered")
        turns.append(Turn(message["role"], tuple(parts)))
    return tuple(turns)


def _visual_parts(visuals: Any, name: str) -> list[Any]:
    """Frames and videos of what a task shows: pictures, paths, and lists of them."""
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


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((text.index(stop) for stop in until if stop in text), default=len(text))]


def _form(text: str, form: ResponseForm) -> str:
    from futurel1.data.chat_text import CONTROL_STRINGS
    from futurel1.metrics.functional import extract_answer

    if form == "raw":
        return text
    for token in CONTROL_STRINGS:
        text = text.replace(token, "")
    text = text.strip()
    return (extract_answer(text) or text) if form == "answer" else text


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


if __name__ == "__main__":
    print(task_folder())
