"""Four processes that learn by reinforcement with LoRA under FSDP2, killed, exported by one process and resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from futurel1 import EventPredictor, LatentReasoner
from futurel1.cli import main
from futurel1.rollout import SamplingSettings
from futurel1.runs import newest_checkpoint
from futurel1.trainer_checkpoints import read_checkpoint
from processes import run_ranks

pytestmark = [pytest.mark.campaign, pytest.mark.slow]
RANKS, STEPS, KILLED_AT = 4, 4, 3
LORA_RANK = 3  # as the rows of the latent tokens: fewer than ranks, so that one has an empty shard


def fit(world: str, backbone: str, run: Path, *, killed: bool, resumed: bool = False) -> None:
    """Two rollout batches of two optimizer steps, or up to a SIGKILL in the middle of the second batch."""
    from la_dapo_options import nested
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from toy_rewards import parity

    from futurel1.datamodules import RolloutPromptDataModule
    from futurel1.modules import LADAPOModule
    from futurel1.modules.checkpointing import ResumedFiles
    from futurel1.modules.training_run import training_run
    from futurel1.rewards import CompositeReward

    class ExportedAndKilled(Callback):
        """The export that the run would have ended with lies elsewhere."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == KILLED_AT:
                pl_module.export(run.parent / "expected", training=training_run(trainer, pl_module))
                kill_all(trainer.global_rank)

    torch.manual_seed(0)  # adapters begin at random
    module = LADAPOModule(
        backbone=backbone, reward=CompositeReward({"toy": parity}, {"toy": 1.0}),
        **nested({
            "num_rollouts": 4, "batch_size": 8, "num_minibatches": 2, "filter_key": "none", "max_new_tokens": 8,
            "span_budget": "loose", "span_latents": 2, "learning_rate": 1e-3, "lr_schedule": "constant",
            "lora_rank": LORA_RANK, "lora_alpha": LORA_RANK, "compute_dtype": "bfloat16",
        }),
    )  # fmt: skip
    data = RolloutPromptDataModule(
        train=f"{world}/rl.jsonl", batch_size=1, system_prompt=f"{world}/prompt.txt", num_workers=0
    )
    keep = ModelCheckpoint(run / "checkpoints", every_n_train_steps=1, save_last="link")
    trainer = Trainer(
        accelerator="cpu", devices=RANKS, strategy=ModelParallelStrategy(RANKS, 1), default_root_dir=run, logger=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=-1, max_steps=STEPS,
        callbacks=[keep, *([ExportedAndKilled()] if killed else [])],
    )  # fmt: skip
    ResumedFiles.attach(trainer)
    trainer.fit(module, data, ckpt_path=newest_checkpoint(run) if resumed else None, weights_only=True)


def kill_all(rank: int) -> None:
    """End all processes at once; called by all."""
    pids = [0] * RANKS
    torch.distributed.all_gather_object(pids, os.getpid())
    if rank == 0:
        for pid in sorted(pids, key=os.getpid().__eq__):  # its own last
            os.kill(pid, signal.SIGKILL)
    time.sleep(600)


def begin(rank: int, world: str, backbone: str, folder: str) -> None:
    fit(world, backbone, Path(folder, "whole"), killed=False)
    fit(world, backbone, Path(folder, "killed"), killed=True)


def resume(rank: int, world: str, backbone: str, folder: str) -> None:
    fit(world, backbone, Path(folder, "killed"), killed=False, resumed=True)


@pytest.fixture(scope="module")
def runs(rl_world: Path, opening: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, and a killed one, which was exported and then resumed."""
    folder = tmp_path_factory.mktemp("four")
    given = str(rl_world), opening, str(folder)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(begin, *given, ranks=RANKS)
    main(["export", str(folder / "killed")])
    run_ranks(resume, *given, ranks=RANKS)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)}/{name}": weight for file in files for name, weight in load_file(file).items()}


def test_one_process_exports_what_four_would_have(runs: Path) -> None:
    wanted, found = runs / "expected", runs / "killed" / "huggingface"
    weights, own = weights_of(wanted), weights_of(found)
    assert weights.keys() == own.keys()
    assert {name.partition("/")[0] for name in own} >= {"adapter", "model.safetensors", "projection_head.safetensors"}
    assert all(torch.equal(weight, own[name]) for name, weight in weights.items())
    for file in ("config.json", "README.md", "adapter/adapter_config.json"):
        assert (wanted / file).read_text() == (found / file).read_text(), file
    assert f"LADAPOModule`, {KILLED_AT} optimizer steps" in (found / "README.md").read_text()


def test_the_export_answers(runs: Path, rl_world: Path, opening: str) -> None:
    export = runs / "killed" / "huggingface"
    start = LatentReasoner.from_pretrained(opening, dtype=torch.bfloat16).state_dict()
    predictor = EventPredictor.from_pretrained(str(export), device="cpu")
    own, layers = predictor.reasoner.state_dict(), predictor.reasoner.config.text_config.num_hidden_layers
    learned = [name for name, weight in own.items() if not torch.equal(weight.to(torch.bfloat16), start[name])]
    assert sum(name.endswith("q_proj.weight") for name in learned) == layers
    clip = next((rl_world / "videos").glob("*.mp4"))
    answer = predictor(clip, "Where is it next?", sampling=SamplingSettings(max_new_tokens=8))
    assert answer.tokens == 8 or answer.finish_reason == "eos"
    assert answer.spans


def test_the_resumed_run_ends_like_the_undisturbed_one(runs: Path) -> None:
    wanted, found = (read_checkpoint(newest_checkpoint(runs / name)) for name in ("whole", "killed"))
    assert wanted["global_step"] == found["global_step"] == STEPS
    weights, own = wanted["state_dict"], found["state_dict"]
    assert weights.keys() == own.keys()
    assert all(torch.equal(weight, own[name]) for name, weight in weights.items())
    killed = weights_of(runs / "expected" / "adapter")  # of the step before
    up = "language_model.layers.0.self_attn.q_proj.lora_B"
    before, after = (next(weight for name, weight in state.items() if up in name) for state in (killed, weights))
    assert before.shape == after.shape
    assert not torch.equal(before, after)
