"""What a checkpoint folder holds."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from adapted import small_reasoner
from futurel1 import LatentReasoner
from futurel1.models.checkpoint_folders import stored_dtype


def test_weights_keep_their_stored_dtype_whatever_the_configuration_says(tmp_path: Path) -> None:
    small_reasoner(tied=False, dtype=torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    assert stored_dtype(tmp_path) == torch.bfloat16
    kept = LatentReasoner.from_pretrained(tmp_path, dtype=None)
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.bfloat16}
    cast = LatentReasoner.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value.float(), cast[name]) for name, value in kept.state_dict().items())
    assert {value.dtype for value in cast.values()} == {torch.float32}
