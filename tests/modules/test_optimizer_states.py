"""Tensor subclasses in the states of optimizers, as torchao has them, in checkpoints of plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from futurel1.errors import CheckpointError
from futurel1.modules.optimizer_states import put_together, take_apart

NAME = "torch.testing._internal.two_tensor.TwoTensor"


def make_states() -> list[dict[str, Any]]:
    pair = TwoTensor(torch.arange(6.0).view(2, 3), torch.ones(2, 3))
    return [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": pair}, 1: {}}, "param_groups": [{"lr": 0.1}]}]


def test_subclasses_are_stored_as_plain_tensors_and_come_back(tmp_path: Path) -> None:
    states = make_states()
    pair = states[0]["state"][0]["exp_avg"]
    torch.save(take_apart(states), tmp_path / "states.pt")
    assert states[0]["state"][0]["exp_avg"] is pair  # the optimizer keeps its own
    stored = torch.load(tmp_path / "states.pt", weights_only=True, map_location=lambda storage, place: storage)
    with torch.serialization.safe_globals([TwoTensor]):
        (found,) = put_together(stored)
    state = found["state"][0]
    assert type(state["exp_avg"]) is TwoTensor
    assert torch.equal(state["exp_avg"].a, pair.a)
    assert torch.equal(state["exp_avg"].b, pair.b)
    assert (float(state["step"]), found["state"][1], found["param_groups"]) == (3.0, {}, [{"lr": 0.1}])


def test_a_class_that_no_package_has_declared_safe_is_refused() -> None:
    with pytest.raises(CheckpointError, match=f"made of {NAME}, which is not loaded"):
        put_together(take_apart(make_states()))


def test_ordinary_states_stay_as_they_are() -> None:
    states = [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": []}]
    for changed in (take_apart(states), put_together(states)):
        assert all(changed[0]["state"][0][name] is value for name, value in states[0]["state"][0].items())
