"""Whole weights of a reasoner under the names of the stock model, whether it is sharded, has adapters, or both."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from futurel1.models.lora import LoRAAdapters, is_adapter, lora_delta, whole
from futurel1.models.reasoner import LatentReasoner
from futurel1.models.token_rows import with_rows


def skeleton(reasoner: LatentReasoner, dtype: torch.dtype, adapters: LoRAAdapters | None = None) -> LatentReasoner:
    """A copy without adapters whose parameters are on the meta device, where they take no memory; in eval mode.

    Args:
        reasoner: the model, not sharded.
        dtype: dtype of the copy's parameters.
        adapters: its adapters.
    """
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta", dtype=dtype), requires_grad=False)
        for parameter in reasoner.parameters()
    }
    memo[id(reasoner.processor)] = reasoner.processor
    copied = copy.deepcopy(reasoner, memo)
    if adapters is not None:
        copied.backbone.model = copy.deepcopy(adapters.adapted, memo).unload()
        copied.backbone.token_rows = None
    return copied.eval()


@torch.no_grad()
def whole_weights(reasoner: LatentReasoner, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name in the stock model, whole, one at a time.

    All ranks of a sharded model have to take all of them.

    Args:
        reasoner: the model.
        merged: add the adapters to the weights; otherwise the weights are those without them.

    Yields:
        Name and weight on the model's device. A weight without adapters that is not sharded is the parameter itself.
    """
    rows = reasoner.backbone.token_rows if merged else None
    tables = {}
    if rows is not None:
        backbone = reasoner.backbone
        tables[backbone.lm_head.weight] = rows.of_projection
        tables[backbone.model.get_input_embeddings().weight] = rows.embedding
    for name, parameter in reasoner.named_parameters():
        if is_adapter(name):
            continue
        weight = whole(parameter)
        layer, _, part = name.partition(".base_layer.")
        if merged and part == "weight":
            weight = (weight + lora_delta(reasoner.get_submodule(layer))).to(weight.dtype)
        if rows is not None and parameter in tables:
            weight = with_rows(weight, rows.ids, whole(tables[parameter].detach()))
        yield name.replace(".base_layer.", "."), weight


def whole_state(
    reasoner: LatentReasoner, stock: LatentReasoner, dtype: torch.dtype, *, keep: bool = True
) -> dict[str, Tensor]:
    """The state dict of the stock model, adapters merged, on the CPU; one weight at a time is held in another dtype.

    Args:
        reasoner: the model; if it is sharded, all ranks have to call this.
        stock: its :func:`skeleton`.
        dtype: dtype of the weights.
        keep: whether this rank wants the weights; otherwise the result is empty.
    """
    state: dict[str, Tensor] = {}
    for name, weight in whole_weights(reasoner):
        if keep:
            state[name] = weight.detach().to("cpu", dtype)
    if keep:
        first = {id(parameter): name for name, parameter in stock.named_parameters()}
        tied = {name: first[id(p)] for name, p in stock.named_parameters(remove_duplicate=False)}
        state |= {name: state[other] for name, other in tied.items()}
        state |= {name: value for name, value in stock.state_dict().items() if name not in state}  # buffers
    return state


def whole_copy(reasoner: LatentReasoner, stock: LatentReasoner, dtype: torch.dtype) -> LatentReasoner:
    """An unsharded frozen copy without adapters, for :func:`fill`, which makes its weights.

    A frozen vision tower, which is not sharded, is shared with the model.

    Args:
        reasoner: the sharded model.
        stock: its :func:`skeleton`, from before it was sharded.
        dtype: dtype of the copy.

    Returns:
        The copy on the model's device, with weights that are not set yet, in eval mode.
    """
    device = reasoner.device
    memo: dict[int, object] = {id(stock.processor): stock.processor}
    if not reasoner.vision_is_trainable:
        towers = (model.backbone.vision_tower.parameters() for model in (stock, reasoner))
        memo |= {id(parameter): own for parameter, own in zip(*towers, strict=True)}
    for parameter in stock.parameters():
        if id(parameter) not in memo:
            empty = torch.empty(parameter.shape, dtype=dtype, device=device)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(stock, memo).to(device)


@torch.no_grad()
def fill(copied: LatentReasoner, reasoner: LatentReasoner, *, merged: bool = True) -> None:
    """Set the weights of a :func:`whole_copy` to those of its model; all ranks have to call it.

    Args:
        copied: the copy.
        reasoner: the model.
        merged: with its adapters, or without.
    """
    targets = dict(copied.named_parameters())
    for name, weight in whole_weights(reasoner, merged=merged):
        if targets[name] is not weight:
            targets[name].copy_(weight)
