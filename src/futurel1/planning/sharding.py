"""Memory of FSDP2 beside the shards: weights that are gathered, and gradients on their way to their owners."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from futurel1.models import LatentReasoner
from futurel1.modules.adapters import sharded_blocks
from futurel1.planning.shapes_only import Usage

REDUCED = 4
"""Bytes of a gradient while it is reduced: `adapters.shard` reduces in float32."""


class _Group:
    """Parameters that are gathered together: those of a block, or the rest."""

    def __init__(self, usage: Usage, parameters: list[nn.Parameter]) -> None:
        self.usage = usage
        self.parameters = parameters
        self.trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.gathered = False
        self.waiting = 0

    @property
    def size(self) -> int:
        """Bytes of the gathered weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)

    @property
    def reduced(self) -> int:
        """Bytes of the flat gradients that are reduced."""
        return sum(parameter.numel() for parameter in self.trained) * REDUCED

    def gather(self) -> None:
        """Have the weights: they arrive in a flat buffer, and are copied into place."""
        if not self.gathered:
            self.gathered = True
            self.usage.add("gathered", 2 * self.size)
            self.usage.add("gathered", -self.size)

    def free(self) -> None:
        """Give the weights back."""
        if self.gathered:
            self.gathered = False
            self.usage.add("gathered", -self.size)

    def drop_gradients(self) -> None:
        """The gradients are copied into the flat buffer that is reduced."""
        self.usage.add("gathered", self.reduced)
        for parameter in self.trained:
            parameter.grad = None


@contextmanager
def gathering(usage: Usage, reasoner: LatentReasoner) -> Iterator[Callable[[], None]]:
    """Count what FSDP2 gathers and reduces while a step runs: block by block, the next one ahead of time.

    Yields:
        What to call after the backward pass: the gradients of the rest, the embedding table and `lm_head`, are reduced.
    """
    blocks, whole = sharded_blocks(reasoner)
    groups = [_Group(usage, list(block.parameters())) for block in blocks]
    inside = whole.union(*(group.parameters for group in groups))
    rest = _Group(usage, [parameter for parameter in reasoner.parameters() if parameter not in inside])
    reducing: list[_Group] = []
    hooks: list[Any] = []

    def before(place: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            groups[place].gather()
            if not groups[place].waiting and place + 1 < len(groups):
                groups[place + 1].gather()

        return hook

    def after(place: int) -> Callable[..., None]:
        group = groups[place]

        def backward_begins(_: Tensor) -> None:
            group.gather()
            group.waiting = len(group.trained)
            if place:
                groups[place - 1].gather()

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if group.waiting:  # computed again for the backward pass
                return
            group.free()
            hidden = output if isinstance(output, Tensor) else output[0]
            if hidden.requires_grad:
                hooks.append(hidden.register_hook(backward_begins))

        return hook

    def arrived(group: _Group) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            group.waiting -= 1
            if group.waiting:
                return
            group.free()
            group.drop_gradients()
            for earlier in reducing:
                usage.add("gathered", -earlier.reduced)
            reducing[:] = [group]

        return hook

    for place, (block, group) in enumerate(zip(blocks, groups, strict=True)):
        hooks += [block.register_forward_pre_hook(before(place)), block.register_forward_hook(after(place))]
        trained: list[Any] = list(group.trained)
        hooks += [parameter.register_post_accumulate_grad_hook(arrived(group)) for parameter in trained]
    rest.gather()
    try:
        yield rest.drop_gradients
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in reasoner.parameters():
            parameter.grad = None
