"""Batches of a given size without data, on the device of a model: token ids are real, pixels and latents are zeros.

Shapes: B rows, T tokens, P tokens of a prompt, G responses a prompt, R tokens of a response, H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from futurel1.data import PromptBatch, SFTBatch
from futurel1.errors import ConfigError
from futurel1.models import IGNORE, LatentReasoner
from futurel1.models.decoding import Rollout
from futurel1.models.policies import LatentPolicy
from futurel1.rollout import Experience

TEXT_TOKENS = 64
"""Text around the videos of a prompt, at least."""
SHORTEST_PROMPT = 2 * TEXT_TOKENS
SPANS = 2
"""Spans of a response."""


@dataclass(frozen=True)
class Size:
    """Size of a batch.

    Attributes:
        rows: B, prompts or records.
        prompt: P, tokens of a prompt, visual ones included.
        response: R, tokens of a response.
        branches: G, responses to a prompt.
        span_latents: latents of a span.
    """

    rows: int
    prompt: int
    response: int
    branches: int = 1
    span_latents: int = 4

    def __str__(self) -> str:
        """As in the head of a table."""
        responses = f"{self.branches} responses" if self.branches > 1 else "response"
        return f"{self.rows} x (prompt of {self.prompt} tokens, {responses} of {self.response})"


def sft_batch(reasoner: LatentReasoner, size: Size) -> SFTBatch:
    """Training records of equal length."""
    prompt, grids = _prompt_ids(reasoner, size.prompt)
    response, _ = _response_ids(reasoner, size)
    ids = torch.cat([prompt, response]).repeat(size.rows, 1)
    labels = torch.full_like(ids, IGNORE)
    labels[:, size.prompt :] = ids[:, size.prompt :]
    hints = torch.tensor([_grid(reasoner, 1, size.span_latents)]).repeat(size.rows * SPANS, 1)
    return SFTBatch(
        ids, torch.ones_like(ids), labels, **_videos(reasoner, grids, size.rows),
        hint_pixel_values=_pixels(reasoner, hints), hint_grid_thw=hints,
    )  # fmt: skip


def prompt_batch(reasoner: LatentReasoner, size: Size) -> PromptBatch:
    """Prompts of equal length."""
    prompt, grids = _prompt_ids(reasoner, size.prompt)
    ids = prompt.repeat(size.rows, 1)
    return PromptBatch(
        ids, torch.ones_like(ids), **_videos(reasoner, grids, size.rows), sample_ids=tuple(map(str, range(size.rows)))
    )


def experience(reasoner: LatentReasoner, size: Size, policy: LatentPolicy, temperature: float) -> Experience:
    """A micro-batch of rollouts of equal length, with the features of a frozen tower."""
    prompts = prompt_batch(reasoner, size)
    with torch.no_grad():
        vision = None if reasoner.vision_is_trainable else reasoner.encode(prompts)
    responses, slots = (part.repeat(size.rows * size.branches, 1) for part in _response_ids(reasoner, size))
    rows, spans = len(responses), slots.sum(dim=1)[0] // size.span_latents
    latents = int(slots[0].sum())
    every = torch.ones_like(responses, dtype=torch.bool)
    device = reasoner.device
    zeros = torch.zeros(responses.shape, device=device)
    density = torch.zeros(rows, latents, dtype=torch.float64, device=device)
    rollout = Rollout(
        responses, every, zeros, every, slots, torch.zeros(rows, latents, reasoner.hidden_size, device=device),
        torch.ones(rows, latents, dtype=torch.bool),
        torch.arange(int(spans)).repeat_interleave(size.span_latents).repeat(rows, 1), density,
        torch.zeros(0, 5, dtype=torch.int64), ["eos"] * rows, size.branches, temperature, policy,
    )  # fmt: skip
    return Experience(
        prompts, rollout, torch.zeros(rows, device=device), torch.ones(rows, dtype=torch.bool), responses.numel(),
        vision, reference_log_probs=zeros,
    )  # fmt: skip


def _prompt_ids(reasoner: LatentReasoner, length: int) -> tuple[Tensor, list[int]]:
    """(P,) ids of a prompt that is a video but for `TEXT_TOKENS`, and the grid of the video."""
    config = reasoner.config
    if length < SHORTEST_PROMPT:
        raise ConfigError(f"a prompt of {length} tokens is too short to plan for; give at least {SHORTEST_PROMPT}")
    frames = max(1, min(16, length // TEXT_TOKENS - 1))
    visual = (length - TEXT_TOKENS) // frames - 2
    frame = [config.vision_start_token_id, *[config.video_token_id] * visual, config.vision_end_token_id]
    text = length - frames * len(frame)
    splits = reasoner.backbone.splits_videos
    if not splits:
        frame = [frame[0], *[config.video_token_id] * (visual * frames), frame[-1]]
        text = length - len(frame)
    return torch.tensor(frame * (frames if splits else 1) + [_word(reasoner)] * text), _grid(reasoner, frames, visual)


def _response_ids(reasoner: LatentReasoner, size: Size) -> tuple[Tensor, Tensor]:
    """(R,) ids of a response with spans, and (R,) bool, which of them are latents."""
    tokens = reasoner.tokens
    span = [tokens.start_id, *[tokens.latent_id] * size.span_latents, tokens.end_id]
    ids = torch.full((size.response,), _word(reasoner))
    if size.response < SPANS * len(span) + 2:
        raise ConfigError(f"a response of {size.response} tokens has no place for {SPANS} spans of latents")
    ids[1 : 1 + SPANS * len(span)] = torch.tensor(span * SPANS)
    return ids, ids == tokens.latent_id


def _word(reasoner: LatentReasoner) -> int:
    """An ordinary token."""
    taken = {*vars(reasoner.tokens).values(), reasoner.config.image_token_id, reasoner.config.video_token_id}
    return next(token for token in range(1, len(taken) + 2) if token not in taken)


def _grid(reasoner: LatentReasoner, frames: int, tokens: int) -> list[int]:
    merge = int(reasoner.config.vision_config.spatial_merge_size)
    return [frames, merge, merge * tokens]


def _pixels(reasoner: LatentReasoner, grids: Tensor) -> Tensor:
    vision = reasoner.config.vision_config
    values = 3 * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    return torch.zeros(int(grids.prod(dim=-1).sum()), values, device=reasoner.device)


def _videos(reasoner: LatentReasoner, grid: list[int], rows: int) -> dict[str, Any]:
    grids = torch.tensor([grid]).repeat(rows, 1)
    return {"pixel_values_videos": _pixels(reasoner, grids), "video_grid_thw": grids}
