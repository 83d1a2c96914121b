"""Two processes, as under DDP on one machine: one run shared by all tests of this file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from futurel1.worlds import WorldFiles
from processes import run_ranks

pytestmark = pytest.mark.slow
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fixed": ({"batch_size": 2}, {"max_epochs": 2}),
    "budget": ({"tokens_per_batch": 1160}, {"max_epochs": 2}),
    "window": ({"batch_size": 1}, {"max_epochs": 1, "accumulate_grad_batches": 3}),
}
"""Name to options of the data and of the Trainer."""


def work(rank: int, folder: str, train: str) -> None:
    """What each process does; writes what it saw to `rank{rank}.json`."""
    from lightning import LightningModule, Trainer

    from futurel1.data import SFTBatch
    from futurel1.datamodules import VideoHintDataModule
    from futurel1.datamodules.loading import count_totals, sum_over_ranks
    from futurel1.models import LatentTokens, load_processor

    report: dict[str, Any] = {"sum": sum_over_ranks((3 + rank, 10 * rank), torch.device("cpu"))}
    processor = load_processor("tiny@random")
    tokens = LatentTokens.from_tokenizer(processor.tokenizer)
    assert tokens is not None

    class Recorder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.processor = processor
            self.seen: list[dict[str, Any]] = []

        def training_step(self, batch: SFTBatch, batch_idx: int) -> torch.Tensor:
            self.seen.append(
                {
                    "epoch": self.current_epoch,
                    "ids": batch.sample_ids,
                    "own": count_totals([batch], tokens),
                    "total": (batch.total_tokens, batch.total_latents),
                }
            )
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for name, (data_options, options) in RUNS.items():
        module = Recorder()
        data = VideoHintDataModule(train=train, num_workers=0, cache_dir=f"{folder}/cache", **data_options)
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", default_root_dir=folder, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **options,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        report[name] = module.seen
    Path(folder, f"rank{rank}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def ranks(world: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, str(folder), str(world.train))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def numbered(count: int) -> list[str]:
    return [f"train.jsonl:{number}" for number in range(1, count + 1)]


def test_counts_add_up_over_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [rank["sum"] for rank in ranks] == [[7, 10], [7, 10]]


@pytest.mark.parametrize("run", ["fixed", "budget"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_the_ranks_share_every_record_exactly_once(ranks: list[dict[str, Any]], run: str, epoch: int) -> None:
    seen = [[batch["ids"] for batch in rank[run] if batch["epoch"] == epoch] for rank in ranks]
    assert len(seen[0]) == len(seen[1])
    assert sorted(name for rank in seen for ids in rank for name in ids) == numbered(7)


def test_a_rank_without_records_gets_a_batch_that_weighs_nothing(ranks: list[dict[str, Any]]) -> None:
    fillers = [batch for rank in ranks for batch in rank["budget"] if not batch["ids"]]
    assert fillers
    assert all(batch["own"] == [0, 0] for batch in fillers)


@pytest.mark.parametrize(("run", "window"), [("fixed", 1), ("budget", 1), ("window", 3)])
def test_every_rank_knows_the_totals_of_all(ranks: list[dict[str, Any]], run: str, window: int) -> None:
    first, second = (rank[run] for rank in ranks)
    per_epoch = sum(batch["epoch"] == 0 for batch in first)
    for start in range(0, per_epoch, window):
        held = [batch for rank in (first, second) for batch in rank[start : min(start + window, per_epoch)]]
        total = [sum(batch["own"][place] for batch in held) for place in (0, 1)]
        assert min(total) > 0
        assert [batch["total"] for batch in held] == [total] * len(held)


def test_one_process_alone_keeps_its_counts() -> None:
    from futurel1.datamodules.loading import sum_over_ranks

    assert sum_over_ranks((3, 4), torch.device("cpu")) == (3, 4)
