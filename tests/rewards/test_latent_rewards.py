"""Rewards of latents against plain loops, and what they must not depend on."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from futurel1.errors import BatchError, ConfigError
from futurel1.rewards import CompositeReward, OutcomeContrastiveReward, RewardInputs, TemporalDiversityReward
from rollouts import RIGHT, WRONG, make_inputs, with_latents

VARIANTS = ("paper", "released")


@st.composite
def rollouts(draw: st.DrawFn, with_nan: bool = False) -> RewardInputs:
    """1 to 12 rollouts of up to 4 groups in any order, 0 to 5 latents each."""
    number = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    lengths = draw(st.lists(st.integers(0, 5), min_size=number, max_size=number))
    outcomes = [0.0, 1.0, -1.0] + [math.nan] * with_nan
    correct = draw(st.lists(st.sampled_from(outcomes), min_size=number, max_size=number))
    groups = draw(st.lists(st.sampled_from([7, -3, 0, 10**12]), min_size=number, max_size=number))
    inputs = with_latents([torch.randn(length, 6, generator=generator) for length in lengths], correct, groups)
    steps = torch.randint(0, 2, (number, max(lengths)), generator=generator).cumsum(1)
    # Padding may hold anything.
    assert inputs.latents is not None
    assert inputs.latent_mask is not None
    inputs.latents[~inputs.latent_mask] = torch.nan
    return replace(inputs, span_ids=torch.where(inputs.latent_mask, steps, -1))


def trajectories(inputs: RewardInputs) -> list[Tensor]:
    assert inputs.latents is not None
    assert inputs.latent_mask is not None
    return [rows[mask].double() for rows, mask in zip(inputs.latents, inputs.latent_mask, strict=True)]


def similarity(first: Tensor, second: Tensor) -> float:
    steps = min(len(first), len(second))
    return sum((1 + F.cosine_similarity(first[t], second[t], dim=0).item()) / 2 for t in range(steps)) / steps


def contrastive_by_loops(inputs: RewardInputs, tau: float, variant: str) -> Tensor:
    latents, groups = trajectories(inputs), inputs.group_ids.tolist()
    assert inputs.correct is not None
    correct, rewards = inputs.correct.tolist(), []
    for i in range(len(latents)):
        group = [j for j in range(len(latents)) if groups[j] == groups[i]]
        right = [j for j in group if len(latents[j]) and correct[j] >= 1]
        wrong = [j for j in group if len(latents[j]) and correct[j] < 1]
        positives = [j for j in right if j != i]
        negatives = [j for j in wrong if j != i or variant == "released"]
        if variant == "released" and not positives:
            positives = right
        if len(latents[i]) == 0 or (variant == "released" and len(group) == 1):
            rewards.append(0.0)
            continue
        if variant == "released" and math.isnan(correct[i]):
            rewards.append(math.nan)
            continue
        best = max((similarity(latents[i], latents[j]) for j in positives), default=None)
        against = sum(math.exp(similarity(latents[i], latents[j]) / tau) for j in negatives)
        if variant == "paper":
            rewards.append(0.0 if best is None else math.exp(best / tau) / (math.exp(best / tau) + against))
        elif negatives:
            numerator = 1.0 if best is None else math.exp(best / tau)
            rewards.append(numerator / (numerator + against))
        else:
            rewards.append(0.0 if best is None else best / tau)
    return torch.tensor(rewards)


def diversity_by_loops(inputs: RewardInputs) -> Tensor:
    rewards = []
    assert inputs.span_ids is not None
    for latents, ids in zip(trajectories(inputs), inputs.span_ids.tolist(), strict=True):
        spans: dict[int, list[Tensor]] = {}
        for latent, span in zip(latents, ids, strict=False):
            spans.setdefault(span, []).append(latent)
        means = [torch.stack(rows).mean(dim=0) for rows in spans.values()]
        squares = [F.cosine_similarity(a, b, dim=0).item() ** 2 for a, b in pairwise(means)]
        rewards.append(-sum(squares) / len(squares) if squares else 0.0)
    return torch.tensor(rewards)


@given(rollouts(with_nan=True), st.sampled_from([0.05, 0.5, 2.0]), st.sampled_from(VARIANTS))
def test_contrastive_against_loops(inputs: RewardInputs, tau: float, variant: str) -> None:
    reward = OutcomeContrastiveReward(tau, variant)(inputs)  # type: ignore[arg-type]
    torch.testing.assert_close(reward, contrastive_by_loops(inputs, tau, variant), atol=1e-5, rtol=1e-5, equal_nan=True)


@given(rollouts())
def test_diversity_against_loops(inputs: RewardInputs) -> None:
    reward = TemporalDiversityReward()(inputs)
    torch.testing.assert_close(reward, diversity_by_loops(inputs), atol=1e-5, rtol=0)
    assert ((reward >= -1) & (reward <= 0)).all()


@given(rollouts(with_nan=True), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_order_groups_and_scale_do_not_matter(inputs: RewardInputs, random: object) -> None:
    order = list(range(len(inputs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = pick(inputs, order)
    scaled = replace(inputs, latents=inputs.latents * torch.logspace(-6, 6, inputs.latents.shape[1])[:, None])  # type: ignore[operator, union-attr]
    alone = [row for row in order if inputs.group_ids[row] == inputs.group_ids[order[0]]]
    for variant in VARIANTS:
        reward = OutcomeContrastiveReward(variant=variant)  # type: ignore[arg-type]
        value = reward(inputs)
        if variant == "paper":
            assert ((value >= 0) & (value <= 1)).all()
        close(reward(shuffled), value[order])
        close(reward(pick(inputs, alone)), value[alone])
        close(reward(scaled), value)
    diversity = TemporalDiversityReward()
    close(diversity(shuffled), diversity(inputs)[order])
    close(diversity(replace(inputs, latents=inputs.latents * 1e6)), diversity(inputs))  # type: ignore[operator]
    close(diversity(replace(inputs, latents=inputs.latents * 1e-6)), diversity(inputs))  # type: ignore[operator]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5, equal_nan=True)


def pick(inputs: RewardInputs, rows: list[int]) -> RewardInputs:
    assert inputs.latents is not None
    assert inputs.latent_mask is not None
    assert inputs.span_ids is not None
    assert inputs.correct is not None
    return RewardInputs(
        [inputs.responses[row] for row in rows],
        [inputs.answers[row] for row in rows],
        [inputs.problems[row] for row in rows],
        inputs.group_ids[rows],
        inputs.response_lengths[rows],
        latents=inputs.latents[rows],
        latent_mask=inputs.latent_mask[rows],
        span_ids=inputs.span_ids[rows],
        correct=inputs.correct[rows],
    )


def test_by_hand() -> None:
    east, north, west = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 3]]), torch.tensor([[-2.0, 0]])
    inputs = with_latents([east, north, west, east[:0]], [1, 1, 0, 1], [0, 0, 0, 0])
    half, one = math.exp(1), math.exp(0)  # similarity 0.5 and 0 over tau 0.5
    assert OutcomeContrastiveReward()(inputs).tolist() == pytest.approx([half / (half + one), 0.5, 1.0, 0.0])
    two = math.exp(2)  # a wrong rollout and itself
    released = OutcomeContrastiveReward(variant="released")(inputs).tolist()
    assert released == pytest.approx([half / (half + one), 0.5, half / (half + two), 0.0])


def test_extremes() -> None:
    """One rollout, all right, all wrong, one right, by variant."""
    rows = [torch.randn(2, 4, generator=torch.Generator().manual_seed(row)) for row in range(2)]
    paper, released = OutcomeContrastiveReward(), OutcomeContrastiveReward(variant="released")
    for correct in (0.0, 1.0):
        assert paper(with_latents(rows[:1], [correct], [5])).tolist() == [0]
        assert released(with_latents(rows[:1], [correct], [5])).tolist() == [0]
    s = similarity(*[row.double() for row in rows])
    both_right, both_wrong = with_latents(rows, [1, 1], [5, 5]), with_latents(rows, [0, -1], [5, 5])
    assert paper(both_right).tolist() == [1, 1]
    assert released(both_right).tolist() == pytest.approx([2 * s, 2 * s])
    assert paper(both_wrong).tolist() == [0, 0]
    assert released(both_wrong).tolist() == pytest.approx([1 / (1 + math.exp(2) + math.exp(2 * s))] * 2)
    one_right = with_latents(rows, [1, 0], [5, 5])
    assert paper(one_right).tolist() == pytest.approx([0, 1])
    mixed = math.exp(2) / (math.exp(2) + math.exp(2 * s))
    assert released(one_right).tolist() == pytest.approx([mixed, 1 - mixed])


def test_a_small_temperature_does_not_overflow() -> None:
    rows = [torch.tensor([[1.0, 0.1 * row]]) for row in range(4)]
    value = OutcomeContrastiveReward(1e-4)(with_latents(rows, [1, 1, 0, 0], [0] * 4))
    assert value.isfinite().all()
    assert value[0] > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_compared_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # Squares of these sum to more than float16 can hold.
    rows = [100 * torch.randn(3, 512, generator=generator).to(dtype) for _ in range(6)]
    half = with_latents(rows, [1, 0, 1, 0, 1, 0], [0] * 6)
    full = replace(half, latents=half.latents.float())  # type: ignore[union-attr]
    for reward in (OutcomeContrastiveReward(), TemporalDiversityReward()):
        with torch.autocast("cpu", torch.bfloat16):
            value = reward(half)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, reward(full), atol=1e-6, rtol=0)


def test_no_gradient() -> None:
    inputs = with_latents([torch.randn(2, 4, requires_grad=True) for _ in range(3)], [1, 1, 0], [0] * 3)
    output = CompositeReward.preset("paper")(inputs)
    assert not any(value.requires_grad for value in (output.total, *output.parts.values()))
    assert not OutcomeContrastiveReward()(inputs).requires_grad
    assert not TemporalDiversityReward()(inputs).requires_grad


def test_memory_is_that_of_the_latents() -> None:
    """A few large groups among many of one: no padding of groups to the largest, no (N, N, S, H)."""
    number, width = 400, 512
    groups = [0] * 40 + list(range(1, number - 39))
    latents = torch.ones(number, 4, width)
    mask = torch.ones(number, 4, dtype=torch.bool)
    inputs = make_inputs(
        [RIGHT, WRONG] * 200, group_ids=torch.tensor(groups), latents=latents, latent_mask=mask, span_ids=mask.long()
    )
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    with Watch():
        value = OutcomeContrastiveReward()(inputs)
        TemporalDiversityReward()(inputs)
    # All latents are alike: 20 negatives for a right rollout of the large group, 19 for a wrong one.
    assert value[:2].tolist() == pytest.approx([1 / 21, 1 / 20], abs=1e-6)
    assert 0 < largest <= latents.untyped_storage().nbytes()


def test_correctness_is_found_out_when_it_is_not_given() -> None:
    rows = [torch.tensor([[1.0, row]]) for row in range(3)]
    known = with_latents(rows, [1, 1, 0], [0] * 3)
    unknown = replace(known, correct=None, responses=[RIGHT, RIGHT, WRONG])
    assert torch.equal(OutcomeContrastiveReward()(unknown), OutcomeContrastiveReward()(known))


def test_what_is_not_finite_is_not_hidden() -> None:
    rows = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]) for _ in range(3)]
    rows[1][0, 0] = torch.nan
    inputs = with_latents(rows, [1, 1, 0], [0, 0, 1])
    assert OutcomeContrastiveReward()(inputs).isnan().tolist() == [True, True, False]
    assert TemporalDiversityReward()(inputs).isnan().tolist() == [False, True, False]


def test_diversity_passes_over_empty_spans_and_zero_means() -> None:
    rows = [torch.tensor([[1.0, 0], [1.0, 1]]), torch.tensor([[1.0, 0], [0, 0], [0, 1.0], [0, 2.0]])]
    inputs = with_latents(rows, [1, 1], [0, 0])
    spans = replace(inputs, span_ids=torch.tensor([[0, 2, -1, -1], [0, 1, 2, 3]]))
    assert TemporalDiversityReward()(spans).tolist() == pytest.approx([-0.5, -1.0])


def test_min_spans() -> None:
    rows = [torch.eye(4)[:length] for length in (0, 1, 2, 3)]
    inputs = with_latents(rows, [1] * 4, [0] * 4)
    assert TemporalDiversityReward()(inputs).tolist() == [0, 0, 0, 0]
    assert TemporalDiversityReward(min_spans=2)(inputs).tolist() == [-1, -1, 0, 0]
    assert TemporalDiversityReward(min_spans=2)(make_inputs([RIGHT])).tolist() == [-1]


def test_no_latents() -> None:
    empty = with_latents([torch.zeros(0, 4)] * 3, [1, 1, 0], [0] * 3)
    for inputs in (make_inputs([RIGHT] * 3), empty):
        for variant in VARIANTS:
            assert OutcomeContrastiveReward(variant=variant)(inputs).tolist() == [0, 0, 0]  # type: ignore[arg-type]
        assert TemporalDiversityReward()(inputs).tolist() == [0, 0, 0]


def test_errors() -> None:
    with pytest.raises(ConfigError, match="temperature must be above 0, got 0"):
        OutcomeContrastiveReward(0)
    with pytest.raises(ConfigError, match="variant must be 'paper' or 'released', got 'mine'"):
        OutcomeContrastiveReward(variant="mine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="min_spans must be at least 0, got -1"):
        TemporalDiversityReward(-1)
    inputs = with_latents([torch.ones(1, 2)], [1], [0])
    with pytest.raises(BatchError, match="latents without span_ids"):
        TemporalDiversityReward()(replace(inputs, span_ids=None))
