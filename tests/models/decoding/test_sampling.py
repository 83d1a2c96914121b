"""Which tokens are sampled: those of the distribution that the warpers of transformers leave."""

import pytest
import torch

from futurel1.models.decoding import Sampling
from futurel1.models.decoding.sampling import LIKELIEST
from futurel1.models.noise import RowNoise, row_keys

pytestmark = pytest.mark.numerics


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution that the warpers of transformers leave."""
    from transformers.generation import logits_process as warpers

    scores = logits.double()[None]
    chain = [warpers.TemperatureLogitsWarper(temperature)]
    chain += [warpers.TopKLogitsWarper(top_k)] if top_k else []
    chain += [warpers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [warpers.MinPLogitsWarper(min_p)] if min_p else []
    for warper in chain:
        scores = warper(None, scores)
    return scores.softmax(dim=-1)[0]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 3},
        {"top_k": 50},
        {"top_p": 0.7},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"temperature": 1.4, "top_k": 6, "top_p": 0.8},
        {"temperature": 0.8, "top_k": 8, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_samples_follow_the_filtered_softmax(kwargs):
    count = 20_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    exact = filtered(logits, **kwargs)
    noise = RowNoise(row_keys(0, ["row"] * count, 1), 0)
    sampling = Sampling(do_sample=True, **kwargs)
    drawn = sampling.pick(logits.expand(count, -1) / sampling.scale, noise.uniform(1))
    counts = torch.bincount(drawn, minlength=12)
    kept = exact > 0
    assert not counts[~kept].any()
    chi_square = ((counts - count * exact)[kept] ** 2 / (count * exact[kept])).sum()
    degrees = int(kept.sum()) - 1
    assert chi_square <= degrees + 4 * (2 * degrees) ** 0.5 + 1e-9


@pytest.mark.parametrize(
    "kwargs", [{"top_p": 0.9}, {"top_p": 0.9, "min_p": 1e-3}, {"top_k": 100, "top_p": 0.9}], ids=str
)
def test_a_large_vocabulary_is_truncated_row_by_row(kwargs):
    # Rows that keep few, some hundred and thousands of tokens.
    spread = torch.tensor([6.0, 1.8, 0.3])[:, None]
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(3)) * spread
    found, tokens = Sampling(do_sample=True, **kwargs).kept(logits.softmax(-1))
    assert tokens is None
    exact = torch.stack([filtered(row, **kwargs) for row in logits])
    if kwargs == {"top_p": 0.9}:
        few, some, many = (found > 0).sum(-1).tolist()
        assert few < 64 < some < 2048 < many
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), exact, rtol=1e-5, atol=1e-9)


def test_of_equally_likely_tokens_the_first_ones_are_kept():
    flat = torch.full((1, 200), 1 / 200)
    for sampling, count in ((Sampling(top_k=3), 3), (Sampling(top_p=0.4), 80), (Sampling(top_p=0.4, top_k=50), 20)):
        assert sampling.kept(flat)[0].nonzero()[:, 1].tolist() == list(range(count))


def everywhere(sampling, probabilities):
    """(N, V) probabilities that are kept, and whether the likeliest tokens were enough."""
    kept, tokens = sampling.kept(probabilities)
    if tokens is None:
        return kept, False
    assert (tokens.diff(dim=-1) > 0).all()
    return torch.zeros_like(probabilities, dtype=torch.float64).scatter_(1, tokens, kept), True


@pytest.mark.parametrize(
    ("kwargs", "spread", "enough"),
    [
        ({"top_p": 0.99}, 6.0, True),
        ({"top_p": 0.99}, 1.0, False),
        ({"top_p": 0.01}, 1.0, True),
        ({"top_k": 900}, 1.0, True),
        ({"top_k": LIKELIEST}, 1.0, False),
        ({"min_p": 0.5}, 1.0, True),
        ({"min_p": 1e-3}, 1.0, False),
        ({"top_k": 900, "top_p": 0.9, "min_p": 0.1}, 1.0, True),
    ],
    ids=str,
)
def test_the_likeliest_tokens_are_enough_or_all_are_asked(kwargs, spread, enough, monkeypatch):
    logits = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(5)) * spread
    sampling = Sampling(do_sample=True, **kwargs)
    kept, among_few = everywhere(sampling, logits.softmax(-1))
    assert among_few is enough
    uniform = torch.tensor([[0.1], [0.5], [1 - 1e-9]], dtype=torch.float64)
    picked = sampling.pick(logits, uniform)
    monkeypatch.setattr("futurel1.models.decoding.sampling.LARGE_VOCABULARY", 20_000)
    wanted, among_few = everywhere(sampling, logits.softmax(-1))
    assert not among_few
    assert torch.equal(kept, wanted)
    assert torch.equal(picked, sampling.pick(logits, uniform))


def test_equally_likely_tokens_beyond_the_likeliest_are_not_forgotten():
    logits = torch.zeros(2, 20_000)
    logits[0, 19_000:] = 5.0  # the first of these thousand are kept
    logits[1, 5] = 20.0
    kept, _ = everywhere(Sampling(top_p=0.5, top_k=100), logits.softmax(-1))
    assert kept[0].nonzero()[:, 0].tolist() == list(range(19_000, 19_050))
    assert kept[1].nonzero()[:, 0].tolist() == [5]
    kept, among_few = everywhere(Sampling(top_k=100), torch.full((1, 20_000), 1 / 20_000))
    assert not among_few
    assert kept.nonzero()[:, 1].tolist() == list(range(100))


def test_top_p_of_one_leaves_no_token_out():
    last = torch.full((1, 1), 1 - 2.0**-53, dtype=torch.float64)
    # 100,003 rounded probabilities do not sum to exactly 1; the least likely token still has its share.
    logits = torch.zeros(1, 100_003)
    logits[0, -1] = -1.0
    assert Sampling(do_sample=True).pick(logits, last).tolist() == [100_002]


def test_greedy_takes_the_most_likely_and_no_noise():
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampling(temperature=3.0).pick(logits, None), logits.argmax(-1))
