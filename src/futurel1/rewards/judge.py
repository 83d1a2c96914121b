"""A judge behind any OpenAI-compatible chat endpoint: judges answers, and scores TwiFF-Bench responses.

A verdict is either what the judge really said, or marked as failed; a failed call never counts as "wrong". Verdicts are
only read from the judge's reply, by the rules of `judge_replies` (`docs/rewards.md`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from futurel1.endpoints import (
    CallFailure,
    ChatClient,
    EndpointSettings,
    FailureLimit,
    RecentCalls,
    excerpt,
    require_packages,
    run_to_end,
)
from futurel1.rewards.judge_prompts import AnswerItem, RequestSettings, ResponseItem, candidate_texts, system_text
from futurel1.rewards.judge_replies import VerdictKind, VerdictValue, read_verdict
from futurel1.rewards.judge_stats import JudgeError, JudgeStats
from futurel1.rewards.verdict_cache import VerdictCache, request_digest

if TYPE_CHECKING:
    import httpx

__all__ = ["Judge", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one item.

    Attributes:
        kind: `"answer"` (yes or no) or `"response"` (two scores).
        value: right or wrong; or (reasoning, answer), each 0-5; None when the call failed.
        failed: there is no verdict; do not count the item as wrong.
        reason: the judge's own words, or why the call failed.
        attempts: requests sent for this verdict.
        cached: taken from the disk cache, or from an equal item earlier in the list.
    """

    kind: VerdictKind
    value: VerdictValue | None
    failed: bool
    reason: str
    attempts: int
    cached: bool


