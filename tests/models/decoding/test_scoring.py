"""Scoring a rollout: the recorded log-probabilities again, with the gradient of separate rows."""

import math

import pytest
import torch
from decoded import END, LATENT, ROWS, START, livelier
from families import make_family
from torch.nn import functional as F

from futurel1.data import PromptBatch
from futurel1.errors import BatchError
from futurel1.models import SpanBudget
from futurel1.models.decoding import continue_log_prob, scoring
from futurel1.models.policies import (
    DeterministicLatents,
    GaussianLatents,
    ReleasedLatents,
    VonMisesFisherLatents,
)
from rounding import RECURRENT_ROUNDINGS, ROUNDINGS, assert_same_but_rounding, assert_same_gradients

pytestmark = pytest.mark.numerics
POLICIES = [DeterministicLatents(), VonMisesFisherLatents(0.8), GaussianLatents(0.2), ReleasedLatents(0.5)]
BUDGETS = [SpanBudget.loose(3), SpanBudget.fixed(2)]
BRANCHES = 3
TEMPERATURE = 1.3


def decode(family, **more):
    defaults = {
        "num_branches": BRANCHES,
        "max_new_tokens": 16,
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": 0.98,
        "eos_token_id": list(range(20, 36)),
        "pad_token_id": 0,
        "force_start": True,
        "budget": BUDGETS[0],
        "seed": 5,
    }
    prompt = family.batch(ROWS, padding="left")
    return prompt, family.reasoner.generate(prompt, **{**defaults, **more})


def name(value):
    return f"{value.kind}" if isinstance(value, SpanBudget) else type(value).__name__


def gradients(reasoner, loss):
    """Gradients of all parameters by name."""
    names, weights = zip(*reasoner.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True))


def some_loss(log_probs, densities):
    """A mean with other weights everywhere, so that no two positions can be exchanged."""
    weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
    more = torch.linspace(1, -0.5, densities.numel()).view_as(densities)
    return (weights * log_probs).mean() + 0.1 * (more * densities).mean()


# ---------------------------------------------------------------------- by hand


def by_hand(family, prompt, rollout):
    """Every response as a sequence of its own, without padding, one decision after another."""
    reasoner = family.reasoner
    backbone = reasoner.backbone
    vision = reasoner.encode(prompt)
    embeds, visual = reasoner.embed(prompt.input_ids, vision)
    placeholders = reasoner.backbone.visual_type_ids(prompt.input_ids) > 0
    starts = [0, *placeholders.sum(1).cumsum(0).tolist()]
    positions = backbone.positions(prompt.input_ids, prompt.attention_mask, vision)
    log_probs, densities, entropies = [], [], []
    for row in range(len(rollout)):
        source = row // rollout.num_branches
        real = prompt.attention_mask[source] != 0
        length = int(rollout.response_mask[row].sum())
        ids = rollout.responses[row, :length]
        latents = iter(rollout.latents[row])
        own = [
            next(latents) if bool(slot) else backbone.embed_tokens(token[None])[0]
            for token, slot in zip(ids, rollout.slot_mask[row, :length], strict=True)
        ]
        sequence = torch.cat([embeds[source, real], torch.stack(own)])[None]
        place = positions[:, source, real]
        place = torch.cat([place, (place.max() + 1 + torch.arange(length)).expand(3, -1)], dim=1)[:, None]
        extra = None
        if visual is not None:
            mask = F.pad(placeholders[source, real], (0, length))[None]
            part = slice(starts[source], starts[source + 1])
            extra = type(visual)(mask, [level[part] for level in visual.deepstack])
        hidden = backbone.run(sequence, place, torch.ones(sequence.shape[:2], dtype=torch.long), extra)[0]
        width = int(real.sum())
        latents = iter(rollout.latents[row])
        for step in range(rollout.responses.shape[1]):
            if step >= length:
                log_probs.append(torch.zeros(()))
                entropies.append(torch.zeros(()))
                continue
            before = hidden[width - 1 + step]
            table = ((before @ backbone.lm_head.weight.T) / rollout.temperature).log_softmax(-1)
            if rollout.slot_mask[row, step]:
                p_end = table[END].exp()
                value = (1 - p_end).log()
                entropy = -(p_end * p_end.log() + (1 - p_end) * (1 - p_end).log())
                densities.append(rollout.policy.log_prob(next(latents), reasoner.predict_latents(before)))
            else:
                value = table[ids[step]]
                entropy = -(table.exp() * table).sum()
            chosen = bool(rollout.chosen_mask[row, step])
            log_probs.append(value if chosen else torch.zeros(()))
            entropies.append(entropy if chosen else torch.zeros(()))
    stacked = torch.zeros(rollout.latent_mask.shape, dtype=torch.float64)
    stacked = stacked.masked_scatter(rollout.latent_mask, torch.stack(densities).double())
    shape = rollout.responses.shape
    return torch.stack(log_probs).view(shape), stacked, torch.stack(entropies).view(shape)


