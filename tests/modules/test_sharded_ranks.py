"""Sharded training in two processes: adapters as in one process, and what each process holds when it starts."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import run_ranks

pytestmark = pytest.mark.slow
RATE = 1e-3


def trained(
    world: str, folder: Path, devices: int, ckpt: str | None = None, *, steps: int = 2, windows: int = 1,
    by_node: bool = False, **options: Any,
) -> Any:  # fmt: skip
    """A module after training with adapters; four records a step, whatever the number of processes and `windows`."""
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

    from futurel1.datamodules import VideoHintDataModule
    from futurel1.modules import LatentSFTModule

    class Watched(LatentSFTModule):
        def on_after_backward(self) -> None:
            """Note whether gradients were exchanged, and put where the optimizer finds them."""
            self.exchanged = [*getattr(self, "exchanged", []), any(p.grad is not None for p in self.parameters())]

    torch.manual_seed(int(os.environ.get("LOCAL_RANK", "0")))  # adapters begin at random, as those of rank 0
    module = Watched(
        **{
            "lora_rank": 4,
            "lora_alpha": 4,
            "learning_rate": RATE,
            "warmup_ratio": 0.0,
            "gradient_checkpointing": True,
            **options,
        }
    )
    data = VideoHintDataModule(
        train=f"{world}/train.jsonl", batch_size=4 // devices // windows, num_workers=0,
        system_prompt=f"{world}/prompt.txt", cache_dir=f"{world}/cache",
    )  # fmt: skip
    sizes: dict[str, Any] = {} if by_node else {"data_parallel_size": 2, "tensor_parallel_size": 1}
    sharded = ModelParallelStrategy(**sizes)
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=sharded if devices > 1 else "auto", default_root_dir=folder,
        logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=steps, gradient_clip_val=0.5,
        accumulate_grad_batches=windows,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt)
    return module


class _LoadedError(Exception):
    """Ends a run when its model is loaded."""


def private_mb() -> float:
    """Memory of this process that is no page of a file, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024


def loading_peak(kind: str, backbone: str, world: str, folder: Path) -> float:
    """Most private memory that loading a sharded module took, in MB over what the process held before."""
    from lightning import Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    from futurel1 import datamodules, modules

    samples: list[float] = []
    loaded = threading.Event()

    def watch() -> None:
        while not loaded.wait(0.001):
            samples.append(private_mb())

    class Measured(getattr(modules, kind)):  # type: ignore[misc]
        def configure_model(self) -> None:
            libc, mmap_threshold = ctypes.CDLL("libc.so.6"), -3
            libc.mallopt(mmap_threshold, 2**16)  # tensors that are freed go back to the system at once
            gc.collect()
            libc.malloc_trim(0)
            before = private_mb()
            watcher = threading.Thread(target=watch)
            watcher.start()
            super().configure_model()
            if kind == "LADAPOModule":
                self.sampler.models.refresh()
            loaded.set()
            watcher.join()
            raise _LoadedError(max(samples) - before)

    data: Any = {
        "LatentSFTModule": datamodules.VideoHintDataModule, "LADAPOModule": datamodules.RolloutPromptDataModule,
    }[kind](train=f"{world}/train.jsonl", num_workers=0, system_prompt=f"{world}/prompt.txt")  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=1,
        enable_checkpointing=False,
    )  # fmt: skip
    try:
        trainer.fit(Measured(backbone=backbone, compute_dtype="bfloat16"), data)
    except _LoadedError as reached:
        return float(reached.args[0])
    raise AssertionError("the model was not loaded")


