"""A server as an engine: an OpenAI-compatible endpoint that takes pictures answers for a model without latents."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from futurel1.data.chat import ChatEncoder
from futurel1.data.fetching import fetch
from futurel1.endpoints import (
    CallCounts,
    CallFailure,
    ChatClient,
    EndpointError,
    EndpointSettings,
    FailureLimit,
    RecentCalls,
    require_packages,
)
from futurel1.engines.base import Answers, Block, Decoding, Engine, EngineSettings, Unanswered
from futurel1.engines.replies import Choice, Reply, read_models, read_reply
from futurel1.engines.requests import MediaForm, RequestEncoder, ServerPrompt
from futurel1.engines.token_parity import TokenParity
from futurel1.errors import ConfigError, FutureL1Error
from futurel1.models.checkpoints import stored_tokenizer
from futurel1.models.transcript import Transcript
from futurel1.runs import model_start

__all__ = ["Server", "ServerEngine"]

logger = logging.getLogger(__name__)
_OWN_FIELDS = ("model", "messages", "n", "seed", "temperature", "top_p", "max_tokens", "stream")
_ABOUT_THE_PROMPT = (400, 413, 422)
"""Statuses that refuse one request, where others would refuse every request."""
_NOT_OFFERED = (404, 405, 501)
_SEEDS = 2**30
"""Servers keep seeds in 32 bits with a sign, and some add the number of the sample."""


class Server(EngineSettings):
    """An OpenAI-compatible endpoint that takes pictures or video (vLLM, SGLang, TGI), for models without latents.

    Requests are repeated as a judge's are (:class:`~futurel1.rewards.Judge`). Responses depend on the seed and the
    record only as far as the server's do.

    Args:
        base_url: address of the API, without `/chat/completions`, e.g. `http://localhost:8000/v1`.
        model: name of the model at that address.
        api_key_env: environment variable that holds the key; None: the endpoint needs none.
        concurrency: most requests in flight at once.
        timeout_s: longest duration of a request, from start to end.
        max_attempts: most requests for one prompt.
        wait_base_s: longest wait before the first retry; it doubles with every further retry.
        wait_max_s: longest wait before any retry without a `Retry-After`.
        max_retry_after_s: a `Retry-After` longer than this ends the call as failed.
        start_timeout_s: how long to wait for a server that is still starting.
        max_failure_rate: share of prompts without responses above which the run stops.
        min_calls_for_rate: number of prompts before that share is checked.
        failure_window: number of latest prompts that the share is taken over.
        media: ``data``: pictures and videos are part of the request; ``paths``: picture files and whole videos are
            named by ``file://``, so the server has to see them under the same paths.
        require_same_tokens: stop if the server counts other prompt tokens than our own encoder, which means another
            chat template or other picture sizes; False: only warn.
        extra_body: further fields of each request, e.g. `{"top_k": -1}`.

    Raises:
        ConfigError: an argument out of range, or a key that is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = 128,
        timeout_s: float = 600.0,
        max_attempts: int = 8,
        wait_base_s: float = 1.0,
        wait_max_s: float = 30.0,
        max_retry_after_s: float = 120.0,
        start_timeout_s: float = 900.0,
        max_failure_rate: float = 0.1,
        min_calls_for_rate: int = 20,
        failure_window: int = 200,
        media: MediaForm = "data",
        require_same_tokens: bool = True,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        require_packages()
        if not model:
            raise ConfigError("model is the name of the model at the server; see its /v1/models")
        if media not in ("data", "paths"):
            raise ConfigError(f"media is 'data' or 'paths', got {media!r}")
        if not start_timeout_s > 0:
            raise ConfigError(f"start_timeout_s must be above 0, got {start_timeout_s}")
        if taken := sorted(set(extra_body or {}) & set(_OWN_FIELDS)):
            raise ConfigError(f"extra_body must not set {', '.join(taken)}: use the options of sampling")
        self.endpoint = EndpointSettings(
            base_url=base_url,
            api_key_env=api_key_env,
            concurrency=concurrency,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            wait_base_s=wait_base_s,
            wait_max_s=wait_max_s,
            max_retry_after_s=max_retry_after_s,
        )
        self.endpoint.api_key()
        self.limit = FailureLimit(
            max_failure_rate=max_failure_rate, min_calls_for_rate=min_calls_for_rate, failure_window=failure_window
        )
        self.model = model
        self.start_timeout_s = start_timeout_s
        self.media: MediaForm = media
        self.require_same_tokens = require_same_tokens
        self.extra_body = dict(extra_body or {})

    def engine(self, model: str, encoder: ChatEncoder, decoding: Decoding) -> ServerEngine:
        """Make the engine; no request is sent before it is entered.

        Raises:
            ConfigError: a budget of latents, which a server cannot keep.
        """
        if decoding.sampling.span_budget != "checkpoint":
            raise ConfigError(
                f"sampling.span_budget={decoding.sampling.span_budget} asks for latents, and a server's model has "
                "none; leave it out, or leave the engine out"
            )
        tokenizer = stored_tokenizer(model_start(model).folder)
        return ServerEngine(self, RequestEncoder(encoder, tokenizer, self.media), decoding)

    def identity(self) -> dict[str, Any]:
        """The kind of engine, its model and further fields of its requests."""
        return {"engine": "server", "model": self.model, "extra_body": self.extra_body}


