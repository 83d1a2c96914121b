"""Token cross entropy straight from hidden states, without the logits of all positions in memory at once."""

import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from futurel1.errors import ConfigError
from futurel1.models.precision import autocast_dtype
from futurel1.models.token_rows import RowDelta

logger = logging.getLogger(__name__)

CrossEntropyPath = Literal["auto", "liger", "torch", "chunked"]
CHUNK = 1024
"""Number of rows whose logits are in memory at once on the `"chunked"` path."""


@cache
def _announce(path: str, device: str) -> None:
    logger.info("token cross entropy on %s: %r path", device, path)


def choose_path(path: CrossEntropyPath, device: torch.device) -> CrossEntropyPath:
    """Choose the path that will run; logs one line per path and device type.

    On CUDA, ``"auto"`` is Liger's fused kernel if it is installed, else PyTorch's `linear_cross_entropy` if this
    PyTorch has it, else our chunks. On other devices it is our chunks, which are faster there
    (`benchmarks/sft_loss.py`). A path requested by name is never replaced.

    Raises:
        ConfigError: the requested path is not installed, or does not run on this device.
    """
    has_torch = hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
    has_liger = find_spec("liger_kernel") is not None
    if path == "auto":
        on_cuda = device.type == "cuda"
        path = "liger" if on_cuda and has_liger else "torch" if on_cuda and has_torch else "chunked"
    elif path == "torch" and not has_torch:
        raise ConfigError(f"cross_entropy 'torch' needs linear_cross_entropy, PyTorch {torch.__version__} has none")
    elif path == "liger" and not has_liger:
        raise ConfigError("cross_entropy 'liger' needs the package liger-kernel")
    elif path == "liger" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            "cross_entropy 'liger' needs a GPU (on a CPU, set TRITON_INTERPRET=1 to interpret its kernels)"
        )
    elif path not in ("liger", "torch", "chunked"):
        raise ConfigError(f"cross_entropy must be auto, liger, torch or chunked, got {path!r}")
    _announce(path, device.type)
    return path


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    path: CrossEntropyPath = "auto",
    delta: RowDelta | None = None,
) -> Tensor:
    """Summed cross entropy of ``softmax(hidden @ weight.T)``.

    Args:
        hidden: (N, H) hidden states of the scored positions only.
        weight: (V, H) vocabulary projection.
        targets: (N,) int64 token ids.
        path: implementation, see :func:`choose_path`.
        delta: what is added to some rows of `weight`; the sum is never made. None: nothing.

    Returns:
        Scalar sum over the N rows, in nats; if N is 0, a zero that keeps the graph.
    """
    dtype = autocast_dtype(hidden.device)
    if dtype is not None:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if delta is not None:
        delta = RowDelta(delta.ids, delta.values.to(hidden.dtype))
    if len(targets) == 0:
        empty = F.linear(hidden, weight).sum()
        return empty if delta is None else empty + F.linear(hidden, delta.values).sum()
    path = choose_path(path, hidden.device)
    if path != "chunked" and delta is not None:
        return _with_changed_rows(hidden, weight, targets, path, delta)
    if path == "liger":
        return _liger(hidden, weight, targets, "sum")
    if path == "torch":
        # Summed here in float32: PyTorch sums bfloat16 losses in bfloat16, which is off by 1% at 3,000 tokens.
        return _each(hidden, weight, targets, path).sum()

    def chunk_sum(rows: Tensor, table: Tensor, ids: Tensor, changed: RowDelta | None) -> Tensor:
        logits = F.linear(rows, table)
        if changed is not None:
            logits.index_add_(1, changed.ids, F.linear(rows, changed.values))
        return F.cross_entropy(logits.float(), ids, reduction="sum")

    # One checkpointed chunk at a time keeps only one chunk's logits alive, in backward too.
    sums = [
        checkpoint(chunk_sum, hidden[i : i + CHUNK], weight, targets[i : i + CHUNK], delta, use_reentrant=False)
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.stack(sums).sum()


def _each(
    hidden: Tensor, weight: Tensor, targets: Tensor, path: CrossEntropyPath, bias: Tensor | None = None
) -> Tensor:
    """(N,) float32 cross entropy of every row on a fused path, with a (V,) bias of the logits."""
    if path == "liger":
        return _liger(hidden, weight, targets, "none", bias).float()
    options = torch.nn.LinearCrossEntropyOptions()
    losses = F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias, reduction="none", options=options)
    return losses.float()


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str, bias: Tensor | None = None) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # The gradient of a bfloat16 table is a sum over chunks of rows: in bfloat16 later chunks would be lost in it.
    loss: Tensor = liger_fused_linear_cross_entropy(
        hidden, weight, targets, bias=bias, reduction=reduction, accum_dtype=torch.float32
    )
    return loss


def _with_changed_rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, path: CrossEntropyPath, delta: RowDelta
) -> Tensor:
    """The sum on a fused path, which takes no other weight than the table itself.

    The fused kernel sums over all other columns: a bias takes the changed ones out, so nothing cancels. Their logits
    are added to its log-sum-exp here.
    """
    hits = targets[:, None] == delta.ids
    is_changed = hits.any(dim=1)
    # The kernel's loss is its log-sum-exp minus the logit of a column that it has.
    candidates = torch.arange(len(delta.ids) + 1, device=targets.device)
    stand_in = candidates[(candidates[:, None] != delta.ids).all(dim=1)][0]
    scored = torch.where(is_changed, stand_in, targets)
    bias = hidden.new_zeros(len(weight)).index_fill(0, delta.ids, -torch.inf)
    logit = torch.einsum("nh,nh->n", hidden, weight[scored]).float()  # rounded once, as in the kernel
    others = _each(hidden, weight, scored, path, bias) + logit
    changed = F.linear(hidden, weight[delta.ids] + delta.values).float()
    total = torch.logaddexp(others, changed.logsumexp(dim=1))
    return (total - torch.where(is_changed, (changed * hits).sum(dim=1), logit)).sum()
