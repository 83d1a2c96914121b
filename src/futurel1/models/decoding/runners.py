"""Step-by-step runs of the backbone, with one copy of a prompt for all its branches or one copy per branch.

Shapes: S slots, G branches each, A rows in use, P tokens of a prompt, H hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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


class Runner(ABC):
    """Runs the backbone step by step.

    Rows are in use from the first one on without a gap, and so are slots.

    Args:
        reasoner: the model.
        slots: most prompts at once.
        branches: G.
        max_new_tokens: most tokens of a response.
        prompt_columns: expected length of the longest prompt; 0 if it is not known.
    """

    drops_at = 0.0
    """Share of rows that have to be done before it pays to remove them."""

    def __init__(
        self, reasoner: Reasoner, slots: int, branches: int, max_new_tokens: int, prompt_columns: int = 0
    ) -> None:
        self.reasoner = reasoner
        self.slots = slots
        self.branches = branches
        self.max_new_tokens = max_new_tokens
        self.prompt_columns = prompt_columns

    @abstractmethod
    def admit(self, prompt: QueuedPrompt, slot: int) -> Tensor:
        """Run a prompt and keep its state in a slot, and for its G branches in the next rows.

        Returns:
            (H,) hidden state that predicts the first tokens.
        """

    @abstractmethod
    def feed(self, rows: Rows, embeds: Tensor, longest: int, places: Tensor | None) -> Tensor:
        """Feed the newest token of every row.

        Args:
            rows: A rows.
            embeds: (A, H) embeddings of these tokens.
            longest: tokens of the longest response so far.
            places: (A,) int64, slot * G + branch of each row; None: row r is at place r, and no place is empty.

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

    def __init__(
        self, reasoner: Reasoner, slots: int, branches: int, max_new_tokens: int, prompt_columns: int = 0
    ) -> None:
        super().__init__(reasoner, slots, branches, max_new_tokens, prompt_columns)
        self.config = reasoner.backbone.language_model.config
        self.layers = [LayerCache() for _ in range(self.config.num_hidden_layers)]
        self.own_columns = 0
        self.lengths: list[int] = []
        self._bias: Tensor | None = None

    def admit(self, prompt: QueuedPrompt, slot: int) -> Tensor:
        """Run a prompt and store its keys and values in a slot."""
        length = prompt.embeds.shape[1]
        self.prompt_columns = max(self.prompt_columns, length)
        self.own_columns = max(self.own_columns, min(BLOCK, self.max_new_tokens))

        def reserve(layer: LayerCache, key: Tensor) -> None:
            layer.reserve(self.slots, self.prompt_columns, self.slots * self.branches, self.own_columns, key)

        written = prompt_writer(self.config, self.layers, slot, reserve)
        hidden = self.reasoner.backbone.run(prompt.embeds, prompt.positions, None, prompt.visual, written)
        if slot == len(self.lengths):
            self.lengths.append(length)
        self.lengths[slot] = length
        self._bias = None
        return hidden[0, -1]

    def feed(self, rows: Rows, embeds: Tensor, longest: int, places: Tensor | None) -> Tensor:
        """Feed one token per row."""
        step = self.plan(rows, longest, places)
        with shared_prompt_attention(self.config):
            return self.run(rows, embeds, step)

    def plan(self, rows: Rows, longest: int, places: Tensor | None) -> SharedStep:
        """What the attention of the next step needs."""
        if longest > self.own_columns:
            self.own_columns = min(self.max_new_tokens, -(-longest // BLOCK) * BLOCK)
            for layer in self.layers:
                layer.reserve(0, 0, self.slots * self.branches, self.own_columns, layer.own[0])
        slots, columns, dtype = len(self.lengths), max(self.lengths), self.layers[0].own[0].dtype
        blocked = torch.finfo(dtype).min
        device = rows.step.device
        if self._bias is None and min(self.lengths) < columns:
            ends = torch.tensor(self.lengths, device=device)[:, None]
            hidden = torch.arange(columns, device=device) >= ends
            self._bias = torch.zeros(slots, columns, dtype=dtype, device=device).masked_fill(hidden, blocked)
        column = rows.step - 1
        later = torch.arange(longest, device=device) > column[:, None]
        own = torch.zeros(later.shape, dtype=dtype, device=device).masked_fill(later, blocked)
        return SharedStep(
            layers=self.layers, slots=slots, branches=self.branches, prompt_columns=columns,
            prompt_bias=None if self._bias is None else self._bias[:, None, None],
            own_columns=longest, own_bias=own[:, None, None], column=column, place=places,
        )  # fmt: skip

    def run(self, rows: Rows, embeds: Tensor, step: SharedStep) -> Tensor:
        """(A, H) hidden states after feeding (A, H) embeddings."""
        position = (rows.position + rows.step - 1)[None, :, None].expand(3, -1, 1)
        return self.reasoner.backbone.run(embeds[:, None], position, None, shared_step=step)[:, 0]

    def keep_rows(self, order: Sequence[int]) -> None:
        """Move rows into gaps."""
        found = moves(order, self.layers[0].own[0].device)
        if found is not None:
            for layer in self.layers:
                layer.move(layer.own, *found)

    def keep_slots(self, order: Sequence[int]) -> None:
        """Move prompts into gaps."""
        found = moves(order, self.layers[0].prompt[0].device)
        if found is not None:
            for layer in self.layers:
                layer.move(layer.prompt, *found)
        self.lengths = [self.lengths[slot] for slot in order]
        self._bias = None


class CopiedPrompt(Runner):
    """Every branch is a row that starts from a copy of the prompt's state; for all caches of `transformers`."""

    drops_at = 0.25
    cache: Any = None
    mask: Tensor

    def admit(self, prompt: QueuedPrompt, slot: int) -> Tensor:
        """Run a prompt once and copy its state."""
        from futurel1.models.decoding.kv_cache import growing_cache  # imports transformers, so not at the top

        cache = growing_cache(self.reasoner.backbone.config.get_text_config())
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

    def feed(self, rows: Rows, embeds: Tensor, longest: int, places: Tensor | None) -> Tensor:
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
        states, added = getattr(held, name, None), getattr(new, name, None)
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
