"""Requests to an OpenAI-compatible chat endpoint: concurrency, keys, and retries when it is slow, busy or wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from futurel1.endpoints.failures import CallCounts, CallFailure, EndpointError, ReplyError
from futurel1.errors import ConfigError

if TYPE_CHECKING:
    import httpx
    import tenacity

__all__ = [
    "AttemptError",
    "ChatClient",
    "EndpointSettings",
    "excerpt",
    "require_packages",
    "retry_after_s",
    "run_to_end",
]

logger = logging.getLogger(__name__)

_EXCERPT_LENGTH = 300
_Result = TypeVar("_Result")


class AttemptError(Exception):
    """An attempt that failed in a way that a retry may overcome."""

    def __init__(self, category: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{category}: {detail}" if detail else category)
        self.category = category
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Address of an endpoint, and limits of its requests; :class:`~futurel1.rewards.Judge` documents the settings.

    Raises:
        ConfigError: settings out of range.
    """

    base_url: str
    api_key_env: str | None
    concurrency: int
    timeout_s: float
    max_attempts: int
    wait_base_s: float
    wait_max_s: float
    max_retry_after_s: float

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("wait_base_s", "wait_max_s", "max_retry_after_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, got {self.timeout_s}")
        object.__setattr__(self, "base_url", _checked_url(self.base_url))

    def api_key(self) -> str:
        """The key, or an empty string if none is needed; no message ever shows the key.

        Raises:
            ConfigError: the key is not set, or contains characters that a request header cannot carry.
        """
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} with the key of {self.base_url} is not set or empty; set "
                "it, name another one in api_key_env, or set api_key_env to null for an endpoint without keys"
            )
        # HTTP libraries quote a header that they cannot send, including the key.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"the key in the environment variable {self.api_key_env} contains a blank, a line break or a character "
                "outside ASCII; set it to the key alone"
            )
        return key

    def redact(self, text: str) -> str:
        """Remove the key from a text: endpoints and proxies may echo a request."""
        key = self.api_key()
        return text.replace(key, "[api key]") if key else text


