"""What tests of reports share: run folders written by hand, plain pictures, hostile text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from futurel1.report.runs import RunContents

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \"'&"
"""What a model or a record may hold, and a page must show as text."""


def write_run(
    folder: Path, predictions: Sequence[Mapping[str, Any]], records: Path, intervention: str = "none"
) -> RunContents:
    """A run folder as `futurel1 predict` leaves it."""
    folder.mkdir(parents=True)
    config = {
        "model": {
            "class_path": "futurel1.modules.LatentPredictor",
            "init_args": {"backbone": "tiny", "init_from": None, "num_branches": 1, "intervention": intervention},
        },
        "data": {"class_path": "futurel1.datamodules.PromptDataModule", "init_args": {"predict": str(records)}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in predictions))
    return RunContents(folder)


def prediction(
    number: int, answer: str, expected: str, spans: Sequence[int], text: str = "It moves."
) -> dict[str, Any]:
    """A line of predictions.jsonl."""
    imagined = "".join(
        f"\n[imagined frame {place}: {latents} latent{'' if latents == 1 else 's'}]"
        for place, latents in enumerate(spans, 1)
    )
    return {
        "id": f"test.jsonl:{number}",
        "record_id": f"test-{number - 1:05d}",
        "response": f"<reason>{text}</reason>{imagined}\n<answer>{answer}</answer>",
        "answer": answer,
        "votes": {answer: 1.0},
        "expected": expected,
        "spans": list(spans),
        "tokens": 12,
        "finish_reason": "eos",
        "seconds": 0.25,
    }


def plain_picture(colour: str, side: int = 32) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (side, side), colour)


def unit(*values: float) -> torch.Tensor:
    """(1, H) feature."""
    return torch.tensor([values])
