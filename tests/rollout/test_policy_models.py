"""LoRA while sampling: merged into the weights, and gone again without a trace."""

import pytest
import torch

from adapted import adapt, small_reasoner
from futurel1.data import PromptBatch
from futurel1.rollout.policy_models import PolicyModels
from rounding import assert_same_but_rounding

PROMPT = PromptBatch(torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.ones(2, 3, dtype=torch.long))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def adapted(request):
    """A policy whose adapters and whose rows of the latent tokens differ from the base weights."""
    reasoner = small_reasoner(tied=request.param)
    return reasoner, adapt(reasoner)


def sampled(reasoner):
    how = {"max_new_tokens": 12, "do_sample": True, "eos_token_id": [0], "pad_token_id": 0}
    return reasoner.generate(PROMPT, num_branches=3, **how)


def bits(reasoner):
    return {name: parameter.detach().clone() for name, parameter in reasoner.named_parameters()}


def test_a_merged_policy_samples_the_same(adapted):
    reasoner, lora = adapted
    with lora.disabled():
        base = sampled(reasoner)
    plain = sampled(reasoner)
    assert plain.responses.tolist() != base.responses.tolist()
    with PolicyModels(reasoner, with_reference=False, adapters=lora).merged():
        merged = sampled(reasoner)
    assert merged.responses.tolist() == plain.responses.tolist()
    assert_same_but_rounding(merged.log_probs, plain.log_probs, name="log_probs")


def test_weights_come_back_bit_for_bit(adapted):
    reasoner, lora = adapted
    before = bits(reasoner)
    models = PolicyModels(reasoner, with_reference=False, adapters=lora)
    with models.merged():
        changed = [name for name, value in bits(reasoner).items() if not torch.equal(value, before[name])]
        assert any("down_proj.base_layer" in name for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in bits(reasoner).items())
    assert sampled(reasoner).responses.tolist() == sampled(reasoner).responses.tolist()
    # training goes on with the adapters
    scores = reasoner.score(PROMPT, sampled(reasoner))
    scores.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for name, p in reasoner.named_parameters() if "lora_A" in name)


def test_a_merged_policy_runs_no_adapter(adapted, monkeypatch):
    from peft.tuners.lora.layer import Linear

    reasoner, lora = adapted
    calls = []
    linear = Linear.forward

    def spy(self, *args, **kwargs):
        calls.append(self.merged)
        return linear(self, *args, **kwargs)

    monkeypatch.setattr(Linear, "forward", spy)
    with PolicyModels(reasoner, with_reference=False, adapters=lora).merged():
        sampled(reasoner)
    assert calls
    assert all(calls)


def test_without_adapters_nothing_is_merged(adapted):
    reasoner, _ = adapted
    before = bits(reasoner)
    with PolicyModels(reasoner, with_reference=False).merged():
        assert all(torch.equal(value, before[name]) for name, value in bits(reasoner).items())
