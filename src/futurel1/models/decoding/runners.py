"""Step-by-step runs of the backbone, with one copy of a prompt for all its branches or one copy per branch.

Shapes: S slots, G branches each, A rows in use, P tokens of a prompt, H hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.models.decoding.branching import Layout
from futurel1.models.decoding.prompts import QueuedPrompt
from futurel1.models.decoding.protocol import Reasoner
from futurel1.models.decoding.rows import Rows
from futurel1.models.decoding.shared_cache import (
    BLOCK,
    LayerCache,
    SharedStep,
    prompt_writer,
    shared_prompt_attention,
)
from futurel1.models.decoding.sizes import Sizes


class Runner(ABC):
    """Runs the backbone step by step.

    Rows are in use from the first one on without a gap, and so are slots.

    Args:
        reasoner: the model.
        sizes: sizes of a step.
    """

    drops_at = 0.0
    """Share of rows that have to be done before it pays to remove them."""

    def __init__(self, reasoner: Reasoner, sizes: Sizes) -> None:
        self.reasoner = reasoner
        self.sizes = sizes
        self.branches = sizes.branches

    @abstractmethod
    def admit(self, prompt: QueuedPrompt, slot: int) -> Tensor:
        """Run a prompt and keep its state in a slot, and for its G branches in the next rows.

        Returns:
            (H,) hidden state that predicts the first tokens.
        """

    def grow(self, columns: int) -> None:  # noqa: B027 (not every runner has buffers)
        """Have this many columns for responses."""

    def attention(self) -> AbstractContextManager[None]:
        """The context in which :meth:`feed` is called."""
        return nullcontext()

    @abstractmethod
    def feed(self, rows: Rows, embeds: Tensor, prompts: int, columns: int, places: Tensor | None) -> Tensor:
        """Feed the newest token of every row.

        Args:
            rows: A rows.
            embeds: (A, H) embeddings of these tokens.
            prompts: S, number of slots to attend to.
            columns: columns of responses, at least as many as the longest has tokens.
            places: (A,) int64, slot * G + branch of each row, S * G for rows that are not in use; None: row r is at
                place r, and no place is empty.

        Returns:
            (A, H) hidden states that predict the next tokens.
        """

    @abstractmethod
    def keep_rows(self, order: Sequence[int]) -> None:
        """Keep these rows only: the new row i is row `order[i]`."""

    def keep_slots(self, order: Sequence[int]) -> None:  # noqa: B027 (not every runner has slots)
        """Keep these slots only: the new slot i is slot `order[i]`."""


def moves(order: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """(n,) targets and sources of the rows that change place; None if none does."""
    changed = [(new, old) for new, old in enumerate(order) if new != old]
    if not changed:
        return None
    target, source = torch.tensor(changed, device=device).unbind(dim=1)
    return target, source


class SharedPrompt(Runner):
    """Keys and values of a prompt exist once, in buffers that are allocated once."""

    def __init__(self, reasoner: Reasoner, sizes: Sizes) -> None:
        super().__init__(reasoner, sizes)
        language_model: Any = reasoner.backbone.language_model
        self.config = language_model.config
        self.layers = [LayerCache() for _ in range(self.config.num_hidden_layers)]
        self.own_columns = 0
        self.lengths: list[int] = []
        self.prompt_bias: Tensor | None = None

    def admit(self, prompt: QueuedPrompt, slot: int) -> Tensor:
        """Run a prompt and store its keys and values in a slot."""
        sizes, length = self.sizes, prompt.embeds.shape[1]
        sizes.see_prompt(length)
        self.own_columns = max(self.own_columns, min(BLOCK, sizes.max_new_tokens))

        def reserve(layer: LayerCache, key: Tensor) -> None:
            layer.reserve(sizes.slots, sizes.prompt_columns, sizes.all_rows, self.own_columns, key)

        written = prompt_writer(self.config, self.layers, slot, reserve)
        hidden = self.reasoner.backbone.run(prompt.embeds, prompt.positions, None, prompt.visual, written)
        self.lengths[slot:] = [length]
        self._mask_prompts()
        return hidden[0, -1]

    def _mask_prompts(self) -> None:
        """Additive mask of the prompts' columns; None if all prompts are equally long and nothing is compiled."""
        columns, count = self.sizes.prompt_columns, self.sizes.prompts(len(self.lengths))
        if not self.sizes.compiled and min(self.lengths, default=0) == columns and len(self.lengths) == count:
            self.prompt_bias = None
            return
        dtype, device = self.layers[0].own[0].dtype, self.layers[0].own[0].device
        ends = torch.tensor(self.lengths + [columns] * (count - len(self.lengths)), device=device)[:, None]
        bias = torch.zeros(count, columns, dtype=dtype, device=device)
        self.prompt_bias = bias.masked_fill_(torch.arange(columns, device=device) >= ends, torch.finfo(dtype).min)

    def grow(self, columns: int) -> None:
        """Widen the buffers of responses by whole blocks."""
        if columns > self.own_columns:
            self.own_columns = min(self.sizes.max_new_tokens, -(-columns // BLOCK) * BLOCK)
            for layer in self.layers:
                layer.reserve(0, 0, self.sizes.all_rows, self.own_columns, layer.own[0])

    def attention(self) -> AbstractContextManager[None]:
        """The stock model attends by :class:`SharedStep`."""
        return shared_prompt_attention(self.config)

    def feed(self, rows: Rows, embeds: Tensor, prompts: int, columns: int, places: Tensor | None) -> Tensor:
        """Feed one token per row."""
        dtype, column = self.layers[0].own[0].dtype, rows.step - 1
        later = torch.arange(columns, device=column.device) > column[:, None]
        own_bias = torch.zeros(later.shape, dtype=dtype, device=column.device).masked_fill(
            later, torch.finfo(dtype).min
        )
        step = SharedStep(
            layers=self.layers, slots=prompts, branches=self.branches,
            prompt_columns=self.sizes.prompt_columns,
            prompt_bias=None if self.prompt_bias is None else self.prompt_bias[:, None, None],
            own_columns=columns, own_bias=own_bias[:, None, None], column=column, place=places,
        )  # fmt: skip
        position = (rows.position + column)[None, :, None].expand(3, -1, 1)
        return self.reasoner.backbone.run(embeds[:, None], position, None, shared_step=step)[:, 0]

    def keep_rows(self, order: Sequence[int]) -> None:
        """Move rows into gaps."""
        found = moves(order, self.layers[0].own[0].device)
        if found is not None:
            for layer in self.layers:
                layer.move_rows(*found)

    def keep_slots(self, order: Sequence[int]) -> None:
        """Move prompts into gaps."""
        found = moves(order, self.layers[0].prompt[0].device)
        if found is not None:
            for layer in self.layers:
                layer.move_prompts(*found)
        self.lengths = [self.lengths[slot] for slot in order]
        self._mask_prompts()


class CopiedPrompt(Runner):
    """Every branch is a row that starts from a copy of the prompt's state; for all caches of `transformers`."""

    drops_at = 0.25
    cache: Any = None
    mask: Tensor

    def admit(self, prompt: QueuedPrompt, slot: int) -> Tensor:
        """Run a prompt once and copy its state."""
        from futurel1.models.decoding.kv_cache import growing_cache  # imports transformers, so not at the top

        cache: Any = growing_cache(self.reasoner.backbone.config.get_text_config())
        hidden = self.reasoner.backbone.run(prompt.embeds, prompt.positions, None, prompt.visual, cache)
        copies = torch.zeros(self.branches, dtype=torch.int64, device=hidden.device)
        cache.reorder_cache(copies)
        mask = torch.ones(self.branches, hidden.shape[1], dtype=torch.int64, device=hidden.device)
        if self.cache is None:
            self.cache, self.mask = cache, mask
        else:
            for held, new in zip(self.cache.layers, cache.layers, strict=True):
                _append_rows(held, new)
            self.mask = torch.cat(_pad_left([self.mask, mask], dim=1))
        return hidden[0, -1]

    def feed(self, rows: Rows, embeds: Tensor, prompts: int, columns: int, places: Tensor | None) -> Tensor:
        """Feed one token per row."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        position = (rows.position + rows.step - 1)[None, :, None].expand(3, -1, 1)
        return self.reasoner.backbone.run(embeds[:, None], position, self.mask, None, self.cache)[:, 0]

    def keep_rows(self, order: Sequence[int]) -> None:
        """Copy the rows that stay."""
        if not order:
            self.cache = None
            return
        index = torch.tensor(order, device=self.mask.device)
        self.cache.reorder_cache(index)
        self.mask = self.mask[index]


def _append_rows(held: Any, new: Any) -> None:
    """Append the rows of a layer of another cache: keys and values, or the states of a recurrent layer."""
    if getattr(held, "is_initialized", False):
        for name in ("keys", "values"):
            setattr(held, name, torch.cat(_pad_left([getattr(held, name), getattr(new, name)], dim=2)))
    for name in ("conv_states", "recurrent_states"):
        states: Any = getattr(held, name, None)
        added: Any = getattr(new, name, None)
        if isinstance(states, dict):  # several states per layer since transformers 5.20
            for number, state in states.items():
                if state is not None:
                    states[number] = torch.cat([state, added[number]])
        elif isinstance(states, Tensor):
            setattr(held, name, torch.cat([states, added]))


def _pad_left(parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Pad with zeros before dimension `dim`, to one size."""
    width = max(part.shape[dim] for part in parts)
    return [F.pad(part, (0, 0) * (part.dim() - 1 - dim) + (width - part.shape[dim], 0)) for part in parts]


RUNNERS: dict[Layout, type[Runner]] = {"shared": SharedPrompt, "rows": CopiedPrompt}
