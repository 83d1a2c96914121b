"""Requests that fail: counts of them, and the rate at which a run stops."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from futurel1.errors import ConfigError, FutureL1Error

__all__ = ["CallCounts", "CallFailure", "EndpointError", "FailureLimit", "RecentCalls", "ReplyError"]


class EndpointError(FutureL1Error, RuntimeError):
    """An endpoint refuses a call, or so many fail that the results would not be honest.

    Attributes:
        status: HTTP status of the refusal; 0 without one.
    """

    status: int = 0


class ReplyError(FutureL1Error, ValueError):
    """A reply of an endpoint does not hold what was asked for."""


@dataclass
class CallCounts:
    """What a client has sent since it was created.

    Attributes:
        requests: HTTP requests sent, including retries.
        retries: number of repeated requests, by reason.
    """

    requests: int = 0
    retries: Counter[str] = field(default_factory=Counter)


class CallFailure(NamedTuple):
    """Why a call gave no verdict.

    Attributes:
        category: what similar failures have in common.
        message: details of this failure.
    """

    category: str
    message: str


@dataclass(frozen=True, kw_only=True)
class FailureLimit:
    """Share of calls that may fail before the run stops; :class:`~futurel1.rewards.Judge` documents the settings.

    Raises:
        ConfigError: settings out of range.
    """

    max_failure_rate: float
    min_calls_for_rate: int
    failure_window: int

    def __post_init__(self) -> None:
        for name in ("min_calls_for_rate", "failure_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_failure_rate <= 1:
            raise ConfigError(f"max_failure_rate is a share from 0 to 1, got {self.max_failure_rate}")
        if self.min_calls_for_rate > self.failure_window:
            raise ConfigError(
                f"min_calls_for_rate ({self.min_calls_for_rate}) is above failure_window ({self.failure_window}), "
                "so the failure rate would never be looked at"
            )


class RecentCalls:
    """The latest calls, and a check that not too many of them failed.

    Args:
        limit: the largest share of failures, and the number of calls that it is taken over.
    """

    def __init__(self, limit: FailureLimit) -> None:
        self.limit = limit
        self._calls: deque[CallFailure | None] = deque(maxlen=limit.failure_window)

    def add(self, failure: CallFailure | None) -> str | None:
        """Record a finished call.

        Args:
            failure: why it failed; None: it has a verdict.

        Returns:
            How many calls failed and why, if this one makes them too many; else None. Counting then restarts, in case
            the caller tries again.
        """
        self._calls.append(failure)
        failures = [call for call in self._calls if call is not None]
        calls = len(self._calls)
        enough = calls >= self.limit.min_calls_for_rate
        if failure is None or not enough or len(failures) <= self.limit.max_failure_rate * calls:
            return None
        self._calls.clear()
        examples = dict(failures)
        counts = Counter(category for category, _ in failures).most_common(3)
        reasons = "; ".join(f"{count} x {examples[category]}" for category, count in counts)
        return (
            f"failed {len(failures)} of the latest {calls} calls, more than "
            f"max_failure_rate={self.limit.max_failure_rate:g}. Most frequent: {reasons}"
        )
