"""The policy objective against a PPO loss written out by hand, decision by decision, and advantages against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from futurel1.errors import BatchError, ConfigError
from futurel1.losses import PolicyLoss, group_advantages
from futurel1.losses.policy import ADVANTAGES

WIDTH = 4
NAN = float("nan")


# ---------------------------------------------------------------------- advantages


def advantages_by_hand(rewards, group_ids, valid, kind):
    found = []
    for own, group, known in zip(rewards, group_ids, valid, strict=True):
        row = len(found)
        peers = [
            reward
            for place, (reward, other, ok) in enumerate(zip(rewards, group_ids, valid, strict=True))
            if ok and other == group and place != row
        ]
        if not known or not peers:
            found.append(0.0)
            continue
        together = [*peers, own]
        mean = sum(together) / len(together)
        std = math.sqrt(sum((reward - mean) ** 2 for reward in together) / (len(together) - 1))
        found.append(
            {"grpo": (own - mean) / (std + 1e-6), "dr_grpo": own - mean, "rloo": own - sum(peers) / len(peers)}[kind]
        )
    return found


@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([-7, 0, 2, 900]), st.booleans()), max_size=14),
    kind=st.sampled_from(ADVANTAGES),
)
def test_advantages_are_those_of_a_loop_over_every_rollout(rows, kind):
    rewards = [reward / 2 for reward, _, _ in rows]
    group_ids, valid = [group for _, group, _ in rows], [known for _, _, known in rows]
    given_rewards = [reward if known else NAN for reward, known in zip(rewards, valid, strict=True)]
    found = group_advantages(
        torch.tensor(given_rewards), torch.tensor(group_ids, dtype=torch.int64), torch.tensor(valid).bool(), kind
    )
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(advantages_by_hand(rewards, group_ids, valid, kind), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_the_order_of_the_rollouts_does_not_matter(kind):
    generator = torch.Generator().manual_seed(0)
    rewards, group_ids = torch.randn(24, generator=generator), torch.arange(24) % 5
    order = torch.randperm(24, generator=generator)
    shuffled = group_advantages(rewards[order], group_ids[order], kind=kind)
    torch.testing.assert_close(shuffled, group_advantages(rewards, group_ids, kind=kind)[order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("reward", [0.1, 1.1, 0.7, -1.3, 1e4 / 3])
def test_equal_rewards_are_no_better_than_each_other(reward, kind):
    # In float32 the mean of eight 1.1 is off by as much as the 1e-6 that the std is padded with.
    found = group_advantages(torch.full((7,), reward), torch.zeros(7, dtype=torch.int64), kind=kind)
    assert found.abs().max() < 1e-8


def test_known_numbers():
    rewards, one = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    assert group_advantages(rewards, one).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert group_advantages(rewards, one, kind="dr_grpo").tolist() == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages(rewards, one, kind="rloo").tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    # a reward that failed is neither a zero nor a member
    failed = torch.tensor([1.0, NAN, 0.0, 0.0])
    found = group_advantages(failed, one, failed.isfinite(), "rloo")
    assert found.tolist() == pytest.approx([1, 0, -0.5, -0.5])


def test_wrong_advantages_are_errors():
    numbers = torch.zeros(3)
    with pytest.raises(ConfigError, match="advantage is one of grpo, dr_grpo, rloo, got 'gae'"):
        group_advantages(numbers, torch.zeros(3, dtype=torch.int64), kind="gae")
    with pytest.raises(BatchError, match=r"one shape \(N,\), got \(3,\), \(2,\) and \(3,\)"):
        group_advantages(numbers, torch.zeros(2, dtype=torch.int64))


# ---------------------------------------------------------------------- the loss


def surrogate_by_hand(log_prob, old, advantage, low, high, dual_clip):
    """One decision: PPO's pessimistic minimum, then the dual clip; old NaN: the current policy sampled."""
    anchor = log_prob.item() if math.isnan(old) else old
    ratio = (log_prob - anchor).exp()
    held = ratio if low <= ratio.item() <= high else torch.tensor(min(max(ratio.item(), low), high)).double()
    gain = torch.minimum(advantage * ratio, advantage * held)
    if advantage < 0 and gain.item() < dual_clip * advantage:
        gain = torch.tensor(dual_clip * advantage).double()
    return -gain, ratio.item()


