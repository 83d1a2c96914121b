"""VideoHintDataModule under a Trainer: which records it shows, in what order, and what it does about bad ones."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from futurel1.data import SFTBatch
from futurel1.datamodules import VideoHintDataModule
from futurel1.datamodules import video_hint as subject
from futurel1.datamodules.loading import count_totals
from futurel1.errors import ConfigError, RecordError
from futurel1.models import LatentReasoner, LatentTokens
from futurel1.worlds import WorldFiles
from leaving import leave_half
from rounding import assert_same_but_rounding

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]
Records = Callable[..., Path]


class Recorder(LightningModule):
    """Learns nothing and remembers what it was shown."""

    def __init__(self, processor: Any, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.processor = processor
        self.stop_at = stop_at
        self.batches: dict[str, list[SFTBatch]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: SFTBatch, batch_idx: int) -> torch.Tensor:
        if len(self.batches["train"]) == self.stop_at:
            raise KeyError("the machine is gone")
        self.batches["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.batches["val"].append(batch)

    def test_step(self, batch: SFTBatch, batch_idx: int) -> None:
        self.batches["test"].append(batch)

    def predict_step(self, batch: SFTBatch, batch_idx: int) -> None:
        self.batches["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def seen(self, stage: str = "train") -> list[str]:
        return [name for batch in self.batches[stage] for name in batch.sample_ids]


class SaveOnce(Callback):
    """Writes a checkpoint at one moment, when so many training batches have been seen."""

    def __init__(self, moment: str, after: int, file: Path) -> None:
        self.moment, self.after, self.file = moment, after, file

    def _save(self, moment: str, trainer: Trainer, module: Any) -> None:
        if moment == self.moment and len(module.batches["train"]) == self.after and not self.file.exists():
            trainer.save_checkpoint(self.file)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._save("batch", trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save("epoch", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save("validation", trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._save("exception", trainer, pl_module)


def make_trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        default_root_dir=folder,
        **{**quiet, "num_sanity_val_steps": 0, "max_epochs": 1, **options},
    )


def make_data(folder: Path, **options: Any) -> VideoHintDataModule:
    return VideoHintDataModule(**{"num_workers": 0, "cache_dir": str(folder / "cache"), **options})


@pytest.fixture
def train(world: WorldFiles) -> str:
    return str(world.train)


def numbered(file: str | Path, count: int) -> list[str]:
    return [f"{Path(file).name}:{number}" for number in range(1, count + 1)]


# ------------------------------------------------------------------------------------------------------ epochs


@pytest.mark.parametrize(
    ("batching", "num_workers"), [({"batch_size": 2}, 2), ({"batch_size": 3}, 0), ({"tokens_per_batch": 800}, 0)]
)
def test_fit_shows_every_record_once_an_epoch(
    train: str, tmp_path: Path, processor: Any, batching: dict[str, int], num_workers: int
) -> None:
    module = Recorder(processor)
    data = make_data(tmp_path, train=train, num_workers=num_workers, **batching)
    make_trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    per_epoch = len(data.train_dataloader())
    epochs = [
        [name for batch in batches for name in batch.sample_ids]
        for batches in (module.batches["train"][:per_epoch], module.batches["train"][per_epoch:])
    ]
    assert [sorted(epoch) for epoch in epochs] == [numbered(train, 7)] * 2
    assert epochs[0] != epochs[1]


def test_batches_keep_to_the_token_budget(train: str, tmp_path: Path, processor: Any) -> None:
    module = Recorder(processor)
    data = make_data(tmp_path, train=train, tokens_per_batch=1600)
    make_trainer(tmp_path).fit(module, datamodule=data)
    sizes = [batch.input_ids.shape for batch in module.batches["train"]]
    assert all(rows * longest <= 1600 for rows, longest in sizes)
    assert max(rows for rows, _ in sizes) > 1
    # what was measured without decoding is what the encoder makes
    dataset = data.dataset("train")
    assert dataset is not None
    assert data.lengths("train").tolist() == [len(dataset[number]) for number in range(7)]


def test_batches_know_the_totals_of_their_optimizer_step(train: str, tmp_path: Path, processor: Any) -> None:
    module = Recorder(processor)
    data = make_data(tmp_path, train=train, batch_size=2)
    make_trainer(tmp_path, accumulate_grad_batches=3).fit(module, datamodule=data)
    tokens = LatentTokens.from_tokenizer(processor.tokenizer)
    assert tokens is not None
    batches = module.batches["train"]
    assert len(batches) == 4
    for window in (batches[:3], batches[3:]):
        total = count_totals(window, tokens)
        assert min(total) > 0
        assert [(batch.total_tokens, batch.total_latents) for batch in window] == [total] * len(window)


def test_totals_stop_where_limit_train_batches_does(train: str, tmp_path: Path, processor: Any) -> None:
    module = Recorder(processor)
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2, limit_train_batches=3)
    trainer.fit(module, datamodule=make_data(tmp_path, train=train, batch_size=2))
    tokens = LatentTokens.from_tokenizer(processor.tokenizer)
    assert tokens is not None
    last = module.batches["train"][2]
    assert (last.total_tokens, last.total_latents) == count_totals([last], tokens)


def test_overfitting_repeats_the_same_batches(train: str, tmp_path: Path, processor: Any) -> None:
    module = Recorder(processor)
    trainer = make_trainer(tmp_path, max_epochs=3, overfit_batches=2)
    trainer.fit(module, datamodule=make_data(tmp_path, train=train, batch_size=2))
    epochs = [module.seen()[start : start + 4] for start in (0, 4, 8)]
    assert len(set(epochs[0])) == 4
    assert epochs == [epochs[0]] * 3


def test_reloading_loaders_goes_on_with_the_epochs(train: str, tmp_path: Path, processor: Any) -> None:
    seen = []
    for options in ({}, {"reload_dataloaders_every_n_epochs": 1}):
        module = Recorder(processor)
        trainer = make_trainer(tmp_path, max_epochs=3, limit_train_batches=2, **options)
        trainer.fit(module, datamodule=make_data(tmp_path, train=train, batch_size=2))
        seen.append(module.seen())
    assert seen[0] == seen[1]


# ------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ("batching", "options", "moment", "after"),
    [
        ({"batch_size": 2}, {"max_epochs": 3}, "batch", 2),
        ({"batch_size": 2}, {"max_epochs": 3}, "batch", 4),
        ({"batch_size": 2}, {"max_epochs": 3}, "batch", 6),
        ({"batch_size": 2}, {"max_epochs": 3}, "epoch", 4),
        ({"batch_size": 2}, {"max_epochs": 3}, "exception", 6),
        ({"batch_size": 2}, {"max_epochs": -1, "max_steps": 10}, "batch", 5),
        ({"batch_size": 2}, {"max_epochs": -1, "max_steps": 10}, "epoch", 4),
        ({"batch_size": 2}, {"max_epochs": -1, "max_steps": 10, "accumulate_grad_batches": 2}, "batch", 6),
        ({"batch_size": 2}, {"max_epochs": 3, "accumulate_grad_batches": 2}, "batch", 6),
        ({"batch_size": 2}, {"max_epochs": 3, "accumulate_grad_batches": 2}, "batch", 5),
        ({"batch_size": 2}, {"max_epochs": 3, "limit_train_batches": 3}, "batch", 3),
        ({"batch_size": 2}, {"max_epochs": 3, "limit_train_batches": 3}, "epoch", 6),
        ({"batch_size": 2, "val_fraction": 0.2}, {"max_epochs": 3}, "validation", 3),
        ({"batch_size": 2, "val_fraction": 0.2}, {"max_epochs": 3, "val_check_interval": 2}, "validation", 5),
        ({"tokens_per_batch": 800}, {"max_epochs": 3}, "batch", 9),
        ({"tokens_per_batch": 800}, {"max_epochs": 3, "accumulate_grad_batches": 2}, "batch", 2),
        ({"tokens_per_batch": 800}, {"max_epochs": 3}, "epoch", 4),
    ],
)
def test_a_resumed_run_sees_exactly_what_the_uninterrupted_one_would_have_seen(
    train: str,
    tmp_path: Path,
    processor: Any,
    batching: dict[str, Any],
    options: dict[str, Any],
    moment: str,
    after: int,
) -> None:
    def data() -> VideoHintDataModule:
        return make_data(tmp_path, train=train, **batching)

    file = tmp_path / "run.ckpt"
    stopped = Recorder(processor, stop_at=after if moment == "exception" else None)
    saver = make_trainer(tmp_path, callbacks=[SaveOnce(moment, after, file)], **options)
    if moment == "exception":
        with pytest.raises(KeyError):
            saver.fit(stopped, datamodule=data())
        whole = Recorder(processor)
        make_trainer(tmp_path, **options).fit(whole, datamodule=data())
    else:
        # saving changes nothing, so the run that saved is the uninterrupted one
        saver.fit(stopped, datamodule=data())
        whole = stopped
    resumed = Recorder(processor)
    make_trainer(tmp_path, **options).fit(resumed, datamodule=data(), ckpt_path=file)
    rest = whole.batches["train"][after:]
    assert len(rest) > 2
    assert [batch.sample_ids for batch in resumed.batches["train"]] == [batch.sample_ids for batch in rest]
    if after % options.get("accumulate_grad_batches", 1) == 0:
        totals = [
            [(batch.total_tokens, batch.total_latents) for batch in part] for part in (resumed.batches["train"], rest)
        ]
        assert totals[0] == totals[1]


def test_a_run_with_other_batches_is_not_resumed_in_the_middle_of_an_epoch(
    train: str, tmp_path: Path, processor: Any
) -> None:
    file = tmp_path / "run.ckpt"
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[SaveOnce("batch", 2, file)])
    trainer.fit(Recorder(processor), datamodule=make_data(tmp_path, train=train, batch_size=2))
    with pytest.raises(ConfigError, match="not those of the interrupted run"):
        make_trainer(tmp_path, max_epochs=2).fit(
            Recorder(processor), datamodule=make_data(tmp_path, train=train, batch_size=3), ckpt_path=file
        )


# ---------------------------------------------------------------------------------------------------- mixtures


@pytest.fixture
def mixed(records: Records) -> list[dict[str, Any]]:
    """Five records of which one sample in seven comes, and two of which the others come."""
    return [
        {"path": str(records("five.jsonl", [0, 1, 2, 3, 4])), "weight": 1},
        {"path": [str(records("two.jsonl", [5, 6]))], "weight": 6},
    ]


def test_an_epoch_shows_the_share_of_each_source(
    mixed: list[dict[str, Any]], tmp_path: Path, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    for num_workers in (0, 1):
        module = Recorder(processor)
        data = make_data(tmp_path, train=mixed, batch_size=2, num_workers=num_workers)
        with caplog.at_level("INFO"):
            make_trainer(tmp_path, max_epochs=5).fit(module, datamodule=data)
        seen.append(module.seen())
    assert seen[0] == seen[1]
    epochs = [Counter(seen[0][start : start + 7]) for start in range(0, 35, 7)]
    assert len(seen[0]) == 35
    assert all(epoch["two.jsonl:1"] == epoch["two.jsonl:2"] == 3 for epoch in epochs)
    # over five epochs each of the five has its turn
    assert sorted(name for name in seen[0] if name.startswith("five")) == numbered("five.jsonl", 5)
    assert "five.jsonl: 1 of 7 samples an epoch (14.3%) from 5 records, weight 1" in caplog.text


@pytest.mark.parametrize(("after", "options"), [(2, {}), (5, {"accumulate_grad_batches": 2}), (6, {})])
def test_a_resumed_mixture_goes_on_with_the_very_next_sample(
    mixed: list[dict[str, Any]], tmp_path: Path, processor: Any, after: int, options: dict[str, Any]
) -> None:
    file = tmp_path / "run.ckpt"
    whole, resumed = Recorder(processor), Recorder(processor)
    data = {"train": mixed, "batch_size": 2, "val_fraction": 0.15}
    saver = make_trainer(tmp_path, max_epochs=3, callbacks=[SaveOnce("batch", after, file)], **options)
    saver.fit(whole, datamodule=make_data(tmp_path, **data))
    make_trainer(tmp_path, max_epochs=3, **options).fit(
        resumed, datamodule=make_data(tmp_path, num_workers=1, **data), ckpt_path=file
    )
    rest = [batch.sample_ids for batch in whole.batches["train"][after:]]
    assert [batch.sample_ids for batch in resumed.batches["train"]] == rest
    assert len(rest) > 2
    assert not set(whole.seen()) & set(whole.seen("val"))


def test_other_weights_are_not_resumed(mixed: list[dict[str, Any]], tmp_path: Path, processor: Any) -> None:
    file = tmp_path / "run.ckpt"
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[SaveOnce("batch", 2, file)])
    trainer.fit(Recorder(processor), datamodule=make_data(tmp_path, train=mixed, batch_size=2))
    mixed[0]["weight"] = 6
    with pytest.raises(ConfigError, match="Resume with the same data, weights"):
        make_trainer(tmp_path, max_epochs=2).fit(
            Recorder(processor), datamodule=make_data(tmp_path, train=mixed, batch_size=2), ckpt_path=file
        )


def test_a_mixture_needs_batches_of_a_fixed_size(mixed: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"weights in data\.train with tokens_per_batch: .*set batch_size instead"):
        VideoHintDataModule(train=mixed, tokens_per_batch=800)


# ------------------------------------------------------------------------------------------------------ splits


def split(folder: Path, processor: Any, **options: Any) -> tuple[list[str], list[str]]:
    module = Recorder(processor)
    make_trainer(folder).fit(module, datamodule=make_data(folder, **options))
    return module.seen("train"), module.seen("val")


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.3, 2), (0.5, 4)])
def test_a_validation_split_is_disjoint_covers_everything_and_stays_the_same(
    train: str, tmp_path: Path, processor: Any, fraction: float, held_out: int
) -> None:
    shown, validated = split(tmp_path, processor, train=train, val_fraction=fraction, batch_size=2)
    assert len(validated) == held_out
    assert sorted(shown + validated) == numbered(train, 7)
    again = split(tmp_path, processor, train=train, val_fraction=fraction, batch_size=3)[1]
    assert again == validated


def test_another_seed_is_another_split(train: str, tmp_path: Path, processor: Any) -> None:
    splits = {
        tuple(split(tmp_path, processor, train=train, val_fraction=0.3, batch_size=4, seed=seed)[1])
        for seed in range(4)
    }
    assert len(splits) > 1


def test_validation_is_the_same_every_epoch(train: str, tmp_path: Path, processor: Any) -> None:
    module = Recorder(processor)
    trainer = make_trainer(tmp_path, max_epochs=3, limit_train_batches=1, num_sanity_val_steps=2)
    trainer.fit(module, datamodule=make_data(tmp_path, train=train, val_fraction=0.5))
    seen = module.seen("val")
    assert seen == seen[:4] * 3


def test_separate_files(world: WorldFiles, train: str, tmp_path: Path, processor: Any) -> None:
    shown, validated = split(tmp_path, processor, train=train, val=str(world.test), batch_size=2)
    assert sorted(shown) == numbered(train, 7)
    assert validated == numbered(world.test, 3)


def test_no_validation_at_all(train: str, tmp_path: Path, processor: Any) -> None:
    shown, validated = split(tmp_path, processor, train=train, batch_size=4)
    assert (len(shown), validated) == (7, [])


def evaluate(folder: Path, processor: Any, stage: str, **options: Any) -> list[str]:
    module = Recorder(processor)
    trainer = make_trainer(folder)
    {"val": trainer.validate, "test": trainer.test, "predict": trainer.predict}[stage](
        module, datamodule=make_data(folder, batch_size=2, **options)
    )
    return module.seen(stage)


def test_what_each_command_reads(world: WorldFiles, records: Records, tmp_path: Path, processor: Any) -> None:
    files = {"train": str(world.train), "val": str(world.test)}
    validation = numbered(world.test, 3)
    assert [evaluate(tmp_path, processor, stage, **files) for stage in ("val", "test", "predict")] == [validation] * 3
    files["test"] = str(records("own_test.jsonl", [0, 1]))
    tested = numbered(files["test"], 2)
    assert [evaluate(tmp_path, processor, stage, **files) for stage in ("val", "test", "predict")] == [
        validation, tested, tested,
    ]  # fmt: skip
    files["predict"] = str(records("own_predict.jsonl", [2]))
    assert evaluate(tmp_path, processor, "predict", **files) == numbered(files["predict"], 1)


def test_a_named_file_is_read_whole_even_when_it_is_the_training_file(
    train: str, tmp_path: Path, processor: Any
) -> None:
    assert evaluate(tmp_path, processor, "test", train=train, test=train, val_fraction=0.3) == numbered(train, 7)
    assert len(evaluate(tmp_path, processor, "test", train=train, val_fraction=0.3)) == 2


def test_nothing_to_evaluate_is_an_error(train: str, tmp_path: Path, processor: Any) -> None:
    for stage, remedy in (("val", r"`validate`: give data\.val, or"), ("test", r"`test`: give data\.test"),
                          ("predict", r"`predict`: give data\.predict")):  # fmt: skip
        with pytest.raises(ConfigError, match=remedy):
            evaluate(tmp_path, processor, stage, train=train)


def test_fitting_without_training_records_is_an_error(world: WorldFiles, tmp_path: Path, processor: Any) -> None:
    with pytest.raises(ConfigError, match=r"no training records: give data\.train"):
        split(tmp_path, processor, val=str(world.test))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no data: give data\.train"),
        ({"train": "a.json", "val": "b.json", "val_fraction": 0.1}, "val or val_fraction, not both"),
        ({"train": "a.json", "val_fraction": 1.0}, r"below 1, got 1\.0"),
        ({"train": "a.json", "val_fraction": -0.1}, r"got -0\.1"),
        ({"test": "a.json", "val_fraction": 0.1}, r"val_fraction=0\.1 is a share of data\.train"),
        ({"train": "a.json", "batch_size": 0}, "at least 1.* got 0, None and"),
        ({"train": "a.json", "tokens_per_batch": 0}, "at least 1.* got 1, 0 and"),
        ({"train": "a.json", "num_workers": -1}, "num_workers at least 0.* and -1"),
        ({"train": "a.json", "shuffle_shards": 0}, "shuffle_shards must be at least 1, got 0"),
        ({"train": "a.json", "on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoHintDataModule(**options)


def test_a_split_that_takes_every_record(records: Records, tmp_path: Path, processor: Any) -> None:
    with pytest.raises(ConfigError, match="no records; give more data or another val_fraction"):
        split(tmp_path, processor, train=str(records("one.jsonl", [0])), val_fraction=0.5)


def test_without_a_trainer_a_processor_has_to_be_named(train: str, tmp_path: Path, processor: Any) -> None:
    with pytest.raises(ConfigError, match="processor="):
        make_data(tmp_path, train=train).train_dataloader()
    loader = make_data(tmp_path, train=train, processor="tiny@random", batch_size=7).train_dataloader()
    assert sorted(chain(*(batch.sample_ids for batch in loader))) == numbered(train, 7)


def test_a_model_without_a_tokenizer(train: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer; give data\.processor"):
        make_trainer(tmp_path).fit(Recorder(None), datamodule=make_data(tmp_path, train=train))


# ------------------------------------------------------------------------------------------------------ lengths


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of records measured, one entry per time."""
    calls: list[int] = []
    measure = subject._measure

    def spy(dataset: Any, numbers: list[int], num_workers: int) -> list[int]:
        calls.append(len(numbers))
        return measure(dataset, numbers, num_workers)

    monkeypatch.setattr(subject, "_measure", spy)
    return calls


