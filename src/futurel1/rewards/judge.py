"""A judge behind any OpenAI-compatible chat endpoint: is an answer right, and how good is a TwiFF-Bench response.

The endpoint may be slow, busy, wrong or down. A verdict is either what the judge really said or it is marked as failed;
a failed call never turns into "wrong". What the candidate wrote is shown to the judge between lines that carry a code
which it cannot contain, and only the judge's reply is ever read (`formats.md` 4), by the rules of `judge_replies`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import random
import re
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from futurel1.errors import ConfigError, FutureL1Error, MediaError, MissingFileError, RecordError
from futurel1.rewards.judge_replies import MAX_SCORE, MIN_SCORE, READING, ReplyError, parse_scores, parse_yes_no

if TYPE_CHECKING:
    import httpx
    import tenacity
    from PIL import Image

    ImageSource = bytes | str | Path | Image.Image

__all__ = [
    "AnswerItem",
    "Judge",
    "JudgeError",
    "JudgeStats",
    "ReplyError",
    "ResponseItem",
    "Verdict",
    "parse_scores",
    "parse_yes_no",
]

logger = logging.getLogger(__name__)

VerdictKind = Literal["answer", "response"]
VerdictValue = bool | tuple[int, int]

_OWN_FIELDS = ("model", "messages", "temperature", "seed", "max_tokens", "stream", "n")
_IMAGE_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_EXCERPT_LENGTH = 300
_TEXT_PARTS = ("text", "output_text")
_CUT_OFF = ("length", "max_tokens", "model_length", "content_filter")
"""Finish reasons of a reply that is not whole."""
_Result = TypeVar("_Result")


class JudgeError(FutureL1Error, RuntimeError):
    """The endpoint refuses the calls, or too many of them fail, so going on would not give honest numbers."""


@dataclass(frozen=True)
class AnswerItem:
    """An answer to be judged right or wrong.

    Attributes:
        question: what was asked, with its options.
        ground_truth: the right answer.
        prediction: the model's answer.
    """

    question: str
    ground_truth: str
    prediction: str


@dataclass(frozen=True)
class ResponseItem:
    """A TwiFF-Bench response to be scored. An image is a file's bytes, a path or a PIL image.

    Attributes:
        question: what was asked; images stand at its `<image>` markers, or before it when it has none.
        ground_truth: the right answer.
        reasoning: the model's reasoning, tags and latents removed.
        answer: the model's answer.
        question_images: images of the question, in order.
        reference_reasoning: the benchmark's reasoning; images stand at its `<rimage>` markers, or before it.
        reference_images: images of the reference reasoning, in order.
    """

    question: str
    ground_truth: str
    reasoning: str
    answer: str
    question_images: Sequence[ImageSource] = ()
    reference_reasoning: str = ""
    reference_images: Sequence[ImageSource] = ()


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one item.

    Attributes:
        kind: `"answer"` (yes or no) or `"response"` (two scores).
        value: right or wrong; or (reasoning, answer), each 0-5; None when the call failed.
        failed: no verdict could be had; the item must not be counted as wrong.
        reason: the judge's own words, or why the call failed.
        attempts: requests sent for this verdict.
        cached: taken from the disk, or from the same item earlier in the list.
    """

    kind: VerdictKind
    value: VerdictValue | None
    failed: bool
    reason: str
    attempts: int
    cached: bool


@dataclass
class JudgeStats:
    """What a judge has done since it was made.

    Attributes:
        calls: items that had to be asked and are finished, well or not.
        requests: HTTP requests sent, retries included.
        cached: items answered from the disk or by the same item in the same list.
        empty: empty predictions, wrong without a call.
        failed: calls without a verdict after all attempts.
        unsaved: verdicts that the cache could not take, as its folder could not be written.
        retries: how often a request was repeated, by reason.
        failures: why calls failed, by reason.
    """

    calls: int = 0
    requests: int = 0
    cached: int = 0
    empty: int = 0
    failed: int = 0
    unsaved: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


class _AttemptError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, category: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{category}: {detail}" if detail else category)
        self.category = category
        self.retry_after_s = retry_after_s