def loss_by_hand(batch, settings):
    """Sums by name over loops, in float64."""
    sums = dict.fromkeys(("text", "latents", "kl"), torch.zeros((), dtype=torch.float64))
    ratios = {"text": [], "latents": []}
    rows, decisions = batch["mask"].shape
    for row in range(rows):
        advantage = batch["advantages"][row].item()
        for step in range(decisions):
            if not batch["mask"][row, step]:
                continue
            log_prob = batch["log_probs"][row, step].double()
            loss, ratio = surrogate_by_hand(
                log_prob, batch["old_log_probs"][row, step].item(), advantage,
                1 - settings["clip_low"], 1 + settings["clip_high"], settings["dual_clip"],
            )  # fmt: skip
            sums["text"] = sums["text"] + loss
            ratios["text"].append((ratio, advantage))
            gap = batch["reference_log_probs"][row, step].double() - log_prob
            sums["kl"] = sums["kl"] + gap.exp() - gap - 1
        for slot in range(batch["latent_mask"].shape[1]):
            if not batch["latent_mask"][row, slot]:
                continue
            loss, ratio = surrogate_by_hand(
                batch["latent_log_probs"][row, slot] / WIDTH, batch["old_latent_log_probs"][row, slot].item() / WIDTH,
                advantage, 1 - settings["latent_clip_low"], 1 + settings["latent_clip_high"], settings["dual_clip"],
            )  # fmt: skip
            sums["latents"] = sums["latents"] + loss
            ratios["latents"].append((ratio, advantage))
    loss = sums["text"] + settings["latent_weight"] * sums["latents"] + settings["kl_weight"] * sums["kl"]
    return loss / batch["total"], sums, ratios


