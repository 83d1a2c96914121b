"""Keys and values of prompts, stored once, and of their branches; and the attention of a decoding step over both.

The attention is registered with `transformers` under :data:`SHARED_PROMPT`, the public way to give a stock model
another attention. A query of a branch attends to its prompt and to its branch; the two parts are merged by their
log-sum-exp. Queries of all branches of a prompt, and of all heads that share a key head, are one block of queries
against the prompt's keys, so that these are read once per step and never repeated.

Shapes: S slots with a prompt each, P prompt columns, A rows (branches), R response columns, K key heads, N query heads,
D channels of a head, G branches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from futurel1.models.decoding.attention import computed, partial_attention

SHARED_PROMPT = "futurel1_shared_prompt"
"""Name of the attention among those of `transformers`."""
BLOCK = 128
"""Number of columns by which the buffers of responses grow."""


class LayerCache:
    """Keys and values of a layer: (S, K, P, D) of prompts, (C, K, R, D) of C rows; none before the first prompt."""

    def __init__(self) -> None:
        self.prompt: list[Tensor] = []
        self.own: list[Tensor] = []

    def reserve(self, slots: int, prompt_columns: int, rows: int, own_columns: int, like: Tensor) -> None:
        """Make the buffers large enough, for keys and values like the (.., K, .., D) tensor given."""
        heads, channels, like = like.shape[1], like.shape[3], computed(like)
        for buffers, count, columns in ((self.prompt, slots, prompt_columns), (self.own, rows, own_columns)):
            for number in range(2):  # keys, values
                if len(buffers) <= number:
                    buffers.append(like.new_zeros(count, heads, columns, channels))
                elif buffers[number].shape[2] < columns:
                    # One buffer at a time: the old one is gone before the next one is made.
                    old = buffers[number]
                    buffers[number] = old.new_zeros(len(old), heads, columns, channels)
                    buffers[number][:, :, : old.shape[2]] = old
                else:
                    continue
                # A CUDA graph reads it where it is, instead of copying it at every replay.
                torch._dynamo.mark_static_address(buffers[number])

    def store_prompt(self, slot: int, key: Tensor, value: Tensor) -> None:
        """Store (1, K, P, D) keys and values of a prompt."""
        for buffer, new in zip(self.prompt, (key, value), strict=True):
            buffer[slot, :, : new.shape[2]] = new[0]

    def move_prompts(self, target: Tensor, source: Tensor) -> None:
        """Copy (n,) `source` slots over (n,) `target` ones."""
        for buffer in self.prompt:
            buffer[target] = buffer[source]

    def move_rows(self, target: Tensor, source: Tensor) -> None:
        """Copy (n,) `source` rows over (n,) `target` ones."""
        for buffer in self.own:
            buffer[target] = buffer[source]


@dataclass
class SharedStep:
    """What the attention of every layer needs in one decoding step.

    Attributes:
        layers: buffers of all layers.
        slots: S, prompts that are attended to; the first ones of the buffers.
        branches: G.
        prompt_columns: P, columns that the longest of these prompts takes.
        prompt_bias: (S, 1, 1, P) additive mask of the prompts' columns; None if all prompts are P columns long.
        own_columns: R, columns that the longest response takes.
        own_bias: (A, 1, 1, R) additive mask of the responses' columns.
        column: (A,) int64, column of each row's new token.
        place: (A,) int64, slot * G + branch of each row, S * G for rows that are not in use; None: row r is at place
            r, and no place is empty.
    """

    layers: list[LayerCache]
    slots: int
    branches: int
    prompt_columns: int
    prompt_bias: Tensor | None
    own_columns: int
    own_bias: Tensor
    column: Tensor
    place: Tensor | None

    def attend(self, layer: LayerCache, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store the new keys and values, and attend.

        Args:
            layer: buffers of the layer.
            query: (A, N, 1, D).
            key: (A, K, 1, D) of the new tokens.
            value: (A, K, 1, D).
            scale: factor of the scores.

        Returns:
            (A, N, 1, D).
        """
        query = computed(query)
        rows, heads, _, channels = query.shape
        shared = heads // key.shape[1]  # query heads per key head
        own = [buffer[:rows] for buffer in layer.own]
        index = torch.arange(rows, device=query.device)
        for buffer, new in zip(own, (key, value), strict=True):
            buffer[index, :, self.column] = new[:, :, 0].to(buffer.dtype)
        # 1. Every row to its own response.
        grouped = query.view(rows, -1, shared, channels)
        own_keys, own_values = (buffer[:, :, : self.own_columns] for buffer in own)
        own_out, own_lse = partial_attention(grouped, own_keys, own_values, self.own_bias, scale)

        # 2. All branches of a prompt, and all heads that share a key head, to the prompt.
        places = self.slots * self.branches
        if self.place is not None:
            spare = grouped.new_zeros(places + 1, *grouped.shape[1:])
            grouped = spare.index_copy(0, self.place, grouped)[:places]
        blocks = grouped.view(self.slots, self.branches, -1, shared, channels).transpose(1, 2)
        keys, values = (buffer[: self.slots, :, : self.prompt_columns] for buffer in layer.prompt)
        out, lse = partial_attention(blocks.flatten(2, 3), keys, values, self.prompt_bias, scale)
        out = out.view(self.slots, -1, self.branches, shared, channels).transpose(1, 2).flatten(0, 1)
        lse = lse.view(self.slots, -1, self.branches, shared).transpose(1, 2).flatten(0, 1)
        if self.place is not None:
            at = self.place.clamp(max=places - 1)
            out, lse = out[at], lse[at]

        # 3. The softmax over both parts weighs each by its share of the total.
        share = (lse - own_lse).sigmoid()[..., None].to(out.dtype)
        return torch.lerp(own_out, out, share).reshape(rows, heads, 1, channels)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared_step: SharedStep,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention in the form that `transformers` calls: (A, N, 1, D) to (A, 1, N, D)."""
    layer = shared_step.layers[module.layer_idx]
    return shared_step.attend(layer, query, key, value, scaling).transpose(1, 2), None


@cache
def _register() -> None:
    from transformers import AttentionInterface  # not at the top: it takes seconds to import

    AttentionInterface.register(SHARED_PROMPT, _attend)


@contextmanager
def shared_prompt_attention(config: Any) -> Iterator[None]:
    """Let the language model with this configuration attend by :class:`SharedStep`, which it gets as `shared_step`."""
    _register()
    before = config._attn_implementation
    config._attn_implementation = SHARED_PROMPT
    try:
        yield
    finally:
        config._attn_implementation = before


def prompt_writer(
    config: Any, layers: list[LayerCache], slot: int, reserve: Callable[[LayerCache, Tensor], None]
) -> Any:
    """A cache for the run of one prompt that stores keys and values in a slot, and nowhere else.

    Args:
        config: the text configuration.
        layers: buffers of all layers.
        slot: the prompt's slot.
        reserve: called with a layer's buffers and its new keys before they are stored.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class SlotWriter(DynamicLayer):  # type: ignore[no-untyped-call]
        def __init__(self, buffers: LayerCache) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.buffers = buffers

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            reserve(self.buffers, key_states)
            self.buffers.store_prompt(slot, key_states, value_states)
            return key_states, value_states

        def get_seq_length(self, *args: Any) -> int:
            return 0

    written = DynamicCache(config=config)
    written.layers = [SlotWriter(buffers) for buffers in layers]
    return written
