"""PromptDataModule under a Trainer: every record once, resumed runs, bad records, ranks."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.precision import HalfPrecision

from futurel1.data import PromptBatch
from futurel1.datamodules import PromptDataModule, PromptLoader
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.worlds import WorldFiles
from processes import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Total length of `LookAhead` across ranks is zero"),
]
Records = Callable[..., Path]


class Recorder(LightningModule):
    """Remembers what it was asked."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.processor = processor
        self.batches: list[PromptBatch] = []
        self.ended = 0

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.batches.append(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_test_epoch_end(self) -> None:
        self.ended += 1

    def seen(self) -> list[str]:
        return [name for batch in self.batches for name in batch.sample_ids]


def make_trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **options,
    )  # fmt: skip


def make_data(records: Path, **options: Any) -> PromptDataModule:
    return PromptDataModule(**{"predict": str(records), "num_workers": 0, **options})


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 2)])
def test_every_record_is_asked_once_in_order(
    world: WorldFiles, tmp_path: Path, processor: Any, batch_size: int, num_workers: int
) -> None:
    module = Recorder(processor)
    data = make_data(world.train, batch_size=batch_size, num_workers=num_workers)
    make_trainer(tmp_path).predict(module, datamodule=data)
    assert module.seen() == [f"train.jsonl:{number}" for number in range(1, 8)]
    assert [len(batch) for batch in module.batches] == ([1] * 7 if batch_size == 1 else [3, 3, 1])
    lines = [json.loads(line) for line in world.train.read_text().splitlines()]
    for line, info in zip(lines, chain(*(batch.info for batch in module.batches)), strict=True):
        assert (info.answer, info.options) == (line["answer"], line["options"])
        assert info.question_type == line["question_type"]
        assert info.question.endswith(line["conversations"][0]["value"].rpartition("<image>\n")[2])
    # only observed frames: four of them, and no latents to fill in
    pictures = sum(len(batch.image_grid_thw) for batch in module.batches)
    assert pictures == sum(len(line["image"]) for line in lines)


def test_a_stage_without_records_of_its_own_takes_the_other_ones(
    world: WorldFiles, tmp_path: Path, processor: Any
) -> None:
    both = PromptDataModule(predict=str(world.train), test=str(world.test), num_workers=0)
    for data, expected in [(both, 3), (make_data(world.train), 7)]:
        module = Recorder(processor)
        make_trainer(tmp_path).test(module, datamodule=data)
        assert len(module.seen()) == expected
        assert module.ended == 1


# ------------------------------------------------------------------------------------------------------ resume


def test_a_resumed_run_asks_what_is_left(world: WorldFiles, tmp_path: Path, processor: Any) -> None:
    stopped = Recorder(processor)
    make_trainer(tmp_path, limit_predict_batches=2).predict(stopped, datamodule=make_data(world.train, batch_size=2))
    assert len(stopped.seen()) == 4
    resumed = Recorder(processor)
    data = make_data(world.train, batch_size=2)
    data.skip_finished(stopped.seen())
    make_trainer(tmp_path).predict(resumed, datamodule=data)
    assert stopped.seen() + resumed.seen() == [f"train.jsonl:{number}" for number in range(1, 8)]
    # nothing is left
    data.skip_finished(resumed.seen())
    assert len(data.predict_dataloader()) == len(list(data.predict_dataloader())) == 0
    again = Recorder(processor)
    make_trainer(tmp_path).predict(again, datamodule=data)
    assert again.seen() == []


def test_finished_prompts_of_other_records_are_refused(world: WorldFiles) -> None:
    data = make_data(world.train, processor="tiny@random")
    data.skip_finished(["train.jsonl:1", "other.jsonl:4"])
    with pytest.raises(ConfigError, match=r"1 of 2 finished prompts are not among these 7 records, such as other\.jso"):
        data.predict_dataloader()


# ------------------------------------------------------------------------------------------------------ bad records


