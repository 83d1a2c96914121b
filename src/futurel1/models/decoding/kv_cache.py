"""A KV cache that grows in place: a decoding step writes its own keys without copying earlier ones."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

HEADROOM = 256
"""Minimum number of positions by which a buffer grows."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """`DynamicLayer` whose keys and values are views of larger buffers instead of new concatenations.

    Only for decoding without gradient, because buffers are written in place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, D) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self._append("keys", self.keys, key_states)
        values = self._append("values", self.values, value_states)
        self.keys, self.values = keys, values
        return keys, values

    def _append(self, name: str, held: Tensor | None, new: Tensor) -> Tensor:
        length = held.shape[-2] if held is not None and held.numel() else 0
        total = length + new.shape[-2]
        buffer = self._buffers.get(name)
        # After reordering or narrowing, the cache holds other tensors than views of the buffer.
        fits = buffer is not None and held is not None and length > 0 and held.data_ptr() == buffer.data_ptr()
        if buffer is None or not fits or buffer.shape[-2] < total:
            shape = list(new.shape)
            shape[-2] = total if length == 0 else total + max(HEADROOM, length // 8)
            buffer = new.new_empty(shape)
            if held is not None and length:
                buffer[..., :length, :] = held
            self._buffers[name] = buffer
        buffer[..., length:total, :] = new
        return buffer[..., :total, :]


def growing_cache(config: Any) -> DynamicCache:
    """A `DynamicCache` for a text configuration, with growing layers in place of plain ones."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