class ChatClient:
    """Sends requests to an endpoint until it gives a readable reply.

    Requests that time out, lose their connection, or get 408, 429, 5xx or an unreadable reply are repeated with
    exponential back-off and full jitter; `Retry-After` is honoured. Any other status raises `error`.

    Args:
        endpoint: address of the endpoint, and limits of its requests.
        model: the model's name, for messages.
        counts: object that counts requests and retries.
        asked: what the endpoint is, for messages.
        error: class of the error that a refusal raises.

    Raises:
        ConfigError: the endpoint's key is not set.
    """

    def __init__(
        self,
        endpoint: EndpointSettings,
        model: str,
        counts: CallCounts,
        *,
        asked: str = "endpoint",
        error: type[EndpointError] = EndpointError,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self._counts = counts
        self._asked = asked
        self._error = error
        # A separate generator: jitter must not advance the global one, which seeded training uses.
        self._jitter = random.Random()
        endpoint.api_key()

    async def ask_all(
        self, count: int, ask: Callable[[httpx.AsyncClient, int], Awaitable[None]], *, progress: bool
    ) -> None:
        """Ask about items 0 .. `count` - 1, at most `concurrency` of them at once.

        Args:
            count: number of items.
            ask: coroutine function that asks about the item with a number, in a session.
            progress: show a progress bar.
        """
        from rich.console import Console
        from rich.progress import Progress

        # A call keeps its place while it waits for a retry. So a busy or dead endpoint slows the whole list down, and
        # its failures show after `max_attempts` requests instead of after one attempt for every item.
        places = asyncio.Semaphore(self.endpoint.concurrency)
        bar = Progress(console=Console(stderr=True), disable=not progress)
        line = bar.add_task(f"asking {self.model}", total=count)

        async def ask_one(number: int) -> None:
            async with places:
                await ask(session, number)
            bar.advance(line)

        with bar:
            try:
                async with self.session() as session, asyncio.TaskGroup() as group:
                    for number in range(count):
                        group.create_task(ask_one(number))
            except ExceptionGroup as errors:
                # Each item fails in its own task; the first error is the one that cancelled the others.
                raise errors.exceptions[0] from None

    def session(self) -> httpx.AsyncClient:
        """A client with room for `concurrency` requests at once, for the event loop that runs."""
        import httpx

        limit = self.endpoint.concurrency
        return httpx.AsyncClient(
            auth=self._authorize,
            headers={"Content-Type": "application/json"},
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
            timeout=None,  # `_send` limits the whole request; httpx would limit each read
        )

    async def ask(
        self,
        session: httpx.AsyncClient,
        body: bytes | None,
        read: Callable[[str], _Result],
        label: str,
        *,
        path: str = "/chat/completions",
        within_s: float | None = None,
    ) -> tuple[_Result | CallFailure, int]:
        """Ask until a reply can be read or no attempt is left.

        Args:
            session: open connections, from :meth:`session`.
            body: the request; None: a GET without one.
            read: reads the body of a response; raises `ReplyError` if it cannot.
            label: names the item in messages.
            path: what is asked, behind `base_url`; with ``..`` first: beside its last part.
            within_s: attempts go on for so many seconds, whatever their number; None: `max_attempts` of them.

        Returns:
            What `read` returned, or why the last attempt failed; and the number of requests sent.

        Raises:
            EndpointError: the endpoint refuses the call; of the class that the client was given.
        """
        import tenacity

        attempts = 0

        def before_sleep(state: tenacity.RetryCallState) -> None:
            error = _failure(state)
            self._counts.retries[error.category] += 1
            logger.debug("%s, %s: %s; attempt %d follows", self._asked, label, error, state.attempt_number + 1)

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.endpoint.max_attempts)
            if within_s is None
            else tenacity.stop_after_delay(within_s),
            wait=self._wait,
            retry=tenacity.retry_if_exception(self._may_pass),
            before_sleep=before_sleep,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    attempts += 1
                    result = await self._send(session, body, read, label, path)
        except AttemptError as error:
            logger.warning("%s, %s: nothing readable after %d attempts (%s)", self._asked, label, attempts, error)
            return CallFailure(error.category, str(error)), attempts
        return result, attempts

    async def _send(
        self, session: httpx.AsyncClient, body: bytes | None, read: Callable[[str], _Result], label: str, path: str
    ) -> _Result:
        """Send one request and read its response."""
        import httpx

        self._counts.requests += 1
        base_url, timeout_s = self.endpoint.base_url, self.endpoint.timeout_s
        url = f"{base_url.rpartition('/')[0]}{path.removeprefix('..')}" if path.startswith("..") else base_url + path
        try:
            async with asyncio.timeout(timeout_s):
                response = await session.request("GET" if body is None else "POST", url, content=body)
        except (TimeoutError, httpx.TimeoutException):
            raise AttemptError("timeout", f"no reply within {timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise AttemptError("connection", f"{type(error).__name__} {error}".strip()) from None
        status, text = response.status_code, response.text
        # Redact before cutting the excerpt: a cut could leave half of the key.
        quoted = excerpt(self.endpoint.redact(text)) or "empty body"
        if status in (408, 429) or status >= 500:
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            raise AttemptError(f"HTTP {status}", f"Retry-After {wait_s:g} s; {quoted}" if wait_s else quoted, wait_s)
        if status >= 300:
            refusal = self._error(
                f"the {self._asked} at {base_url} answered HTTP {status} to {label}: {quoted}. {self._remedy(status)}"
            )
            refusal.status = status
            raise refusal
        try:
            return read(text)
        except ReplyError as error:
            raise AttemptError("unparseable reply", f"{error} in {quoted}") from None

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        if self.endpoint.api_key_env is not None:
            request.headers["Authorization"] = f"Bearer {self.endpoint.api_key()}"
        return request

    def _remedy(self, status: int) -> str:
        key = self.endpoint.api_key_env
        if status in (401, 403):
            return f"Check the key in the environment variable {key}." if key else (
                "The endpoint wants a key: name its environment variable in api_key_env."
            )  # fmt: skip
        if status == 404 or status < 400:
            return f"Check base_url and that the endpoint serves the model {self.model!r}."
        return f"Check that the model {self.model!r} takes such a request: its length, its images, its parameters."

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, AttemptError) and error.retry_after_s <= self.endpoint.max_retry_after_s

    def _wait(self, state: tenacity.RetryCallState) -> float:
        limit = min(self.endpoint.wait_max_s, self.endpoint.wait_base_s * 2.0 ** (state.attempt_number - 1))
        return _failure(state).retry_after_s + self._jitter.uniform(0, limit)


def require_packages() -> None:
    """Check that the packages that send requests are installed.

    Raises:
        ConfigError: `httpx` or `tenacity` is not installed.
    """
    try:
        import httpx  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"requests to an endpoint need the package {error.name}: pip install httpx tenacity"
        ) from error


def run_to_end(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine whether or not an event loop is running here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= _EXCERPT_LENGTH else f"{text[:_EXCERPT_LENGTH]}.."


def retry_after_s(header: str | None) -> float:
    """Seconds to wait according to a `Retry-After` header (seconds or a date); 0 without a readable one."""
    if header is None:
        return 0.0
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", header):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _failure(state: tenacity.RetryCallState) -> AttemptError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, AttemptError)
    return error


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
