"""The reasoner as a model of lmms-eval, found through the entry-point group ``lmms_eval.models``.

    lmms-eval --model futurel1 --model_args pretrained=CHECKPOINT --tasks futurel1_futurebench \\
        --include_path "$(python -m futurel1.integrations.lmms_eval)"

This module can be imported without lmms-eval; creating a model without it raises an error that says so. Written against
lmms-eval 0.7.3.
"""

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from futurel1.errors import ConfigError, RecordError
from futurel1.integrations.lmms_requests import Generation, Query, RequestReader

if TYPE_CHECKING:
    import torch

    from futurel1.data import Sample
    from futurel1.runs import Dtype

__all__ = ["FutureL1", "FutureL1Chat", "manifest", "task_folder"]

MODEL_ID = "futurel1"
ResponseForm = Literal["tagged", "answer", "raw"]


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
    """The `ModelManifest` that the entry point returns to lmms-eval.

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
    """Folder of this package's tasks, for lmms-eval's `--include_path`."""
    return Path(__file__).resolve().parent / "lmms_tasks"


def _not_installed(error: ImportError) -> ConfigError:
    return ConfigError(f"this needs the package lmms-eval ({error}): pip install lmms-eval")


class FutureL1(_BASE):
    """A trained reasoner for lmms-eval's "simple" interface: the visuals of `doc_to_visual`, followed by the text.

    A task's `gen_kwargs` determine how responses are generated: `max_new_tokens`, `do_sample`, `temperature`, `top_p`,
    `top_k`, `min_p` and `until`. Without `do_sample`, a temperature above 0 samples; otherwise decoding is greedy. A
    blank line in `until` is ignored, because lmms-eval adds it for tasks without a stop string.

    Args:
        pretrained: run folder, a checkpoint of one, checkpoint folder, hub name or ``tiny``.
        device: device of the model; None: the GPU of this process, or the CPU.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 on a GPU, float32 on a CPU.
        batch_size: prompts decoded together.
        max_batch_size: passed by lmms-eval; not used.
        attn_implementation: attention of `transformers`.
        max_new_tokens: most tokens of a response, latents included; overrides the tasks, many of which leave too few
            tokens for reasoning. None: the task's number, or 2,048.
        max_num_frames: frames taken evenly over each video; with `fps`, the most frames.
        fps: frames per second taken from videos; None: `max_num_frames`.
        frame_tokens: most merged tokens per frame.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        span_budget: ``checkpoint``, ``fixed`` (exactly `span_latents`) or ``loose`` (at most `span_latents`).
        span_latents: latents per span for ``fixed`` and ``loose``.
        seed: seed of sampling. Repeats of a request differ, and no sample depends on the batch.
        response: ``tagged``: ``<reason>`` and ``<answer>`` tags stay, tokens of latent spans and of the chat format are
            removed; ``answer``: the text in the first ``<answer>`` tags, for tasks that expect a bare answer (the
            ``tagged`` text if there are none); ``raw``: everything. The tasks of this package need ``tagged`` or
            ``raw``.

    Raises:
        ConfigError: lmms-eval is not installed, or invalid settings.
    """

    is_simple = True
    task_dict: Any
    cache_hook: Any

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: "Dtype" = "auto",
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
        from futurel1.data.chat import ChatEncoder
        from futurel1.predictor import EventPredictor
        from futurel1.rollout import SamplingSettings
        from futurel1.runs import load_reasoner

        if response not in get_args(ResponseForm):
            raise ConfigError(f"response must be one of {', '.join(get_args(ResponseForm))}, got {response!r}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size must be a number of at least 1, got {batch_size!r}")
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.batch_size_per_gpu = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.response: ResponseForm = response
        self.budget = SamplingSettings(span_budget=span_budget, span_latents=span_latents).budget()
        reasoner = load_reasoner(
            pretrained, dtype=dtype, device=device or "auto", attn_implementation=attn_implementation
        )
        encoder = ChatEncoder(
            reasoner.processor,
            system_prompt=system_prompt,
            max_length=max_length,
            video_fps=2.0 if fps is None else fps,
            video_max_frames=max_num_frames,
            video_frame_tokens=frame_tokens,
            video_num_frames=max_num_frames if fps is None else None,
            strip_text=False,
        )
        self.predictor = EventPredictor(reasoner, encoder=encoder)

    @property
    def device(self) -> "torch.device":
        """Device of the model."""
        return self.predictor.reasoner.device

    @property
    def batch_size(self) -> int:
        """Prompts decoded together."""
        return self.batch_size_per_gpu

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.predictor.reasoner.tokenizer

    # ------------------------------------------------------------------ methods that lmms-eval calls

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, greedily unless their `gen_kwargs` ask for samples.

        Args:
            requests: N instances with `args` in the form that :meth:`RequestReader.query` reads.

        Returns:
            N responses, in the form set by `response`.
        """
        reader = self._reader()
        return self._answer([reader.query(request.args) for request in requests], "generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer requests over as many rounds as their task asks for; every round is a separate prompt.

        Args:
            requests: N instances with `args` in the form that :meth:`RequestReader.rounds` reads.

        Returns:
            The responses of every round, for each of the N requests.
        """
        reader = self._reader()
        rounds = [reader.rounds(request.args) for request in requests]
        responses: list[list[str]] = [[] for _ in rounds]
        queries = {number: next(each) for number, each in enumerate(rounds)}
        while queries:
            answers = self._answer(list(queries.values()), "generate_until_multi_round")
            following: dict[int, Query] = {}
            for number, answer in zip(queries, answers, strict=True):
                responses[number].append(answer)
                try:
                    following[number] = rounds[number].send(list(responses[number]))
                except StopIteration as end:
                    # A task may rewrite the responses, as with the other models of lmms-eval.
                    if isinstance(end.value, list | tuple):
                        responses[number] = [str(each) for each in end.value]
            queries = following
        return responses

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Loss of continuations as the first tokens of the response, without any latents.

        lmms-eval's multiple choice takes the option with the *smallest* value, because its models return the loss. So
        does this one, contrary to the documentation of the base class.

        Args:
            requests: N instances with `args` in the form that :meth:`RequestReader.continuation` reads.

        Returns:
            For each request, the mean negative log-probability of the continuation's tokens, and whether greedy
            decoding would have produced them.

        Raises:
            RecordError: a continuation has no tokens.
        """
        return [self._loss(request.args) for request in requests]

    def _reader(self) -> RequestReader:
        return RequestReader(self.task_dict, self.max_new_tokens)

    # ------------------------------------------------------------------ decoding

    def _answer(self, queries: Sequence[Query], method: str) -> list[str]:
        """Answer queries, those of equal settings beside each other; answers are in the order of the queries."""
        from rich.console import Console
        from rich.progress import Progress

        groups: dict[Generation, list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault(query.generation, []).append(number)
        answers: dict[int, str] = {}
        with Progress(console=Console(stderr=True), disable=self._rank != 0) as bar:
            line = bar.add_task("answering", total=len(queries))
            for generation, numbers in groups.items():
                texts = self._decode([queries[number] for number in numbers], generation)
                for number, text in zip(numbers, texts, strict=True):
                    answers[number] = text
                    self.cache_hook.add_partial(method, queries[number].key, text)
                    bar.advance(line)
        return [answers[number] for number in range(len(queries))]

    def _decode(self, queries: Sequence[Query], generation: Generation) -> Iterator[str]:
        from futurel1.data.prompts import prompt_batch

        decoded = self.predictor.decode_each(
            (prompt_batch(self.predictor.encoder, [_sample(query)]) for query in queries),
            slots=self.batch_size,
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
        for _, (transcript,) in decoded:
            yield _form(_cut(transcript.text, generation.until), self.response)

    def _loss(self, args: Sequence[Any]) -> tuple[float, bool]:
        import torch

        from futurel1.data.prompts import prompt_batch

        query, target = self._reader().continuation(args)
        reasoner = self.predictor.reasoner
        prompt = prompt_batch(self.predictor.encoder, [_sample(query)]).to(self.device)
        tokens = self.tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"]
        wanted = tokens[0].long().to(self.device)
        if not len(wanted):
            raise RecordError(f"{query.name}: the continuation {target!r} has no tokens, so it has no likelihood")
        ids = torch.cat([prompt.input_ids, wanted[None]], dim=1)
        with torch.no_grad():
            hidden = reasoner(ids, torch.ones_like(ids), reasoner.encode(prompt))
            logits = reasoner.logits(hidden[0, -1 - len(wanted) : -1]).float()
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        return float(loss), bool((logits.argmax(dim=-1) == wanted).all())


class FutureL1Chat(FutureL1):
    """A trained reasoner for lmms-eval's "chat" interface, which lmms-eval prefers: the turns of `doc_to_messages`.

    A system turn of the task replaces `system_prompt`. `multiple_choice` and `loglikelihood` tasks exist only in the
    simple interface: run them with `--force_simple`.

    Args: see :class:`FutureL1`.
    """

    is_simple = False


def _sample(query: Query) -> "Sample":
    from futurel1.data import Sample

    return Sample(query.name, query.turns, None, {})


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


if __name__ == "__main__":
    print(task_folder())
