"""Prompts that wait to be decoded, one by one.

Shapes: B prompts of P tokens, G branches each, H hidden size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from futurel1.errors import BatchError, ConfigError
from futurel1.models.backbones import Vision, VisualRows
from futurel1.models.decoding.branching import next_positions, require_left_padding
from futurel1.models.decoding.protocol import PromptLike, Reasoner
from futurel1.models.noise import row_keys


@dataclass(frozen=True)
class QueuedPrompt:
    """One prompt, ready for the language model.

    Attributes:
        embeds: (1, P, H) embeddings without padding.
        positions: (3, 1, P) M-RoPE positions.
        visual: its DeepStack rows; None without any.
        next_position: position of the first response token.
        last_token: id of its last token.
        name: its sample id; None if it has none.
        keys: (G,) int64 keys of its branches' random numbers.
    """

    embeds: Tensor
    positions: Tensor
    visual: VisualRows | None
    next_position: int
    last_token: int
    name: str | None
    keys: Tensor


@dataclass(frozen=True)
class PromptSource:
    """Prompts of a batch, with what decoding needs beside them.

    Attributes:
        prompt: B left-padded prompts.
        seed: one seed, or (B,) int64 one per prompt.
        vision: features of their images and videos; None: not computed yet.

    Raises:
        BatchError: no prompts.
    """

    prompt: PromptLike
    seed: int | Tensor = 0
    vision: Vision | None = None

    def __post_init__(self) -> None:
        if not len(self.prompt.input_ids):
            raise BatchError("there are no prompts to decode: input_ids are empty")


def queue(reasoner: Reasoner, sources: Iterable[PromptSource], branches: int) -> Iterator[QueuedPrompt]:
    """All prompts in order; a batch is read and encoded when its first prompt is asked for.

    Equal prompts of a source with the same seed get different random numbers, as if they were one prompt with more
    branches. What other sources are in the queue changes nothing.

    Raises:
        BatchError: prompts that are not left-padded or do not match their images.
        ConfigError: a number of seeds that is not the number of prompts.
    """
    for source in sources:
        prompt, seed = source.prompt, source.seed
        ids, mask = prompt.input_ids, prompt.attention_mask
        require_left_padding(mask)
        if isinstance(seed, Tensor) and seed.shape != (len(ids),):
            raise ConfigError(f"seed is one number or one per prompt, ({len(ids)},), got shape {tuple(seed.shape)}")
        vision = reasoner.encode(prompt) if source.vision is None else source.vision
        embeds, visual = reasoner.embed(ids, vision)
        positions = reasoner.backbone.positions(ids, mask, vision)
        after = next_positions(positions, mask).tolist()
        keys = row_keys(seed, contents(reasoner, prompt), branches).view(len(ids), branches)
        rows = _visual_rows(visual, len(ids))
        for row, start in enumerate((mask == 0).sum(dim=1).tolist()):
            yield QueuedPrompt(
                embeds=embeds[row : row + 1, start:],
                positions=positions[:, row : row + 1, start:],
                visual=_without_padding(rows[row], start),
                next_position=after[row],
                last_token=int(ids[row, -1]),
                name=prompt.sample_ids[row] if prompt.sample_ids else None,
                keys=keys[row].to(ids.device),
            )


def _without_padding(visual: VisualRows | None, start: int) -> VisualRows | None:
    return None if visual is None else VisualRows(visual.mask[:, start:], visual.deepstack)


def _visual_rows(visual: VisualRows | None, prompts: int) -> Sequence[VisualRows | None]:
    """DeepStack rows of each prompt; None for prompts without any."""
    if visual is None:
        return [None] * prompts
    counts = visual.mask.sum(dim=1).tolist()
    levels = zip(*(torch.split(level, counts) for level in visual.deepstack), strict=True)
    return [
        VisualRows(visual.mask[row : row + 1], list(own)) if counts[row] else None for row, own in enumerate(levels)
    ]


def contents(reasoner: Reasoner, prompt: PromptLike) -> list[str]:
    """Names of the prompts: their sample ids, or else their token ids with digests of their pixels."""
    if prompt.sample_ids:
        return list(prompt.sample_ids)
    masks = prompt.attention_mask != 0
    names = [str(ids[mask].tolist()) for ids, mask in zip(prompt.input_ids, masks, strict=True)]
    config = reasoner.backbone.config
    patches = int(config.vision_config.spatial_merge_size) ** 2
    for token, pixels in (
        (config.image_token_id, prompt.pixel_values),
        (config.video_token_id, prompt.pixel_values_videos),
    ):
        if pixels is None:
            continue
        parts = torch.split(pixels.cpu(), ((prompt.input_ids == token).sum(dim=1) * patches).tolist())
        digests = [sha256(part.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for part in parts]
        # A prompt without pixels keeps its name, whether or not other prompts have pixels.
        names = [
            f"{name}:{digest}" if len(part) else name for name, part, digest in zip(names, parts, digests, strict=True)
        ]
    return names
