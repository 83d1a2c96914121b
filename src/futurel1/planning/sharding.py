"""Memory of FSDP2 beside the shards: weights that are gathered, and gradients on their way to their owners."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from futurel1.models import LatentReasoner

REDUCED = 4
"""Bytes of a gradient while it is reduced: `adapters.shard` reduces in float32."""


@dataclass(frozen=True)
class Gathered:
    """Bytes on every device beside its shards.

    Attributes:
        in_layers: while the layers run backward, when activations are at their peak.
        at_end: when the gradients of the embedding table and `lm_head` are reduced; few activations are left then.
    """

    in_layers: int
    at_end: int


def gathered(reasoner: LatentReasoner) -> Gathered:
    """What gathering takes for the groups that :func:`futurel1.modules.adapters.shard` makes: one per layer, and the rest.

    Args:
        reasoner: the model, prepared for training, on any device, in the dtype that it computes in.
    """
    size = reasoner.dtype.itemsize
    language_model: Any = reasoner.backbone.language_model
    layers = [list(layer.parameters()) for layer in language_model.layers]
    if reasoner.vision_is_trainable:
        tower: Any = reasoner.backbone.vision_tower
        layers += [list(block.parameters()) for block in tower.blocks]
        whole: set[int] = set()
    else:
        whole = {id(parameter) for parameter in reasoner.backbone.vision_tower.parameters()}
    inside = {id(parameter) for layer in layers for parameter in layer} | whole
    rest = [parameter for parameter in reasoner.parameters() if id(parameter) not in inside]
    largest = max(_numbers(layer) for layer in layers)
    trained = max(_numbers(layer, trained=True) for layer in layers)
    root, root_trained = _numbers(rest), _numbers(rest, trained=True)
    # The rest stays gathered from its first use to the end of backward. A layer is computed with while the next one is
    # being gathered, once as a flat buffer and once as weights; its gradients are flat in float32 while they are reduced.
    layer = largest * size * 3 + trained * (size + REDUCED)
    return Gathered(
        in_layers=root * size + root_trained * size + layer,
        at_end=root * size + root_trained * (size + REDUCED),
    )


def _numbers(parameters: list[nn.Parameter], *, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trained)
