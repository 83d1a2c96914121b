"""Attention of branches in one row, with or without a prompt that they share, without computing masked scores.

A stock `transformers` model passes a :class:`BranchMask` on as its attention mask, and the mask overrides PyTorch's
`scaled_dot_product_attention`; `torch.nn.attention.bias.CausalBias` works the same way.

* CPU: the prompt attends to itself causally, all response tokens to the prompt without a mask, every branch to itself
  causally, and the last two are merged by their log-sum-exp. This needs neither a mask nor copies of the prompt's keys.
  Without a prompt, branches are all there is to compute.
* CUDA: flex attention, whose kernel skips blocks that are fully masked.
* Anything else, or with dropout: the dense mask, with one warning in the log.

Shapes: Q rows of T tokens, N heads of D channels.
"""

import logging
from collections.abc import Callable
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.models.decoding.branching import PROMPT, dense_mask, visible
from futurel1.models.precision import autocast_dtype

logger = logging.getLogger(__name__)
Spans = list[tuple[slice, list[slice]]]
"""Per row, the columns of its prompt and of each of its non-empty branches."""


class BranchMask(Tensor):
    """(Q, 1, T, T) bool mask of packed rows whose entries are not stored.

    Its storage is a single element; only :func:`torch.nn.functional.scaled_dot_product_attention` may read it.

    Args:
        branch: (Q, T) int64, the branch of each column, or what else it is: `branch` of
            :class:`~futurel1.models.decoding.branching.PackedLayout`. The mask stands for
            :func:`~futurel1.models.decoding.branching.dense_mask` of it.
    """

    branch: Tensor

    def __new__(cls, branch: Tensor) -> Self:  # noqa: D102 (documented at the class)
        rows, width = branch.shape
        shape = torch.ones((), dtype=torch.bool, device=branch.device).expand(rows, 1, width, width)
        mask = shape.as_subclass(cls)
        mask.branch = branch
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Override `scaled_dot_product_attention`; all else (shape, dtype, device) is that of an ordinary tensor."""
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    @cached_property
    def spans(self) -> Spans:
        """Columns of the prompt and the branches of every row."""
        return [_row_spans(row) for row in self.branch]

    @cached_property
    def block_mask(self) -> Any:
        """The mask in flex attention's format; built once for all layers."""
        from torch.nn.attention.flex_attention import create_block_mask

        branch = self.branch
        rows, width = branch.shape

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return visible(branch[row, query], branch[row, key], query, key)

        # Compiled on CUDA: uncompiled, it builds all T x T entries first. The device keeps its index, for cuda:1.
        make = torch.compile(create_block_mask) if branch.device.type == "cuda" else create_block_mask
        return make(sees, rows, None, width, width, device=str(branch.device))


def branch_mask(branch: Tensor, attn_implementation: str, dtype: torch.dtype) -> Tensor:
    """(Q, 1, T, T) mask of packed rows for one of the implementations of `transformers`.

    Args:
        branch: (Q, T) int64, the branch of each column.
        attn_implementation: ``"sdpa"``, which takes a :class:`BranchMask`; others get a dense additive mask.
        dtype: dtype of the hidden states.
    """
    if attn_implementation == "sdpa":
        return BranchMask(branch)
    attend = dense_mask(branch)
    return torch.zeros(attend.shape, dtype=dtype, device=attend.device).masked_fill(~attend, torch.finfo(dtype).min)


