"""Five hundred damaged records and media for every data module: each is used or named, and the rest goes on."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import LINES, MODULES, SHAPES, damaged
from PIL import Image

from futurel1.datamodules import TwiFFBenchDataModule, base
from futurel1.errors import FutureL1Error
from futurel1.models import load_processor
from futurel1.worlds import write_world

DAMAGES = 500


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip and a picture."""
    folder = tmp_path_factory.mktemp("originals")
    write_world(folder / "world", train=1, test=1, size=64, progress=False)
    shutil.copy(next((folder / "world" / "videos").glob("*.mp4")), folder / "a.mp4")
    Image.effect_noise((64, 64), 80).convert("RGB").save(folder / "a.png")
    return folder


@pytest.fixture(autouse=True)
def one_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    processor = load_processor("tiny@random")
    monkeypatch.setattr(base, "load_processor", lambda path: processor)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def hit(data: bytes, generator: random.Random) -> bytes:
    """A file that was cut, overwritten, padded or had bits flipped."""
    way = generator.choice(["cut", "flip", "zero", "insert", "swap", "empty"])
    at = generator.randrange(len(data))
    size = min(len(data) - at, 1 << generator.randrange(10))
    changed = bytearray(data)
    if way == "cut":
        del changed[at:]
    elif way == "flip":
        for _ in range(1 + generator.randrange(64)):
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif way == "zero":
        changed[at : at + size] = bytes(size)
    elif way == "insert":
        changed[at:at] = generator.randbytes(size)
    elif way == "swap":
        changed[at : at + size] = reversed(changed[at : at + size])
    else:
        changed.clear()
    return bytes(changed)


@pytest.mark.parametrize("name", MODULES)
def test_damaged_records_and_media_are_used_or_named(
    name: str, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: Callable[[str, int, int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    make, setting, shapes = MODULES[name]
    generator = random.Random(name)
    for file in ("a.mp4", "a.png"):
        shutil.copy(originals / file, tmp_path)
    lines: list[bytes] = []
    odd = damaged(shapes, every=1)
    for number in range(DAMAGES):
        if number % 2:  # a sound record of damaged media
            record: dict[str, Any] = {"id": number, **SHAPES[generator.choice(shapes)]}
            text = json.dumps(record)
            for original in ("a.mp4", "a.png"):
                own = f"{number}{original}"
                (tmp_path / own).write_bytes(hit((originals / original).read_bytes(), generator))
                text = text.replace(f'"{original}"', f'"{own}"')
            lines.append(text.encode())
        elif number % 50 == 0:
            lines.append(generator.choice(LINES))
        else:  # a record with another value at one place, or bytes that were hit
            text = json.dumps(generator.choice(odd))
            line = text.encode() if number % 4 else hit(text.encode(), generator)
            lines.append(line.replace(b"\n", b" ").replace(b"\r", b" ") or b"?")
    sound = json.dumps(SHAPES[shapes[0]]).encode()
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"\n".join([sound, *lines, sound]) + b"\n")
    data: Any = make(**{setting: str(file)}, processor="tiny@random", on_error="skip", num_workers=0)
    dataset = data.dataset("predict" if name == "futurebench" else setting)
    assert len(dataset) == DAMAGES + 2
    held, lost = used_or_named(dataset, file)
    trials(f"{name}: damaged record or medium", len(dataset), held)
    assert lost == []


def test_damaged_pictures_of_twiffbench_are_used_or_named(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: Callable[[str, int, int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = random.Random("twiffbench")
    png = (originals / "a.png").read_bytes()
    sound = [{"bytes": png, "path": None}]
    rows = []
    for number in range(DAMAGES):
        record: dict[str, Any] = {"id": str(number), "question": "q?", "answer": "a", "reasoning": "r <image>",
                                  "question_images": sound, "reasoning_images": sound}  # fmt: skip
        if number % 2:
            field = generator.choice(["question_images", "reasoning_images"])
            record[field] = [{"bytes": hit(png, generator), "path": None}]
        else:
            field = generator.choice(list(record))
            odd: list[Any] = (
                [None, [], [None], [{"bytes": None, "path": None}]] if "images" in field else [None, "", "\0"]
            )
            record[field] = generator.choice(odd)
        rows.append(record)
    file = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    data = TwiFFBenchDataModule(str(file), processor="tiny@random", on_error="skip", num_workers=0)
    held, lost = used_or_named(data.dataset("test"), file)
    trials("twiffbench: damaged record or picture", DAMAGES, held)
    assert lost == []


def used_or_named(dataset: Any, file: Path) -> tuple[int, list[tuple[int, str]]]:
    """Read every record: how many were read, or refused by name; and those that failed otherwise."""
    lost: list[tuple[int, str]] = []
    for index in range(len(dataset)):
        names = (f"{file.name}, record {index + 1}", f"{file.name}:{index + 1}: ")
        try:
            dataset.length(index)
            dataset[index]
        except FutureL1Error as error:
            if not str(error).startswith(names):
                lost.append((index + 1, repr(error)[:300]))
        except Exception as error:
            lost.append((index + 1, repr(error)[:300]))
    return len(dataset) - len(lost), lost
