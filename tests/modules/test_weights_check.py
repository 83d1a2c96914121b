"""A checkpoint of another model is refused before its weights are loaded."""

from __future__ import annotations

import pytest
import torch

from futurel1.errors import CheckpointError
from futurel1.modules import LatentSFTModule
from futurel1.modules.weights_check import require_same_weights

OWN = {"a": torch.ones(2, 3), "b": torch.ones(4)}


@pytest.mark.parametrize(("state", "message"), [
    ({"a": torch.ones(2, 3)}, "another model, LoRA or head: 1 weights differ, e.g. b, which is only here"),
    ({**OWN, "c": torch.ones(1)}, "1 weights differ, e.g. c, which is only there"),
    ({**OWN, "a": torch.ones(3, 3)}, r"another size: a is \(3, 3\) there and \(2, 3\) here \(1 weights differ\)"),
])  # fmt: skip
def test_what_differs_is_named(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        require_same_weights({"state_dict": state}, OWN)


def test_equal_weights_and_sharded_ones_pass() -> None:
    require_same_weights({"state_dict": {name: value + 1 for name, value in OWN.items()}}, OWN)
    require_same_weights({}, OWN)


def test_a_module_refuses_a_checkpoint_of_another(tmp_path: object) -> None:
    module = LatentSFTModule("tiny@random")
    module.configure_model()
    state = module.state_dict()
    module.on_load_checkpoint({"state_dict": state})
    state.popitem()
    with pytest.raises(CheckpointError, match="continue it with the settings of its own run"):
        module.on_load_checkpoint({"state_dict": state})
