"""A small world of clips, once for all tests of the datamodules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from futurel1.data.chat import ChatEncoder
from futurel1.models import load_processor
from futurel1.worlds import WorldFiles, write_world


@pytest.fixture(scope="session")
def processor() -> Any:
    return load_processor("tiny@random")


@pytest.fixture(scope="session")
def encoder(processor: Any) -> ChatEncoder:
    return ChatEncoder(processor)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    return write_world(tmp_path_factory.mktemp("world"), train=7, test=3, size=64, progress=False)


@pytest.fixture
def records(world: WorldFiles) -> Callable[..., Path]:
    """Write a record file beside the clips: training records by number, each changed by a function of it."""
    lines = [json.loads(line) for line in world.train.read_text().splitlines()]

    def write(name: str, numbers: list[int], change: Callable[[int, dict[str, Any]], None] | None = None) -> Path:
        chosen = [json.loads(json.dumps(lines[number])) for number in numbers]
        for number, record in enumerate(chosen):
            if change is not None:
                change(number, record)
        file = world.root / name
        file.write_text("".join(json.dumps(record) + "\n" for record in chosen))
        return file

    return write
