"""The YAML of a run as data to check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from damaged import INDEXED

from futurel1.checking import check, open_splits
from futurel1.checking.splits import data_module
from futurel1.datamodules import BouncingEventsDataModule, VideoHintDataModule
from futurel1.errors import ConfigError, MissingFileError
from futurel1.worlds import WorldFiles

Write = Callable[..., str]


def config(folder: Path, data: dict[str, Any], **more: Any) -> str:
    file = folder / "run.yaml"
    model = {"class_path": "LatentSFTModule", "init_args": {"backbone": "tiny@random", "learning_rate": "1e-5"}}
    file.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"max_steps": 3}} | more))
    return str(file)


def test_all_files_of_a_run_are_checked_with_its_settings(write: Write, world: WorldFiles, tmp_path: Path) -> None:
    val = write(INDEXED | {"video": "none.mp4"}, INDEXED, name="val.jsonl")
    arguments = {
        "train": [str(world.train), write(INDEXED, name="more.jsonl")], "val": val, "predict": val,
        "fixed_latents": True, "max_latent_tokens": 3, "max_hint_tokens": 4,
    }  # fmt: skip
    file = config(tmp_path, {"class_path": "VideoHintDataModule", "init_args": arguments})
    report = check(file, num_workers=0)
    assert report.records == {"train": 5, "val": 2}  # predict names the same file
    assert report.processor == "tiny@random"
    assert report.per_record["latents"].most == 3 * report.per_record["hints"].most
    assert [(each.split, each.file, each.record) for each in report.problems] == [("val", "val.jsonl", 1)]
    shared = [each for each in report.warnings if each.error == "media that are also in train"]
    assert [(each.split, Path(each.media).name, each.record) for each in shared] == [("val", "a.mp4", None)]


def test_a_mixture_is_checked_record_by_record(write: Write, world: WorldFiles, tmp_path: Path) -> None:
    mixture = [{"path": str(world.train), "weight": 0.25}, {"path": [write(INDEXED, name="more.jsonl")], "weight": 3}]
    data = {"class_path": "VideoHintDataModule", "init_args": {"train": mixture}}
    assert check(config(tmp_path, data), num_workers=0).records == {"train": 5}
    mixture[0]["weight"] = "much"
    with pytest.raises(ConfigError, match="weight"):
        check(config(tmp_path, data), num_workers=0)


def test_options_replace_settings_of_the_file(world: WorldFiles, tmp_path: Path) -> None:
    data = {"class_path": "futurel1.datamodules.VideoHintDataModule",
            "init_args": {"train": str(world.train), "val_fraction": 0.25, "max_length": 5}}  # fmt: skip
    report = check(config(tmp_path, data), max_length=4000, model="tiny", num_workers=0)
    assert report.ok, report
    assert (report.max_length, report.processor, report.records) == (4000, "tiny", {"train": 3, "val": 1})
    assert not check(config(tmp_path, data), num_workers=0).ok


def test_a_split_that_cannot_be_opened_leaves_the_others(write: Write, tmp_path: Path) -> None:
    arguments = {"train": str(tmp_path / "none.jsonl"), "val": write(INDEXED)}
    report = check(config(tmp_path, {"class_path": "VideoHintDataModule", "init_args": arguments}), num_workers=0)
    assert report.records == {"val": 1}
    assert [(each.split, each.file, each.record, each.error) for each in report.problems] == [
        ("train", "", None, "MissingFileError")
    ]


def test_the_processor_is_that_of_the_data_or_of_the_model(write: Write, tmp_path: Path) -> None:
    arguments = {"train": write(INDEXED), "processor": "other"}
    data = {"class_path": "VideoHintDataModule", "init_args": arguments}
    made = data_module(config(tmp_path, data), kind=None, model=None, settings={})
    assert isinstance(made, VideoHintDataModule)
    assert made.hparams["processor"] == "other"
    del arguments["processor"]
    rl = {"class_path": "LADAPOModule", "init_args": {"init_from": "runs/sft"}}
    assert data_module(config(tmp_path, data, model=rl), kind=None, model=None, settings={}).hparams["processor"] == (
        "runs/sft"
    )
    with pytest.raises(ConfigError, match="give --model"):
        data_module(config(tmp_path, data, model=None), kind=None, model=None, settings={})


def test_a_world_that_is_made_by_the_run_is_read_where_it_lies(world: WorldFiles, tmp_path: Path) -> None:
    data = {"class_path": "BouncingEventsDataModule", "init_args": {"folder": str(world.root), "num_train": 4}}
    made = data_module(config(tmp_path, data), kind=None, model=None, settings={})
    assert isinstance(made, BouncingEventsDataModule)
    splits, problems = open_splits(made)
    assert [(split.name, len(split.dataset)) for split in splits] == [("train", 4), ("test", 2)]
    assert not problems


def test_files_that_name_no_records(write: Write, tmp_path: Path) -> None:
    drawn = config(tmp_path, {"class_path": "SceneClipsDataModule", "init_args": {}})
    with pytest.raises(ConfigError, match="SceneClipsDataModule is no RecordDataModule"):
        check(drawn)
    with pytest.raises(ConfigError, match="leave --kind out"):
        check(drawn, kind="rl")
    misspelt = {"class_path": "VideoHintDataModule", "init_args": {"trian": write(INDEXED)}}
    with pytest.raises(ConfigError, match="trian"):
        check(config(tmp_path, misspelt))
    with pytest.raises(MissingFileError, match="no such file"):
        check(str(tmp_path / "none.yaml"))
    (tmp_path / "other.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        check(str(tmp_path / "other.yaml"))
    (tmp_path / "other.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"no data\.class_path"):
        check(str(tmp_path / "other.yaml"))