class ServerEngine(Engine[ServerPrompt]):
    """Sends prompts to a server from a thread of its own, `concurrency` at a time.

    The first prompt goes alone: it waits for a server that is still starting, and shows whether the server counts the
    same tokens and takes `n`.

    Args:
        server: the server.
        encoder: writes prompts as messages.
        decoding: how prompts are answered.
    """

    def __init__(self, server: Server, encoder: RequestEncoder, decoding: Decoding) -> None:
        self.encoder: RequestEncoder = encoder
        self.server = server
        self.decoding = decoding
        self.counts = CallCounts()
        self._ahead = 2 * server.endpoint.concurrency
        self._client = ChatClient(server.endpoint, server.model, self.counts, asked="server")
        self._parity = TokenParity(self._client, server.model, required=server.require_same_tokens)
        self._recent = RecentCalls(server.limit)
        self._takes_n: bool | None = None if decoding.num_branches > 1 else False

    def settings(self) -> dict[str, Any]:
        """The model, by its name at the server."""
        return {"model": self.server.identity()}

    # ------------------------------------------------------------------ thread

    def __enter__(self) -> Self:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-engine", daemon=True)
        self._thread.start()
        self._call(self._prepare()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is in flight, and end the thread."""
        self._call(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _prepare(self) -> None:
        self._session = self._client.session()
        self._places = asyncio.Semaphore(self.server.endpoint.concurrency)
        self._first = asyncio.Lock()
        self._ready = False
        self._error: FutureL1Error | None = None

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.aclose()

    # ------------------------------------------------------------------ prompts

    def run(
        self,
        dataset: Any,
        numbers: Iterable[Sequence[int]],
        collate: Callable[[list[Any]], Block[ServerPrompt]],
        *,
        num_workers: int = 0,
    ) -> Iterator[tuple[Any, list[list[Answers]]]]:
        """Read blocks in loader workers, and begin those that come while others are waited for."""
        waiting: deque[tuple[Any, int, list[Callable[[], list[Answers]]]]] = deque()
        begun = 0
        for block in fetch(dataset, numbers, collate, num_workers=num_workers):
            size = sum(map(len, block.rounds))
            waiting.append((block.items, size, [self.begin(prompts) for prompts in block.rounds]))
            begun += size
            while waiting and begun > self._ahead:
                items, size, pending = waiting.popleft()
                begun -= size
                yield items, [finish() for finish in pending]
        for items, _, pending in waiting:
            yield items, [finish() for finish in pending]

    def begin(self, prompts: Sequence[ServerPrompt]) -> Callable[[], list[Answers]]:
        """Send prompts; returns a function that waits for their answers, one per prompt, in their order."""
        sent = [self._call(self._answer(prompt)) for prompt in prompts]
        return lambda: [future.result() for future in sent]

    async def _answer(self, prompt: ServerPrompt) -> Answers:
        if not self._ready:
            async with self._first:
                if not self._ready and self._error is None:
                    return await self._stopping_all(self._begin(prompt))
        if self._error is not None:
            raise self._error
        return await self._stopping_all(self._asked(prompt))

    async def _stopping_all(self, work: Coroutine[Any, Any, Answers]) -> Answers:
        """What `work` returns; an error of it is that of all prompts from now on."""
        try:
            return await work
        except FutureL1Error as error:
            self._error = self._error or error
            raise

    async def _begin(self, prompt: ServerPrompt) -> Answers:
        await self._wait_for_start()
        answers = await self._asked(prompt)
        self._ready = True
        return answers

    async def _asked(self, prompt: ServerPrompt) -> Answers:
        answers = await self._responses(prompt)
        failure = CallFailure("prompt", answers.reason) if isinstance(answers, Unanswered) else None
        if (too_many := self._recent.add(failure)) is not None:
            raise EndpointError(
                f"the server at {self.server.endpoint.base_url} {too_many}. Check it, give it more time (timeout_s, "
                "max_attempts) or fewer requests at once (concurrency); the same command goes on"
            )
        return answers

    async def _responses(self, prompt: ServerPrompt) -> Answers:
        branches = self.decoding.num_branches
        if self._takes_n is not False:
            reply = await self._request(prompt, range(branches))
            if isinstance(reply, Reply) and len(reply.choices) == branches:
                self._takes_n = True
                return self._transcripts(reply.choices)
            if self._takes_n or (isinstance(reply, Unanswered) and not reply.refused):
                return reply if isinstance(reply, Unanswered) else self._miscounted(prompt, reply)
        replies = [await self._request(prompt, range(1))]
        if self._takes_n is None and isinstance(replies[0], Reply):
            self._takes_n = False
            logger.warning(
                "the server %s does not return n=%d responses to a request: each is asked for by a request of its own",
                self.server.endpoint.base_url, branches,
            )  # fmt: skip
        if isinstance(replies[0], Reply):
            others = (self._request(prompt, range(branch, branch + 1)) for branch in range(1, branches))
            replies += await asyncio.gather(*others)
        choices: list[Choice] = []
        for reply in replies:
            if isinstance(reply, Unanswered):
                return reply
            choices += reply.choices[:1]
        return self._transcripts(choices)

    def _miscounted(self, prompt: ServerPrompt, reply: Reply) -> Unanswered:
        wanted = self.decoding.num_branches
        return Unanswered(f"{prompt.sample_id}: the server sent {len(reply.choices)} responses instead of {wanted}")

    def _transcripts(self, choices: Sequence[Choice]) -> tuple[Transcript, ...]:
        # No server tells the tokens of each response. Odd texts may take more when they are encoded again.
        most = self.decoding.sampling.max_new_tokens
        texts = [choice.text for choice in choices]
        counts = [len(ids) for ids in self.encoder.tokenizer(texts)["input_ids"]]
        return tuple(
            Transcript(text, text.strip(), (), min(count + (choice.finish_reason == "eos"), most), choice.finish_reason)
            for text, count, choice in zip(texts, counts, choices, strict=True)
        )

    # ------------------------------------------------------------------ requests

    async def _request(self, prompt: ServerPrompt, branches: range) -> Reply | Unanswered:
        body = b'{"messages": ' + prompt.messages + b", " + self._parameters(prompt, branches)[1:]
        try:
            async with self._places:
                outcome, _ = await self._client.ask(self._session, body, read_reply, prompt.sample_id)
        except EndpointError as error:
            if error.status not in _ABOUT_THE_PROMPT:
                raise
            return Unanswered(f"{prompt.sample_id}: {error}", refused=True)
        if isinstance(outcome, CallFailure):
            return Unanswered(f"{prompt.sample_id}: no response ({outcome.message})")
        await self._parity.check(self._session, prompt, outcome.prompt_tokens)
        return outcome

    def _parameters(self, prompt: ServerPrompt, branches: range) -> bytes:
        sampling = self.decoding.sampling
        values: dict[str, Any] = {"model": self.server.model, "max_tokens": sampling.max_new_tokens}
        if self.decoding.do_sample:
            # vLLM gives the i-th of n responses the seed plus i, so branches are the same with and without n.
            digest = hashlib.sha256(f"{sampling.seed} {prompt.sample_id}".encode()).digest()
            seed = int.from_bytes(digest[:8]) % _SEEDS + branches.start
            values |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        else:
            values["temperature"] = 0.0
        if len(branches) > 1:
            values["n"] = len(branches)
        return json.dumps({**values, **self.server.extra_body}).encode("ascii")

    async def _wait_for_start(self) -> None:
        """Wait until the server lists its models, and check that ours is one of them."""
        base_url, limit_s = self.server.endpoint.base_url, self.server.start_timeout_s
        try:
            found, _ = await self._client.ask(
                self._session, None, read_models, "the list of its models", path="/models", within_s=limit_s
            )
        except EndpointError as error:
            if error.status not in _NOT_OFFERED:
                raise
            return
        if isinstance(found, CallFailure):
            raise EndpointError(
                f"the server at {base_url} did not answer within start_timeout_s={limit_s:g} s ({found.message}); "
                "start it, or correct base_url"
            )
        if found and self.server.model not in found:
            raise ConfigError(
                f"the server at {base_url} has no model {self.server.model!r}, only {', '.join(found)}; correct model"
            )
