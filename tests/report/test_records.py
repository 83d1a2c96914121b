from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import plain_picture, write_run

from futurel1.errors import ConfigError, MissingFileError
from futurel1.report.records import RunRecords
from futurel1.report.runs import RunContents


def test_a_record_as_it_was_asked_and_what_came_later(run: RunContents) -> None:
    records = RunRecords(run)
    view = records.view("test.jsonl:1")
    stored = json.loads(records.source.files[0].path.read_text().splitlines()[0])
    assert [frame.pool_index for frame in view.shown] == stored["image"]
    assert [frame.pool_index for frame in view.future] == stored["reasoning_image"]
    assert [frame.pool_index for frame in view.later] == [5, 6, 7, 8]
    assert view.info.options == stored["options"]
    assert len(view.sources) == 1
    assert records.split("test.jsonl:1") == stored["question_type"]


def test_records_in_the_place_of_the_runs_own(run: RunContents, world: Path, tmp_path: Path) -> None:
    bare = RunContents(tmp_path)
    with pytest.raises(ConfigError, match="--data"):
        RunRecords(bare)
    records = RunRecords(bare, [str(world / "test.jsonl")])
    assert records.view("test.jsonl:2").info.answer == RunRecords(run).view("test.jsonl:2").info.answer


def test_records_that_the_data_do_not_have(run: RunContents, world: Path) -> None:
    records = RunRecords(run, [str(world / "test_open.jsonl")])
    with pytest.raises(MissingFileError, match=r"'test.jsonl:1', which is not among the 4 records of .*--data"):
        records.view("test.jsonl:1")


@pytest.mark.parametrize(
    "kind", ["nowhere.Module", "futurel1.datamodules.Nothing", "futurel1.datamodules.SceneClipsDataModule"]
)
def test_data_modules_that_open_no_records(run: RunContents, tmp_path: Path, kind: str) -> None:
    made = write_run(tmp_path / "run", list(run.predictions.values()), tmp_path)
    config = json.loads(made.config_text)
    config["data"] = {"class_path": kind, "init_args": {}}
    (made.folder / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="--data"):
        RunRecords(RunContents(made.folder))


def test_hints_whose_files_are_gone_are_no_true_frames(world: Path, tmp_path: Path) -> None:
    plain_picture("red").save(tmp_path / "seen.png")
    plain_picture("blue").save(tmp_path / "next.png")
    record = {
        "image": ["seen.png"],
        "reasoning_image": ["next.png", "gone.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat next?"},
            {"from": "gpt", "value": "THOUGHT 0: a <image>\nTHOUGHT 1: b <image>\nTHOUGHT 2: c"},
        ],
        "answer": "blue",
    }
    (tmp_path / "own.jsonl").write_text(json.dumps(record) + "\n")
    view = RunRecords(RunContents(tmp_path), [str(tmp_path / "own.jsonl")]).view("own.jsonl:1")
    assert [frame.path.name for frame in view.future] == ["next.png"]
    assert view.later == ()


def test_a_tested_benchmark_of_whole_videos(world: Path, tmp_path: Path) -> None:
    options = {"records": str(world / "futurebench.jsonl"), "num_frames": 6}
    config = {"data": {"class_path": "futurel1.datamodules.FutureBenchDataModule", "init_args": options}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    records = RunRecords(RunContents(tmp_path))
    view = records.view("futurebench.jsonl:1")
    assert len(view.videos) == 1
    assert (view.shown, view.future, view.later) == ((), (), ())
    assert view.info.split == records.split("futurebench.jsonl:1")
    assert records.sampling.num_frames == 6


def test_references_of_a_benchmark_are_its_future(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = []
    for colour in ("red", "blue"):
        plain_picture(colour).save(tmp_path / f"{colour}.png")
        images.append({"bytes": (tmp_path / f"{colour}.png").read_bytes(), "path": None})
    row = {
        "question": "<image>\nWhat next?", "answer": "It falls.", "reasoning": "It tilts. <rimage>",
        "question_images": images[:1], "reasoning_images": images[1:],
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "bench.parquet")
    options = {"records": str(tmp_path / "bench.parquet")}
    config = {"data": {"class_path": "futurel1.datamodules.TwiFFBenchDataModule", "init_args": options}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    view = RunRecords(RunContents(tmp_path)).view("bench.parquet:1")
    assert [frame.data for frame in (*view.shown, *view.future)] == [image["bytes"] for image in images]
    assert len(view.sources) == 2
