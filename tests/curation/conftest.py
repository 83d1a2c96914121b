from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from planned_curation import Bench, write_records

from futurel1.data.chat import ChatEncoder
from futurel1.models import load_processor
from futurel1.worlds import write_world


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    prompt = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    prompt.write_text("Think.")
    return ChatEncoder(load_processor("tiny@random"), system_prompt=prompt)


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("candidates"))


@pytest.fixture
def bench(records: Path, encoder: ChatEncoder, tmp_path: Path) -> Callable[..., Bench]:
    """Make a curation; by default of `records`, in a folder of this test."""

    def make(name: str = "out", source: str | Path | Sequence[Path] = records) -> Bench:
        return Bench(source, encoder, tmp_path / name)

    return make


@pytest.fixture(scope="session")
def clips_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips with questions and labelled frames, and a short system prompt."""
    out = tmp_path_factory.mktemp("clips_world")
    write_world(out, train=8, test=1, size=64, progress=False)
    (out / "prompt.txt").write_text("Think.")
    return out
