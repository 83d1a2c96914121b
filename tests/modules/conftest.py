from __future__ import annotations

from pathlib import Path

import pytest

from futurel1.worlds import write_world
from opening import write_opening


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world: 24 training and 8 test clips of 64 pixels, and a short system prompt."""
    out = tmp_path_factory.mktemp("world")
    write_world(out, train=24, test=8, size=64, progress=False)
    (out / "prompt.txt").write_text("Think, then answer.")
    return out


@pytest.fixture(scope="session")
def rl_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts to learn from and four held-out ones of two frames each, and a short system prompt."""
    out = tmp_path_factory.mktemp("rl_world")
    write_world(out, train=4, test=4, rl=8, size=64, task="next_zone", progress=False)
    (out / "prompt.txt").write_text("Think, then answer.")
    return out


@pytest.fixture(scope="session")
def opening(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny checkpoint with a projection head, which opens a span with the first token of every response."""
    return write_opening(tmp_path_factory.mktemp("opening"))