class Judge:
    """Client of an OpenAI-compatible chat endpoint that is asked for verdicts.

    Requests that time out, lose their connection, get 408, 429 or 5xx, or a reply without a verdict are repeated with
    exponential back-off and full jitter; `Retry-After` is honoured. Any other status stops the run, as every further
    call would get it too. A call that never succeeds gives a failed `Verdict`; too many of them stop the run.

    The same item twice in one list is asked once.

    Args:
        base_url: address of the API up to and without `/chat/completions`, e.g. `http://localhost:8000/v1`.
        model: name of the judge's model at that address.
        api_key_env: environment variable that holds the key; None: the endpoint needs none. The key is read when it is
            needed and stands in no attribute, log line, message or file.
        concurrency: most requests in flight at once, per call of a `judge_*` or `score_*` method.
        timeout_s: longest a request may take from start to end.
        max_attempts: most requests for one verdict.
        wait_base_s: longest wait before the first retry; doubles with every further one.
        wait_max_s: longest wait before any retry that names no `Retry-After`.
        max_retry_after_s: a longer `Retry-After` than this ends the call as failed.
        cache_dir: folder of verdicts, kept across runs; None: no cache. Entries are named by a digest of the model, the
            prompt, the images, the parameters and the rules by which replies are read, not of the address; failures
            are not kept. A folder that cannot be read or written costs calls, not the run: a warning says so once.
        max_failure_rate: share of failed calls above which the run stops.
        min_calls_for_rate: calls before that share is looked at.
        failure_window: the share is that of the latest so many calls, so that a late outage stops a long run too.
        temperature: sampling temperature of the judge; None: left out, for models that refuse it.
        seed: sampling seed sent to the endpoint; None: left out.
        max_tokens: longest reply; None: left to the endpoint.
        extra_body: further fields of the request, e.g. `{"chat_template_kwargs": {"enable_thinking": False}}`.
        accuracy_prompt: file with the system text for `judge_answers`; None: the built-in one.
        twiff_prompt: file with the system text for `score_responses`; None: the built-in one.
        progress: show a progress bar.

    Raises:
        ConfigError: an argument out of range, a key that is not set, or `httpx` or `tenacity` is not installed.
        MissingFileError: a prompt file that is not there.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout_s: float = 60.0,
        max_attempts: int = 5,
        wait_base_s: float = 1.0,
        wait_max_s: float = 30.0,
        max_retry_after_s: float = 120.0,
        cache_dir: str | Path | None = None,
        max_failure_rate: float = 0.1,
        min_calls_for_rate: int = 20,
        failure_window: int = 200,
        temperature: float | None = 0.0,
        seed: int | None = None,
        max_tokens: int | None = None,
        extra_body: dict[str, Any] | None = None,
        accuracy_prompt: str | Path | None = None,
        twiff_prompt: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        _require_packages()
        at_least_one = {
            "concurrency": concurrency,
            "max_attempts": max_attempts,
            "min_calls_for_rate": min_calls_for_rate,
            "failure_window": failure_window,
            "max_tokens": 1 if max_tokens is None else max_tokens,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        not_negative = {
            "wait_base_s": wait_base_s,
            "wait_max_s": wait_max_s,
            "max_retry_after_s": max_retry_after_s,
            "temperature": temperature or 0.0,
        }
        for name, seconds in not_negative.items():
            if not seconds >= 0:
                raise ConfigError(f"{name} must not be negative, got {seconds}")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, got {timeout_s}")
        if not 0 <= max_failure_rate <= 1:
            raise ConfigError(f"max_failure_rate is a share from 0 to 1, got {max_failure_rate}")
        if min_calls_for_rate > failure_window:
            raise ConfigError(
                f"min_calls_for_rate ({min_calls_for_rate}) is above failure_window ({failure_window}), "
                "so the failure rate would never be looked at"
            )
        if not model:
            raise ConfigError("model must name the judge's model, got an empty string")
        if taken := sorted(set(extra_body or {}) & set(_OWN_FIELDS)):
            raise ConfigError(
                f"extra_body must not set {', '.join(taken)}: use the judge's own arguments, where it has one"
            )
        # Unlike a path's methods, False where the folder above may not be looked into.
        if cache_dir is not None and os.path.exists(cache_dir) and not os.path.isdir(cache_dir):
            raise ConfigError(f"cache_dir {cache_dir} is a file; name a folder")

        self.base_url = _checked_url(base_url)
        self.model = model
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.max_attempts = max_attempts
        self.wait_base_s = wait_base_s
        self.wait_max_s = wait_max_s
        self.max_retry_after_s = max_retry_after_s
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.max_failure_rate = max_failure_rate
        self.min_calls_for_rate = min_calls_for_rate
        self.failure_window = failure_window
        self.temperature = temperature
        self.seed = seed
        self.max_tokens = max_tokens
        self.extra_body = dict(extra_body or {})
        self.progress = progress
        self.system_texts: dict[VerdictKind, str] = {
            "answer": _system_text(accuracy_prompt, "judge_accuracy.txt"),
            "response": _system_text(twiff_prompt, "judge_twiff.txt"),
        }
        self._stats = JudgeStats()
        # One entry per finished call: (category, message) of its failure, or None.
        self._recent: deque[tuple[str, str] | None] = deque(maxlen=failure_window)
        self._cache_warnings: set[str] = set()
        # A generator of its own: jitter must not move the global one, which seeded training may draw from.
        self._jitter = random.Random()
        self._api_key()

    def __repr__(self) -> str:
        return f"Judge(base_url={self.base_url!r}, model={self.model!r})"

    @property
    def stats(self) -> JudgeStats:
        """A copy of the counts so far."""
        return replace(self._stats, retries=self._stats.retries.copy(), failures=self._stats.failures.copy())

    def judge_answers(self, items: Sequence[AnswerItem]) -> list[Verdict]:
        """Ask, for each answer, whether it is right. An empty prediction is wrong without a call.

        Inside a running event loop (a notebook, an async program) the calls are made from a thread of their own while
        the loop waits; `await judge_answers_async(..)` does not block it.

        Args:
            items: N answers.

        Returns:
            N verdicts in the same order; `value` is a bool, or None where `failed`.

        Raises:
            JudgeError: the endpoint refuses the calls, or more than `max_failure_rate` of them failed.
        """
        return _run_to_end(self.judge_answers_async(items))

    def score_responses(self, items: Sequence[ResponseItem]) -> list[Verdict]:
        """Ask, for each TwiFF-Bench response, for two scores. See `judge_answers` on running event loops.

        Args:
            items: N responses.

        Returns:
            N verdicts in the same order; `value` is (reasoning, answer), each 0-5, or None where `failed`.

        Raises:
            JudgeError: the endpoint refuses the calls, or more than `max_failure_rate` of them failed.
            MediaError: an image that cannot be read.
            MissingFileError: an image file that is not there.
            RecordError: a text with another number of markers than of images.
        """
        return _run_to_end(self.score_responses_async(items))

    async def judge_answers_async(self, items: Sequence[AnswerItem]) -> list[Verdict]:
        """The same as `judge_answers`, for use inside an event loop."""
        return await self._judge_all("answer", items)

    async def score_responses_async(self, items: Sequence[ResponseItem]) -> list[Verdict]:
        """The same as `score_responses`, for use inside an event loop."""
        return await self._judge_all("response", items)

    async def _judge_all(self, kind: VerdictKind, items: Sequence[AnswerItem | ResponseItem]) -> list[Verdict]:
        import httpx
        from rich.console import Console
        from rich.progress import Progress

        verdicts: list[Verdict | None] = [None] * len(items)
        # A call keeps its place while it waits for a retry: a busy or dead endpoint slows the list down, and its
        # failures show after `max_attempts` requests, not after every item has been tried once.
        places = asyncio.Semaphore(self.concurrency)
        known = _KnownVerdicts()
        client = httpx.AsyncClient(
            auth=self._authorize,
            headers={"Content-Type": "application/json"},
            limits=httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            timeout=None,  # `_request` limits the whole request; httpx would limit each read
        )
        bar = Progress(console=Console(stderr=True), disable=not self.progress)
        line = bar.add_task(f"asking {self.model}", total=len(items))

        async def judge(number: int, item: AnswerItem | ResponseItem) -> None:
            async with places:
                verdicts[number] = await self._judge_one(client, kind, item, f"item {number}", known)
            bar.advance(line)

        with bar:
            try:
                async with client, asyncio.TaskGroup() as group:
                    for number, item in enumerate(items):
                        group.create_task(judge(number, item))
            except ExceptionGroup as errors:
                # Every item fails in its own task; the first error is what stopped the others.
                raise errors.exceptions[0] from None
        return [verdict for verdict in verdicts if verdict is not None]

    async def _judge_one(
        self,
        client: httpx.AsyncClient,
        kind: VerdictKind,
        item: AnswerItem | ResponseItem,
        label: str,
        known: _KnownVerdicts,
    ) -> Verdict:
        if isinstance(item, AnswerItem) and not item.prediction.strip():
            self._stats.empty += 1
            return Verdict(kind, False, failed=False, reason="empty prediction", attempts=0, cached=False)
        # Pictures are read and encoded, which would hold up the other requests' replies.
        body = await asyncio.to_thread(self._body, kind, item, label)
        digest = hashlib.sha256(f"{kind} {READING}\n".encode() + body).hexdigest()
        async with known.locks[digest]:
            verdict = known.verdicts.get(digest) or self._read_cache(digest, kind)
            if verdict is not None:
                self._stats.cached += not verdict.failed
                verdict = replace(verdict, attempts=0, cached=not verdict.failed)
            else:
                verdict = await self._call(client, kind, body, label, _candidate(item))
                if not verdict.failed:
                    self._write_cache(digest, verdict)
            known.verdicts[digest] = verdict
            return verdict

    async def _call(
        self, client: httpx.AsyncClient, kind: VerdictKind, body: bytes, label: str, candidate: Sequence[str]
    ) -> Verdict:
        """Ask until there is a verdict or no attempt is left."""
        import tenacity

        attempts = 0

        def before_sleep(state: tenacity.RetryCallState) -> None:
            error = _failure(state)
            self._stats.retries[error.category] += 1
            logger.debug("judge, %s: %s; attempt %d follows", label, error, state.attempt_number + 1)

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.max_attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception(self._may_pass),
            before_sleep=before_sleep,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    attempts += 1
                    value, reason = await self._request(client, kind, body, label, candidate)
        except _AttemptError as error:
            reason = str(error)
            logger.warning("judge, %s: no verdict after %d attempts (%s)", label, attempts, reason)
            self._finish_call((error.category, reason))
            return Verdict(kind, None, failed=True, reason=reason, attempts=attempts, cached=False)
        self._finish_call(None)
        return Verdict(kind, value, failed=False, reason=reason, attempts=attempts, cached=False)

    async def _request(
        self, client: httpx.AsyncClient, kind: VerdictKind, body: bytes, label: str, candidate: Sequence[str]
    ) -> tuple[VerdictValue, str]:
        """One request: the verdict and the judge's words."""
        import httpx

        self._stats.requests += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await client.post(f"{self.base_url}/chat/completions", content=body)
        except (TimeoutError, httpx.TimeoutException):
            raise _AttemptError("timeout", f"no reply within {self.timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise _AttemptError("connection", f"{type(error).__name__} {error}".strip()) from None
        status, text = response.status_code, response.text
        # The key is taken out before the excerpt is cut, which could leave half of it.
        excerpt = _excerpt(self._redact(text)) or "empty body"
        if status in (408, 429) or status >= 500:
            wait_s = _retry_after_s(response.headers.get("Retry-After"))
            raise _AttemptError(f"HTTP {status}", f"Retry-After {wait_s:g} s; {excerpt}" if wait_s else excerpt, wait_s)
        if status >= 300:
            raise JudgeError(
                f"the judge at {self.base_url} answered HTTP {status} to {label}: {excerpt}. {self._remedy(status)}"
            )
        try:
            reply, complete = _reply(text)
            # What was cut off may end inside a quotation, or be the beginning of reasoning whose opening tag stood in
            # the template. One word is neither.
            if not complete and (kind == "response" or len(reply.split()) > 1):
                raise ReplyError("cut off at the endpoint's token limit (raise max_tokens)")
            if kind == "answer":
                return parse_yes_no(reply, *candidate), _excerpt(self._redact(reply))
            scores, reasoning = parse_scores(reply, *candidate)
            return scores, self._redact(reasoning)
        except ReplyError as error:
            raise _AttemptError("unparseable reply", f"{error} in {excerpt}") from None

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"Check the key in the environment variable {self.api_key_env}." if self.api_key_env else (
                "The endpoint wants a key: name its environment variable in api_key_env."
            )  # fmt: skip
        if status == 404 or status < 400:
            return f"Check base_url and that the endpoint serves the model {self.model!r}."
        return f"Check that the model {self.model!r} takes such a request: its length, its images, its parameters."

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, _AttemptError) and error.retry_after_s <= self.max_retry_after_s

    def _wait(self, state: tenacity.RetryCallState) -> float:
        limit = min(self.wait_max_s, self.wait_base_s * 2.0 ** (state.attempt_number - 1))
        return _failure(state).retry_after_s + self._jitter.uniform(0, limit)

    def _finish_call(self, failure: tuple[str, str] | None) -> None:
        """Count a call, and stop the run when too many of the latest ones failed."""
        self._stats.calls += 1
        self._recent.append(failure)
        if failure is None:
            return
        self._stats.failed += 1
        self._stats.failures[failure[0]] += 1
        failures = [entry for entry in self._recent if entry is not None]
        calls = len(self._recent)
        if calls < self.min_calls_for_rate or len(failures) <= self.max_failure_rate * calls:
            return
        # Whoever catches the error and tries again starts afresh.
        self._recent.clear()
        examples = dict(failures)
        counts = Counter(category for category, _ in failures).most_common(3)
        reasons = "; ".join(f"{count} x {examples[category]}" for category, count in counts)
        saved = self.cache_dir is not None and not self._stats.unsaved
        kept = f" Finished verdicts are kept in {self.cache_dir}." if saved else ""
        raise JudgeError(
            f"the judge {self.model!r} at {self.base_url} failed {len(failures)} of the latest {calls} calls, "
            f"more than max_failure_rate={self.max_failure_rate:g}. Most frequent: {reasons}. Check the endpoint, give "
            f"it more time (timeout_s, max_attempts) or fewer requests at once (concurrency).{kept}"
        )

    def _body(self, kind: VerdictKind, item: AnswerItem | ResponseItem, label: str) -> bytes:
        """The request's body. Everything that can change the verdict is in it, nothing else."""
        content = _answer_content(item) if isinstance(item, AnswerItem) else _response_content(item, label)
        parameters = {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens}
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.system_texts[kind]},
                {"role": "user", "content": content},
            ],
            **{name: value for name, value in parameters.items() if value is not None},
            **self.extra_body,
        }
        # ASCII with escapes also carries the lone surrogates that a broken decode can leave in a model's text.
        return json.dumps(body, sort_keys=True).encode("ascii")

    def _api_key(self) -> str:
        """The key, or an empty string; no message ever shows it."""
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} with the judge's key is not set or empty; set it, name "
                "another one in api_key_env, or set api_key_env to null for an endpoint without keys"
            )
        # HTTP libraries quote a header they cannot send, key and all.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"the key in the environment variable {self.api_key_env} contains a blank, a line break or a character "
                "outside ASCII; set it to the key alone"
            )
        return key

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        if self.api_key_env is not None:
            request.headers["Authorization"] = f"Bearer {self._api_key()}"
        return request

    def _redact(self, text: str) -> str:
        """Text from outside, without the key: endpoints and proxies may echo a request."""
        key = self._api_key()
        return text.replace(key, "[api key]") if key else text

    def _cache_file(self, digest: str) -> Path | None:
        return None if self.cache_dir is None else self.cache_dir / digest[:2] / f"{digest[2:40]}.json"

    def _read_cache(self, digest: str, kind: VerdictKind) -> Verdict | None:
        file = self._cache_file(digest)
        if file is None:
            return None
        try:
            entry = json.loads(file.read_bytes())
            value = _stored_value(kind, entry["value"])
            if entry["digest"] != digest or not isinstance(entry["reason"], str):
                raise ValueError("it belongs to another request")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say_cache_fails("read", error)
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("%s is damaged (%s: %s) and will be made anew", file, type(error).__name__, error)
            return None
        return Verdict(kind, value, failed=False, reason=entry["reason"], attempts=0, cached=True)

    def _write_cache(self, digest: str, verdict: Verdict) -> None:
        file = self._cache_file(digest)
        if file is None:
            return
        entry = {
            "digest": digest,
            "kind": verdict.kind,
            "model": self.model,
            "value": verdict.value,
            "reason": verdict.reason,
        }
        # Written aside and moved into place: a killed run or a second process never leaves half an entry.
        partial = file.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(entry, indent=1), encoding="utf-8")
            os.replace(partial, file)
        except OSError as error:
            # The verdict has been paid for, and the run can do without the cache.
            self._stats.unsaved += 1
            self._say_cache_fails("written", error)
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _say_cache_fails(self, what: Literal["read", "written"], error: OSError) -> None:
        """Warn, the first time."""
        if what in self._cache_warnings:
            return
        self._cache_warnings.add(what)
        logger.warning(
            "the judge's cache_dir %s cannot be %s (%s): the run goes on without the entries concerned, and asks for "
            "them again another time. Check its permissions and free space, or name another folder",
            self.cache_dir, what, error,
        )  # fmt: skip


