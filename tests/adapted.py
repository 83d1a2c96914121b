"""A small reasoner with LoRA adapters that differ from zero, as after training."""

from __future__ import annotations

import torch

from futurel1 import LatentReasoner
from futurel1.models import LatentSettings, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import tiny_model
from futurel1.models.lora import LoRAAdapters

TOKENS = LatentTokens(latent_id=1021, start_id=1022, end_id=1023)
TARGETS = r".*language_model\.layers\..*\.(q_proj|v_proj|down_proj)"


def small_reasoner(*, tied: bool, dtype: torch.dtype = torch.float32) -> LatentReasoner:
    """Two layers of random weights, in eval mode."""
    model = tiny_model(num_hidden_layers=2, tie_word_embeddings=tied).to(dtype)
    return LatentReasoner(Qwen3VLBackbone(model), TOKENS, LatentSettings()).eval()


def adapt(reasoner: LatentReasoner, targets: str = TARGETS) -> LoRAAdapters:
    """Add adapters and rows of the latent tokens, all of random weights."""
    lora = LoRAAdapters(reasoner, rank=4, alpha=8, dropout=0.0, targets=targets)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reasoner.named_parameters():
            if "lora_B" in name or "token_rows" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora
