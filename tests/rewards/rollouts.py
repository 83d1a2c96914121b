"""Rollouts for the tests of rewards."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from futurel1.rewards import RewardInputs

RIGHT = "<|latent_start|><|latent|><|latent_end|><reason>He walks on.</reason><answer>B</answer>"
WRONG = RIGHT.replace("<answer>B", "<answer>C")


def make_inputs(responses: Sequence[str], **fields: Any) -> RewardInputs:
    """Rollouts of one group whose ground truth is B."""
    number = len(responses)
    defaults = {
        "answers": ["B"] * number,
        "problems": [f"[item {row}] What happens next?" for row in range(number)],
        "group_ids": torch.zeros(number, dtype=torch.int64),
        "response_lengths": torch.full((number,), 50),
    }
    return RewardInputs(responses, **{**defaults, **fields})


def with_latents(latents: Sequence[Tensor], correct: Sequence[float], group_ids: Sequence[int]) -> RewardInputs:
    """Rollouts of given latents (T, H), each latent a span of its own."""
    lengths = torch.tensor([len(rows) for rows in latents])
    padded = torch.nn.utils.rnn.pad_sequence(list(latents), batch_first=True)
    steps = torch.arange(padded.shape[1])
    mask = steps < lengths[:, None]
    return make_inputs(
        [RIGHT] * len(latents),
        group_ids=torch.tensor(group_ids),
        correct=torch.tensor(correct, dtype=torch.float32),
        latents=padded,
        latent_mask=mask,
        span_ids=torch.where(mask, steps, -1),
    )


def golden_inputs(groups: Sequence[dict[str, Any]]) -> RewardInputs:
    """The rollouts of golden groups as one batch, spans told by the text."""
    items = [(number, item) for number, group in enumerate(groups) for item in group["items"]]
    width = next(len(item["latents"][0]) for _, item in items if item["latents"])
    rows = [torch.tensor(item["latents"] or []).reshape(-1, width) for _, item in items]
    latents = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    span_ids = torch.full(latents.shape[:2], -1)
    for row, (_, item) in enumerate(items):
        spans = re.findall(r"<\|latent_start\|>((?:<\|latent\|>)*)", item["response"])
        ids = [span for span, body in enumerate(spans) for _ in range(body.count("<|latent|>"))]
        if item["latents"]:
            span_ids[row, : len(ids)] = torch.tensor(ids)
    # Some rollouts come without the latents of their spans.
    spans = [
        len(re.findall(r"<\|latent_start\|>(?:<\|latent\|>)*<\|latent_end\|>", item["response"])) for _, item in items
    ]
    return RewardInputs(
        responses=[item["response"] for _, item in items],
        answers=[item["ground_truth"] for _, item in items],
        problems=[item["problem"] for _, item in items],
        group_ids=torch.tensor([number for number, _ in items]),
        response_lengths=torch.tensor([item["response_length"] for _, item in items]),
        reference_lengths=torch.tensor([item["ref_resp_length"] for _, item in items]),
        latents=latents,
        latent_mask=torch.arange(latents.shape[1]) < torch.tensor([len(row) for row in rows])[:, None],
        span_ids=span_ids,
        span_counts=torch.tensor(spans),
    )
