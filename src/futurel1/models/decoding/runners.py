"""Step-by-step runs of the backbone, with one copy of a prompt for all its branches or one copy per branch.

Shapes: B prompts, G branches each, A of the B * G rows active in a step, H hidden size.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.models.backbones import Vision
from futurel1.models.decoding.branching import Layout, branch_mask, kept_columns, next_positions
from futurel1.models.decoding.protocol import PromptLike, Reasoner


class Runner(ABC):
    """Runs the backbone step by step.

    Args:
        reasoner: the model.
        prompt: B left-padded prompts.
        vision: features of the prompts' images and videos.
        branches: G.
    """

    def __init__(self, reasoner: Reasoner, prompt: PromptLike, vision: Vision, branches: int) -> None:
        self.reasoner = reasoner
        self.prompt = prompt
        self.vision = vision
        self.branches = branches
        self.mask = prompt.attention_mask
        self.positions = reasoner.backbone.positions(prompt.input_ids, self.mask, vision)
        self.next_position = next_positions(self.positions, self.mask)

    def _prefill(self, cache: Any) -> Tensor:
        embeds, visual = self.reasoner.embed(self.prompt.input_ids, self.vision)
        return self.reasoner.backbone.run(embeds, self.positions, self.mask, visual, cache)[:, -1]

    @abstractmethod
    def start(self) -> Tensor:
        """Run the prompts; returns (B * G, H) hidden states that predict the first tokens."""

    @abstractmethod
    def step(self, active: Tensor, embeds: Tensor, step: int) -> Tensor:
        """Feed the token that every active row chose in a step.

        Args:
            active: (A,) int64 rows that continue, in order.
            embeds: (A, H) embeddings of their tokens.
            step: 0-based number of the step.

        Returns:
            (A, H) hidden states that predict the next tokens.
        """


def _new_cache(reasoner: Reasoner) -> Any:
    from futurel1.models.decoding.kv_cache import growing_cache  # imports transformers, so not at the top

    return growing_cache(reasoner.backbone.config.get_text_config())


class SharedPrompt(Runner):
    """Prompt keys and values exist once; each step feeds one token per branch into the prompt's row."""

    def start(self) -> Tensor:
        """Run the prompts."""
        self.cache = _new_cache(self.reasoner)
        # (prompts, branch slots) the row in each slot, -1 when it is empty
        self.slots = torch.arange(len(self.mask) * self.branches, device=self.mask.device).view(-1, self.branches)
        self.steps = 0
        return self._prefill(self.cache).repeat_interleave(self.branches, dim=0)

    def step(self, active: Tensor, embeds: Tensor, step: int) -> Tensor:
        """Feed one token per branch; drop finished branches once there are enough of them."""
        self.slots = torch.where(torch.isin(self.slots, active), self.slots, -1)
        self._drop_finished()
        prompts, width = self.slots.shape
        place = torch.full((int(self.slots.max()) + 1,), -1, device=active.device)
        filled = self.slots >= 0
        place[self.slots[filled]] = filled.flatten().nonzero()[:, 0]
        slots = place[active]
        fed = embeds.new_zeros(prompts * width, embeds.shape[-1])
        fed[slots] = embeds
        self.steps += 1
        position = (self.next_position + step)[None, :, None].expand(3, -1, width)
        mask = branch_mask(self.mask, width, self.steps, embeds.dtype)
        hidden = self.reasoner.backbone.run(fed.view(prompts, width, -1), position, mask, None, self.cache)
        return hidden.flatten(0, 1)[slots]

    def _drop_finished(self) -> None:
        filled = self.slots >= 0
        alive = filled.any(dim=1).nonzero()[:, 0]
        most = int(filled.sum(dim=1).max())
        width = self.slots.shape[1]
        # Moving the cache costs about one step, so it has to free a quarter of the slots or a whole prompt.
        if len(alive) == len(self.slots) and most > 0.75 * width:
            return
        kept = filled[alive].long().argsort(dim=1, descending=True, stable=True)[:, :most]
        columns = kept_columns(self.mask.shape[1], width, self.steps, kept)
        self.cache.reorder_cache(alive)
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                tensor = getattr(layer, name)
                index = columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
                setattr(layer, name, tensor.gather(2, index))
        self.slots = self.slots[alive].gather(1, kept)
        self.mask, self.next_position = self.mask[alive], self.next_position[alive]


class CopiedPrompt(Runner):
    """Every branch is a row that starts from a copy of the prompt's state."""

    def start(self) -> Tensor:
        """Run the prompts once and copy their state."""
        self.cache = _new_cache(self.reasoner)
        hidden = self._prefill(self.cache)
        prompt = torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(self.branches)
        self.cache.reorder_cache(prompt)
        self.rows = torch.arange(len(prompt), device=prompt.device)
        self.mask, self.next_position = self.mask[prompt], self.next_position[prompt]
        return hidden[prompt]

    def step(self, active: Tensor, embeds: Tensor, step: int) -> Tensor:
        """Feed one token per row; drop finished rows once they are a quarter of all."""
        staying = torch.isin(self.rows, active)
        if int(staying.sum()) <= 0.75 * len(self.rows):
            kept = staying.nonzero()[:, 0]
            self.cache.reorder_cache(kept)
            self.rows, self.mask, self.next_position = self.rows[kept], self.mask[kept], self.next_position[kept]
        slots = torch.searchsorted(self.rows, active)
        fed = embeds.new_zeros(len(self.rows), 1, embeds.shape[-1])
        fed[slots, 0] = embeds
        self.mask = F.pad(self.mask, (0, 1), value=1)
        position = (self.next_position + step)[None, :, None].expand(3, -1, 1)
        return self.reasoner.backbone.run(fed, position, self.mask, None, self.cache)[slots, 0]


RUNNERS: dict[Layout, type[Runner]] = {"shared": SharedPrompt, "rows": CopiedPrompt}
