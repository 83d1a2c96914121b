"""The own loop as an engine: batches of prompts are decoded in this process."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch

from futurel1.data import PromptBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched
from futurel1.data.encoded import EncodedSample
from futurel1.data.fetching import fetch
from futurel1.data.prompts import PromptCollator
from futurel1.engines.base import Answers, Block, Decoding, Engine
from futurel1.models import LatentReasoner
from futurel1.models.decoding import PromptSource
from futurel1.models.transcript import Transcript, transcripts

__all__ = ["OwnLoop", "Respond", "SampledResponses"]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SampledResponses:
    """Decodes batches with a reasoner; samples depend on the seed and the record, but not on the batch or the shard.

    The two prompts of a curated record share a name and thus their random numbers, which removes noise from the gain.

    Args:
        reasoner: any model that :meth:`LatentReasoner.from_pretrained` loads.
        decoding: how prompts are answered.
        slots: prompts that are decoded at once, unless the sampling has a number.
    """

    def __init__(self, reasoner: LatentReasoner, decoding: Decoding, *, slots: int = 4) -> None:
        self.reasoner = reasoner
        self.decoding = decoding
        self.slots = slots

    def __call__(self, prompts: Iterable[PromptBatch]) -> Iterator[list[Transcript]]:
        """Answer every prompt `num_branches` times, responses to a prompt adjacent; all of them wait in one queue."""
        decoding, sampling = self.decoding, self.decoding.sampling
        sources = (PromptSource(prompt.to(self.reasoner.device), sampling.seed) for prompt in prompts)
        settings = {**sampling.arguments(), "slots": sampling.slots or self.slots}
        for rollout in self.reasoner.generate_each(
            sources, num_branches=decoding.num_branches, do_sample=decoding.do_sample, **settings
        ):
            yield transcripts(rollout, self.reasoner.tokenizer)

    def settings(self) -> dict[str, Any]:
        """Digest of the weights, and the latents of a span."""
        budget = self.decoding.sampling.budget() or self.reasoner.settings.budget()
        return {
            "model": _fingerprint(self.reasoner),
            "latents": [str(budget), self.reasoner.settings.force_initial_latent_mode],
        }


Respond = Callable[[Iterable[PromptBatch]], Iterator[Sequence[Transcript]]]
"""Answers each of the B prompts of a batch G times, batch after batch; yields B * G responses, with those of a prompt
next to each other. It may read some batches ahead."""


class OwnLoop(Engine[EncodedSample]):
    """Decodes with a model in this process.

    Args:
        respond: answers batches, as :class:`SampledResponses` does.
        encoder: turns prompts into tensors.
    """

    def __init__(self, respond: Respond, encoder: ChatEncoder) -> None:
        self.encoder = encoder
        self._respond = respond
        self._collate = PromptCollator(encoder.pad_token_id)

    def settings(self) -> dict[str, Any]:
        """Settings of a model that samples; none of another function."""
        return self._respond.settings() if isinstance(self._respond, SampledResponses) else {}

    def run(
        self,
        dataset: Any,
        numbers: Iterable[Sequence[int]],
        collate: Callable[[list[Any]], Block[EncodedSample]],
        *,
        num_workers: int = 0,
    ) -> Iterator[tuple[Any, list[list[Answers]]]]:
        """Read blocks in loader workers; the prompts of all blocks wait in one queue."""
        yield from self.answer(fetch(dataset, numbers, collate, num_workers=num_workers))

    def answer(self, blocks: Iterable[Block[EncodedSample]]) -> Iterator[tuple[Any, list[list[Answers]]]]:
        """The items of each block and the answers to its rounds; some blocks may be read ahead."""
        waiting: deque[Block[EncodedSample]] = deque()

        def batches() -> Iterator[PromptBatch]:
            for block in blocks:
                waiting.append(block)
                for prompts in filter(None, block.rounds):
                    yield self._collate([Fetched(list(prompts), [])])

        answers = iter(self._respond(batches()))
        for responses in answers:
            while not any(waiting[0].rounds):
                yield _without_prompts(waiting.popleft())
            block, in_order = waiting.popleft(), chain([responses], answers)
            yield block.items, [_by_prompt(next(in_order), len(prompts)) if prompts else [] for prompts in block.rounds]
        yield from map(_without_prompts, waiting)


def _without_prompts(block: Block[EncodedSample]) -> tuple[Any, list[list[Answers]]]:
    return block.items, [[] for _ in block.rounds]


def _by_prompt(responses: Sequence[Transcript], prompts: int) -> list[Answers]:
    branches = len(responses) // prompts
    return [tuple(responses[row * branches : (row + 1) * branches]) for row in range(prompts)]


def _fingerprint(reasoner: LatentReasoner) -> str:
    """Digest of the weights in memory, whatever their source: hashes integer sums of their bits along both axes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(reasoner.state_dict().items()):
        bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()])
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        table = bits.flatten(1) if bits.ndim > 1 else bits.reshape(1, -1)
        for side in (0, 1):
            digest.update(table.sum(side, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()
