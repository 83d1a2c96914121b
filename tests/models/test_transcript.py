"""Responses in words, and which spans a budget ended."""

import torch

from futurel1.models import LatentReasoner
from futurel1.models.decoding import Rollout
from futurel1.models.decoding.rollout import ended_by_budget
from futurel1.models.policies import DeterministicLatents
from futurel1.models.transcript import transcripts


def test_transcripts_name_imagined_frames() -> None:
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    tokenizer, tokens = reasoner.processor.tokenizer, reasoner.tokens
    start, latent, end = tokens.start_id, tokens.latent_id, tokens.end_id
    word = tokenizer(" left")["input_ids"]
    eos = tokenizer.eos_token_id
    rows = [
        [*word, start, latent, latent, end, *word, start, end, eos],
        [latent, end, *word, start, latent],  # START ended the prompt; cut off inside a span
    ]
    width = max(map(len, rows))
    responses = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    table = torch.tensor([[0, 1, 2, 4, 1], [0, 6, 0, 7, 0], [1, -1, 1, 1, 0], [1, 3, 1, -1, 0]])
    blank = torch.zeros(2, width)
    rollout = Rollout(
        responses, mask, blank, mask, mask, torch.zeros(2, 2, 4), torch.ones(2, 2).bool(),
        torch.tensor([[0, 0], [0, 1]]), torch.zeros(2, 2), table, ["eos", "length"], 1, 1.0, DeterministicLatents(),
    )  # fmt: skip
    first, second = transcripts(rollout, tokenizer)
    assert first.readable == "left[imagined frame 1: 2 latents] left[imagined frame 2: 0 latents]"
    assert second.readable == "[imagined frame 1: 1 latent] left[imagined frame 2: 1 latent]"
    assert (first.spans, second.spans) == ((2, 0), (1, 1))
    assert first.text.endswith("<|latent_end|>")
    assert (first.tokens, second.finish_reason) == (len(rows[0]), "length")
    assert ended_by_budget(rollout).tolist() == [[True, False], [False, False]]