def work(rank: int, world: str, backbone: str, folder: str) -> None:
    """What each process does."""
    place = Path(folder)
    whole = trained(world, place / "whole", 2)
    whole.export(place / "whole")
    trained(world, place / "resumed", 2, ckpt=str(place / "whole" / "step=1.ckpt")).export(place / "resumed")
    once = trained(world, place / "once", 2, windows=2, by_node=True, reduce_once=True, gradient_checkpointing=True)
    once.export(place / "once")
    half = trained(world, place / "half", 2, steps=1, dtype="bfloat16", projection_head="lvr")
    half.export(place / "half")
    report = {
        "exchanged": (whole.exchanged, once.exchanged),
        "dtypes": {parameter.requires_grad: parameter.dtype for parameter in half.reasoner.parameters()},
        "loss": float(half.trainer.callback_metrics["train/loss"]),
        "peaks": {kind: loading_peak(kind, backbone, world, place) for kind in ("LatentSFTModule", "LADAPOModule")},
    }
    torch.save(report, place / f"{rank}.pt")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """A checkpoint in bfloat16, and its size in float32 in MB."""
    from futurel1 import LatentReasoner
    from futurel1.models import LatentSettings, LatentTokens
    from futurel1.models.backbones import Qwen3VLBackbone
    from futurel1.models.backbones.tiny import tiny_model
    from futurel1.models.checkpoints import load_processor

    processor = load_processor("tiny@random")
    model = tiny_model(hidden_size=768, intermediate_size=3072, num_hidden_layers=8).bfloat16()
    tokens = LatentTokens.from_tokenizer(processor.tokenizer)
    assert tokens is not None
    reasoner = LatentReasoner(Qwen3VLBackbone(model), tokens, LatentSettings(), processor)
    folder = reasoner.save_pretrained(tmp_path_factory.mktemp("medium"))
    return str(folder), sum(parameter.numel() for parameter in reasoner.parameters()) * 4 / 2**20


@pytest.fixture(scope="module")
def two(rl_world: Path, world: Path, medium: tuple[str, float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(work, str(world), medium[0], str(folder))
    return folder


def exported(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_same_update(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Fail where training changed weights of the tiny model in another way, by more than 2% of the whole change.

    A product of two matrices that AdamW trained has no bound by weight: where a gradient is nothing but rounding, a
    whole row has another direction.
    """
    from futurel1 import LatentReasoner

    start = LatentReasoner.from_pretrained("tiny").state_dict()
    assert found.keys() == expected.keys()
    differences = [(found[name] - value).norm() for name, value in expected.items()]
    changes = [(value - start[f"backbone.model.{name}"]).norm() for name, value in expected.items()]
    assert torch.stack(differences).norm() < 0.02 * torch.stack(changes).norm()


def test_adapters_are_trained_as_in_one_process_and_resumed(world: Path, two: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trained(str(world), tmp_path, 1).export(tmp_path)
    assert_same_update(exported(two / "whole"), exported(tmp_path))
    folders = [folder / "adapter" for folder in (two / "whole", tmp_path)]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    rows = "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta"
    torch.testing.assert_close(one[rows], other[rows], rtol=0, atol=0.1 * RATE)
    assert len({(folder / "adapter_config.json").read_text() for folder in folders}) == 1
    one, other = exported(two / "whole"), exported(two / "resumed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_trained_weights_are_float32_beside_a_base_in_bfloat16(two: Path) -> None:
    for rank in (0, 1):
        report = torch.load(two / f"{rank}.pt")
        assert report["dtypes"] == {True: torch.float32, False: torch.bfloat16}
        assert 0 < report["loss"] < 20
    assert {value.dtype for value in exported(two / "half").values()} == {torch.bfloat16}


def test_other_ways_to_share_out_and_exchange_train_the_same(two: Path) -> None:
    """Gradients that are exchanged once a step, and Lightning's own mesh: shards within a node, the same on each."""
    for rank in (0, 1):
        each, once = torch.load(two / f"{rank}.pt")["exchanged"]
        assert each == [True] * 2
        assert once == [False, True] * 2
    assert_same_update(exported(two / "once"), exported(two / "whole"))


@pytest.mark.parametrize(("kind", "held"), [("LatentSFTModule", 0.5), ("LADAPOModule", 1.5)])
def test_a_process_holds_its_shards_and_copies_and_little_more(
    two: Path, medium: tuple[str, float], kind: str, held: float
) -> None:
    """On CPU the device is the host: half the weights here, and for RL the copies to sample from and to compare with.

    Loading all weights in float32 first would take another 1.0 of their size, and deep copies 1.0 each.
    """
    for rank in (0, 1):
        peak = torch.load(two / f"{rank}.pt")["peaks"][kind]
        assert held < peak / medium[1] < held + 0.3