@pytest.mark.parametrize("budget", BUDGETS, ids=name)
@pytest.mark.parametrize("family_name", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def test_values_and_gradients_are_those_of_separate_rows_by_hand(lively, family_name, budget):
    family = lively[family_name]
    policy = VonMisesFisherLatents(0.8)
    prompt, rollout = decode(family, latent_policy=policy, budget=budget)
    lengths = rollout.response_mask.sum(1)
    assert len(lengths.unique()) > 3
    assert len(rollout.span_table) >= 9
    log_probs, densities, entropies = by_hand(family, prompt, rollout)
    want = gradients(family.reasoner, some_loss(log_probs, densities))
    assert float(want["backbone.model.model.visual.merger.linear_fc1.weight" if family_name != "qwen2_5_vl" else
                      "backbone.model.model.visual.merger.mlp.0.weight"].abs().max()) > 1e-4  # fmt: skip
    for share in (True, False) if family.reasoner.backbone.shares_prompt else (False,):
        scores = family.reasoner.score_rollout(prompt, rollout, share_prompt=share)
        roundings = RECURRENT_ROUNDINGS if family_name == "qwen3_5" else ROUNDINGS
        assert_same_but_rounding(scores.log_probs, log_probs, roundings=roundings)
        assert_same_but_rounding(scores.latent_log_probs, densities, roundings=roundings)
        assert_same_but_rounding(scores.entropy, entropies, roundings=roundings)
        assert not scores.entropy.requires_grad
        found = gradients(family.reasoner, some_loss(scores.log_probs, scores.latent_log_probs))
        assert_same_gradients(found, want, roundings)


# ---------------------------------------------------------------------- recorded


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", BUDGETS, ids=name)
@pytest.mark.parametrize("policy", POLICIES, ids=name)
def test_scores_equal_what_was_recorded(lively, policy, budget, share):
    for family_name in ("qwen3_vl", "qwen2_5_vl"):
        family = lively[family_name]
        prompt, rollout = decode(family, latent_policy=policy, budget=budget)
        assert rollout.temperature == TEMPERATURE
        scores = family.reasoner.score_rollout(prompt, rollout, share_prompt=share)
        assert_same_but_rounding(scores.log_probs, rollout.log_probs)
        assert_same_but_rounding(scores.latent_log_probs, rollout.latent_log_probs)
        assert torch.equal(family.reasoner.score(prompt, rollout, share_prompt=share), scores.log_probs)
        assert rollout.latent_log_probs[rollout.latent_mask].ne(0).all() == (policy is not POLICIES[0])
        assert (rollout.log_probs[rollout.chosen_mask] < 0).all()
        vision = family.reasoner.encode(prompt)
        again = family.reasoner.score(prompt, rollout, share_prompt=share, vision=vision)
        assert torch.equal(again, scores.log_probs)


@pytest.mark.parametrize("policy", [DeterministicLatents(), VonMisesFisherLatents(0.8)], ids=name)
def test_recurrent_backbones_score_what_was_recorded(lively, policy):
    family = lively["qwen3_5"]
    prompt, rollout = decode(family, latent_policy=policy)
    scores = family.reasoner.score_rollout(prompt, rollout)
    assert_same_but_rounding(scores.log_probs, rollout.log_probs, roundings=RECURRENT_ROUNDINGS)


def test_greedy_rollouts_are_scored_at_temperature_one(lively):
    family = lively["qwen3_vl"]
    prompt, rollout = decode(family, do_sample=False, num_branches=1)
    assert rollout.temperature == 1.0
    scored = family.reasoner.score(prompt, rollout)
    assert_same_but_rounding(scored, rollout.log_probs)


def test_predicted_latents_are_where_the_recorded_ones_were_drawn_from(lively):
    family = lively["qwen3_vl"]
    prompt, rollout = decode(family, latent_policy=DeterministicLatents())
    scores = family.reasoner.score_rollout(prompt, rollout)
    assert_same_but_rounding(scores.predicted, rollout.latents)
    assert scores.predicted.requires_grad
    assert not rollout.latents.requires_grad
    assert not scores.predicted[~rollout.latent_mask].any()


@pytest.mark.parametrize("key", ["public_mse", "public_end"])
def test_golden_checkpoints_score_their_own_traces(golden, key):
    from safetensors.torch import load_file

    from futurel1.models import LatentReasoner

    reasoner, values = LatentReasoner.from_pretrained(golden / key), load_file(golden / key / "golden.safetensors")
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    prompt = PromptBatch(*(values[f"decode.{name}"] for name in names))
    for policy in POLICIES:
        rollout = reasoner.generate(
            prompt, num_branches=2, max_new_tokens=24, do_sample=True, temperature=0.9, eos_token_id=319,
            pad_token_id=0, latent_policy=policy, force_start=True,
        )  # fmt: skip
        for share in (True, False):
            with torch.no_grad():
                scores = reasoner.score_rollout(prompt, rollout, share_prompt=share)
            assert_same_but_rounding(scores.log_probs, rollout.log_probs)
            assert_same_but_rounding(scores.latent_log_probs, rollout.latent_log_probs)


# ---------------------------------------------------------------------- decisions


def test_log_prob_to_continue_keeps_its_digits_where_an_end_is_almost_certain():
    for gap in (-30.0, -5.0, 0.0, 5.0, 12.0, 30.0):
        logits = torch.tensor([[1.0, gap + 1.0, -40.0]], requires_grad=True)
        value = continue_log_prob(logits.log_softmax(-1), 1)
        exact = -math.log1p(math.exp(gap))  # log(1 - sigmoid(gap))
        assert value.item() == pytest.approx(exact, rel=1e-5, abs=1e-7)
        value.backward()
        assert logits.grad.isfinite().all()
        assert float(logits.grad[0, 1]) == pytest.approx(-1 / (1 + math.exp(-gap)), rel=1e-4, abs=1e-6)


def test_log_prob_to_continue_is_the_same_whether_rows_may_be_told_apart(monkeypatch):
    logits = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits[:, 7] += torch.linspace(-20, 20, 40)  # from hardly ever to nearly always END
    found, gradients = [], []
    for apart in (True, False):
        monkeypatch.setattr(scoring, "looks_are_free", lambda tensor, apart=apart: apart)
        leaf = logits.clone().requires_grad_()
        found.append(continue_log_prob(leaf.log_softmax(-1), 7))
        gradients += torch.autograd.grad(found[-1].sum(), leaf)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)  # float64, and 1 - p loses less than one digit
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