def _row_spans(branch: Tensor) -> tuple[slice, list[slice]]:
    """(T,) branch of every column to the columns of the prompt and of each branch, which are contiguous."""
    prompt, branches, start = slice(0, 0), [], 0
    values, counts = torch.unique_consecutive(branch, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        columns = slice(start, start + count)
        if value == PROMPT:
            prompt = columns
        elif value >= 0:
            branches.append(columns)
        start += count
    return prompt, branches


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: BranchMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` under a branch mask: (Q, N, T, D) each, keys of fewer heads with `enable_gqa`."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    device = query.device.type
    query, key, value = (computed(part) for part in (query, key, value))
    why = _no_skipping(device, dropout_p)
    if why is not None:
        _say_once(f"branches of one row attend with a dense mask: {why}")
        dense = dense_mask(attn_mask.branch)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=dense, dropout_p=dropout_p, scale=scale)
    if device == "cuda":
        out: Tensor = _compiled_flex_attention()(query, key, value, block_mask=attn_mask.block_mask, scale=scale)
        return out
    return _BranchAttention.apply(query, key, value, attn_mask.spans, scale)  # type: ignore[no-any-return]


def _no_skipping(device: str, dropout: float) -> str | None:
    """Why masked blocks cannot be skipped here; None where they can."""
    if dropout > 0:
        return f"attention dropout is {dropout}, which only the stock kernels draw"
    if device == "cuda" and find_spec("triton") is None:
        return "flex attention on CUDA needs triton, which is not installed"
    return None if device in ("cpu", "cuda") else f"no attention on {device!r} skips masked blocks"


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """Flex attention as a fused kernel; uncompiled it would build all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    # Not dynamic=True: flex attention has raised errors under it (pytorch/pytorch#146745). By default the second length
    # compiles a kernel with symbolic sizes.
    return torch.compile(flex_attention)


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def computed(part: Tensor) -> Tensor:
    """Queries, keys or values in the dtype that attention computes in.

    Autocast casts them for the stock function, but neither for the kernels used here nor for flex attention.
    """
    dtype = autocast_dtype(part.device)
    return part if dtype is None else part.to(dtype)


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to a part of all keys, with what it takes to merge it with the other parts.

    Args:
        query: (B, N, L, D).
        key: (B, N, T, D).
        value: (B, N, T, D).
        bias: (B, 1, 1 or L, T) that is added to the scores; None for nothing.
        scale: factor of the scores.

    Returns:
        (B, N, L, D) output, and (B, N, L) log-sum-exp of the scores in at least float32.
    """
    if query.device.type == "cpu":
        return _flash(query, key, value, False, scale, bias)
    return _by_products(query, key, value, bias, scale)


def _by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """:func:`partial_attention` for devices whose kernels hide the log-sum-exp; compiled, its parts are fused."""
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scale
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def _flash(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output (B, N, L, D) and log-sum-exp (B, N, L) of PyTorch's CPU kernel; the public function hides the latter."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=causal, attn_mask=bias, scale=scale
    )
    return out, lse


def _alone(prompt: slice, branches: list[slice]) -> list[slice]:
    """Columns that attend to themselves causally: the prompt, unless it is empty, and each branch."""
    return [prompt, *branches] if prompt.stop > prompt.start else branches


def _after(prompt: slice, branches: list[slice]) -> list[slice]:
    """Columns that attend to the prompt: all branches in one slice, or nothing without a prompt or branches."""
    return [slice(branches[0].start, branches[-1].stop)] if branches and prompt.stop > prompt.start else []


class _BranchAttention(torch.autograd.Function):
    """Packed rows on the CPU, one prompt or branch at a time: their lengths differ, and slices need no padding.

    The softmax over prompt and own branch together is the sum of the two softmaxes, each weighted by exp(its
    log-sum-exp - the total log-sum-exp). In backward, a kernel that gets the total log-sum-exp and the total output
    computes exact probabilities and gradients for its keys, so the two parts add up (as in ring attention, arXiv
    2310.01889).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float | None
    ) -> Tensor:  # fmt: skip
        # Like the kernel's log-sum-exp, at least float32; the two parts are merged in this precision.
        precise = torch.promote_types(query.dtype, torch.float32)
        out, lse = torch.zeros_like(query), query.new_zeros(query.shape[:3], dtype=precise)
        for row, (prompt, branches) in enumerate(spans):
            q, k, v, o, total = (part[row : row + 1] for part in (query, key, value, out, lse))
            for own in _alone(prompt, branches):
                o[:, :, own], total[:, :, own] = _flash(q[:, :, own], k[:, :, own], v[:, :, own], True, scale)
            for after in _after(prompt, branches):
                of_prompt, lse_prompt = _flash(q[:, :, after], k[:, :, prompt], v[:, :, prompt], False, scale)
                share = (lse_prompt - total[:, :, after]).sigmoid()[..., None]
                o[:, :, after] = torch.lerp(o[:, :, after].to(precise), of_prompt.to(precise), share).to(o.dtype)
                total[:, :, after] = torch.logaddexp(total[:, :, after], lse_prompt)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        gradients = [torch.zeros_like(part) for part in (query, key, value)]
        for row, (prompt, branches) in enumerate(ctx.spans):
            parts = [(own, own, True) for own in _alone(prompt, branches)]
            parts += [(after, prompt, False) for after in _after(prompt, branches)]
            for asks, seen, causal in parts:
                at = [asks, asks, seen, seen, asks, asks]
                g, q, k, v, o, total = (
                    part[row : row + 1, :, columns]
                    for part, columns in zip((grad, query, key, value, out, lse), at, strict=True)
                )
                found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    g, q, k, v, o, total, 0.0, causal, scale=ctx.scale
                )
                for gradient, part, columns in zip(gradients, found, (asks, seen, seen), strict=True):
                    gradient[row : row + 1, :, columns] += part
        return *gradients, None, None
