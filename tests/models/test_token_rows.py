"""Rows of three tokens beside frozen tables: gradients of dense rows, and nothing of a table's size in memory."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapted import TOKENS, adapt, small_reasoner
from futurel1 import LatentReasoner
from futurel1.data import PromptBatch
from futurel1.losses import linear_cross_entropy
from futurel1.models.lora import LoRAAdapters
from rounding import assert_same_but_rounding

pytestmark = pytest.mark.numerics
START, LATENT, END = TOKENS.start_id, TOKENS.latent_id, TOKENS.end_id
IDS = torch.tensor([[5, 6, START, LATENT, LATENT, END, 7, 8], [9, START, END, 10, 11, 12, START, 13]])
MASK = torch.ones_like(IDS)
PROMPT = PromptBatch(IDS[:, :3], MASK[:, :3])


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def adapted(request: pytest.FixtureRequest) -> tuple[LatentReasoner, LoRAAdapters]:
    """A model with adapters whose rows of the latent tokens are not those of its tables."""
    reasoner = small_reasoner(tied=request.param)
    return reasoner, adapt(reasoner)


def token_loss(reasoner: LatentReasoner, path: Any = "chunked") -> Tensor:
    backbone = reasoner.backbone
    hidden = reasoner(IDS, MASK)[:, :-1].flatten(0, 1)
    targets = IDS[:, 1:].flatten()
    return linear_cross_entropy(hidden, backbone.lm_head.weight, targets, path, backbone.head_delta)


def dense(reasoner: LatentReasoner) -> tuple[Tensor, Tensor]:
    """Give a model tables that hold the rows, and are trained as a whole; returns them, embedding table first."""
    backbone = reasoner.backbone
    rows, backbone.token_rows = backbone.token_rows, None
    assert rows is not None
    table, head = backbone.model.get_input_embeddings().weight, backbone.lm_head.weight
    with torch.no_grad():
        table[rows.ids] += rows.embedding
        if head is not table:
            head[rows.ids] += rows.of_projection
    return table.requires_grad_(), head.requires_grad_()


def test_loss_and_gradients_are_those_of_dense_rows(adapted: tuple[LatentReasoner, LoRAAdapters]) -> None:
    reasoner, _ = adapted
    rows = reasoner.backbone.token_rows
    assert rows is not None
    loss = token_loss(reasoner)
    loss.backward()
    logits = reasoner.logits(reasoner(IDS, MASK))
    found = {name: parameter.grad for name, parameter in rows.named_parameters()}
    ids = rows.ids
    table, head = dense(reasoner)
    expected = token_loss(reasoner)
    expected.backward()
    assert_same_but_rounding(loss, expected)
    assert_same_but_rounding(logits, reasoner.logits(reasoner(IDS, MASK)))
    assert found.keys() == ({"embedding"} if head is table else {"embedding", "projection"})
    for name, gradient in found.items():
        wanted = (table if name == "embedding" else head).grad
        assert gradient is not None
        assert wanted is not None
        assert gradient.abs().max() > 0
        assert_same_but_rounding(gradient, wanted[ids], name=name)


class TableSized(TorchDispatchMode):
    """Notes every operation that makes new memory of the size of a table."""

    def __init__(self, reasoner: LatentReasoner) -> None:
        super().__init__()
        self.size = reasoner.backbone.lm_head.weight.numel()
        self.known = {parameter.untyped_storage().data_ptr() for parameter in reasoner.parameters()}
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            memory = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if memory is not None and memory.nbytes() >= 4 * self.size and memory.data_ptr() not in self.known:
                self.made.append(str(func))
        return result


@pytest.mark.parametrize("path", ["chunked", "torch"])
def test_nothing_of_the_size_of_a_table_is_made(adapted: tuple[LatentReasoner, LoRAAdapters], path: str) -> None:
    if path == "torch" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this PyTorch has no linear_cross_entropy")
    reasoner, lora = adapted
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": [0], "pad_token_id": 0}
    with TableSized(reasoner) as seen:
        token_loss(reasoner, path).backward()  # type: ignore[no-untyped-call]
        rollout = reasoner.generate(PROMPT, num_branches=2, **how)
        reasoner.score(PROMPT, rollout).sum().backward()  # type: ignore[no-untyped-call]
        assert reasoner.dtype == torch.float32
        with lora.disabled():
            reasoner.logits(reasoner(IDS, MASK))
    assert not seen.made
    with TableSized(reasoner) as seen:  # as peft's trainable tokens do it
        weight = reasoner.backbone.lm_head.weight
        weight.index_copy(0, torch.tensor([START]), weight[:1])
    assert seen.made == ["aten.index_copy.default"]


def test_disabled_rows_are_those_of_the_tables(adapted: tuple[LatentReasoner, LoRAAdapters]) -> None:
    reasoner, lora = adapted
    trained = reasoner.logits(reasoner(IDS, MASK))
    with lora.disabled():
        assert reasoner.backbone.head_delta is None
        base = reasoner.logits(reasoner(IDS, MASK))
    assert (trained - base).abs().max() > 1e-3
    assert torch.equal(reasoner.logits(reasoner(IDS, MASK)), trained)
    plain = small_reasoner(tied=reasoner.backbone.ties_embeddings)
    assert torch.equal(plain.logits(plain(IDS, MASK)), base)


def test_rows_are_in_the_graph_of_a_batch_without_their_tokens(adapted: tuple[LatentReasoner, LoRAAdapters]) -> None:
    """As DDP needs them."""
    reasoner, _ = adapted
    rows = reasoner.backbone.token_rows
    assert rows is not None
    reasoner(IDS[:1, :2], MASK[:1, :2]).sum().backward()
    assert rows.embedding.grad is not None
    assert not rows.embedding.grad.any()


def test_adapters_are_added_without_warnings() -> None:
    reasoner = small_reasoner(tied=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(reasoner)
