"""States of optimizers as ordinary tensors: torchao keeps 8-bit moments in tensor subclasses of its own.

A checkpoint holds tensors and plain values, and a Trainer reads nothing else (of a subclass, not even where its package
is loaded). So a subclass is taken apart when a checkpoint is saved, and put together when a run resumes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from futurel1.errors import CheckpointError

_CLASS = "tensor_subclass"


def take_apart(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """States of optimizers (`Optimizer.state_dict()`) with subclasses as their parts; shards stay as they are."""
    return _map_values(states, _taken_apart)


def put_together(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states that :func:`take_apart` took apart.

    Raises:
        CheckpointError: the package of a subclass has not been imported.
    """
    return _map_values(states, _put_together)


def _map_values(states: list[dict[str, Any]], change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """New dictionaries, because those of `Optimizer.state_dict()` are the optimizer's own.

    Where weights are sharded and a checkpoint is one file, all ranks but the first get empty states.
    """
    return [
        {
            **optimizer,
            "state": {
                number: {name: change(value) for name, value in state.items()}
                for number, state in optimizer["state"].items()
            },
        }
        if "state" in optimizer
        else optimizer
        for optimizer in states
    ]


def _taken_apart(value: Any) -> Any:
    if isinstance(value, DTensor) or not is_traceable_wrapper_subclass(value):
        return value
    names, context = value.__tensor_flatten__()
    parts = {name: getattr(value, name) for name in names}
    path = _path(type(value))
    return {_CLASS: path, "parts": parts, "context": context, "size": tuple(value.shape), "stride": value.stride()}


def _put_together(value: Any) -> Any:
    if not isinstance(value, Mapping) or _CLASS not in value:
        return value
    # Only what its package has declared safe to load: a checkpoint must not name code to be run.
    safe = {_path(kind): kind for kind in torch.serialization.get_safe_globals() if isinstance(kind, type)}
    if value[_CLASS] not in safe:
        raise CheckpointError(
            f"the optimizer's state in the checkpoint is made of {value[_CLASS]}, which is not loaded: install its "
            "package, and resume with the optimizer of the run"
        )
    kind: Any = safe[value[_CLASS]]
    return kind.__tensor_unflatten__(value["parts"], value["context"], torch.Size(value["size"]), value["stride"])


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
