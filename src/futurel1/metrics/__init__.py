"""Benchmarks as torchmetrics, thin state around `futurel1.metrics.functional`, without Lightning.

torchmetrics is imported when a metric is first used, so that importing the parsers stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from futurel1.metrics.futurebench import FutureBenchAccuracy
    from futurel1.metrics.latent_usage import LatentUsage
    from futurel1.metrics.published import comparison_table
    from futurel1.metrics.throughput import Throughput
    from futurel1.metrics.twiffbench import TwiFFBenchScore

__all__ = ["FutureBenchAccuracy", "LatentUsage", "Throughput", "TwiFFBenchScore", "comparison_table"]

_FILES = {
    "FutureBenchAccuracy": "futurebench",
    "LatentUsage": "latent_usage",
    "Throughput": "throughput",
    "TwiFFBenchScore": "twiffbench",
    "comparison_table": "published",
}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