class _KnownVerdicts:
    """Verdicts of one list by digest, and a lock per digest so that equal items are asked once."""

    def __init__(self) -> None:
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.verdicts: dict[str, Verdict] = {}


def _reply(body: str) -> tuple[str, bool]:
    """What the judge said, out of the body of a chat completion, and whether it was allowed to finish."""
    try:
        choice = json.loads(body)["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, RecursionError):
        raise ReplyError("the body is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ReplyError("no choices[0].message.content") from None
    if isinstance(content, list):
        # Parts of other types hold reasoning. So do fields beside `content`, which are never read.
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if not isinstance(content, str) or not content.strip():
        raise ReplyError(f"an empty reply (finish_reason {finish_reason!r})")
    return content, finish_reason not in _CUT_OFF


def _candidate(item: AnswerItem | ResponseItem) -> tuple[str, ...]:
    """The texts of the model that is judged."""
    return (item.prediction,) if isinstance(item, AnswerItem) else (item.reasoning, item.answer)


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
    """A code that no text can contain, as it depends on all of them; the same for equal items, as the cache needs."""
    return hashlib.sha256(json.dumps(texts).encode("ascii")).hexdigest()[:16]


def _edge(side: Literal["BEGIN", "END"], name: str, code: str) -> str:
    return f"===== {side} {name} {code} ====="


def _block(name: str, text: str, code: str) -> str:
    return f"{_edge('BEGIN', name, code)}\n{text}\n{_edge('END', name, code)}"


def _split_at_images(text: str, marker: str, images: Sequence[ImageSource], label: str) -> list[str | dict[str, Any]]:
    """The text with images at its markers; before it when it has none."""
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
    """A picture as a data URL: in its own format if browsers know it, else as PNG."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, (str, Path)):
        file = Path(image)
        if not file.is_file():
            raise MissingFileError(f"{label}: there is no file {file}")
        label, image = f"{label} ({file})", file.read_bytes()
    if isinstance(image, bytes):
        data = image
        try:
            image = Image.open(BytesIO(data))
            image.load()
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise MediaError(f"{label}: not a readable picture ({error}); replace it or leave the item out") from error
        if image.format in _IMAGE_TYPES:
            return f"data:{_IMAGE_TYPES[image.format]};base64,{base64.b64encode(data).decode()}"
    stream = BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _stored_value(kind: VerdictKind, value: Any) -> VerdictValue:
    """The value of a cache entry, if it is one that could have been written."""
    if kind == "answer":
        if not isinstance(value, bool):
            raise ValueError(f"the verdict is {value!r}")
        return value
    first, second = value
    if not all(type(score) is int and MIN_SCORE <= score <= MAX_SCORE for score in (first, second)):
        raise ValueError(f"the scores are {value!r}")
    return first, second


def _failure(state: tenacity.RetryCallState) -> _AttemptError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, _AttemptError)
    return error


def _retry_after_s(header: str | None) -> float:
    """Seconds to wait by a `Retry-After` header, in seconds or as a date; 0 without a readable one."""
    if header is None:
        return 0.0
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", header):
        return float(header)
    from datetime import UTC, datetime

    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXCERPT_LENGTH else f"{text[:_EXCERPT_LENGTH]}.."


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if "@" in parts.netloc:
        raise ConfigError(
            "base_url holds a user name or password; put the key into the variable that api_key_env names"
        )
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ConfigError(f"base_url must look like http://localhost:8000/v1, without a query, got {base_url!r}")
    return base_url.rstrip("/").removesuffix("/chat/completions")


def _system_text(file: str | Path | None, built_in: str) -> str:
    if file is None:
        return (files("futurel1.rewards") / "templates" / built_in).read_text(encoding="utf-8").strip()
    if not Path(file).is_file():
        raise MissingFileError(f"there is no prompt file {file}; leave it out for the built-in text ({built_in})")
    text = Path(file).read_text(encoding="utf-8").strip()
    if not text:
        raise ConfigError(f"the prompt file {file} is empty; leave it out for the built-in text ({built_in})")
    return text


def _require_packages() -> None:
    try:
        import httpx  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the judge needs the package {error.name}: pip install httpx tenacity") from error


def _run_to_end(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine whether or not an event loop is running here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