class Judge:
    """Client that asks an OpenAI-compatible chat endpoint for verdicts.

    Requests that time out, lose their connection, or get 408, 429, 5xx or a reply without a verdict are repeated with
    exponential back-off and full jitter; `Retry-After` is honoured. Any other status stops the run, because every
    further call would get it too. A call that never succeeds gives a failed `Verdict`; too many of them stop the run.

    Equal items in one list are asked about once.

    Args:
        base_url: address of the API, without `/chat/completions`, e.g. `http://localhost:8000/v1`.
        model: name of the judge's model at that address.
        api_key_env: environment variable that holds the key; None: the endpoint needs none. The key is read when it is
            needed, and never stored in an attribute, log line, message or file.
        concurrency: most requests in flight at once, per call of a `judge_*` or `score_*` method.
        timeout_s: longest duration of a request, from start to end.
        max_attempts: most requests for one verdict.
        wait_base_s: longest wait before the first retry; it doubles with every further retry.
        wait_max_s: longest wait before any retry without a `Retry-After`.
        max_retry_after_s: a `Retry-After` longer than this ends the call as failed.
        cache_dir: folder of verdicts, kept across runs; None: no cache. Entries are named by a digest of the model, the
            prompt, the images, the parameters and the rules for reading replies, but not of the address; failures are
            not stored. If the folder cannot be read or written, calls are repeated, and one warning says so.
        max_failure_rate: share of failed calls above which the run stops.
        min_calls_for_rate: number of calls before that share is checked.
        failure_window: number of latest calls that the share is taken over, so that a late outage stops a long run too.
        temperature: sampling temperature of the judge; None: not sent, for models that refuse it.
        seed: sampling seed sent to the endpoint; None: not sent.
        max_tokens: most tokens of a reply; None: the endpoint's default.
        extra_body: further fields of the request, e.g. `{"chat_template_kwargs": {"enable_thinking": False}}`.
        accuracy_prompt: file with the system text for `judge_answers`; None: the built-in one.
        twiff_prompt: file with the system text for `score_responses`; None: the built-in one.
        progress: show a progress bar.

    Raises:
        ConfigError: an argument out of range, a key that is not set, or `httpx` or `tenacity` is not installed.
        MissingFileError: a prompt file does not exist.
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
        require_packages()
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
        self.request = RequestSettings(
            model=model, temperature=temperature, seed=seed, max_tokens=max_tokens, extra_body=dict(extra_body or {})
        )
        limit = FailureLimit(
            max_failure_rate=max_failure_rate, min_calls_for_rate=min_calls_for_rate, failure_window=failure_window
        )
        self.cache = None if cache_dir is None else VerdictCache(cache_dir, model)
        self.system_texts: dict[VerdictKind, str] = {
            "answer": system_text(accuracy_prompt, "judge_accuracy.txt"),
            "response": system_text(twiff_prompt, "judge_twiff.txt"),
        }
        self.progress = progress
        self._stats = JudgeStats()
        self._recent = RecentCalls(limit)
        self._client = ChatClient(self.endpoint, model, self._stats, asked="judge", error=JudgeError)

    def __repr__(self) -> str:
        return f"Judge(base_url={self.endpoint.base_url!r}, model={self.request.model!r})"

    @property
    def stats(self) -> JudgeStats:
        """A copy of the counts so far."""
        return replace(self._stats, retries=self._stats.retries.copy(), failures=self._stats.failures.copy())

    def judge_answers(self, items: Sequence[AnswerItem]) -> list[Verdict]:
        """Ask, for each answer, whether it is right. An empty prediction is wrong without a call.

        Inside a running event loop (a notebook, an async program) the calls run in a separate thread, and the loop is
        blocked until they are done; `await judge_answers_async(..)` does not block it.

        Args:
            items: N answers.

        Returns:
            N verdicts in the same order; `value` is a bool, or None if `failed`.

        Raises:
            JudgeError: the endpoint refuses the calls, or more than `max_failure_rate` of them failed.
        """
        return run_to_end(self.judge_answers_async(items))

    def score_responses(self, items: Sequence[ResponseItem]) -> list[Verdict]:
        """Ask for two scores of each TwiFF-Bench response. See `judge_answers` on running event loops.

        Args:
            items: N responses.

        Returns:
            N verdicts in the same order; `value` is (reasoning, answer), each 0-5, or None if `failed`.

        Raises:
            JudgeError: the endpoint refuses the calls, or more than `max_failure_rate` of them failed.
            MediaError: an image cannot be read.
            MissingFileError: an image file does not exist.
            RecordError: a text has markers, but not one per image.
        """
        return run_to_end(self.score_responses_async(items))

    async def judge_answers_async(self, items: Sequence[AnswerItem]) -> list[Verdict]:
        """The same as `judge_answers`, for use inside an event loop."""
        return await self._judge_all("answer", items)

    async def score_responses_async(self, items: Sequence[ResponseItem]) -> list[Verdict]:
        """The same as `score_responses`, for use inside an event loop."""
        return await self._judge_all("response", items)

    async def _judge_all(self, kind: VerdictKind, items: Sequence[AnswerItem | ResponseItem]) -> list[Verdict]:
        verdicts: list[Verdict | None] = [None] * len(items)
        known = _KnownVerdicts()

        async def judge(session: httpx.AsyncClient, number: int) -> None:
            verdicts[number] = await self._judge_one(session, kind, items[number], f"item {number}", known)

        await self._client.ask_all(len(items), judge, progress=self.progress)
        return [verdict for verdict in verdicts if verdict is not None]

    async def _judge_one(
        self,
        session: httpx.AsyncClient,
        kind: VerdictKind,
        item: AnswerItem | ResponseItem,
        label: str,
        known: _KnownVerdicts,
    ) -> Verdict:
        if isinstance(item, AnswerItem) and not item.prediction.strip():
            self._stats.empty += 1
            return Verdict(kind, False, failed=False, reason="empty prediction", attempts=0, cached=False)
        # In a thread, because reading and encoding pictures would delay the replies to other requests.
        body = await asyncio.to_thread(self.request.body, self.system_texts[kind], item, label)
        digest = request_digest(kind, body)
        async with known.locks[digest]:
            verdict = known.verdicts.get(digest) or self._cached(digest, kind)
            if verdict is not None:
                self._stats.cached += not verdict.failed
                verdict = replace(verdict, attempts=0, cached=not verdict.failed)
            else:
                verdict = await self._ask(session, kind, body, label, candidate_texts(item))
                if self.cache is not None and verdict.value is not None:
                    saved = self.cache.write(digest, kind, verdict.value, verdict.reason)
                    self._stats.unsaved += not saved
            known.verdicts[digest] = verdict
            return verdict

    def _cached(self, digest: str, kind: VerdictKind) -> Verdict | None:
        if self.cache is None or (found := self.cache.read(digest, kind)) is None:
            return None
        value, reason = found
        return Verdict(kind, value, failed=False, reason=reason, attempts=0, cached=True)

    async def _ask(
        self, session: httpx.AsyncClient, kind: VerdictKind, body: bytes, label: str, candidate: Sequence[str]
    ) -> Verdict:
        """Ask for one verdict."""

        def read(reply: str) -> tuple[VerdictValue, str]:
            value, words = read_verdict(kind, reply, *candidate)
            words = self.endpoint.redact(words)
            return value, excerpt(words) if kind == "answer" else words

        outcome, attempts = await self._client.ask(session, body, read, label)
        if isinstance(outcome, CallFailure):
            self._count(outcome)
            return Verdict(kind, None, failed=True, reason=outcome.message, attempts=attempts, cached=False)
        self._count(None)
        value, reason = outcome
        return Verdict(kind, value, failed=False, reason=reason, attempts=attempts, cached=False)

    def _count(self, failure: CallFailure | None) -> None:
        """Count a call, and stop the run if too many of the latest ones failed."""
        self._stats.calls += 1
        if failure is not None:
            self._stats.failed += 1
            self._stats.failures[failure.category] += 1
        if (too_many := self._recent.add(failure)) is None:
            return
        kept = ""
        if self.cache is not None and not self._stats.unsaved:
            kept = f" Finished verdicts are kept in {self.cache.folder}."
        raise JudgeError(
            f"the judge {self.request.model!r} at {self.endpoint.base_url} {too_many}. Check the endpoint, give it "
            f"more time (timeout_s, max_attempts) or fewer requests at once (concurrency).{kept}"
        )


class _KnownVerdicts:
    """Verdicts of one list by digest, with a lock per digest so that equal items are asked about once."""

    def __init__(self) -> None:
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.verdicts: dict[str, Verdict] = {}
