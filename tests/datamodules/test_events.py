"""BouncingEventsDataModule: it writes its world where there is none, and is a VideoHintDataModule over it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer

from futurel1.data import SFTBatch
from futurel1.datamodules import BouncingEventsDataModule, FutureBenchDataModule, VideoHintDataModule
from futurel1.errors import ConfigError
from futurel1.models import load_processor

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Recorder(LightningModule):
    """Learns nothing and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.processor = load_processor("tiny@random")
        self.seen: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        self.num_hints = 0

    def training_step(self, batch: SFTBatch, batch_idx: int) -> torch.Tensor:
        self.seen["train"] += batch.sample_ids
        assert batch.hint_grid_thw is not None
        self.num_hints += len(batch.hint_grid_thw)
        return self.weight.sum()

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:
        self.seen["val"] += batch.sample_ids

    def test_step(self, batch: SFTBatch, batch_idx: int) -> None:
        self.seen["test"] += batch.sample_ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("events") / "world"
    return {
        "folder": str(folder),
        "num_train": 8,
        "num_test": 3,
        "frame_size": 32,
        "num_workers": 0,
        "progress": False,
        "cache_dir": str(folder.parent / "cache"),
    }


def trainer(folder: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def records_of(settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(settings["folder"]) / name).read_text().splitlines()]


def test_it_writes_the_world_then_trains_validates_and_tests_on_its_own_clips(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    data = BouncingEventsDataModule(**settings, val_fraction=0.25, batch_size=2)
    assert isinstance(data, VideoHintDataModule)
    assert not Path(settings["folder"]).exists()
    model = Recorder()
    trainer(tmp_path).fit(model, data)
    trainer(tmp_path).test(model, data)
    seen = {stage: {name.partition(":")[0] for name in names} for stage, names in model.seen.items()}
    assert seen == {"train": {"train.jsonl"}, "val": {"train.jsonl"}, "test": {"test.jsonl"}}
    assert [len(names) for names in model.seen.values()] == [6, 2, 3]
    assert not set(model.seen["train"]) & set(model.seen["val"])
    trained = [int(name.partition(":")[2]) - 1 for name in model.seen["train"]]
    records = records_of(settings, "train.jsonl")
    assert model.num_hints == sum(len(records[number]["reasoning_image"]) for number in trained)


def test_a_second_run_keeps_clips_and_measured_lengths(settings: dict[str, Any]) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(settings["folder"]).parent.rglob("*") if path.is_file()}

    options = {**settings, "processor": "tiny@random", "tokens_per_batch": 2048}
    BouncingEventsDataModule(**options).prepare_data()
    before = files()
    assert [path.suffix for path in before].count(".npy") == 1
    BouncingEventsDataModule(**options).prepare_data()
    assert files() == before


def test_open_questions_end_in_a_sentence(settings: dict[str, Any]) -> None:
    data = BouncingEventsDataModule(**settings, processor="tiny@random", open_questions=True)
    data.prepare_data()
    dataset = data.dataset("train")
    assert dataset is not None
    answers = [dataset.source.sample(number).answer for number in range(len(dataset.source))]
    assert answers == [record["answer"] for record in records_of(settings, "train_open.jsonl")]
    assert all(answer is not None and "ends in the" in answer for answer in answers)
    assert len(next(iter(data.train_dataloader())).input_ids) == 1


def test_the_benchmark_of_the_same_folder_reads_as_futurebench(settings: dict[str, Any]) -> None:
    BouncingEventsDataModule(**settings).prepare_data()
    bench = FutureBenchDataModule(
        str(Path(settings["folder"]) / "futurebench.jsonl"), processor="tiny@random", num_workers=0
    )
    batches = list(bench.test_dataloader())
    assert [batch.info[0].answer for batch in batches] == [r["letter"] for r in records_of(settings, "test.jsonl")]
    # four observed frames, in pairs as the model takes them
    assert [batch.video_grid_thw.tolist()[0][0] for batch in batches if batch.video_grid_thw is not None] == [2, 2, 2]


def test_another_seed_in_the_same_folder_and_empty_splits_are_errors(settings: dict[str, Any]) -> None:
    BouncingEventsDataModule(**settings).prepare_data()
    with pytest.raises(ConfigError, match="other settings"):
        BouncingEventsDataModule(**settings, world_seed=1).prepare_data()
    with pytest.raises(ConfigError, match="num_train and num_test"):
        BouncingEventsDataModule(**{**settings, "num_test": 0})


def test_every_setting_but_the_paths_can_be_given_in_a_config() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(BouncingEventsDataModule, "data")
    names = set(vars(parser.get_defaults().data))
    assert {"folder", "num_train", "world_seed", "val_fraction", "tokens_per_batch", "max_latent_tokens"} <= names
    assert not {"train", "val", "test", "predict", "options"} & names
