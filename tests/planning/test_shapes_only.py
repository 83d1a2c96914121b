"""Code that runs on shapes: real integers, no values, and what it would need."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from futurel1.planning.shapes_only import Usage, shapes_only

META = torch.device("meta")


def test_integers_are_real_and_other_numbers_are_not() -> None:
    weight = torch.empty(10, 4, device=META)
    with shapes_only():
        ids = torch.arange(6, device=META).view(2, 3)
        assert ids.tolist() == [[0, 1, 2], [3, 4, 5]]
        hidden = F.embedding(ids, weight)
        mask = ids > 1
        assert hidden.device == META
        assert hidden.shape == (2, 3, 4)
        assert hidden[mask].shape == (4, 4)  # four of the six numbers are above 1
        assert float(hidden.sum()) == 0.0
        assert hidden.argmax(dim=-1).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_masks_decide_where_values_are_put() -> None:
    with shapes_only():
        table = torch.zeros(4, 3, device=META)
        table[torch.tensor([True, False, True, False])] = torch.ones(2, 3, device=META)
        filled = table.masked_scatter(torch.ones(4, 3, dtype=torch.bool), torch.ones(12, device=META))
    assert (table.shape, filled.shape) == ((4, 3), (4, 3))


def test_a_tensor_counts_until_it_is_freed() -> None:
    with shapes_only() as usage:
        first = torch.empty(1000, device=META)
        view = first[10:].view(99, 10)
        assert usage.live["activations"] == 4000
        second = first * 2
        assert usage.live["activations"] == 8000
        del first
        assert usage.live["activations"] == 8000  # its view is alive
        del view
        assert usage.live["activations"] == 4000
        del second
        assert usage.live["activations"] == 0
    assert usage.at_peak["activations"] == 8000


def test_an_operation_asked_again_uses_as_much_as_the_first_time() -> None:
    with shapes_only() as usage:
        weight = torch.empty(8, 4, device=META)
        first, second = torch.empty(2, 3, 4, device=META), torch.empty(2, 3, 4, device=META)
        used = []
        for given in (first, second):  # equal shapes, and `_unsafe_view` returns the memory that it is given
            before = usage.live["activations"], usage.flops, usage.operations
            product = (given @ weight.T).mul(2).sort().values
            after = usage.live["activations"], usage.flops, usage.operations
            used.append([now - then for now, then in zip(after, before, strict=True)])
            assert product.shape == (2, 3, 8)
            del product
        flat = torch.empty(6, 8, device=META)
        again = [torch.ops.aten._unsafe_view(flat, [2, 3, 8]) for _ in range(2)]
    assert used[0] == used[1] == [2 * 3 * 8 * 4, 2 * 6 * 4 * 8, used[0][2]]
    assert all(view.untyped_storage()._cdata == flat.untyped_storage()._cdata for view in again)


def test_tensors_are_counted_by_kind() -> None:
    weight = torch.empty(8, 100, device=META)
    with shapes_only(vocab_size=100) as usage:
        usage.hold(weight, "weights")
        logits = torch.empty(2, 8, device=META) @ weight
        usage.add("gathered", 1000)
        usage.add("gathered", -1000)
    assert +usage.at_peak == {"weights": 3200, "logits": 800, "gathered": 1000}
    assert logits.shape == (2, 100)


def layers() -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(6)])


def training_peak(recomputed: bool) -> Usage:
    model = layers().to(META)
    with shapes_only() as usage:
        hidden = torch.empty(128, 32, device=META)
        for layer in model:
            hidden = checkpoint(layer, hidden, use_reentrant=False) if recomputed else layer(hidden)
        hidden.sum().backward()
    return usage


def test_recomputing_activations_saves_memory_and_costs_a_forward_pass() -> None:
    kept, recomputed = training_peak(False), training_peak(True)
    assert recomputed.at_peak["activations"] < 0.6 * kept.at_peak["activations"]
    # Backward takes two products for one of forward, and computing again stops before the second of a layer's two.
    assert recomputed.flops == pytest.approx(kept.flops * 7 / 6, rel=0.02)


def test_flops_are_those_of_pytorchs_counter() -> None:
    model = layers()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(128, 32)).sum().backward()
    assert training_peak(False).flops == counter.get_total_flops()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_attention_keeps_no_scores(autocast: torch.dtype | None) -> None:
    query = torch.empty(1, 2, 500, 16, device=META, requires_grad=True)
    with shapes_only(autocast=autocast) as usage:
        F.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    assert query.grad is not None
    assert query.grad.shape == query.shape
    assert usage.at_peak["activations"] < 2 * 500 * 500 * 4  # one matrix of scores


def test_autocast_computes_in_its_dtype() -> None:
    layer = nn.Linear(8, 8, device=META)
    with shapes_only(autocast=torch.bfloat16):
        assert layer(torch.empty(2, 8, device=META)).dtype == torch.bfloat16
    with shapes_only():
        assert layer(torch.empty(2, 8, device=META)).dtype == torch.float32
