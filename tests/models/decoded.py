"""Prompts, rollouts and ways of decoding that the tests of decoding share.

One way is the yardstick of the others: without a cache, everything is computed anew in every step.
"""

from contextlib import contextmanager

import pytest
import torch
from families import TOKENS

from futurel1.data import PromptBatch
from futurel1.models import SpanBudget
from futurel1.models.decoding.runners import RUNNERS, Runner
from futurel1.models.decoding.scoring import spread_visual
from futurel1.models.policies import VonMisesFisherLatents
from rounding import ROUNDINGS, assert_same_but_rounding

START, LATENT, END = TOKENS.start_id, TOKENS.latent_id, TOKENS.end_id
EOS = list(range(20, 36))
"""Many, so that responses end at different steps."""
ROWS = [
    [5, ("image", 4, 8), 6, 7, 8],
    [9, ("video", 2, 4, 4), 10, ("image", 4, 4), 11, 12, 13],
    [14, 15, START],
]
"""Prompts of different lengths with images, a video, and none but an open span."""
WAYS = {"shared": {}, "copied": {"share_prompt": False}, "uncached": {}}


class Uncached(Runner):
    """Runs the whole sequence of every row anew in every step."""

    def __init__(self, *args):
        super().__init__(*args)
        self.held = []  # per row its prompt, and the embeddings fed so far

    def admit(self, prompt, slot):
        self.held += [(prompt, prompt.embeds.new_zeros(0, prompt.embeds.shape[-1]))] * self.branches
        return self.reasoner.backbone.run(prompt.embeds, prompt.positions, None, prompt.visual)[0, -1]

    def feed(self, rows, embeds, prompts, columns, places):
        pairs = zip(self.held, embeds, strict=True)
        self.held = [(prompt, torch.cat([fed, new[None]])) for (prompt, fed), new in pairs]
        hidden = torch.zeros_like(embeds)
        for prompt in {id(prompt): prompt for prompt, _ in self.held}.values():
            own = [row for row, (other, _) in enumerate(self.held) if other is prompt]
            # Rows that have ended may wait to be removed, at their last length or with tokens that nobody reads.
            fed = torch.stack([self.held[row][1] for row in own])
            count, length = fed.shape[:2]
            later = (prompt.next_position + torch.arange(length))[None, None].expand(3, 1, -1)
            positions = torch.cat([prompt.positions, later], dim=2).expand(-1, count, -1)
            whole = torch.cat([prompt.embeds.expand(count, -1, -1), fed], dim=1)
            visual = None
            if prompt.visual is not None:
                zeros = torch.zeros(count, dtype=torch.int64)
                visual = spread_visual(prompt.visual, zeros, whole.shape[1])
            hidden[own] = self.reasoner.backbone.run(whole, positions, None, visual)[:, -1]
        return hidden

    def keep_rows(self, order):
        self.held = [self.held[row] for row in order]


@contextmanager
def decoding_in(way):
    """Decode in one of the WAYS; gives the arguments for :meth:`LatentReasoner.generate`."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "uncached":
            for layout in RUNNERS:
                patch.setitem(RUNNERS, layout, Uncached)
        yield WAYS[way]


def livelier(family):
    """Spans, and responses that end at different steps: START and END more likely than random weights make them."""
    with torch.no_grad():
        weight = family.reasoner.backbone.lm_head.weight
        weight[START] *= 4
        weight[END] *= 2
    return family


def one(batch, row):
    """A batch of one of the ROWS, its padding gone."""
    images = {0: slice(0, 1), 1: slice(1, 2), 2: slice(0, 0)}[row]
    patches = {0: slice(0, 32), 1: slice(32, 48), 2: slice(0, 0)}[row]
    real = batch.attention_mask[row] != 0
    return PromptBatch(
        batch.input_ids[row : row + 1, real],
        batch.attention_mask[row : row + 1, real],
        batch.pixel_values[patches] if row < 2 else None,
        batch.image_grid_thw[images] if row < 2 else None,
        batch.pixel_values_videos if row == 1 else None,
        batch.video_grid_thw if row == 1 else None,
    )


def assert_same(one, other, rows=slice(None), roundings=ROUNDINGS):
    """The same rollout, numbers up to rounding; `other` may be a part, `rows` of `one`."""
    width, depth = other.responses.shape[1], other.latents.shape[1]
    assert torch.equal(one.response_mask[rows].sum(1), other.response_mask.sum(1))
    real = other.response_mask
    for name in ("responses", "chosen_mask", "slot_mask"):
        assert torch.equal(getattr(one, name)[rows][:, :width][real], getattr(other, name)[real]), name
    assert torch.equal(one.latent_mask[rows].sum(1), other.latent_mask.sum(1))
    assert torch.equal(one.span_ids[rows][:, :depth], other.span_ids)
    for name in ("log_probs", "latents", "latent_log_probs"):
        size = depth if "latent" in name else width
        assert_same_but_rounding(
            getattr(one, name)[rows][:, :size], getattr(other, name), roundings=roundings, name=name
        )
    assert one.finish_reasons[rows] == other.finish_reasons
    first = range(len(one))[rows][0]
    table = one.span_table[torch.isin(one.span_table[:, 0], torch.arange(len(one))[rows])]
    assert (table - torch.tensor([first, 0, 0, 0, 0])).tolist() == other.span_table.tolist()


def sample(reasoner, prompt, way="shared", **more):
    defaults = {
        "num_branches": 4,
        "max_new_tokens": 24,
        "do_sample": True,
        "temperature": 1.2,
        "top_p": 0.95,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "budget": SpanBudget.loose(3),
        "latent_policy": VonMisesFisherLatents(0.9),
        "seed": 3,
    }
    with decoding_in(way) as options:
        return reasoner.generate(prompt, **{**defaults, **options, **more})
