"""Two processes against one, as under DDP and FSDP2 on one machine: one pair of processes runs all cases."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import run_ranks
from rounding import assert_same_after_training

pytestmark = pytest.mark.slow
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "ddp": ("ddp", "parity", {}, {"accumulate_grad_batches": 2}),
    "ddp-filtered": (
        "ddp", "rare", {"filter_key": "toy", "filter_low": 0.05, "num_minibatches": 2, "num_epochs": 2},
        {"max_steps": 6},
    ),
    # fewer groups than micro-batches: some are empty
    "ddp-short": (
        "ddp", "parity", {"filter_key": "toy", "filter_low": 0.2, "filter_high": 0.6, "max_rounds": 1},
        {"max_steps": 4, "accumulate_grad_batches": 2},
    ),
    "ddp-text": ("ddp", "parity", {"latent_policy": "DeterministicLatents"}, {}),
    "ddp-lora": ("ddp", "parity", {"lora_rank": 4, "lora_alpha": 4}, {}),
    "fsdp2": ("fsdp2", "parity", {}, {"accumulate_grad_batches": 2}),
    "fsdp2-filtered": (
        "fsdp2", "rare", {"filter_key": "toy", "filter_low": 0.05, "num_minibatches": 2, "num_epochs": 2},
        {"max_steps": 6},
    ),
    "fsdp2-all": ("fsdp2", "parity", {"freeze": [], "gradient_checkpointing": True}, {}),
    # an old policy, so that sampling and reference take turns in one copy
    "fsdp2-lora": ("fsdp2", "parity", {"lora_rank": 4, "lora_alpha": 4, "num_minibatches": 2}, {}),
}  # fmt: skip
"""Name to strategy, reward, options of the model and of the Trainer."""


def run(name: str, world: str, backbone: str, folder: Path, devices: int) -> dict[str, Any]:
    """Train and validate; what it logged, and where it exported to."""
    import toy_rewards
    from la_dapo_options import nested
    from lightning import Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    from futurel1.datamodules import RolloutPromptDataModule
    from futurel1.models import policies
    from futurel1.modules import LADAPOModule
    from futurel1.rewards import CompositeReward

    strategy, reward, model_options, options = CASES[name]
    rows: list[dict[str, float]] = []

    class Recorder(LADAPOModule):
        def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            rows[-1][name] = float(value)
            super().log(name, value, *args, **kwargs)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            rows.append({})
            super().on_before_optimizer_step(optimizer)

        def on_validation_epoch_end(self) -> None:
            rows.append({})
            super().on_validation_epoch_end()

    torch.manual_seed(0)  # adapters begin at random
    model_options = dict(model_options)
    if "latent_policy" in model_options:
        model_options["latent_policy"] = getattr(policies, model_options["latent_policy"])()
    module = Recorder(
        backbone=backbone,
        reward=CompositeReward({"toy": getattr(toy_rewards, reward)}, {"toy": 1.0}),
        **nested({
            "num_rollouts": 4, "batch_size": 4, "generation_batch_size": 2, "filter_key": "none",
            "max_new_tokens": 8, "learning_rate": 1e-4, "span_budget": "loose", "span_latents": 2, **model_options,
        }),
    )  # fmt: skip
    data = RolloutPromptDataModule(
        train=f"{world}/rl.jsonl", val=f"{world}/one.jsonl", batch_size=1, system_prompt=f"{world}/prompt.txt",
        num_workers=0,
    )  # fmt: skip
    chosen: Any = "auto"
    if devices > 1:
        sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        chosen = sharded if strategy == "fsdp2" else "ddp"
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=chosen, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=-1,
        num_sanity_val_steps=0, check_val_every_n_epoch=2, **{"max_steps": 3, **options},
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    module.export(folder)
    return {"rows": rows, "steps": trainer.global_step}


def work(rank: int, world: str, backbone: str, folder: str, cases: list[str]) -> None:
    """What each process does."""
    for name in cases:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = run(name, world, backbone, Path(folder, name), devices=2)
        report["warned"] = [str(warning.message) for warning in caught]
        torch.save(report, Path(folder, f"{name}-{rank}.pt"))


@pytest.fixture(scope="module")
def two(rl_world: Path, opening: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    held_out = (rl_world / "test.jsonl").read_text().splitlines(keepends=True)
    (rl_world / "one.jsonl").write_text("".join(held_out[:1]))  # the other rank has no batch
    folder = tmp_path_factory.mktemp("two")
    cases = os.environ.get("CASES", ",".join(CASES)).split(",")
    run_ranks(work, str(rl_world), opening, str(folder), cases)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_one(rl_world: Path, opening: str, two: Path, tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file

    one = run(name, str(rl_world), opening, tmp_path, devices=1)
    for rank in (0, 1):
        report = torch.load(two / f"{name}-{rank}.pt")
        assert report["steps"] == one["steps"]
        assert not [text for text in report["warned"] if "sync_dist" in text]
        assert len(report["rows"]) == len(one["rows"]) > 1
        for row, other in zip(one["rows"], report["rows"], strict=True):
            assert row.keys() == other.keys()
            for column in row:
                if "second" not in column and "gap" not in column:
                    assert other[column] == pytest.approx(row[column], rel=1e-3, abs=1e-4), (rank, column)
    files = ("model.safetensors", "projection_head.safetensors")
    first, second = (
        {key: value for file in files for key, value in load_file(folder / file).items()}
        for folder in (tmp_path, two / name)
    )
    assert_same_after_training(second, first, learning_rate=1e-4)
