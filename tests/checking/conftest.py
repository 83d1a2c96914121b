"""A small world, its damaged records, and one processor for all checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from futurel1.datamodules import base
from futurel1.models import load_processor
from futurel1.worlds import WorldFiles, write_world

Records = list[dict[str, Any]]


@pytest.fixture(scope="session")
def processor() -> Any:
    return load_processor("tiny@random")


@pytest.fixture(autouse=True)
def one_processor(monkeypatch: pytest.MonkeyPatch, processor: Any) -> None:
    monkeypatch.setattr(base, "load_processor", lambda path: processor)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    return write_world(tmp_path_factory.mktemp("world"), train=4, test=2, size=32, progress=False)


@pytest.fixture(scope="session")
def media(world: WorldFiles) -> Path:
    """A folder with a good clip and a good picture, and with files that are none."""
    folder = world.root / "media"
    folder.mkdir()
    clip = next(iter(sorted((world.root / "videos").glob("*.mp4")))).read_bytes()
    (folder / "a.mp4").write_bytes(clip)
    (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (64, 64), (number * 90,) * 3).save(folder / name)
    (folder / "text.png").write_text("some text")
    return folder


@pytest.fixture
def write(media: Path, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Write a record file beside the media."""

    def write(*records: dict[str, Any] | str, name: str = "some.jsonl") -> str:
        file = media / name
        file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
        return str(file)

    return write
