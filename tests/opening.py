"""A checkpoint that opens a span at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from futurel1.models import LatentReasoner


def write_opening(folder: Path) -> str:
    """Write the tiny checkpoint with a projection head; it opens a span with the first token of every response."""
    torch.manual_seed(1)
    reasoner = LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=64)
    reasoner.settings = replace(reasoner.settings, force_initial_latent_mode=True)
    return str(reasoner.save_pretrained(folder))
