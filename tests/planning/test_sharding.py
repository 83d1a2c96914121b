"""What FSDP2 gathers, against two processes that really do."""

from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from measured_runs import medium_reasoner, on_meta, peak_of, require_close
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from futurel1.losses import LatentSFTLoss
from futurel1.models import LatentReasoner
from futurel1.modules import adapters
from futurel1.modules.optimization import freeze_parts
from futurel1.planning.fabricated import Size, sft_batch
from futurel1.planning.measured import optimizer_step, sft_step
from processes import run_ranks

SIZE, RANKS = Size(1, 300, 60), 2
LOSS = LatentSFTLoss(cross_entropy="chunked")


def prepared() -> LatentReasoner:
    reasoner = medium_reasoner(tied=False)
    freeze_parts(reasoner, ["vision", "merger"])
    adapters.enable_gradient_checkpointing(reasoner)
    return reasoner.train()


class Step(LightningModule):
    def __init__(self, reasoner: LatentReasoner) -> None:
        super().__init__()
        self.reasoner = reasoner

    def training_step(self) -> Tensor:
        return LOSS(self.reasoner, sft_batch(self.reasoner, SIZE)).loss


def sharded_peak(rank: int, file: Path) -> None:
    reasoner = prepared()
    module = Step(reasoner)
    mesh = init_device_mesh("cpu", (RANKS,))
    kept = torch.float32
    adapters.shard(
        module, reasoner, mesh, device=torch.device("cpu"), dtype=kept, trained_dtype=kept, compute_dtype=kept,
        steps=("training_step",),
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in reasoner.parameters() if p.requires_grad], foreach=False)

    def steps() -> None:
        for _ in range(2):
            module.training_step().backward()
            optimizer.step()
            optimizer.zero_grad()

    peak = peak_of(steps)
    if rank == 0:
        file.write_text(str(peak))


@pytest.mark.slow
def test_a_sharded_step(tmp_path: Path) -> None:
    run_ranks(sharded_peak, tmp_path / "peak")
    real = int((tmp_path / "peak").read_text())
    reasoner = on_meta(prepared())
    trained = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    state, _ = optimizer_step(trained, foreach=False)
    found = sft_step(reasoner, LOSS, SIZE, None, "sharded")
    assert found.gathered > 0
    require_close((state + gradients) // RANKS + found.gathered + found.activations + found.logits, real)
