"""Counts of a judge's calls."""

from collections import Counter
from dataclasses import dataclass, field

from futurel1.endpoints import CallCounts, EndpointError

__all__ = ["JudgeError", "JudgeStats"]


class JudgeError(EndpointError):
    """The endpoint refuses the calls, or so many fail that the results would not be honest."""


@dataclass
class JudgeStats(CallCounts):
    """What a judge has done since it was created.

    Attributes:
        calls: finished items that were asked about, with or without a verdict.
        requests: HTTP requests sent, including retries.
        cached: items answered from the disk cache, or by an equal item in the same list.
        empty: empty predictions, wrong without a call.
        failed: calls without a verdict after all attempts.
        unsaved: verdicts that could not be written to the cache.
        retries: number of repeated requests, by reason.
        failures: number of failed calls, by reason.
    """

    calls: int = 0
    cached: int = 0
    empty: int = 0
    failed: int = 0
    unsaved: int = 0
    failures: Counter[str] = field(default_factory=Counter)
