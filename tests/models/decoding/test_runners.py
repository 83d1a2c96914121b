"""What the language model is fed step by step: prompts once, and rows only while they go on."""

import pytest
from decoded import ROWS, assert_same, sample

from futurel1.models.backbones import Backbone

pytestmark = pytest.mark.numerics


@pytest.fixture
def fed(monkeypatch):
    """Shapes of what the language model is fed, and of the keys it then has: (rows, width, key rows, key columns)."""
    shapes = []
    original = Backbone.run

    def spy(self, embeds, positions, attention_mask, visual=None, cache=None):
        hidden = original(self, embeds, positions, attention_mask, visual, cache)
        keys = None if cache is None else tuple(cache.layers[1].keys.shape)
        shapes.append((*embeds.shape[:2], *((keys[0], keys[2]) if keys else (0, 0))))
        return hidden

    monkeypatch.setattr(Backbone, "run", spy)
    return shapes


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_prompt_keys_exist_once_and_finished_rows_leave(lively, fed, name):
    family = lively[name]
    prompt = family.batch(ROWS, padding="left")
    rollout = sample(family.reasoner, prompt, num_branches=6)
    width = prompt.input_ids.shape[1]
    assert fed[0] == (3, width, 3, width)
    lengths = rollout.response_mask.sum(1).view(3, 6)
    steps = fed[1:]
    assert len(steps) == int(lengths.max()) - 1
    for step, (rows, slots, key_rows, columns) in enumerate(steps, start=1):
        going = lengths > step
        most = int(going.sum(1).max())
        # every prompt's keys once: the rows are prompts with a branch that goes on, never more
        assert rows == key_rows == int(going.any(1).sum())
        assert columns == width + slots * step
        assert 0.75 * slots < most <= slots
    sizes = [rows * slots for rows, slots, _, _ in steps]
    assert sizes[0] == 18
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[-1] <= 4
    fed.clear()
    assert_same(rollout, sample(family.reasoner, prompt, way="uncached", num_branches=6))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_finished_rows_leave_copies_too(lively, fed, name):
    family = lively[name]
    prompt = family.batch(ROWS, padding="left")
    rollout = sample(family.reasoner, prompt, num_branches=6, share_prompt=False)
    width = prompt.input_ids.shape[1]
    assert fed[0][:2] == (3, width)
    lengths = rollout.response_mask.sum(1)
    for step, (rows, slots, key_rows, columns) in enumerate(fed[1:], start=1):
        going = int((lengths > step).sum())
        assert slots == 1
        assert rows == key_rows
        assert columns == width + step
        assert going <= rows
        assert going > 0.75 * rows or going == rows
    assert fed[-1][0] < 18
