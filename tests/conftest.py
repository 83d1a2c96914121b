"""Settings and fixtures for all tests. Nothing here, and nothing tested here, ever goes to the network."""

import gc
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models: one thread is as fast as many, and does not fight the other test process over the cores. Processes that
# tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # a plugin may have imported torch before the line above

pytest.register_assert_rewrite("campaign_runs")  # the assertions of a helper module say what differs

pytest_plugins = ["campaign_table"]

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


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("FUTUREL1_NEEDS_CHROMIUM"):
            pytest.fail("no Chromium in PATH, and FUTUREL1_NEEDS_CHROMIUM is set: apt-get install chromium")
        pytest.skip("no Chromium in PATH (chromium, chromium-browser or google-chrome)")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'futurel1[dev]'"
    )
    with sync_api.sync_playwright() as started:
        made = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield made
        made.close()
