"""Vectors that probes read: latents, the state where a span ends, states of the words after it, and of thoughts.

Shapes: N responses of at most R tokens, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from futurel1.data import PromptBatch
from futurel1.data.prompts import PromptCollator, PromptDataset
from futurel1.diagnosis.decoding import Decoder, open_questions
from futurel1.models import LatentReasoner
from futurel1.models.decoding import Rollout
from futurel1.models.policies import DeterministicLatents

__all__ = ["THOUGHTS", "FrameVector", "imagined_states", "response_states", "thought_states"]

LATENTS, END_OF_SPAN, WORDS, THOUGHTS = "latents", "end of span", "words after", "thoughts of the text-only model"
_ENDS = re.compile(r"</reason>\s*|\n")
"""Where a thought ends: with its tag, or, where thoughts share a tag because no span is between them, with its line."""


@dataclass(frozen=True)
class FrameVector:
    """A vector that may hold what a future frame shows.

    Attributes:
        source: where it is from.
        question: number of the question in its file.
        frame: number of the future frame, from 0.
        vector: (H,) float64.
    """

    source: str
    question: int
    frame: int
    vector: NDArray[np.float64]


def response_states(reasoner: LatentReasoner, batch: PromptBatch, rollout: Rollout) -> Tensor:
    """(N, R, H) hidden states at the tokens of responses, one per prompt; arbitrary behind their ends."""
    ids = torch.cat([batch.input_ids, rollout.responses], dim=1)
    mask = torch.cat([batch.attention_mask, rollout.response_mask.to(batch.attention_mask)], dim=1)
    hidden = reasoner(ids, mask, reasoner.encode(batch), rollout.latents[rollout.latent_mask])
    states: Tensor = hidden[:, batch.input_ids.shape[1] :]
    return states


def imagined_states(decoder: Decoder, questions: Sequence[str]) -> list[FrameVector]:
    """Vectors of every span with latents: its latents, the state at its END, and the words up to the next span.

    Args:
        decoder: the model.
        questions: files of records.
    """
    found: list[FrameVector] = []
    for first, rollout, states in _decoded(decoder, questions):
        lengths = rollout.response_mask.sum(dim=1).tolist()
        latents = [rollout.latents[row][rollout.latent_mask[row]] for row in range(len(rollout))]
        spans: dict[int, list[tuple[int, int, int]]] = {}
        for row, start, count, end, _ in rollout.span_table.tolist():
            spans.setdefault(row, []).append((start, count, end))
        for row, own in spans.items():
            ends = list(accumulate(count for _, count, _ in own))
            starts = [start for start, _, _ in own[1:]] + [lengths[row]]
            for number, ((_, count, end), until, after) in enumerate(zip(own, ends, starts, strict=True)):
                if not count or end < 0:
                    continue
                parts = {
                    LATENTS: latents[row][until - count : until],
                    END_OF_SPAN: states[row, end : end + 1],
                    WORDS: states[row, end + 1 : after],
                }
                found += [
                    FrameVector(source, first + row, number, _mean(part)) for source, part in parts.items() if len(part)
                ]
    return found


def thought_states(decoder: Decoder, questions: Sequence[str]) -> list[FrameVector]:
    """Vectors of the thoughts of a model without latents: thought n, from 0, is about frame n - 1.

    Args:
        decoder: the model.
        questions: files of records.
    """
    tokenizer = decoder.reasoner.tokenizer
    found: list[FrameVector] = []
    for first, rollout, states in _decoded(decoder, questions):
        for row in range(len(rollout)):
            ids = rollout.responses[row][rollout.response_mask[row]].tolist()
            said = accumulate(tokenizer.decode([token]) for token in ids)
            ended = [len(_ENDS.findall(text.partition("<answer>")[0])) for text in said]
            for thought in range(1, max(ended, default=0)):
                inside = [place for place, count in enumerate(ended) if count == thought]
                found.append(FrameVector(THOUGHTS, first + row, thought - 1, _mean(states[row, inside])))
    return found


@torch.no_grad()
def _decoded(decoder: Decoder, questions: Sequence[str]) -> Iterator[tuple[int, Rollout, Tensor]]:
    """Number of the first question, responses and their states, batch by batch."""
    reasoner = decoder.reasoner
    dataset = PromptDataset(open_questions(questions), decoder.encoder)
    collate = PromptCollator(decoder.encoder.pad_token_id)
    size = int(decoder.data.get("batch_size", 1))
    for first in range(0, len(dataset), size):
        numbers = list(range(first, min(first + size, len(dataset))))
        batch = collate(dataset.__getitems__(numbers)).to(reasoner.device)
        rollout = reasoner.generate(
            batch, num_branches=1, do_sample=False, latent_policy=DeterministicLatents(), seed=decoder.sampling.seed,
            **decoder.sampling.arguments(),
        )  # fmt: skip
        yield first, rollout, response_states(reasoner, batch, rollout)


def _mean(rows: Tensor) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = rows.double().mean(dim=0).cpu().numpy()
    return mean
