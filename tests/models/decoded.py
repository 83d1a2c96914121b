"""Prompts, rollouts and ways of decoding that the tests of decoding share.

One way is the yardstick of the others: without a cache, everything is computed anew in every step.
"""

from contextlib import contextmanager

import pytest
import torch
from families import TOKENS
from torch import Tensor
from torch.nn import functional as F

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
    """Runs the whole sequence anew in every step."""

    def start(self) -> Tensor:
        """Run the prompts."""
        prompt = torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(self.branches)
        self.row_prompt = prompt
        embeds, visual = self.reasoner.embed(self.prompt.input_ids, self.vision)
        self.embeds = embeds[prompt]
        self.fed = self.embeds.new_zeros(len(prompt), 0, embeds.shape[-1])
        self.visual = visual
        return self.reasoner.backbone.run(embeds, self.positions, self.mask, visual)[:, -1][prompt]

    def step(self, active: Tensor, embeds: Tensor, step: int) -> Tensor:
        """Append one token to every active row and run everything."""
        column = embeds.new_zeros(len(self.row_prompt), 1, embeds.shape[-1])
        column[active, 0] = embeds
        self.fed = torch.cat([self.fed, column], dim=1)
        prompt = self.row_prompt[active]
        length = self.fed.shape[1]
        steps = torch.arange(length, device=active.device)
        later = (self.next_position[prompt, None] + steps)[None].expand(3, -1, -1)
        whole = torch.cat([self.embeds[active], self.fed[active]], dim=1)
        positions = torch.cat([self.positions[:, prompt], later], dim=2)
        mask = F.pad(self.mask[prompt], (0, length), value=1)
        visual = spread_visual(self.visual, prompt, self.prompt.input_ids.shape[1] + length)
        return self.reasoner.backbone.run(whole, positions, mask, visual)[:, -1]


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