def make_batch(seed, rows=5, decisions=7, slots=4, spread=0.6):
    """Random experience; with this spread, some ratios lie beyond every bound and some old scores are missing."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    log_probs = -normal(rows, decisions).abs() - 0.1
    densities = normal(rows, slots).double() + 900
    old = log_probs + spread * normal(rows, decisions)
    old_densities = densities + spread * WIDTH * 0.8 * normal(rows, slots).double()
    old[torch.rand(rows, decisions, generator=generator) < 0.2] = NAN
    old_densities[torch.rand(rows, slots, generator=generator) < 0.2] = NAN
    return {
        "log_probs": log_probs.requires_grad_(),
        "latent_log_probs": densities.requires_grad_(),
        "advantages": normal(rows) * 2,
        "mask": torch.rand(rows, decisions, generator=generator) < 0.8,
        "latent_mask": torch.rand(rows, slots, generator=generator) < 0.7,
        "total": 37.0,
        "old_log_probs": old,
        "old_latent_log_probs": old_densities,
        "reference_log_probs": log_probs.detach() + 0.5 * normal(rows, decisions),
    }


SETTINGS = {
    "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "latent_clip_low": 0.1, "latent_clip_high": 0.1,
    "latent_weight": 0.5, "kl_weight": 1e-2,
}  # fmt: skip


def run(objective, batch, **changes):
    given = {**batch, **changes}
    return objective(given.pop("log_probs"), given.pop("latent_log_probs"), width=WIDTH, **given)


def test_the_defaults_are_the_papers():
    objective = PolicyLoss()
    assert (objective.clip_low, objective.clip_high) == (0.2, 0.28)
    assert (objective.latent_clip_low, objective.latent_clip_high) == (0.1, 0.1)
    assert (objective.dual_clip, objective.latent_weight, objective.kl_weight) == (3.0, 0.5, 1e-2)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "clip_low": st.sampled_from([0.0, 0.1, 0.9]),
            "clip_high": st.sampled_from([0.0, 0.5, 4.0]),
            "dual_clip": st.sampled_from([1.05, 1.5, 10.0]),
            "latent_clip_low": st.sampled_from([0.02, 0.3]),
            "latent_clip_high": st.sampled_from([0.02, 0.3]),
            "latent_weight": st.sampled_from([0.0, 2.0]),
            "kl_weight": st.sampled_from([0.0, 0.7]),
        },
    ),
)
def test_loss_and_gradient_are_those_of_a_loop_over_every_decision(seed, changes):
    chosen, batch = {**SETTINGS, **changes}, make_batch(seed)
    output = run(PolicyLoss(**chosen), batch)
    want, sums, ratios = loss_by_hand(batch, chosen)
    assert output.loss.item() == pytest.approx(want.item(), rel=1e-4, abs=1e-5)
    assert output.text.loss.item() == pytest.approx(sums["text"].item(), rel=1e-4, abs=1e-4)
    assert output.latents.loss.item() == pytest.approx(sums["latents"].item(), rel=1e-4, abs=1e-4)
    assert output.kl.item() == pytest.approx(sums["kl"].item(), rel=1e-4, abs=1e-5)
    inputs = (batch["log_probs"], batch["latent_log_probs"])
    for found, wanted in zip(
        torch.autograd.grad(output.loss, inputs, allow_unused=True),
        torch.autograd.grad(want + 0 * (inputs[0].sum() + inputs[1].sum()), inputs),
        strict=True,
    ):
        torch.testing.assert_close(torch.zeros_like(wanted) if found is None else found, wanted, atol=1e-5, rtol=1e-4)
    bounds = {
        "text": (1 - chosen["clip_low"], 1 + chosen["clip_high"]),
        "latents": (1 - chosen["latent_clip_low"], 1 + chosen["latent_clip_high"]),
    }
    for name, (low, high) in bounds.items():
        term, seen = getattr(output, name), ratios[name]
        assert int(term.count) == len(seen)
        assert int(term.clipped_high) == sum(ratio > high and advantage > 0 for ratio, advantage in seen)
        assert int(term.clipped_low) == sum(ratio < low and advantage < 0 for ratio, advantage in seen)
        assert int(term.dual_clipped) == sum(
            advantage < 0 and ratio > chosen["dual_clip"] and ratio >= low for ratio, advantage in seen
        )
        assert float(term.ratio_sum) == pytest.approx(sum(ratio for ratio, _ in seen), rel=1e-4)
        if seen:
            assert float(term.ratio_max) == pytest.approx(max(seen)[0], rel=1e-4)
            assert float(term.ratio_min) == pytest.approx(min(seen)[0], rel=1e-4)


def test_the_random_batches_reach_every_bound():
    outputs = [run(PolicyLoss(dual_clip=1.5), make_batch(seed)) for seed in range(5)]
    for name in ("clipped_high", "clipped_low", "dual_clipped"):
        assert sum(int(getattr(output.text, name)) for output in outputs) > 5
        assert sum(int(getattr(output.latents, name)) for output in outputs) > 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.25, 2.0, -2.5, -2.5),  # below the upper bound
        (1.5, 2.0, -2.56, 0.0),  # clipped at 1.28
        (0.5, 2.0, -1.0, -1.0),  # a good decision that became unlikely is pulled back
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8
        (1.5, -2.0, 3.0, 3.0),  # a bad decision that became likely is pushed down
        (4.0, -2.0, 6.0, 0.0),  # but no harder than 3 times
    ],
)
def test_each_side_of_each_bound(ratio, advantage, loss, slope):
    log_probs = torch.tensor([[math.log(ratio) - 1]], requires_grad=True)
    none = torch.zeros(1, 0)
    output = PolicyLoss(kl_weight=0)(
        log_probs, none, advantages=torch.tensor([advantage]), mask=torch.ones(1, 1).bool(), latent_mask=none.bool(),
        width=WIDTH, total=1, old_log_probs=torch.tensor([[-1.0]]),
    )  # fmt: skip
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    assert log_probs.grad.item() == pytest.approx(slope, rel=1e-5)
    assert int(output.latents.count) == 0


@pytest.mark.parametrize("missing", ["everywhere", "as NaN"])
def test_without_old_scores_the_ratio_is_exactly_one_and_the_gradient_is_that_of_reinforce(missing):
    batch = make_batch(3)
    old = None if missing == "everywhere" else torch.full_like(batch["log_probs"], NAN)
    old_densities = None if old is None else torch.full_like(batch["latent_log_probs"], NAN)
    output = run(PolicyLoss(kl_weight=0), batch, old_log_probs=old, old_latent_log_probs=old_densities)
    for term in (output.text, output.latents):
        assert term.count > 3
        assert term.ratio_sum == term.count
        assert term.ratio_max == term.ratio_min == 1
        assert term.clipped_high + term.clipped_low + term.dual_clipped == 0
    output.loss.backward()
    weights = -batch["advantages"][:, None] / batch["total"]
    torch.testing.assert_close(batch["log_probs"].grad, weights * batch["mask"])
    slopes = 0.5 * weights.double() * batch["latent_mask"] / WIDTH
    torch.testing.assert_close(batch["latent_log_probs"].grad, slopes)


def test_masked_decisions_neither_count_nor_spoil_the_gradient():
    batch = make_batch(4)
    clean = run(PolicyLoss(), batch)
    wanted = torch.autograd.grad(clean.loss, (batch["log_probs"], batch["latent_log_probs"]))
    for value in (NAN, math.inf, -math.inf):
        spoilt = {name: batch[name].detach().clone() for name in batch if isinstance(batch[name], torch.Tensor)}
        for name in ("log_probs", "old_log_probs", "reference_log_probs"):
            spoilt[name][~batch["mask"]] = value
        for name in ("latent_log_probs", "old_latent_log_probs"):
            spoilt[name][~batch["latent_mask"]] = value
        inputs = [spoilt[name].requires_grad_() for name in ("log_probs", "latent_log_probs")]
        output = run(PolicyLoss(), {**spoilt, "total": batch["total"]})
        assert output.loss.item() == clean.loss.item()
        for found, want in zip(torch.autograd.grad(output.loss, inputs), wanted, strict=True):
            assert torch.equal(found, want)


def test_a_rollout_without_a_reward_teaches_nothing_even_when_its_advantage_is_nan():
    batch = make_batch(5)
    valid = torch.tensor([True, False, True, True, False])[:, None]
    masks = {"mask": batch["mask"] & valid, "latent_mask": batch["latent_mask"] & valid}
    wanted = run(PolicyLoss(), batch, **masks)
    found = run(PolicyLoss(), batch, **masks, advantages=batch["advantages"].masked_fill(~valid[:, 0], NAN))
    assert found.loss.item() == wanted.loss.item()
    found.loss.backward()
    assert batch["log_probs"].grad.isfinite().all()
    assert not batch["log_probs"].grad[1].any()


def test_nothing_to_train_on_gives_a_zero_that_carries_the_graph():
    batch = make_batch(6)
    nothing = {name: torch.zeros_like(batch[name]) for name in ("mask", "latent_mask")}
    output = run(PolicyLoss(), batch, **nothing)
    output.loss.backward()
    assert output.loss.item() == output.kl.item() == 0
    assert batch["log_probs"].grad is not None
    assert not batch["log_probs"].grad.any()
    assert output.text.count == 0
    assert output.text.ratio_max == 0
    assert output.text.ratio_min == math.inf


def test_latents_that_the_policy_does_not_choose_have_no_term():
    batch = make_batch(7)
    output = run(PolicyLoss(), batch, latent_log_probs=batch["latent_log_probs"].detach())
    assert output.latents.count == output.latents.loss == 0
    want = (output.text.loss + 1e-2 * output.kl) / batch["total"]
    assert output.loss.item() == pytest.approx(want.item())


def test_the_ratio_of_a_latent_is_taken_per_dimension():
    # 3 nats in 1,024 dimensions: a plain ratio would be 20, far beyond every bound
    density = torch.tensor([[1003.0]], dtype=torch.float64, requires_grad=True)
    none = torch.zeros(1, 0)
    output = PolicyLoss()(
        none, density, advantages=torch.ones(1), mask=none.bool(), latent_mask=torch.ones(1, 1).bool(), width=1024,
        total=2, old_latent_log_probs=torch.tensor([[1000.0]], dtype=torch.float64),
    )  # fmt: skip
    ratio = math.exp(3 / 1024)
    assert float(output.latents.ratio_max) == pytest.approx(ratio, rel=1e-12)
    output.loss.backward()
    assert density.grad.item() == pytest.approx(-0.5 * ratio / 1024 / 2)


def test_k3_is_never_negative_and_zero_where_the_policies_agree():
    log_probs = torch.linspace(-9, -0.01, 500)[None].requires_grad_()
    gaps = torch.logspace(-8, 1, 500)[None] * torch.tensor([1.0, -1.0]).repeat(250)
    none, mask = torch.zeros(1, 0), torch.ones(1, 500).bool()

    def kl(reference, decisions):
        return PolicyLoss()(
            log_probs, none, advantages=torch.zeros(1), mask=mask & decisions, latent_mask=none.bool(), width=WIDTH,
            total=1, reference_log_probs=reference,
        )  # fmt: skip

    assert kl(log_probs.detach(), mask).kl.item() == 0
    for place in range(0, 500, 7):
        alone = torch.arange(500)[None] == place
        gap = float((log_probs.detach() + gaps)[0, place] - log_probs.detach()[0, place])
        found = kl(log_probs.detach() + gaps, alone).kl.item()
        assert found >= 0
        assert found == pytest.approx(math.expm1(gap) - gap, rel=1e-3, abs=1e-10)


def test_distant_policies_do_not_overflow():
    log_probs = torch.tensor([[-1.0, -900.0, -1.0, -900.0]]).repeat(2, 1).requires_grad_()
    other = torch.tensor([[-900.0, -1.0, -900.0, -1.0]]).repeat(2, 1)
    none = torch.zeros(2, 0)
    output = PolicyLoss()(
        log_probs, none, advantages=torch.tensor([1.0, -1.0]), mask=torch.ones(2, 4).bool(), latent_mask=none.bool(),
        width=WIDTH, total=1, old_log_probs=other, reference_log_probs=other,
    )  # fmt: skip
    output.loss.backward()
    assert output.loss.isfinite()
    assert log_probs.grad.isfinite().all()


def test_micro_batches_of_one_step_add_up_to_the_whole():
    batch = make_batch(8, rows=6)
    whole = run(PolicyLoss(), batch).loss
    parts = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        cut = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        parts.append(run(PolicyLoss(), cut).loss)
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 1.0}, r"clip_low and latent_clip_low are in \[0, 1\).*got 1.0, 0.1, 0.28, 0.1"),
        ({"latent_clip_low": -0.1}, r"got 0.2, -0.1, 0.28, 0.1"),
        ({"clip_high": -1.0}, "at least 0; got 0.2, 0.1, -1.0, 0.1"),
        ({"latent_clip_high": -1.0}, "at least 0; got 0.2, 0.1, 0.28, -1.0"),
        ({"clip_high": NAN}, "at least 0; got 0.2, 0.1, nan, 0.1"),
        ({"dual_clip": 1.0}, "dual_clip is above 1.*got 1.0, 0.5, 0.01"),
        ({"latent_weight": -1.0}, "at least 0; got 3.0, -1.0, 0.01"),
        ({"kl_weight": -1.0}, "at least 0; got 3.0, 0.5, -1.0"),
    ],
)
def test_impossible_bounds_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        PolicyLoss(**settings)
