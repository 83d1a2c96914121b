"""Checks of record files: good ones give no problems, and each damage is named with file and record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged import BENCH, DAMAGE, GOOD, INDEXED, PATHS, RL

from futurel1.checking import CheckReport, check
from futurel1.datamodules import RolloutPromptDataModule, VideoHintDataModule
from futurel1.errors import ConfigError
from futurel1.worlds import WorldFiles

MAX_LENGTH = 700
Write = Callable[..., str]


def quick(data: Any, **options: Any) -> CheckReport:
    return check(data, model="tiny@random", **{"num_workers": 0, **options})


def test_good_records_of_every_shape_are_counted(write: Write) -> None:
    report = quick(write(*GOOD.values()))
    assert report.ok, report
    assert not report.warnings
    assert report.records == {"train": 5}
    assert report.checked == 5
    assert report.shapes == dict.fromkeys(GOOD, 1)
    assert (report.videos, report.images, report.too_long) == (1, 2, 0)
    assert report.formats == {"mov h264": 1}
    assert report.resolutions == {"32 x 32": 1}
    assert report.per_record["hints"].most == report.per_record["spans"].most == 1
    assert report.per_record["hints"].least == 0  # the chat
    assert report.per_record["tokens"].least > 10
    assert "no problems, 0 warnings" in str(report)


@pytest.mark.parametrize("kind", ["rl", "prompts", "futurebench"])
def test_good_prompts(write: Write, kind: Any) -> None:
    files = {
        "rl": [RL, BENCH, INDEXED | {"reasoning_image": [8]}],
        "prompts": [INDEXED, PATHS],
        "futurebench": [BENCH, BENCH],
    }
    report = quick(write(*files[kind]), kind=kind)
    assert report.ok, report
    assert report.checked == sum(report.shapes.values()) == len(files[kind])
    assert "latents" not in report.per_record  # a prompt has none


@pytest.fixture(scope="module")
def damaged_report(media: Path, processor: Any) -> CheckReport:
    records = [each if isinstance(each, str) else json.dumps(each) for each, *_ in DAMAGE.values()]
    (media / "damaged.jsonl").write_text("\n".join([json.dumps(INDEXED), *records, json.dumps(PATHS)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("futurel1.datamodules.base.load_processor", lambda path: processor)
        return quick(str(media / "damaged.jsonl"), max_length=MAX_LENGTH, data_root=str(media))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_with_file_and_record(damaged_report: CheckReport, media: Path, damage: str) -> None:
    number = list(DAMAGE).index(damage) + 2
    (problem,) = (problem for problem in damaged_report.problems if problem.record == number)
    _, error, field, file = DAMAGE[damage]
    assert (problem.split, problem.file, problem.error) == ("train", "damaged.jsonl", error)
    assert problem.field == field
    assert problem.media == (str(media / file) if file else "")
    assert problem.message.startswith((f"damaged.jsonl, record {number}", f"damaged.jsonl:{number}: "))


def test_damage_is_counted_and_told(damaged_report: CheckReport, media: Path) -> None:
    assert not damaged_report.ok
    assert len(damaged_report.problems) == len(DAMAGE)
    assert sum(damaged_report.shapes.values()) == 2
    assert damaged_report.too_long == 1
    assert damaged_report.unreadable == {str(media / name): 1 for name in ("none.mp4", "cut.mp4", "text.png")}
    text = str(damaged_report)
    assert "1 x RecordFileError, field 'video'" in text
    assert f"{len(DAMAGE)} problems, 1 of them longer than max_length, 0 warnings" in text


def test_a_run_that_skips_leaves_out_what_is_reported(
    damaged_report: CheckReport, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"max_length": MAX_LENGTH, "data_root": str(media), "on_error": "skip", "num_workers": 0}
    data = VideoHintDataModule(train=str(media / "damaged.jsonl"), processor="tiny@random", shuffle=False, **options)
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch, 0)
    skipped = {name: (record.error, record.message) for name, record in data.skipped.items()}
    found = {f"{each.file}:{each.record}": (each.error, each.message) for each in damaged_report.problems}
    assert found == skipped


def test_a_run_of_prompts_leaves_out_what_is_reported(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = [RL | {"answer": "C"}, RL | {"videos": ["cut.mp4"]}, RL | {"options": ["up", 3]}, BENCH | {"qa": 3}]
    odd.append(RL | {"problem": "word " * 300})
    training = [each for each, *_ in DAMAGE.values()]
    file = write(RL, *odd, *training, GOOD["unlabelled video"], PATHS | {"reasoning_image": ["none.png"]})
    data = RolloutPromptDataModule(val=file, processor="tiny@random", max_length=300, on_error="skip", num_workers=0)
    kept = [name for batch in data.val_dataloader() for name in batch.sample_ids]
    report = quick(file, kind="rl", max_length=300)
    assert [f"{each.file}:{each.record}" for each in report.problems] == list(data.skipped)
    assert len(kept) == report.checked - len(report.problems)
    assert report.too_long == 1
    assert kept[-1] == f"some.jsonl:{report.checked}"  # hints of a prompt need not be there


def test_workers_find_the_same(damaged_report: CheckReport, media: Path) -> None:
    options: dict[str, Any] = {"max_length": MAX_LENGTH, "data_root": str(media), "num_workers": 2}
    again = quick(str(media / "damaged.jsonl"), **options)
    assert again.problems == damaged_report.problems
    assert again.per_record == damaged_report.per_record
    assert (again.videos, again.resolutions) == (damaged_report.videos, damaged_report.resolutions)


def test_a_sample_is_chosen_by_its_seed(write: Write) -> None:
    file = write(*[INDEXED | {"video": f"{number}.mp4"} for number in range(20)])
    reports = [quick(file, sample=5, seed=seed) for seed in (0, 0, 1)]
    numbers = [[problem.record for problem in report.problems] for report in reports]
    assert numbers[0] == numbers[1] != numbers[2]
    assert [len(each) for each in numbers] == [5, 5, 5]
    assert "5 of 20 records checked, chosen at random (seed 1)" in str(reports[2])
    assert quick(file, sample=21).seed is None


def test_no_setting_that_cannot_work_is_passed_over(write: Write) -> None:
    with pytest.raises(ConfigError, match="sample is at least 1"):
        quick(write(INDEXED), sample=0)
    with pytest.raises(ConfigError, match="video_root"):
        quick(write(INDEXED), video_root="/tmp")
    with pytest.raises(ConfigError, match="max_length"):
        quick(write(INDEXED), max_length=0)


def test_a_file_that_cannot_be_opened_is_a_problem(write: Write, world: WorldFiles) -> None:
    report = quick(write())
    assert [problem.record for problem in report.problems] == [None]
    assert "the file is empty" in str(report)
    assert "no such file" in str(quick("nowhere.jsonl"))
    assert quick([str(world.train), write(INDEXED)]).records == {"train": 5}
