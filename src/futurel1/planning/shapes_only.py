"""Runs real model code without computing it: which tensors there would be, their memory, and how many FLOPs.

Weights and everything computed from them are on PyTorch's meta device, so they have shapes and no values. Integers and
booleans (token ids, masks, positions, grids) are real and on the CPU, because code branches on them and indexes with
them. A value that is not there, such as a loss that is logged, reads as 0.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten
META = torch.device("meta")
_Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, stride and dtype of a tensor."""
Kind = Literal["weights", "gradients", "gathered", "logits", "activations"]


class Usage:
    """What code used so far.

    Args:
        vocab_size: last dimension of tensors that count as logits; 0: none do.

    Attributes:
        live: bytes of the tensors that are alive, by kind.
        at_peak: the same when there were most of them.
        flops: floating-point operations of matrix products, attention included.
        operations: operations that compute something, each at least one kernel.
    """

    def __init__(self, vocab_size: int = 0) -> None:
        self.live: Counter[Kind] = Counter()
        self.at_peak: Counter[Kind] = Counter()
        self.flops = self.operations = 0
        self._vocab_size = vocab_size
        self._kinds: dict[int, Kind] = {}
        self._total = self._peak = 0

    def add(self, kind: Kind, size: int) -> None:
        """Count this many bytes that no tensor stands for, or with a negative number no longer."""
        self.live[kind] += size
        self._total += size
        if self._total > self._peak:
            self._peak, self.at_peak = self._total, self.live.copy()

    def hold(self, tensor: Tensor, kind: Kind | None = None) -> None:
        """Count a tensor's memory until it is freed.

        Args:
            tensor: any tensor; its memory may be counted already.
            kind: what it counts as from now on; None: as before, or else logits or activations, by its shape.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._kinds.get(key)
        if known is not None and kind is None:
            return
        if known is None:
            weakref.finalize(storage, self._free, key, size)
        else:
            self.add(known, -size)
        wide = tensor.dim() and tensor.shape[-1] == self._vocab_size
        self._kinds[key] = kind or ("logits" if wide else "activations")
        self.add(self._kinds[key], size)

    def _free(self, key: int, size: int) -> None:
        self.add(self._kinds.pop(key), -size)


@contextmanager
def shapes_only(vocab_size: int = 0, autocast: torch.dtype | None = None) -> Iterator[Usage]:
    """Within it, code runs on shapes alone; weights have to be on the meta device.

    Args:
        vocab_size: last dimension of tensors that count as logits; 0: none do.
        autocast: dtype in which linear layers and attention compute, as under `torch.autocast`, which the meta device
            does not have; None: that of their inputs.
    """
    usage = Usage(vocab_size)
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention(usage, autocast)))
        if autocast is not None:
            for name in ("linear", "conv3d"):
                stack.enter_context(patch.object(F, name, _casting(getattr(F, name), autocast)))
        stack.enter_context(_ShapesOnly(usage))
        yield usage


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, usage: Usage) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._usage = usage
        self._results = _Results()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = _tensors((args, kwargs))
        on_meta = [tensor.device == META for tensor in given]
        shapes = any(on_meta)
        if shapes and func in _READING:
            return _READING[func](*args)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == META:
            if _is_discrete(_dtype_of_result(func, args, kwargs, given)):
                kwargs["device"] = torch.device("cpu")
            else:
                shapes = True
        if shapes and func in _MASKED:
            args = (args[0], _whole_numbers(args[1]), *args[2:])
        if shapes and not all(on_meta):
            args, kwargs = tree_map_only(Tensor, _without_values, (args, kwargs))
        out = self._results(func, args, kwargs) if shapes else func(*args, **kwargs)
        if shapes:
            self._usage.operations += not func.is_view
            count = flop_registry.get(func._overloadpacket)
            if count is not None:
                self._usage.flops += count(*args, **kwargs, out_val=out)
        made = _tensors(out)
        if shapes and any(_is_discrete(tensor.dtype) for tensor in made):
            out = tree_map_only(Tensor, _with_real_integers, out)
            made = _tensors(out)
        for tensor in made:
            self._usage.hold(tensor)
        return out


class _Results:
    """What operations on meta tensors return, each asked once: layers repeat the same ones on the same shapes."""

    def __init__(self) -> None:
        self._known: dict[Any, list[_Form] | None] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.is_view or func._schema.is_mutable:
            return func(*args, **kwargs)
        key = func, _described(args), _described(kwargs)
        if key not in self._known:
            out = func(*args, **kwargs)
            self._known[key] = _remembered(out, _tensors((args, kwargs)))
            return out
        known = self._known[key]
        if known is None:
            return func(*args, **kwargs)
        made = tuple(map(_made, known))
        return made[0] if len(made) == 1 else made


def _tensors(part: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, dict):
        part = part.values()
    elif not isinstance(part, list | tuple):
        return []
    return [tensor for one in part for tensor in _tensors(one)]


def _described(part: Any) -> Any:
    """What a result depends on, as something that can be compared."""
    if isinstance(part, Tensor):
        return part.shape, part.stride(), part.dtype
    if isinstance(part, list | tuple):
        return tuple(map(_described, part))
    if isinstance(part, dict):
        return tuple((name, _described(value)) for name, value in part.items())
    return type(part), part


def _remembered(out: Any, given: list[Tensor]) -> list[_Form] | None:
    """Forms of a result; None for one that is no tensor or tuple of tensors, or whose memory is not all its own."""
    made = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple) and len(out) > 1 else []
    if not made or not all(isinstance(tensor, Tensor) for tensor in made):
        return None
    storages = {tensor.untyped_storage()._cdata for tensor in made}
    if len(storages) < len(made) or storages & {tensor.untyped_storage()._cdata for tensor in given}:
        return None
    forms = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in made]
    sizes = [[part.untyped_storage().nbytes() for part in parts] for parts in (made, map(_made, forms))]
    return forms if sizes[0] == sizes[1] else None


def _made(form: _Form) -> Tensor:
    """A meta tensor with memory of its own."""
    shape, stride, dtype = form
    return torch.empty_strided(shape, stride, dtype=dtype, device=META)


def _is_discrete(dtype: torch.dtype) -> bool:
    """Whether tensors of a dtype are real here: integers and booleans."""
    return not dtype.is_floating_point and not dtype.is_complex


def _dtype_of_result(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> torch.dtype:
    """Dtype of what a function with a `device` makes."""
    if kwargs.get("dtype") is not None:
        return kwargs["dtype"]  # type: ignore[no-any-return]
    if given:
        return given[0].dtype
    if func._overloadpacket in (aten.arange, aten.full, aten.scalar_tensor):
        return torch.result_type(
            torch.tensor(0), sum(leaf for leaf in tree_leaves(args) if isinstance(leaf, int | float))
        )
    return torch.get_default_dtype()


def _without_values(tensor: Tensor) -> Tensor:
    """A tensor on the meta device."""
    if tensor.device == META:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _with_real_integers(tensor: Tensor) -> Tensor:
    """Integers and booleans that depend on values which are not there, as zeros."""
    return (
        torch.zeros(tensor.shape, dtype=tensor.dtype)
        if tensor.device == META and _is_discrete(tensor.dtype)
        else tensor
    )


def _whole_numbers(indices: Any) -> list[Tensor | None]:
    """Indices as integers; a boolean mask becomes as many as it has dimensions."""
    found: list[Tensor | None] = []
    for index in indices:
        found += list(index.nonzero().unbind(1)) if index is not None and index.dtype == torch.bool else [index]
    return found


_READING: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: lambda tensor: 0.0,
    aten.equal.default: lambda first, second: first.shape == second.shape,
}
"""Operations that read values."""
_MASKED = (
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default, aten._unsafe_index_put.default,
)  # fmt: skip
"""Operations whose second argument may hold masks, which then decide on the shape of the result."""


class _FusedAttention(torch.autograd.Function):
    """A fused kernel keeps its inputs, its output and a log-sum-exp for each query, and no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(usage: Usage, autocast: torch.dtype | None) -> Callable[..., Tensor]:
    """Attention of meta tensors as a fused kernel, whatever its mask is.

    It takes the place of PyTorch's function, because a `TorchFunctionMode` is off while checkpointed layers are
    computed again.
    """
    stock = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.device != META:
            return stock(query, key, value, *args, **kwargs)
        usage.flops += 2 * query.numel() * key.shape[-2]  # two products, half of whose entries are masked
        query, key, value = (part if autocast is None else part.to(autocast) for part in (query, key, value))
        return _FusedAttention.apply(query, key, value)  # type: ignore[no-any-return]

    return attend


def _casting(stock: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function that casts its floating-point tensors first."""

    def cast(part: Any) -> Any:
        return part.to(dtype) if isinstance(part, Tensor) and part.is_floating_point() else part

    def call(*args: Any, **kwargs: Any) -> Tensor:
        return stock(*map(cast, args), **{name: cast(part) for name, part in kwargs.items()})

    return call
