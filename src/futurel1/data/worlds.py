"""The former name of :mod:`futurel1.worlds`; it works until 1.0."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # without a `__path__`, submodules are not loaded again under this name
        raise AttributeError(name)
    return getattr(import_module("futurel1.worlds"), name)
