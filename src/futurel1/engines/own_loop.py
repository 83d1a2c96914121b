"""The own loop as an engine: batches of prompts are decoded in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from futurel1.data import PromptBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched
from futurel1.data.encoded import EncodedSample
from futurel1.data.prompts import PromptCollator
from futurel1.engines.base import Answers, Decoding, LocalEngine
from futurel1.models import LatentReasoner
from futurel1.models.transcript import Transcript, transcripts

__all__ = ["OwnLoop", "Respond", "SampledResponses"]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SampledResponses:
    """Decodes batches with a reasoner; samples depend on the seed and the record, but not on the batch or the shard.

    The two prompts of a curated record share a name and thus their random numbers, which removes noise from the gain.

    Args:
        reasoner: any model that :meth:`LatentReasoner.from_pretrained` loads.
        decoding: how prompts are answered.
    """

    def __init__(self, reasoner: LatentReasoner, decoding: Decoding) -> None:
        self.reasoner = reasoner
        self.decoding = decoding

    def __call__(self, prompt: PromptBatch) -> list[Transcript]:
        """Answer every prompt `num_branches` times; responses to a prompt are adjacent."""
        rollout = self.reasoner.generate(
            prompt.to(self.reasoner.device),
            num_branches=self.decoding.num_branches,
            do_sample=self.decoding.do_sample,
            seed=self.decoding.sampling.seed,
            **self.decoding.sampling.arguments(),
        )
        return transcripts(rollout, self.reasoner.tokenizer)

    def settings(self) -> dict[str, Any]:
        """Digest of the weights, and the latents of a span."""
        budget = self.decoding.sampling.budget() or self.reasoner.settings.budget()
        return {
            "model": _fingerprint(self.reasoner),
            "latents": [str(budget), self.reasoner.settings.force_initial_latent_mode],
        }


Respond = Callable[[PromptBatch], Sequence[Transcript]]
"""Answers each of B prompts G times; returns B * G responses, with those of a prompt next to each other."""


class OwnLoop(LocalEngine[EncodedSample]):
    """Decodes with a model in this process.

    Args:
        respond: answers a batch, as :class:`SampledResponses` does.
        encoder: turns prompts into tensors.
    """

    def __init__(self, respond: Respond, encoder: ChatEncoder) -> None:
        self.encoder = encoder
        self._respond = respond
        self._collate = PromptCollator(encoder.pad_token_id)

    def settings(self) -> dict[str, Any]:
        """Settings of a model that samples; none of another function."""
        return self._respond.settings() if isinstance(self._respond, SampledResponses) else {}

    def begin(self, prompts: Sequence[EncodedSample]) -> Callable[[], list[Answers]]:
        """Decode the prompts as one batch when they are waited for."""

        def finish() -> list[Answers]:
            responses = tuple(self._respond(self._collate([Fetched(list(prompts), [])]))) if prompts else ()
            branches = len(responses) // max(1, len(prompts))
            return [responses[row * branches : (row + 1) * branches] for row in range(len(prompts))]

        return finish


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
