"""Damaged records of every shape through every data module: skipping never ends a run, raising says where and what."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import LINES, MODULES, SHAPES, damaged
from PIL import Image

from futurel1.data.collate import SFTDataset
from futurel1.data.samples import SkippedRecord
from futurel1.datamodules import (
    PromptDataModule,
    RolloutPromptDataModule,
    TwiFFBenchDataModule,
    VideoHintDataModule,
    base,
)
from futurel1.datamodules.base import RecordDataModule
from futurel1.errors import FutureL1Error


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, world: Any) -> Path:
    """A folder with a good clip and a good picture, and with all that is none."""
    folder = tmp_path_factory.mktemp("media")
    clip = next((world.root / "videos").glob("*.mp4")).read_bytes()
    (folder / "a.mp4").write_bytes(clip)
    (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    Image.new("RGB", (3000, 4)).save(folder / "thin.png")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(folder / "deep.png")
    for name in ("text.mp4", "text.png"):
        (folder / name).write_text("some text")
    (folder / "secret.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "secret.png").chmod(0)
    (folder / "locked").mkdir(mode=0)
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mp4")
    return folder


@pytest.fixture(autouse=True)
def quiet_and_quick(monkeypatch: pytest.MonkeyPatch, processor: Any) -> Iterator[None]:
    """One processor for all, and no thousands of warnings."""
    monkeypatch.setattr(base, "load_processor", lambda path: processor)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def open_dataset(kind: str, file: Path) -> tuple[RecordDataModule, SFTDataset]:
    module, setting, _ = MODULES[kind]
    data: Any = module(**{setting: str(file)}, processor="tiny@random", on_error="skip", num_workers=0)
    return data, data.dataset("predict" if kind == "futurebench" else setting)


def check(data: RecordDataModule, dataset: SFTDataset, file: Path, index: int) -> FutureL1Error | None:
    """Read one record in both modes; the error it gave, if any."""
    try:
        dataset.length(index)
        dataset[index]
    except FutureL1Error as error:
        message = str(error)
        assert message.startswith((f"{file.name}, record {index + 1}", f"{file.name}:{index + 1}: ")), ascii(message)
        assert len(message) < 3000
        data.report_skipped((dataset.skip(index, error),))
        return error
    return None


@pytest.mark.parametrize("kind", MODULES)
def test_damaged_records_are_errors_of_their_own(
    media: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = MODULES[kind][2]
    records = [json.dumps(record).encode() for record in damaged(shapes, every=3 if len(shapes) == 1 else 29)]
    file = media / f"{kind}.jsonl"
    file.write_bytes(b"\n".join([*records, *LINES]) + b"\n")
    data, dataset = open_dataset(kind, file)
    errors = [check(data, dataset, file, index) for index in range(len(dataset))]
    refused = [error for error in errors if error is not None]
    assert all(errors[len(records) :])  # none of the lines is a record
    assert len(refused) > 0.6 * len(errors)
    # what names no field is no record at all
    for error, line in zip(errors, [*records, *LINES], strict=True):
        said = "" if error is None else str(error)
        assert "field" in said or not said or line in LINES or "unknown shape" in said, ascii(said)
    lines = [json.loads(line) for line in Path("skipped.jsonl").read_bytes().splitlines()]
    assert [line["message"] for line in lines] == [str(error) for error in refused]


@pytest.mark.parametrize("workers", [0, 1])
def test_skipping_goes_on_to_the_end(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    good = json.dumps(SHAPES["paths"]).encode()
    long = json.dumps({**SHAPES["paths"], "image": ["a/" * 3000 + "x.png"]}).encode()
    (media / "mixed.jsonl").write_bytes(b"\n".join([good, long, *LINES, good]))
    options: dict[str, Any] = {"processor": "tiny@random", "on_error": "skip", "batch_size": 2, "num_workers": workers}
    sft = VideoHintDataModule(train=str(media / "mixed.jsonl"), shuffle=False, **options)
    for batch in sft.train_dataloader():
        sft.on_after_batch_transfer(batch, 0)
    seen = [name for batch in sft.train_dataloader() for name in batch.sample_ids]
    assert seen == ["mixed.jsonl:1", f"mixed.jsonl:{len(LINES) + 3}"]
    for data, stage in (
        (PromptDataModule(predict=str(media / "mixed.jsonl"), **options), "predict"),
        (RolloutPromptDataModule(val=str(media / "mixed.jsonl"), **options), "val"),
    ):
        assert [name for batch in data._loader(stage) for name in batch.sample_ids] == seen
        assert len(data.skipped) == len(LINES) + 1
    assert len(Path("skipped.jsonl").read_bytes().splitlines()) == len(LINES) + 1


def test_odd_columns_are_errors_of_their_record(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = SHAPES["paths"]
    columns: dict[str, Any] = {name: pa.array([good[name]] * 2) for name in good}
    odd = {
        "image": [pa.array([[1.5]] * 2), pa.array([[b"x"]] * 2), pa.array([{"a": 1}] * 2), pa.array(["a.png"] * 2),
                  pa.array([[("a", "b")]] * 2, pa.map_(pa.string(), pa.string()))],
        "conversations": [pa.array([[1]] * 2), pa.array([[{"from": "human"}]] * 2), pa.array([b"x"] * 2)],
        "answer": [pa.array([b"a"] * 2), pa.array([1] * 2), pa.array([10**12] * 2).cast(pa.timestamp("s"))],
        "id": [pa.array([1.5] * 2), pa.array([b"a"] * 2), pa.array([10**12] * 2).cast(pa.timestamp("s"))],
    }  # fmt: skip
    for kind in ("sft", "prompts", "rollouts"):
        for name, arrays in odd.items():
            for number, array in enumerate(arrays):
                file = media / f"{kind}-{name}-{number}.parquet"
                pq.write_table(pa.table(columns | {name: array}), file)
                data, dataset = open_dataset(kind, file)
                error = check(data, dataset, file, 1)
                if name == "id" and number < 2:  # an id of another kind becomes its text; that date has none
                    assert error is None
                    continue
                assert error is not None
                assert f"field '{name}" in str(error)


def test_damaged_embedded_images_of_twiffbench(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    png = (media / "a.png").read_bytes()
    images = [{"bytes": png, "path": None}]
    good = {"id": "q", "question": "q?", "answer": "a", "reasoning": "r", "question_images": images,
            "reasoning_images": images}  # fmt: skip
    damage = [(b"", None), (b"x", None), (None, None), (png[:60], None), (None, "a/" * 3000)]
    for number, (data, path) in enumerate(damage):
        image = {"bytes": data, "path": path}
        file = media / f"twiff-{number}.parquet"
        pq.write_table(pa.Table.from_pylist([good, {**good, "question_images": [image]}]), file)
        module = TwiFFBenchDataModule(str(file), processor="tiny@random", on_error="skip", num_workers=0)
        assert [name for batch in module.test_dataloader() for name in batch.sample_ids] == [f"{file.name}:1"]
        (skipped,) = module.skipped.values()
        assert skipped.message.startswith(f"{file.name}, record 2")
        assert "field 'question_images'" in skipped.message


def test_a_cut_line_of_skipped_records_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (SkippedRecord(f"a.jsonl:{number}", "RecordError", "no") for number in (1, 2))
    whole = json.dumps(vars(first)) + "\n"
    for cut in ("", "{", '{"id": "a.jsonl:2", "error": "Rec', json.dumps(vars(second))):
        Path("skipped.jsonl").write_text(whole + cut)
        data = VideoHintDataModule(train="a.jsonl")
        data.report_skipped((first, second))
        data.report_skipped((second,))
        lines = [json.loads(line) for line in Path("skipped.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == ["a.jsonl:1", "a.jsonl:2"]
    Path("skipped.jsonl").write_text("no json\n")
    VideoHintDataModule(train="a.jsonl").report_skipped((first,))
    assert Path("skipped.jsonl").read_text() == "no json\n" + whole
