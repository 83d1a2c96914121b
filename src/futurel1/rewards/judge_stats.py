"""What a judge has done so far, and when too much of it has failed to go on."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from futurel1.errors import ConfigError, FutureL1Error

__all__ = ["CallFailure", "FailureLimit", "JudgeError", "JudgeStats", "RecentCalls"]


class JudgeError(FutureL1Error, RuntimeError):
    """The endpoint refuses the calls, or too many of them fail, so going on would not give honest numbers."""


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


class CallFailure(NamedTuple):
    """Why a call gave no verdict.

    Attributes:
        category: what calls that failed alike have in common.
        message: what happened to this one.
    """

    category: str
    message: str


@dataclass(frozen=True, kw_only=True)
class FailureLimit:
    """How many calls may fail before the run stops; :class:`~futurel1.rewards.Judge` documents the settings.

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
    """The latest calls, of which only so many may fail.

    Args:
        limit: how many.
    """

    def __init__(self, limit: FailureLimit) -> None:
        self.limit = limit
        self._calls: deque[CallFailure | None] = deque(maxlen=limit.failure_window)

    def add(self, failure: CallFailure | None) -> str | None:
        """Take down a finished call.

        Args:
            failure: why it failed; None: it has a verdict.

        Returns:
            How many calls failed and why, when this one makes them too many. The count then starts afresh, for whoever
            tries again.
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
