"""Attention that skips what a branch does not see, against the dense mask it stands for."""

import logging

import pytest
import torch
from families import make_family
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from futurel1.data import PromptBatch
from futurel1.models import LatentReasoner
from futurel1.models.decoding import attention
from futurel1.models.decoding.attention import BranchMask, branch_mask
from futurel1.models.decoding.branching import dense_mask, pack
from rounding import assert_same_but_rounding

pytestmark = pytest.mark.numerics
HEADS, WIDTH = 3, 8
CASES = [
    ([4], [[5, 1, 3]]),  # one branch has no input of its own
    ([2, 5, 1], [[1, 1], [4, 2], [2, 6]]),  # padded prompts, a prompt without any input after it
    ([3], [[2]]),
]


def layout(real, lengths):
    mask = torch.tensor([[0] * (max(real) - count) + [1] * count for count in real])
    return pack(mask, torch.tensor(lengths), max(max(row) for row in lengths), "shared")


def inputs(branch, dtype=torch.float32, device="cpu", heads=HEADS, width=WIDTH):
    """Queries, keys and values laid out as a projection leaves them, and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    shape = (*branch.shape, heads, width)
    parts = [torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(4)]
    return [part.requires_grad_() for part in parts[:3]], parts[3]


def attend(branch, mask, scale=None, **more):
    """Output and gradients at real tokens."""
    parts, upstream = inputs(branch, **more)
    real = (branch != -2)[:, None, :, None]
    out = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale) * real
    return [out, *torch.autograd.grad(out, parts, upstream)]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("real", "lengths"), CASES)
def test_output_and_gradients_are_those_of_the_dense_mask(real, lengths, scale):
    packed = layout(real, lengths)
    for dtype in (torch.float64, torch.float32):
        want = attend(packed.branch, packed.attend, scale, dtype=dtype)
        found = attend(packed.branch, BranchMask(packed.branch), scale, dtype=dtype)
        for one, other in zip(found, want, strict=True):
            assert one.dtype == dtype
            assert_same_but_rounding(one, other, computed_in=dtype)


@given(st.integers(1, 3), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_any_lengths(prompts, branches, data):
    real = data.draw(st.lists(st.integers(1, 5), min_size=prompts, max_size=prompts))
    group = st.lists(st.integers(0, 5), min_size=branches, max_size=branches).filter(any)
    branch = layout(real, data.draw(st.lists(group, min_size=prompts, max_size=prompts))).branch
    want, found = (attend(branch, mask, dtype=torch.float64) for mask in (dense_mask(branch), BranchMask(branch)))
    for one, other in zip(found, want, strict=True):
        # a token alone attends to itself whatever its query and key: gradients are zero, what they are made of is not
        assert_same_but_rounding(one, other, size=10.0, computed_in=torch.float64)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_branches_without_a_prompt_run_no_kernel_on_it(rows):
    width = max(map(sum, rows))
    branch = torch.tensor(
        [[b for b, count in enumerate(row) for _ in range(count)] + [-2] * (width - sum(row)) for row in rows]
    )
    keys = []
    honest = attention._flash
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_flash", lambda q, k, *more: keys.append(k.shape[2]) or honest(q, k, *more))
        found = attend(branch, BranchMask(branch), dtype=torch.float64)
    assert keys == [count for row in rows for count in row]
    for one, other in zip(found, attend(branch, dense_mask(branch), dtype=torch.float64), strict=True):
        assert_same_but_rounding(one, other, size=10.0, computed_in=torch.float64)


def test_far_apart_scores_do_not_overflow():
    packed = layout([3], [[3, 4]])
    for prompt_gain, own_gain in ((1e3, 1.0), (1.0, 1e3)):
        gain = torch.where(packed.branch < 0, prompt_gain, own_gain)[:, None, :, None]
        # exp(1000) overflows in float64 too, and of a score of a thousand float32 has only four decimals
        (query, key, value), _ = inputs(packed.branch, dtype=torch.float64)
        out, want = (
            F.scaled_dot_product_attention(query, key * gain, value, attn_mask=mask)
            for mask in (BranchMask(packed.branch), packed.attend)
        )
        assert_same_but_rounding(out, want, size=1e3, computed_in=torch.float64)


def test_keys_of_fewer_heads():
    packed = layout(*CASES[0])
    (query, key, value), _ = inputs(packed.branch)
    key, value = key[:, :1], value[:, :1]
    out, want = (
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        for mask in (BranchMask(packed.branch), packed.attend)
    )
    assert_same_but_rounding(out, want)


def test_autocast_reaches_the_kernels():
    packed = layout(*CASES[1])
    (query, key, value), _ = inputs(packed.branch)
    with torch.autocast("cpu", torch.bfloat16):
        out, want = (
            # as under a norm with float32 weights: queries and keys are float32, values are not
            F.scaled_dot_product_attention(query, key, value.bfloat16(), attn_mask=mask)
            for mask in (BranchMask(packed.branch), packed.attend)
        )
    assert out.dtype == want.dtype == torch.bfloat16
    real = (packed.branch != -2)[:, None, :, None]
    # four of the 256 steps that bfloat16 has between a power of two and the next
    assert_same_but_rounding(out * real, want * real, roundings=4, computed_in=torch.bfloat16)


def test_the_mask_has_one_element_and_the_shape_dtype_and_device_of_a_mask():
    packed = layout([4000], [[2000] * 8])
    mask = BranchMask(packed.branch)
    assert mask.shape == (1, 1, 4000 + 8 * 1999, 4000 + 8 * 1999)
    assert mask.untyped_storage().nbytes() == 1
    assert mask.dtype == torch.bool
    assert not torch.is_floating_point(mask)
    assert mask.device == packed.branch.device


def test_dropout_takes_the_dense_mask_and_says_so_once(caplog):
    packed = layout(*CASES[0])
    parts, _ = inputs(packed.branch)
    attention._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.manual_seed(0)
            out = F.scaled_dot_product_attention(*parts, attn_mask=BranchMask(packed.branch), dropout_p=0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(
        out, F.scaled_dot_product_attention(*parts, attn_mask=packed.attend, dropout_p=0.5)
    )  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "branches of one row attend with a dense mask: attention dropout is 0.5, which only the stock kernels draw"
    ]


def test_why_masked_blocks_are_not_skipped(monkeypatch):
    assert attention._no_skipping("cpu", 0.0) is None
    assert "'mps'" in attention._no_skipping("mps", 0.0)
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    assert "triton" in attention._no_skipping("cuda", 0.0)


@pytest.mark.parametrize(("real", "lengths"), CASES)
def test_flex_attention_gets_the_same_mask(real, lengths):
    # Flex attention has no backward on the CPU, and no kernel here: this is its mask and its plain forward.
    from torch.nn.attention.flex_attention import flex_attention

    packed = layout(real, lengths)
    parts = [part.detach() for part in inputs(packed.branch)[0]]
    found = flex_attention(*parts, block_mask=BranchMask(packed.branch).block_mask)
    want = F.scaled_dot_product_attention(*parts, attn_mask=packed.attend)
    assert_same_but_rounding(found, want)


def test_flex_attention_skips_blocks_of_other_branches():
    blocks = BranchMask(layout([256], [[257, 257, 257]]).branch).block_mask
    # blocks of 128: two of the prompt, then two of each branch
    seen = blocks.to_dense()[0, 0].bool()
    assert seen.tolist() == [
        [True] + 7 * [False],
        [True, True] + 6 * [False],
        [True, True, True] + 5 * [False],
        [True, True, True, True] + 4 * [False],
        [True, True, False, False, True] + 3 * [False],
        [True, True, False, False, True, True] + 2 * [False],
        [True, True] + 4 * [False] + [True, False],
        [True, True] + 4 * [False] + [True, True],
    ]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_stock_models_hand_the_mask_to_their_attention(name, implementation, monkeypatch):
    family = make_family(name)
    family.stock.set_attn_implementation(implementation)
    calls = []
    honest = attention._BranchAttention.apply
    monkeypatch.setattr(attention._BranchAttention, "apply", lambda *call: calls.append(1) or honest(*call))
    prompt = family.batch([[5, ("image", 4, 8), 6], [7, 8]], padding="left")
    rollout = family.reasoner.generate(
        prompt, num_branches=2, max_new_tokens=5, do_sample=True, eos_token_id=list(range(20, 60)), seed=1,
        force_start=True,
    )  # fmt: skip
    shared, rows = (family.reasoner.score(prompt, rollout, share_prompt=share) for share in (True, False))
    assert_same_but_rounding(shared, rows, size=1.0)  # of the logits, however near to zero the log-probabilities are
    assert len(calls) == (3 if implementation == "sdpa" else 0)


def test_eager_attention_gets_a_dense_additive_mask():
    packed = layout(*CASES[0])
    mask = branch_mask(packed.branch, "eager", torch.float32)
    assert torch.equal(mask == 0, packed.attend)
    assert (mask[~packed.attend] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("masked", [False, True])
def test_partial_attention_is_the_same_by_products(masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, length, 16, generator=generator) for length in (6, 40, 40))
    blocked = torch.finfo(torch.float32).min
    bias = torch.zeros(3, 1, 1, 40).masked_fill(
        torch.arange(40) >= torch.tensor([40, 17, 1])[:, None, None, None], blocked
    )
    bias = bias if masked else None
    out, lse = attention.partial_attention(query, key, value, bias, 0.25)
    other, other_lse = attention._by_products(query, key, value, bias, 0.25)
    torch.testing.assert_close(out, other)
    torch.testing.assert_close(lse, other_lse)
    stock = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.25)
    torch.testing.assert_close(out, stock)


# ---------------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize(("real", "lengths"), [*CASES, ([300, 140], [[150, 40, 1], [20, 200, 33]])])
def test_flex_attention_on_cuda_is_the_dense_mask(real, lengths, dtype, tolerance):
    packed = layout(real, lengths)
    for name in ("prompt", "branch", "step", "row", "column", "fed_column"):
        object.__setattr__(packed, name, getattr(packed, name).cuda())
    more = {"dtype": dtype, "device": "cuda", "heads": 4, "width": 64}
    want = attend(packed.branch, packed.attend, **more)
    found = attend(packed.branch, BranchMask(packed.branch), **more)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_scores_and_gradients_on_cuda_are_those_of_separate_rows():
    reasoner = LatentReasoner.from_pretrained("tiny@random").cuda().train()
    ids = torch.randint(10, 200, (2, 40), generator=torch.Generator().manual_seed(0)).cuda()
    batch = PromptBatch(ids, torch.ones_like(ids))
    rollout = reasoner.generate(batch, num_branches=3, max_new_tokens=12, do_sample=True, seed=0)
    weights = [weight for weight in reasoner.backbone.language_model.parameters() if weight.requires_grad]
    grads = []
    for share in (True, False):
        loss = reasoner.score(batch, rollout, share_prompt=share).mean()
        grads.append([loss.detach(), *torch.autograd.grad(loss, weights)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
