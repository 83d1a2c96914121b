"""Data modules over a web server give the batches of a local disk, and `check` reports the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from range_server import RangeServer, serving

from futurel1.checking import check
from futurel1.datamodules import PromptDataModule, RolloutPromptDataModule, VideoHintDataModule
from futurel1.worlds import WorldFiles


@pytest.fixture(scope="module")
def shards(world: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and their training records in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    shutil.copytree(world.root / "videos", folder / "videos")
    lines = world.train.read_text().splitlines(keepends=True)
    for number in range(3):
        (folder / f"part-{number}.jsonl").write_text("".join(lines[number::3]))
    return folder


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))
    with serving(shards) as running:
        yield running


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_those_of_local_shards(shards: Path, server: RangeServer, num_workers: int) -> None:
    def batches(place: object) -> list:
        options = {"processor": "tiny@random", "batch_size": 2, "num_workers": num_workers}
        return list(VideoHintDataModule(train=f"{place}/part-*.jsonl", **options).train_dataloader())

    for local, remote in zip(batches(shards), batches(server.url), strict=True):
        assert local.sample_ids == remote.sample_ids
        assert torch.equal(local.input_ids, remote.input_ids)
        assert torch.equal(local.pixel_values, remote.pixel_values)
        assert torch.equal(local.hint_pixel_values, remote.hint_pixel_values)


@pytest.mark.parametrize("kind", [PromptDataModule, RolloutPromptDataModule])
def test_prompts_are_those_of_local_shards(shards: Path, server: RangeServer, kind: type) -> None:
    name, stage = ("predict", "predict") if kind is PromptDataModule else ("train", "train")

    def prompts(place: object) -> list:
        dataset = kind(**{name: str(place)}, processor="tiny@random").dataset(stage)
        return [dataset[number] for number in range(len(dataset))]

    for local, remote in zip(prompts(shards), prompts(server.url), strict=True):
        assert local.sample_id == remote.sample_id
        assert torch.equal(local.input_ids, remote.input_ids)


def test_a_check_reports_the_same(shards: Path, server: RangeServer) -> None:
    broken = json.loads((shards / "part-0.jsonl").read_text().splitlines()[0]) | {"video": "videos/gone.mp4"}
    (shards / "part-3.jsonl").write_text(json.dumps(broken) + "\n")
    try:
        local, remote = (check(str(place), num_workers=0) for place in (shards, server.url))
    finally:
        (shards / "part-3.jsonl").unlink()
    assert (remote.checked, remote.videos, remote.shapes) == (local.checked, local.videos, local.shapes)
    assert remote.per_record == local.per_record
    [problem] = remote.problems
    assert (problem.file, problem.record, problem.field) == ("part-3.jsonl", 1, "video")
    assert problem.error == "RecordFileError"
    assert problem.media == f"{server.url}/videos/gone.mp4"
