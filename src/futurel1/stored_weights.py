"""The weights of a checkpoint as those of a plain model: LoRA adapters are merged one by one, as weights are read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from futurel1.errors import CheckpointError
from futurel1.sharded_checkpoints import ShardedWeights
from futurel1.trainer_checkpoints import read_checkpoint

__all__ = ["StoredWeights"]

_PREFIX = "reasoner."
"""Prefix of the reasoner's weights among those of a training module."""
_WRAPPED = re.compile(r"\.(?:token_adapter\.)?base_layer\.")
"""What `peft` puts into the names of weights that have an adapter."""
_ADAPTER = re.compile(r"\.lora_[AB]\.default\.weight$|\.token_adapter\.trainable_tokens_delta\.default$")
"""The adapters' own weights."""


class StoredWeights:
    """The weights of a reasoner in a Trainer's checkpoint, read when they are asked for.

    A weight `W` with a LoRA adapter is read as `W + alpha / r * B @ A`, rounded to the dtype of `W`, and rows of tokens
    that were trained are replaced, as `peft` merges them.

    Args:
        checkpoint: a file, or the folder of a sharded checkpoint.
        alpha: scale of the adapters, divided by their rank r.
        rows: tokens whose rows of the embedding table and of `lm_head` were trained, in the order of the adapter.

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
        self.adapters = [name for name in own if _ADAPTER.search(name)]
        self._sources = {_WRAPPED.sub(".", name): name for name in own if not _ADAPTER.search(name)}
        known: Mapping[str, Any] | None = getattr(state, "shapes", None)  # of weights that are not read yet
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(getattr(state[_PREFIX + source], "shape", ())) if known is None else known[_PREFIX + source]
            for name, source in self._sources.items()
        }

    def stored(self, name: str) -> Tensor:
        """A weight, or one of an adapter, under the name that it is stored by."""
        weight: Tensor = self._state[_PREFIX + name]
        return weight

    def copy_into(self, weight: Tensor, name: str) -> None:
        """Read a weight of the plain model into one of that shape, in its dtype."""
        source = self._sources[name]
        if isinstance(self._state, ShardedWeights) and not source.endswith(".base_layer.weight"):
            self._state.copy_into(weight, _PREFIX + source)  # without a whole copy in between
        else:
            weight.copy_(self._merged(source))

    def _merged(self, source: str) -> Tensor:
        """A weight with what its adapter adds to it."""
        weight = self.stored(source)
        place, _, what = source.rpartition(".base_layer.")
        if what != "weight":
            return weight
        if place.endswith(".token_adapter"):
            trained = self.stored(f"{place}.trainable_tokens_delta.default")
            return weight.index_copy(0, self._rows, trained.to(weight.dtype))
        down, up = (self.stored(f"{place}.lora_{side}.default.weight") for side in "AB")
        merged = weight.clone()
        merged += up @ down * (self._alpha / len(down))  # in place, so that it is rounded once
        return merged
