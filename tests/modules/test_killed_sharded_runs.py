"""Runs of two processes under FSDP2 that are killed before they export: their shards are read by one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from futurel1.export import export
from futurel1.models import LatentReasoner
from processes import run_ranks

pytestmark = pytest.mark.slow


def work(rank: int, world: str, backbone: str, folder: str) -> None:
    """Reinforcement learning to its end, then supervised training up to a SIGKILL in its third step."""
    from la_dapo_options import nested
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from toy_rewards import parity

    from futurel1.datamodules import RolloutPromptDataModule, VideoHintDataModule
    from futurel1.modules import LADAPOModule, LatentSFTModule
    from futurel1.modules.checkpointing import ResumedFiles
    from futurel1.modules.training_run import training_run
    from futurel1.rewards import CompositeReward

    class ExportedAndKilled(Callback):
        """The export that the run would have ended with lies elsewhere."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                pl_module.export(Path(folder, "expected"), training=training_run(trainer, pl_module))
                trainer.strategy.barrier()
                os.kill(os.getpid(), signal.SIGKILL)

    def fit(name: str, module: Any, data: Any, *callbacks: Callback, max_steps: int) -> None:
        keep = ModelCheckpoint(Path(folder, name, "checkpoints"), every_n_train_steps=1, save_last="link")
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), default_root_dir=Path(folder, name),
            logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1, max_steps=max_steps,
            callbacks=[keep, *callbacks],
        )  # fmt: skip
        ResumedFiles.attach(trainer)
        trainer.fit(module, data)

    prompt = f"{world}/prompt.txt"
    policy = LADAPOModule(
        backbone=backbone, reward=CompositeReward({"toy": parity}, {"toy": 1.0}),
        **nested({"num_rollouts": 2, "batch_size": 2, "filter_key": "none", "max_new_tokens": 4}),
    )  # fmt: skip
    rl = RolloutPromptDataModule(train=f"{world}/rl.jsonl", batch_size=1, system_prompt=prompt, num_workers=0)
    fit("rl", policy, rl, max_steps=1)
    policy.export(Path(folder, "policy"))
    student = LatentSFTModule(
        backbone=backbone, compute_dtype="bfloat16", learning_rate=1e-3, max_latent_tokens=3, alignment="cosine"
    )
    sft = VideoHintDataModule(
        train=f"{world}/train.jsonl", batch_size=1, num_workers=0, system_prompt=prompt, max_latent_tokens=3,
        cache_dir=f"{folder}/cache",
    )  # fmt: skip
    fit("sft", student, sft, ExportedAndKilled(), max_steps=3)


@pytest.fixture(scope="module")
def runs(rl_world: Path, opening: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(work, str(rl_world), opening, str(folder))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in load_file(file).items()}


def test_the_export_of_a_killed_run_is_that_of_a_finished_one(runs: Path) -> None:
    run = runs / "sft"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    assert (run / "checkpoints" / "last.ckpt").readlink() == Path("epoch=0-step=2.ckpt")
    found = export(str(run))
    assert (found.folder, found.step, found.dtype) == (run / "huggingface", 2, "bfloat16")
    wanted = runs / "expected"
    assert {file.name for file in found.folder.iterdir()} == {file.name for file in wanted.iterdir()}
    weights, own = weights_of(wanted), weights_of(found.folder)
    assert weights.keys() == own.keys()
    assert all(weight.dtype == torch.bfloat16 and torch.equal(weight, own[name]) for name, weight in weights.items())
    for file in ("config.json", "README.md", "tokenizer.json", "system_prompt.txt"):
        if (wanted / file).exists():
            assert (found.folder / file).read_text() == (wanted / file).read_text(), file
    assert "LatentSFTModule`, 2 optimizer steps" in (found.folder / "README.md").read_text()
    config = json.loads((found.folder / "config.json").read_text())
    assert (config["dtype"], config["max_latent_token"], config["latent_loss"]) == ("bfloat16", 3, "cosine")


def test_the_export_loads_in_transformers_and_here(runs: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    export(str(runs / "sft"), str(runs / "loaded"), checkpoint="last.ckpt")
    model = Qwen3VLForConditionalGeneration.from_pretrained(runs / "loaded")
    assert model.dtype == torch.bfloat16
    here = LatentReasoner.from_pretrained(runs / "loaded")
    assert (here.dtype, here.settings.projection_head_type) == (torch.float32, "swiglu")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight.float(), here.backbone.model.state_dict()[name]), name


def test_every_reader_takes_shards(runs: Path, opening: str, rl_world: Path) -> None:
    from futurel1 import EventPredictor
    from futurel1.modules import LADAPOModule, LatentPredictor, LatentSFTModule
    from futurel1.runs import load_reasoner
    from futurel1.trainer_checkpoints import read_checkpoint

    shutil.rmtree(runs / "sft" / "huggingface", ignore_errors=True)
    checkpoint = runs / "sft" / "checkpoints" / "epoch=0-step=2.ckpt"
    stored = read_checkpoint(checkpoint)["state_dict"]
    start = LatentReasoner.from_pretrained(opening).state_dict()
    assert any(not torch.equal(stored[f"reasoner.{name}"], weight) for name, weight in start.items())
    made: list[Any] = [
        module(init_from=str(where))
        for module in (LatentSFTModule, LADAPOModule, LatentPredictor)
        for where in (runs / "sft", checkpoint)
    ]
    for module in made:
        module.configure_model()
    reasoners = [*(module.reasoner for module in made), EventPredictor.from_pretrained(str(checkpoint)).reasoner]
    buffers = dict(LatentReasoner.from_pretrained(opening).named_buffers())
    for reasoner in reasoners:
        assert all(torch.equal(buffers[name], buffer) for name, buffer in reasoner.named_buffers())
        assert reasoner.dtype == torch.float32  # masters, not what the run computed with
        for name, weight in reasoner.state_dict().items():  # of which the frozen tower is stored in bfloat16
            assert torch.equal(stored[f"reasoner.{name}"].float(), weight), name
        assert (reasoner.settings.max_latent_tokens, reasoner.settings.force_initial_latent_mode) == (3, True)
    half = LatentReasoner.from_pretrained(opening, dtype=torch.bfloat16)
    found = dict(load_reasoner(str(checkpoint), dtype="bfloat16", device="cpu").named_buffers())
    assert all(torch.equal(found[name], buffer) for name, buffer in half.named_buffers())
    # Once it is exported, a run means its export: weights that compute the same in bfloat16, without their low bits.
    export(str(runs / "sft"))
    module = LADAPOModule(init_from=str(runs / "sft"))
    module.configure_model()
    for name, weight in module.reasoner.state_dict().items():
        assert torch.equal(stored[f"reasoner.{name}"].bfloat16().float(), weight), name


def test_a_policy_is_exported_too(runs: Path) -> None:
    found = export(str(runs / "rl"))
    weights, own = weights_of(runs / "policy"), weights_of(found.folder)
    assert weights.keys() == own.keys()
    assert all(torch.equal(weight, own[name]) for name, weight in weights.items())
    assert "LADAPOModule`, 1 optimizer steps" in (found.folder / "README.md").read_text()
