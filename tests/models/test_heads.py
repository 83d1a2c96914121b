"""Projection heads: names of released checkpoints, values by hand, zero rows."""

import math

import pytest
import torch
from torch import nn

from futurel1.errors import ConfigError
from futurel1.models import build_head

H, INNER = 6, 10


@pytest.fixture(params=["swiglu", "lvr", "constant"])
def head(request):
    torch.manual_seed(0)
    head = build_head(request.param, H, INNER).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head


def layer_norm(x, weight, bias):
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * weight + bias


def test_names_and_shapes_of_the_swiglu_head():
    shapes = {name: tuple(tensor.shape) for name, tensor in build_head("swiglu", H, INNER).state_dict().items()}
    assert shapes == {
        "projection.0.weight": (H,),
        "projection.0.bias": (H,),
        "projection.1.weight": (INNER, H),
        "projection.1.bias": (INNER,),
        "projection.2.w1.weight": (INNER, INNER),
        "projection.2.w2.weight": (INNER, INNER),
        "projection.2.w3.weight": (INNER, INNER),
        "projection.3.weight": (H, INNER),
        "projection.3.bias": (H,),
    }


def test_names_and_shapes_of_the_lvr_head():
    shapes = {name: tuple(tensor.shape) for name, tensor in build_head("lvr", H, INNER).state_dict().items()}
    assert shapes == {
        "ln_q.weight": (H,),
        "ln_q.bias": (H,),
        "mlp.0.weight": (H, H),
        "mlp.0.bias": (H,),
        "mlp.2.weight": (H, H),
        "mlp.2.bias": (H,),
    }


def test_swiglu_inner_width_defaults_to_2048():
    assert build_head("swiglu", 2).state_dict()["projection.1.weight"].shape == (2048, 2)


def test_values_by_hand(head):
    weights = head.state_dict()
    # Small values, so that an epsilon other than 1e-6 shows.
    x = 1e-3 * torch.randn(2, 3, H, dtype=torch.float64)
    if "latent" in weights:
        expected = torch.stack([weights["latent"]] * 6).view(2, 3, H)
    elif "ln_q.weight" in weights:
        x_norm = layer_norm(x, weights["ln_q.weight"], weights["ln_q.bias"])
        inner = x_norm @ weights["mlp.0.weight"].T + weights["mlp.0.bias"]
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        expected = inner @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]
    else:
        x_norm = layer_norm(x, weights["projection.0.weight"], weights["projection.0.bias"])
        up = x_norm @ weights["projection.1.weight"].T + weights["projection.1.bias"]
        gate = up @ weights["projection.2.w1.weight"].T
        gated = gate / (1 + torch.exp(-gate)) * (up @ weights["projection.2.w2.weight"].T)
        inner = gated @ weights["projection.2.w3.weight"].T
        expected = inner @ weights["projection.3.weight"].T + weights["projection.3.bias"]
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-12)


def test_every_parameter_gets_a_gradient(head):
    head(torch.randn(4, H, dtype=torch.float64)).pow(2).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_zero_rows_keep_every_parameter_in_the_graph(head):
    out = head(torch.zeros(0, H, dtype=torch.float64))
    assert out.shape == (0, H)
    out.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_no_head_is_the_identity():
    head = build_head("none", H)
    x = torch.randn(2, H)
    assert head(x) is x
    assert head.state_dict() == {}


def test_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="'none', 'swiglu', 'lvr' or 'constant', got 'mlp'"):
        build_head("mlp", H)
