from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from futurel1.data.chat import ChatEncoder
from futurel1.models import load_processor


@pytest.fixture(scope="session")
def processor() -> Any:
    return load_processor("tiny@random")


@pytest.fixture(scope="session")
def encoder(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    prompt = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    prompt.write_text("Think.")
    return ChatEncoder(processor, system_prompt=prompt)


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    """A picture with a different colour at each pixel."""
    from PIL import Image

    picture = Image.new("RGB", (64, 32))
    picture.putdata([(4 * x, 8 * y, 128) for y in range(32) for x in range(64)])
    picture.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
