from __future__ import annotations

from typing import Any

import pytest

from futurel1.modules.position import Position, position_state, put_counters_right, saved_position


def checkpoint(*, epochs: tuple[int, int], batches: int, total: int, last: bool = False) -> dict[str, Any]:
    """A checkpoint without a position: epochs that were begun and done, batches of this epoch and of all."""
    ready, processed = epochs
    progress = {"ready": ready, "started": ready, "processed": processed, "completed": processed}
    steps = {"total": {"ready": 7, "completed": 6}, "current": {"ready": 3, "completed": 2}}
    zero = {part: {"ready": 7, "started": 7, "completed": 6} for part in ("total", "current")}
    fit = {
        "state_dict": {},
        "epoch_progress": {"total": dict(progress), "current": dict(progress)},
        "epoch_loop.state_dict": {"_batches_that_stepped": 5},
        "epoch_loop.batch_progress": {
            "total": {"ready": total, "started": total, "processed": total, "completed": total - 1},
            "current": {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1},
            "is_last_batch": last,
        },
        "epoch_loop.val_loop.batch_progress": {},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": steps, "zero_grad": zero}},
    }
    return {"global_step": 6, "loops": {"fit_loop": fit}}


@pytest.mark.parametrize(("state", "expected"), [
    ({"epochs": (2, 1), "batches": 4, "total": 9}, Position(1, 4, 9, validated=False)),
    ({"epochs": (2, 1), "batches": 3, "total": 8}, Position(1, 2, 7, validated=False)),  # inside a step
    ({"epochs": (2, 1), "batches": 5, "total": 10, "last": True}, Position(1, 5, 10, last=True, validated=False)),
    ({"epochs": (2, 2), "batches": 5, "total": 10, "last": True}, Position(2, 0, 10)),
    ({"epochs": (2, 2), "batches": 4, "total": 9}, Position(1, 4, 9, validated=False)),  # max_steps ended the epoch
    ({"epochs": (1, 0), "batches": 1, "total": 1}, Position(0, 0, 0, validated=False)),
], ids=["between-steps", "inside", "last-batch", "epoch-end", "cut-epoch", "first-step"])  # fmt: skip
def test_positions_of_checkpoints_without_one(state: dict[str, Any], expected: Position) -> None:
    assert saved_position(checkpoint(**state), window=2) == expected


def test_a_saved_position_is_read_whatever_the_counters_say() -> None:
    position = Position(3, 2, 17, last=False, validated=False)
    state = {**checkpoint(epochs=(9, 9), batches=1, total=1), "position": position_state(position)}
    assert saved_position(state, window=4) == position


@pytest.mark.parametrize(("position", "begun"), [(Position(1, 4, 9), 2), (Position(2, 0, 10), 2)])
def test_counters_are_those_of_the_position(position: Position, begun: int) -> None:
    state = checkpoint(epochs=(2, 1), batches=5, total=10, last=True)
    put_counters_right(state, position)
    loops = state["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["total"], loops["epoch_loop.batch_progress"]
    assert epochs == {"ready": begun, "started": begun, "processed": position.epoch, "completed": position.epoch}
    assert set(batches["current"].values()) == {position.batches}
    assert set(batches["total"].values()) == {position.total_batches}
    assert not batches["is_last_batch"]
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    assert steps["total"] == {"ready": 6, "completed": 6}
    assert steps["current"]["ready"] == steps["current"]["completed"]