def spoil(*numbers: int) -> Callable[[int, dict[str, Any]], None]:
    def change(number: int, record: dict[str, Any]) -> None:
        if number in numbers:
            record["video"] = "gone.mp4"

    return change


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_records_are_left_out_written_down_and_never_replaced(
    records: Records, tmp_path: Path, processor: Any, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = records("some.jsonl", [0, 1, 2, 3, 4], spoil(1, 2, 3))
    for _ in range(2):  # a second run, as after a kill, writes nothing twice
        module = Recorder(processor)
        data = make_data(file, batch_size=2, on_error="skip", num_workers=num_workers)
        make_trainer(tmp_path).test(module, datamodule=data)
        assert [batch.sample_ids for batch in module.batches] == [("some.jsonl:1",), ("some.jsonl:5",)]
        assert sorted(data.skipped) == ["some.jsonl:2", "some.jsonl:3", "some.jsonl:4"]
        assert module.ended == 1
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["some.jsonl:2", "some.jsonl:3", "some.jsonl:4"]
    assert all(line["error"] == "RecordFileError" and "gone.mp4" in line["message"] for line in lines)
    assert "3 records were skipped; see skipped.jsonl" in caplog.text


def test_raise_stops_at_the_first_bad_record(records: Records, tmp_path: Path, processor: Any) -> None:
    file = records("some.jsonl", [0, 1], spoil(1))
    with pytest.raises(RecordError, match=r"some\.jsonl, record 2: there is no file .*gone\.mp4"):
        make_trainer(tmp_path).predict(Recorder(processor), datamodule=make_data(file))


def test_no_usable_record_at_all_is_an_error(records: Records, tmp_path: Path, processor: Any) -> None:
    file = records("some.jsonl", [0, 1], spoil(0, 1))
    with pytest.raises(RecordError, match="none of 2 records can be used; run with on_error: raise"):
        make_trainer(tmp_path).predict(Recorder(processor), datamodule=make_data(file, on_error="skip"))


def test_too_long_a_prompt_says_how_long_and_the_limit(world: WorldFiles, tmp_path: Path, processor: Any) -> None:
    with pytest.raises(RecordError, match=r"train\.jsonl:1: \d+ tokens, more than max_length=50"):
        make_trainer(tmp_path).predict(Recorder(processor), datamodule=make_data(world.train, max_length=50))


# ------------------------------------------------------------------------------------------------------ settings


def test_settings_that_cannot_work_are_refused(world: WorldFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data: give data\.predict"):
        PromptDataModule()
    with pytest.raises(ConfigError, match="batch_size must be at least 1 and num_workers at least 0, got 0 and 2"):
        make_data(world.train, batch_size=0, num_workers=2)
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'warn'"):
        make_data(world.train, on_error="warn")
    with pytest.raises(ConfigError, match=r"outside of a Trainer, give processor="):
        make_data(world.train).predict_dataloader()
    with pytest.raises(ConfigError, match=r"has no tokenizer; give data\.processor"):
        make_trainer(tmp_path).predict(Recorder(None), datamodule=make_data(world.train))
    with pytest.raises(MissingFileError, match=r"data_root .*nowhere: no such folder"):
        make_data(world.train, data_root=str(tmp_path / "nowhere"), processor="tiny@random").predict_dataloader()
    with pytest.raises(RecordError, match="outside data_root"):
        next(iter(make_data(world.train, data_root=str(tmp_path), processor="tiny@random").predict_dataloader()))


def test_settings_reach_the_encoder_and_are_kept(world: WorldFiles, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Answer.")
    data = make_data(world.train, system_prompt=str(tmp_path / "system.txt"), processor="tiny@random", video_fps=1.0)
    batch = next(iter(data.predict_dataloader()))
    text = data.encoder.processor.tokenizer.decode(batch.input_ids[0])
    assert text.startswith("<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\n")
    assert data.encoder.videos.sampling.fps == data.hparams["video_fps"] == 1.0
    assert data.hparams["predict"] == str(world.train)


def test_half_precision_converts_a_batch(world: WorldFiles) -> None:
    batch = next(iter(make_data(world.train, processor="tiny@random").predict_dataloader()))
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert isinstance(converted, PromptBatch)
    assert converted.pixel_values.dtype == torch.bfloat16
    assert converted.info == batch.info


# ------------------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize(
    ("records", "batch_size", "world_size"), [(7, 2, 2), (7, 3, 4), (1, 2, 3), (8, 2, 2), (5, 1, 1)]
)
def test_ranks_share_the_records_and_agree_on_the_length(records: int, batch_size: int, world_size: int) -> None:
    numbers = [number * 10 for number in range(records)]
    loaders = [
        PromptLoader([0] * 99, numbers, batch_size=batch_size, rank=rank, world_size=world_size)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    shares = [loader.numbers for loader in loaders]
    assert sorted(chain(*shares)) == numbers
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {len(loader) for loader in loaders} == {-(-max(map(len, shares)) // batch_size)}


class Counter(Recorder):
    """Adds up over ranks at the end, as metrics do."""

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        total = torch.tensor(len(self.seen()))
        torch.distributed.all_reduce(total)
        self.total = int(total)


def work(rank: int, folder: str, records: str, few: str) -> None:
    """What each process does; writes what it saw to `rank{rank}.json`."""
    from futurel1.models import load_processor

    processor = load_processor("tiny@random")
    report: dict[str, Any] = {}
    for name, file, finished in [
        ("uneven", records, []),
        ("resumed", records, ["train.jsonl:1", "train.jsonl:4"]),
        ("one", few, []),
    ]:
        module = Counter(processor)
        module.unused = torch.nn.Parameter(torch.zeros(1))  # DDP insists
        data = make_data(Path(file), batch_size=2)
        data.skip_finished(finished)
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", default_root_dir=folder, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.test(module, datamodule=data, verbose=False)
        report[name] = [[batch.sample_ids for batch in module.batches], module.total]
    Path(folder, f"rank{rank}.json").write_text(json.dumps(report))


@pytest.mark.slow
def test_two_processes_ask_every_record_once_and_meet_at_the_end(
    world: WorldFiles, records: Records, tmp_path: Path
) -> None:
    few = records("few.jsonl", [3])
    run_ranks(work, str(tmp_path), str(world.train), str(few))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))

    def named(*batches: list[int]) -> list[list[str]]:
        return [[f"train.jsonl:{number}" for number in batch] for batch in batches]

    assert first["uneven"] == [named([1, 3], [5, 7]), 7]
    assert second["uneven"] == [named([2, 4], [6]), 7]
    assert first["resumed"] == [named([2, 5], [7]), 5]
    assert second["resumed"] == [named([3, 6]), 5]
    # a rank without any record still takes part in the end
    assert (first["one"], second["one"]) == ([[["few.jsonl:1"]], 1], [[], 1])
