"""Batches of prompts that an engine answers while they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from futurel1.data import PromptBatch
from futurel1.data.collate import Fetched, OnError
from futurel1.data.samples import SkippedRecord
from futurel1.endpoints import EndpointError
from futurel1.engines.base import Answers, Block, Unanswered
from futurel1.errors import RecordError
from futurel1.models.transcript import Transcript

__all__ = ["Responses", "answered_batch", "prompt_block"]


class Responses:
    """The responses to the prompts of a batch; no container, so that no precision plugin looks into it.

    Args:
        by_prompt: for each prompt its responses.
    """

    def __init__(self, by_prompt: Sequence[tuple[Transcript, ...]]) -> None:
        self.by_prompt = tuple(by_prompt)

    def flat(self) -> list[Transcript]:
        """All responses, those of a prompt next to each other."""
        return [response for responses in self.by_prompt for response in responses]


def prompt_block(fetched: list[Fetched]) -> Block[Any]:
    """A block of all prompts that a worker fetched, decoded together; its items are a batch without tensors."""
    prompts = tuple(sample for part in fetched for sample in part.samples)
    none = torch.zeros(len(prompts), 0, dtype=torch.int64)
    batch = PromptBatch(
        input_ids=none,
        attention_mask=none,
        sample_ids=tuple(prompt.sample_id for prompt in prompts),
        skipped=tuple(record for part in fetched for record in part.skipped),
        sources=tuple(prompt.sources for prompt in prompts),
        info=tuple(prompt.info for prompt in prompts),
    )
    return Block(batch, (prompts,))


def answered_batch(batch: PromptBatch, answers: Sequence[Answers], on_error: OnError) -> PromptBatch:
    """Put answers into a batch.

    Args:
        batch: the items of :func:`prompt_block`.
        answers: one per prompt.
        on_error: ``raise``: a prompt that the engine refuses stops the run; ``skip``: it is one of the skipped.

    Raises:
        RecordError: the engine refuses a prompt, and `on_error` is ``raise``.
        EndpointError: the engine gave no answer.
    """
    skipped = list(batch.skipped)
    kept: list[int] = []
    for place, answer in enumerate(answers):
        if not isinstance(answer, Unanswered):
            kept.append(place)
        elif not answer.refused:
            raise EndpointError(f"{answer.reason}; what is written stays, and `futurel1 predict --resume` goes on")
        elif on_error == "raise":
            raise RecordError(f"{answer.reason} Or leave such records out by on_error skip")
        else:
            skipped.append(SkippedRecord(batch.sample_ids[place], RecordError.__name__, answer.reason))
    rows: dict[str, Any] = {
        name: tuple(getattr(batch, name)[place] for place in kept) for name in ("sample_ids", "sources", "info")
    }
    return replace(
        batch,
        input_ids=batch.input_ids[kept],
        attention_mask=batch.attention_mask[kept],
        skipped=tuple(skipped),
        responses=Responses([answer for answer in answers if not isinstance(answer, Unanswered)]),
        **rows,
    )
