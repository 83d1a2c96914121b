"""Every path of the fused cross entropy against full logits."""

import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from futurel1.errors import ConfigError
from futurel1.losses import choose_path, cross_entropy, linear_cross_entropy
from futurel1.models.token_rows import RowDelta
from rounding import assert_same_but_rounding

pytestmark = pytest.mark.numerics
CPU = torch.device("cpu")
HAS_TORCH = hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
PATHS = [
    pytest.param("torch", marks=pytest.mark.skipif(not HAS_TORCH, reason="this PyTorch has no linear_cross_entropy")),
    "chunked",
    "auto",
]


def case(rows: int = 11, vocabulary: int = 50, width: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_value_and_gradients_are_those_of_full_logits(path, rows, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    hidden, weight, targets = case(rows)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    loss = linear_cross_entropy(hidden, weight, targets, path)
    assert_same_but_rounding(loss, expected)
    # a factor, since the fused paths make gradients in forward and scale them in backward
    for gradient, wanted in zip(
        torch.autograd.grad(loss * 0.3, (hidden, weight)),
        torch.autograd.grad(expected * 0.3, (hidden, weight)),
        strict=True,
    ):
        assert_same_but_rounding(gradient, wanted)


def test_chunks_are_as_small_as_asked(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    hidden, weight, targets = case(11)
    rows = []
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: rows.append(len(x)) or original(x, *rest))
    linear_cross_entropy(hidden, weight, targets, "chunked").backward()
    assert rows == [4, 4, 3, 3, 4, 4]  # forward, then once more in backward


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_is_summed_in_float32(path):
    hidden, weight, targets = case(3000)
    hidden, weight = hidden.detach().bfloat16(), weight.detach().bfloat16()
    expected = F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    loss = linear_cross_entropy(hidden, weight, targets, path)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear_cross_entropy(hidden.float(), weight.float(), targets, path)
    assert mixed.item() == loss.item()


@pytest.mark.parametrize("path", [*PATHS, "liger"])
def test_no_rows_give_a_zero_that_keeps_the_graph(path):
    hidden, weight, targets = case(0)
    loss = linear_cross_entropy(hidden, weight, targets, path)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, 16)
    assert not weight.grad.any()


CHANGED = torch.tensor([1, 0, 7])
"""Rows that have a difference; the first ones, so that a stand-in for them is searched."""


def changed_case(
    rows: int = 11, size: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight, targets, differences and full logits, where a third of the targets is changed."""
    hidden, weight, targets = case(rows)
    targets[::3] = CHANGED[torch.arange(len(targets[::3])) % 3]
    values = size * torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    values.requires_grad_()
    return hidden, weight, targets, values, hidden @ weight.index_add(0, CHANGED, values).T


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_changed_rows_are_those_of_a_dense_weight(path, size, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    # 30: a changed row has all the probability, or lost it; the rest of the sum must not cancel
    hidden, weight, targets, values, logits = changed_case(size=size)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    loss = linear_cross_entropy(hidden, weight, targets, path, RowDelta(CHANGED, values))
    assert_same_but_rounding(loss, expected)
    inputs = (hidden, weight, values)
    for gradient, wanted in zip(
        torch.autograd.grad(loss * 0.3, inputs), torch.autograd.grad(expected * 0.3, inputs), strict=True
    ):
        assert_same_but_rounding(gradient, wanted)


@pytest.mark.parametrize("path", PATHS)
def test_changed_rows_in_bfloat16_and_without_targets(path):
    hidden, weight, targets, values, logits = changed_case(300)
    delta = RowDelta(CHANGED, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, path, delta)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-2)
    nothing = linear_cross_entropy(hidden[:0], weight, targets[:0], path, delta)
    (gradient,) = torch.autograd.grad(nothing, values)
    assert nothing.item() == 0
    assert not gradient.any()


LIGER = """
import torch
from torch.nn import functional as F
from futurel1.losses import linear_cross_entropy
from futurel1.models.token_rows import RowDelta

torch.manual_seed(0)
hidden = torch.randn(7, 16, requires_grad=True)
weight = torch.randn(40, 16, requires_grad=True)
targets = torch.randint(0, 40, (7,))
expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
loss = linear_cross_entropy(hidden, weight, targets, "liger")
torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
for got, wanted in zip(
    torch.autograd.grad(loss * 0.3, (hidden, weight)), torch.autograd.grad(expected * 0.3, (hidden, weight))
):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

# rows that differ, of a weight that is frozen
ids, values, weight = torch.tensor([1, 0, 7]), torch.randn(3, 16, requires_grad=True), weight.detach()
targets[:4] = torch.tensor([1, 0, 7, 2])
dense = weight.index_add(0, ids, values)
expected = F.cross_entropy(hidden @ dense.T, targets, reduction="sum")
loss = linear_cross_entropy(hidden, weight, targets, "liger", RowDelta(ids, values))
torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
for got, wanted in zip(
    torch.autograd.grad(loss * 0.3, (hidden, values)), torch.autograd.grad(expected * 0.3, (hidden, values))
):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

# the gradient of a bfloat16 table, which is a sum over 64 chunks of rows, is rounded once
hidden = torch.randn(256, 8).bfloat16().float().requires_grad_()
weight = torch.randn(512, 8).bfloat16().requires_grad_()
targets = torch.randint(0, 4, (256,))
exact = weight.detach().float().requires_grad_()
(wanted,) = torch.autograd.grad(F.cross_entropy(hidden @ exact.T, targets, reduction="sum"), exact)
(got,) = torch.autograd.grad(linear_cross_entropy(hidden.bfloat16(), weight, targets, "liger"), weight)
error = (got.float() - wanted)[:4].abs().max() / wanted[:4].abs().max()
assert error < 2**-7, error  # summed in bfloat16 it is 0.012
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Liger's kernels need Triton")
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_liger_is_full_logits_too():
    # Triton decides at import whether it interprets, hence a process of its own
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", LIGER], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_paths_that_are_missing_are_errors_and_auto_goes_on(monkeypatch):
    monkeypatch.setattr(F, "linear_cross_entropy", None, raising=False)
    monkeypatch.delattr(F, "linear_cross_entropy")
    monkeypatch.setattr(cross_entropy, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=f"'torch' needs linear_cross_entropy, PyTorch {torch.__version__}".replace("+", r"\+")
    ):
        choose_path("torch", CPU)
    with pytest.raises(ConfigError, match="'liger' needs the package liger-kernel"):
        choose_path("liger", CPU)
    assert choose_path("auto", CPU) == "chunked"
    hidden, weight, targets = case()
    with pytest.raises(ConfigError, match="'torch'"):
        linear_cross_entropy(hidden, weight, targets, "torch")


def test_liger_on_a_cpu_is_an_error(monkeypatch):
    monkeypatch.setattr(cross_entropy, "find_spec", lambda name: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="'liger' needs a GPU"):
        choose_path("liger", CPU)


def test_unknown_path_is_an_error():
    with pytest.raises(ConfigError, match="must be auto, liger, torch or chunked, got 'fast'"):
        choose_path("fast", CPU)


def test_auto_picks_by_device_and_says_so_once(monkeypatch, caplog):
    cross_entropy._announce.cache_clear()
    hidden, weight, targets = case()
    on_cuda = "torch" if HAS_TORCH else "chunked"
    with caplog.at_level(logging.INFO, logger=cross_entropy.__name__):
        for _ in range(3):
            linear_cross_entropy(hidden, weight, targets)
    assert [record.getMessage() for record in caplog.records] == ["token cross entropy on cpu: 'chunked' path"]
    monkeypatch.setattr(cross_entropy, "find_spec", lambda name: True)
    assert choose_path("auto", CPU) == "chunked"
    assert choose_path("auto", torch.device("cuda")) == "liger"
    monkeypatch.setattr(cross_entropy, "find_spec", lambda name: None)
    assert choose_path("auto", torch.device("cuda")) == on_cuda
