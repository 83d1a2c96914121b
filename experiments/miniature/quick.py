"""A backbone for quick runs: random weights, but every response begins with a span."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path


def write_opening(folder: Path) -> str:
    """Write it, unless it is there.

    Returns:
        The folder.
    """
    if not (folder / "model.safetensors").is_file():
        from futurel1.models import LatentReasoner

        reasoner = LatentReasoner.from_pretrained("tiny-random")
        reasoner.settings = replace(reasoner.settings, force_initial_latent_mode=True)
        reasoner.save_pretrained(folder)
    return str(folder)
