"""Settings and fixtures for all tests. Nothing here, and nothing tested here, ever goes to the network."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models: one thread is as fast as many, and does not fight the other test process over the cores. Processes that
# tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # a plugin may have imported torch before the line above

# The first example of a property pays for imports, so a time limit per example only makes tests fail at random.
settings.register_profile("futurel1", deadline=None)
settings.load_profile("futurel1")


def pytest_collection_finish() -> None:
    """Spare the garbage collector the libraries, which stay: it takes a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


GOLDEN = Path(__file__).parent / "golden"
"""Parity data made with the reference code."""


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the parity data."""
    return GOLDEN