def test_forced_choices_are_zero_and_teach_nothing(lively):
    for budget in BUDGETS:
        family = lively["qwen3_vl"]
        prompt, rollout = decode(family, budget=budget)
        forced = rollout.response_mask & ~rollout.chosen_mask
        # the first START, but where the prompt ends with one
        assert (rollout.responses[:, 0][forced[:, 0]] == START).sum() == 6
        assert (rollout.responses[forced] == END).any()
        assert bool((forced & rollout.slot_mask).any()) == (budget.kind == "fixed")
        scores = family.reasoner.score_rollout(prompt, rollout)
        assert not scores.log_probs[~rollout.chosen_mask].any()
        assert not scores.entropy[~rollout.chosen_mask].any()
        loss = scores.log_probs[~rollout.chosen_mask].sum()
        assert not any(grad.any() for grad in gradients(family.reasoner, loss).values())
        assert not rollout.log_probs[~rollout.chosen_mask].any()


def test_a_stray_latent_is_scored_as_the_ordinary_token_it_is():
    family = make_family("qwen3_vl")
    prompt = family.batch([[5, 6, 7]], padding="left")
    # Whatever the hidden state is, the tied row of LATENT now says what the row of token 9 says, twice as loud.
    with torch.no_grad():
        logits = family.reasoner.logits(family.reasoner(prompt.input_ids, prompt.attention_mask))[0, -1]
        family.reasoner.backbone.lm_head.weight[LATENT] = 2 * family.reasoner.backbone.lm_head.weight[logits.argmax()]
    rollout = family.reasoner.generate(prompt, max_new_tokens=4, eos_token_id=1)
    assert rollout.responses[0, 0] == LATENT
    assert not rollout.slot_mask[0, 0]
    scores = family.reasoner.score(prompt, rollout)
    assert_same_but_rounding(scores, rollout.log_probs)
    with torch.no_grad():
        logits = family.reasoner.logits(family.reasoner(prompt.input_ids, prompt.attention_mask))[0, -1]
    assert_same_but_rounding(scores[0, 0], logits.log_softmax(-1)[LATENT], size=float(logits.abs().max()))


