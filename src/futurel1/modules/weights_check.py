"""Weights of a checkpoint against those of a model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from futurel1.errors import CheckpointError


def odd_weights(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Compare weights by name and shape.

    Args:
        state: weights of a checkpoint; values may be anything.
        own: a model's weights.

    Returns:
        Names that only one of them has, and names whose shapes differ, in order.
    """
    both = own.keys() & state.keys()
    other = sorted(name for name in both if shape_of(state[name]) != shape_of(own[name]))
    return sorted(own.keys() ^ state.keys()), other


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of a weight; () for a value that is none."""
    return tuple(getattr(value, "shape", ()))


def require_same_weights(checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], reason: str = "") -> None:
    """Raise a `CheckpointError` unless a checkpoint that is to be continued has a model's weights.

    Args:
        checkpoint: what a Trainer loaded; without weights of its own if they are sharded.
        own: the model's weights.
        reason: what may explain a difference, for the message.

    Raises:
        CheckpointError: the names or shapes of some weights differ.
    """
    remedy = "continue it with the settings of its own run, or start from its weights by model.init_args.init_from"
    state = checkpoint.get("state_dict")
    if state is None:
        return
    odd, other = odd_weights(state, own)
    if odd:
        where = "only there" if odd[0] in state else "only here"
        raise CheckpointError(
            f"the checkpoint is of another model, LoRA or head{reason}: {len(odd)} weights differ, e.g. {odd[0]}, "
            f"which is {where}; {remedy}"
        )
    if other:
        raise CheckpointError(
            f"the checkpoint is of a model of another size{reason}: {other[0]} is "
            f"{shape_of(state[other[0]])} there and {shape_of(own[other[0]])} here ({len(other)} weights "
            f"differ); {remedy}"
        )
