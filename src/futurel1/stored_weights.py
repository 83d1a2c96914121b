"""The weights of a checkpoint as those of a plain model: LoRA adapters are merged one by one, as weights are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from futurel1.errors import CheckpointError
from futurel1.models.lora import ROWS_PREFIX, is_adapter
from futurel1.models.token_rows import with_rows
from futurel1.trainer_checkpoints import read_checkpoint

__all__ = ["StoredWeights"]

_PREFIX = "reasoner."
"""Prefix of the reasoner's weights among those of a training module."""
_WRAPPED = ".base_layer."
"""What `peft` puts into the names of weights that have an adapter."""


class StoredWeights:
    """The weights of a reasoner in a Trainer's checkpoint, read when they are asked for.

    A weight `W` with a LoRA adapter is read as `W + alpha / r * B @ A`, rounded to the dtype of `W`; trained rows of
    tokens are added to those of the tables.

    Args:
        checkpoint: a file, or the folder of a sharded checkpoint.
        alpha: scale of the adapters, divided by their rank r.
        rows: tokens whose rows of the embedding table and of `lm_head` were trained beside them.

    Attributes:
        shapes: shape of each weight; () for what is none.
        adapters: names of the adapters' own weights.

    Raises:
        CheckpointError: the checkpoint holds no weights, or is damaged.
    """

    def __init__(self, checkpoint: Path, *, alpha: float, rows: Sequence[int]) -> None:
        state = read_checkpoint(checkpoint).get("state_dict")
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{checkpoint} holds no weights (state_dict); give a checkpoint of a run")
        self._state, self._alpha, self._rows = state, alpha, torch.tensor(rows)
        own = [name.removeprefix(_PREFIX) for name in state if name.startswith(_PREFIX)]
        self.adapters = [name for name in own if is_adapter(name)]
        self._sources = {name.replace(_WRAPPED, "."): name for name in own if not is_adapter(name)}
        known: Mapping[str, Any] | None = getattr(state, "shapes", None)  # of weights that are not read yet
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(getattr(state[_PREFIX + source], "shape", ())) if known is None else known[_PREFIX + source]
            for name, source in self._sources.items()
        }

    def stored(self, name: str) -> Tensor:
        """A weight, or one of an adapter, under the name that it is stored by."""
        weight: Tensor = self._state[_PREFIX + name]
        return weight

    def read(self, name: str) -> Tensor:
        """A weight of the plain model in its stored dtype; a view of the file where nothing is merged into it."""
        source = self._sources[name]
        weight = self.stored(source)
        rows = self._trained_rows(name)
        if rows is not None:
            return with_rows(weight, self._rows, rows)
        place, wrapped, what = source.rpartition(_WRAPPED)
        if not wrapped or what != "weight":
            return weight
        down, up = (self.stored(f"{place}.lora_{side}.default.weight") for side in "AB")
        return (weight + up @ down * (self._alpha / len(down))).to(weight.dtype)

    def copy_into(self, weight: Tensor, name: str) -> None:
        """Read a weight of the plain model into one of that shape, in its dtype."""
        source = self._sources[name]
        by_shards = getattr(self._state, "copy_into", None)
        if by_shards is not None and not source.endswith(f"{_WRAPPED}weight") and self._trained_rows(name) is None:
            by_shards(weight, _PREFIX + source)  # without a whole copy in between
        else:
            weight.copy_(self.read(name))

    def _trained_rows(self, name: str) -> Tensor | None:
        """What was trained beside the rows of a table; None for other weights, and without adapters."""
        kinds = {"embed_tokens.weight": ("embedding",), "lm_head.weight": ("projection", "embedding")}
        wanted = next((kinds[end] for end in kinds if name.endswith(f".{end}")), ())
        names = (f"{ROWS_PREFIX}{kind}" for kind in wanted)  # tied tables have one
        return next((self.stored(name) for name in names if name in self.adapters), None)