def test_vocabulary_logits_are_built_for_response_tokens_only_and_in_chunks(lively, monkeypatch):
    family = lively["qwen3_vl"]
    prompt, rollout = decode(family)
    want = family.reasoner.score(prompt, rollout)
    seen = []
    honest = type(family.reasoner).logits

    def spy(self, hidden):
        seen.append(tuple(hidden.shape))
        return honest(self, hidden)

    heads = []
    handle = family.reasoner.backbone.lm_head.register_forward_hook(lambda *call: heads.append(call[2].shape[0]))
    monkeypatch.setattr(type(family.reasoner), "logits", spy)
    monkeypatch.setattr(scoring, "SCORE_CHUNK", 7)
    scores = family.reasoner.score(prompt, rollout)
    handle.remove()
    tokens = int(rollout.response_mask.sum())
    assert sum(rows for rows, _ in seen) == sum(heads) == tokens
    assert max(rows for rows, _ in seen) == 7
    assert tokens < prompt.input_ids.numel() * BRANCHES
    assert_same_but_rounding(scores, want)
    scores.sum().backward()


def test_the_prompt_runs_once_for_all_branches(lively, monkeypatch):
    family = lively["qwen3_vl"]
    prompt, rollout = decode(family)
    shapes = []
    honest = type(family.reasoner.backbone).run

    def spy(self, embeds, *rest):
        shapes.append(tuple(embeds.shape[:2]))
        return honest(self, embeds, *rest)

    monkeypatch.setattr(type(family.reasoner.backbone), "run", spy)
    family.reasoner.score(prompt, rollout)
    family.reasoner.score(prompt, rollout, share_prompt=False)
    width, lengths = prompt.input_ids.shape[1], rollout.response_mask.sum(1).view(3, BRANCHES)
    # the last token of a response is never an input
    assert shapes == [
        (3, width + int((lengths - 1).sum(1).max())),
        (3 * BRANCHES, width + int(lengths.max()) - 1),
    ]


def test_gradient_checkpointing_scores_the_same(lively):
    plain = lively["qwen3_vl"]
    prompt, rollout = decode(plain)
    family = livelier(make_family("qwen3_vl"))
    family.stock.gradient_checkpointing_enable()
    family.reasoner.train()
    want = plain.reasoner.score_rollout(prompt, rollout)
    found = family.reasoner.score_rollout(prompt, rollout)
    assert_same_but_rounding(found.log_probs, want.log_probs)
    one = gradients(plain.reasoner, some_loss(want.log_probs, want.latent_log_probs))
    other = gradients(family.reasoner, some_loss(found.log_probs, found.latent_log_probs))
    assert_same_gradients(other, one)


# ---------------------------------------------------------------------- errors


def test_other_prompts_than_those_decoded(lively):
    family = lively["qwen3_vl"]
    _, rollout = decode(family)
    with pytest.raises(BatchError, match="2 prompts with 3 branches, but the rollout has 9 responses"):
        family.reasoner.score(family.batch([[5], [6]], padding="left"), rollout)


def test_prompts_padded_on_the_right(lively):
    family = lively["qwen3_vl"]
    _, rollout = decode(family)
    with pytest.raises(BatchError, match="padded on the left"):
        family.reasoner.score(family.batch([[5], [6, 7], [8]], padding="right"), rollout)
