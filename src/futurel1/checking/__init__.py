"""Checking the records of a run before it starts: each is read as the run would read it (`docs/data.md`)."""

from futurel1.checking.data_check import check
from futurel1.checking.findings import Finding, Problem, RecordFacts
from futurel1.checking.record_checks import RecordChecks
from futurel1.checking.report import CheckReport, Spread
from futurel1.checking.splits import Kind, Split, open_splits

__all__ = [
    "CheckReport",
    "Finding",
    "Kind",
    "Problem",
    "RecordChecks",
    "RecordFacts",
    "Split",
    "Spread",
    "check",
    "open_splits",
]
