"""A backbone for quick runs: random weights, with a span at the beginning of every response."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path


def write_opening(folder: Path) -> str:
    """Write the backbone unless it exists.

    Returns:
        The folder.
    """
    if not (folder / "model.safetensors").is_file():
        from futurel1.models import LatentReasoner

        reasoner = LatentReasoner.from_pretrained("tiny@random")
        reasoner.settings = replace(reasoner.settings, force_initial_latent_mode=True)
        reasoner.save_pretrained(folder)
    return str(folder)