def test_lengths_are_measured_once_and_kept(
    records: Records, tmp_path: Path, processor: Any, measured: list[int]
) -> None:
    file = records("lengths.jsonl", [0, 1, 2])

    def fit(**options: Any) -> np.ndarray[Any, Any]:
        data = make_data(tmp_path, train=str(file), tokens_per_batch=2000, **options)
        make_trainer(tmp_path, limit_train_batches=1).fit(Recorder(processor), datamodule=data)
        return data.lengths("train")

    first = fit()
    assert measured == [3]
    assert fit(num_workers=1).tolist() == first.tolist()
    assert measured == [3]
    # another setting, another file: measured anew
    assert fit(max_latent_tokens=1).sum() < first.sum()
    assert measured == [3, 3]
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Answer.")
    assert fit(system_prompt=str(prompt)).max() < first.max()
    prompt.write_text("Answer, please.")
    fit(system_prompt=str(prompt))
    assert measured == [3] * 4
    records("lengths.jsonl", [3, 4, 5, 6])
    os.utime(file, ns=(1, 1))
    assert len(fit()) == 4
    assert measured == [3, 3, 3, 3, 4]


def test_a_cache_of_lengths_that_fails_costs_only_time(
    records: Records, tmp_path: Path, processor: Any, measured: list[int], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    file = records("lengths.jsonl", [0, 1, 2])

    def lengths() -> list[int]:
        data = make_data(tmp_path, train=str(file), tokens_per_batch=2000, processor="tiny@random")
        return list(data.lengths("train"))

    first = lengths()
    (cache,) = (tmp_path / "cache").glob("lengths-*.npy")
    cache.unlink()
    leave_half(cache)  # a run was killed while it wrote them
    assert lengths() == first
    assert list(cache.parent.iterdir()) == [cache]
    whole = cache.read_bytes()
    for damage in (whole[:-5], b"", b"\0" * 200):
        cache.write_bytes(damage)
        assert lengths() == first
        assert cache.read_bytes() == whole
    assert measured == [3] * 5
    assert caplog.text.count("record lengths are measured again") == 3
    cache.unlink()

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(subject, "replacing", refused)
    assert lengths() == first
    assert f"cache_dir {tmp_path / 'cache'} cannot be written ([Errno 30] Read-only file system)" in caplog.text


@pytest.mark.parametrize("damage", ["pickle", "another shape", "floats", "cut", "empty"])
def test_damaged_lengths_are_measured_again(
    records: Records, tmp_path: Path, measured: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = records("two.jsonl", [0, 1])
    data = make_data(tmp_path, train=str(file), tokens_per_batch=2000, processor="tiny@random")
    right = data.lengths("train").tolist()
    (stored,) = (tmp_path / "cache").glob("lengths-*.npy")
    whole = stored.read_bytes()
    if damage == "pickle":
        np.save(stored, np.array([print, 1], dtype=object), allow_pickle=True)
    elif damage in ("another shape", "floats"):
        np.save(stored, np.ones(3, np.int64) if damage == "another shape" else np.ones(2))
    else:
        stored.write_bytes(whole[:-3] if damage == "cut" else b"")
    again = make_data(tmp_path, train=str(file), tokens_per_batch=2000, processor="tiny@random")
    assert again.lengths("train").tolist() == right
    assert measured == [2, 2]
    assert "is damaged" in caplog.text
    assert np.load(stored, allow_pickle=False).tolist() == right


def test_splits_of_equal_size_have_lengths_of_their_own(
    records: Records, tmp_path: Path, processor: Any, measured: list[int]
) -> None:
    def lengthen(number: int, record: dict[str, Any]) -> None:
        record["conversations"][0]["value"] += " really" * (20 * number)

    file = records("halves.jsonl", [0, 1, 2, 3], lengthen)
    data = make_data(tmp_path, train=str(file), val_fraction=0.5, tokens_per_batch=4000)
    make_trainer(tmp_path).fit(Recorder(processor), datamodule=data)
    assert measured == [2, 2]
    for stage in ("train", "val"):
        dataset = data.dataset(stage)  # type: ignore[arg-type]
        assert dataset is not None
        assert data.lengths(stage).tolist() == [len(dataset[number]) for number in range(2)]  # type: ignore[arg-type]


def test_records_that_could_not_be_measured_are_tried_again(
    world: WorldFiles, records: Records, tmp_path: Path, processor: Any, measured: list[int]
) -> None:
    late = world.videos / "late.mp4"

    def point_to_late(number: int, record: dict[str, Any]) -> None:
        if number == 1:
            record["video"] = f"videos/{late.name}"

    file = records("late.jsonl", [0, 1, 2], point_to_late)
    options = {"train": str(file), "tokens_per_batch": 2000, "on_error": "skip"}
    assert make_data(tmp_path, processor="tiny@random", **options).lengths("train").tolist()[1] == 1
    late.write_bytes(next(world.videos.glob("train-*.mp4")).read_bytes())
    try:
        lengths = make_data(tmp_path, processor="tiny@random", **options).lengths("train")
    finally:
        late.unlink()
    assert measured == [3, 1]
    assert lengths.min() > 100


def test_a_record_over_the_budget_is_named(train: str, tmp_path: Path, processor: Any) -> None:
    with pytest.raises(ConfigError, match=r"train\.jsonl:\d has \d+ tokens, more than tokens_per_batch=100; raise"):
        make_trainer(tmp_path).fit(
            Recorder(processor), datamodule=make_data(tmp_path, train=train, tokens_per_batch=100)
        )


def test_records_over_max_length_can_be_skipped_under_a_budget(
    records: Records, tmp_path: Path, processor: Any
) -> None:
    def lengthen(number: int, record: dict[str, Any]) -> None:
        record["conversations"][0]["value"] += " really" * (1000 if number == 1 else 0)

    file = records("long.jsonl", [0, 1, 2], lengthen)
    module = Recorder(processor)
    data = make_data(tmp_path, train=str(file), tokens_per_batch=900, max_length=900, on_error="skip")
    make_trainer(tmp_path).fit(module, datamodule=data)
    assert sorted(module.seen()) == ["long.jsonl:1", "long.jsonl:3"]
    assert list(data.skipped) == ["long.jsonl:2"]


# ------------------------------------------------------------------------------------------------- bad records


@pytest.fixture
def damaged(records: Records) -> Path:
    """Five records; the second has no question and the fourth no video."""

    def damage(number: int, record: dict[str, Any]) -> None:
        if number == 1:
            record["image"] = []
        elif number == 3:
            record["video"] = "videos/nowhere.mp4"

    return records("damaged.jsonl", [0, 1, 2, 3, 4], damage)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_record_that_cannot_be_used_stops_the_run(
    damaged: Path, tmp_path: Path, processor: Any, num_workers: int
) -> None:
    data = make_data(tmp_path, train=str(damaged), shuffle=False, num_workers=num_workers)
    module = Recorder(processor)
    with pytest.raises(RecordError, match=r"damaged\.jsonl, record 2, field 'image'"):
        make_trainer(tmp_path).fit(module, datamodule=data)
    assert module.seen() == ["damaged.jsonl:1"]
    assert not (tmp_path / "skipped.jsonl").exists()


@pytest.mark.parametrize(
    ("batching", "num_workers"), [({"batch_size": 1}, 1), ({"batch_size": 2}, 0), ({"tokens_per_batch": 2000}, 0)]
)
def test_skipped_records_are_written_once_and_counted(
    damaged: Path, tmp_path: Path, processor: Any, batching: dict[str, int], num_workers: int
) -> None:
    data = make_data(tmp_path, train=str(damaged), on_error="skip", num_workers=num_workers, **batching)
    module = Recorder(processor)
    make_trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    assert Counter(module.seen()) == {f"damaged.jsonl:{number}": 2 for number in (1, 3, 5)}
    written = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted((entry["id"], entry["error"]) for entry in written) == [
        ("damaged.jsonl:2", "RecordError"),
        ("damaged.jsonl:4", "RecordFileError"),
    ]
    messages = {entry["id"]: entry["message"] for entry in written}
    assert "field 'image'" in messages["damaged.jsonl:2"]
    assert "nowhere.mp4" in messages["damaged.jsonl:4"]
    assert sorted(data.skipped) == sorted(messages)
    # a run that goes on in the same folder does not write them again
    make_trainer(tmp_path).fit(
        Recorder(processor), datamodule=make_data(tmp_path, train=str(damaged), on_error="skip", **batching)
    )
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2


def test_the_number_of_skipped_records_is_logged(
    damaged: Path, tmp_path: Path, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(tmp_path, train=str(damaged), on_error="skip", batch_size=2)
    with caplog.at_level("WARNING", logger="futurel1"):
        make_trainer(tmp_path, max_epochs=2).fit(Recorder(processor), datamodule=data)
    texts = [record.getMessage() for record in caplog.records if record.name == "futurel1.datamodules.base"]
    assert [text.split(" (")[0] for text in texts[:-1]] in (
        ["skipped damaged.jsonl:2", "skipped damaged.jsonl:4"], ["skipped damaged.jsonl:4", "skipped damaged.jsonl:2"],
    )  # fmt: skip
    assert texts[-1].startswith("2 records were skipped")


def test_when_no_record_can_be_used_the_run_stops(records: Records, tmp_path: Path, processor: Any) -> None:
    file = records("hopeless.jsonl", [0, 1], lambda number, record: record.update(image=[]))
    with pytest.raises(RecordError, match="none of 2 records can be used"):
        make_trainer(tmp_path).fit(
            Recorder(processor), datamodule=make_data(tmp_path, train=str(file), on_error="skip")
        )


# ------------------------------------------------------------------------------------------------- vision cache


class Seeing(Recorder):
    """A recorder with a vision tower."""

    def __init__(self, processor: Any, reasoner: LatentReasoner) -> None:
        super().__init__(processor)
        self.reasoner = reasoner


@pytest.fixture(scope="module")
def reasoner() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny@random").requires_grad_(False)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_in_the_second_epoch_every_frame_comes_from_the_cache(
    records: Records, tmp_path: Path, processor: Any, reasoner: LatentReasoner, precision: Any
) -> None:
    module = Seeing(processor, reasoner)
    file = records("cached.jsonl", [0, 1, 2])
    data = make_data(tmp_path, train=str(file), batch_size=2, vision_cache=str(tmp_path / "vision"))
    counts = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert data._cache is not None
            counts.append((data._cache.hits, data._cache.misses))

    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[Count()], precision=precision)
    trainer.fit(module, datamodule=data)
    (hits, misses), after = counts
    frames = sum(len(batch.image_keys) + len(batch.hint_keys) for batch in module.batches["train"][:2])
    assert hits + misses == frames > 0
    assert after == (hits + frames, misses)
    assert len(list((tmp_path / "vision").rglob("*.safetensors"))) == misses
    for batch in module.batches["train"]:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            images = reasoner.backbone.encode_images(batch.pixel_values, batch.image_grid_thw)
            hints = reasoner.backbone.encode_images(batch.hint_pixel_values, batch.hint_grid_thw)
        for cached, computed in ((batch.image_features, images), (batch.hint_features, hints)):
            assert cached is not None
            assert cached.counts == computed.counts
            for one, other in zip(
                (cached.embeds, *cached.deepstack), (computed.embeds, *computed.deepstack), strict=True
            ):
                assert one.dtype == other.dtype
                # batches of another composition are summed in another order
                if precision == "32-true":
                    assert_same_but_rounding(one, other)
                else:
                    torch.testing.assert_close(one, other, atol=0.05, rtol=0)


def test_without_a_cache_nothing_is_looked_up(train: str, tmp_path: Path, processor: Any) -> None:
    module = Recorder(processor)
    make_trainer(tmp_path, limit_train_batches=1).fit(module, datamodule=make_data(tmp_path, train=train))
    batch = module.batches["train"][0]
    assert batch.image_features is None
    assert batch.hint_features is None
    assert (batch.image_keys, batch.hint_keys) == ((), ())


def test_a_cache_needs_a_frozen_vision_tower(train: str, tmp_path: Path, processor: Any) -> None:
    module = Seeing(processor, LatentReasoner.from_pretrained("tiny@random").requires_grad_(True))
    data = make_data(tmp_path, train=train, vision_cache=str(tmp_path / "vision"))
    with pytest.raises(ConfigError, match="needs a frozen vision tower"):
        make_trainer(tmp_path).fit(module, datamodule=data)
    assert module.seen() == []
