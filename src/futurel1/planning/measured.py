"""What a step of a run needs beside its weights, measured by running the real code on shapes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn

from futurel1.errors import ConfigError
from futurel1.losses import LatentSFTLoss, PolicyLoss
from futurel1.models import LatentReasoner
from futurel1.models.decoding import PromptSource
from futurel1.models.policies import LatentPolicy
from futurel1.planning.fabricated import Size, experience, prompt_batch, sft_batch
from futurel1.planning.shapes_only import META, Usage, shapes_only
from futurel1.planning.sharding import gathering
from futurel1.rollout.policy_models import rollout_scores

Gradients = Literal["kept", "dropped", "sharded"]
"""What becomes of gradients: the first ones are kept; they are added to earlier ones, counted elsewhere; or FSDP2's."""
TOKENS_SAMPLED = 3
"""Tokens that are decoded to measure a step; each needs as much memory as the one before, but for its keys."""


@dataclass(frozen=True)
class Measured:
    """What there was beside the weights when most memory was in use, in bytes, and FLOPs.

    Attributes:
        activations: all tensors that are not named below.
        logits: tensors as wide as the vocabulary.
        gradients: gradients of weights, if they are kept.
        gathered: weights that FSDP2 has gathered, and gradients that it reduces.
        flops: floating-point operations.
    """

    activations: int
    logits: int
    gradients: int
    gathered: int
    flops: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """What code used."""
        peak = usage.at_peak
        return cls(peak["activations"], peak["logits"], peak["gradients"], peak["gathered"], usage.flops)


def sft_step(
    reasoner: LatentReasoner, loss: LatentSFTLoss, size: Size, autocast: torch.dtype | None, gradients: Gradients
) -> Measured:
    """Forward and backward pass of a supervised micro-batch."""
    return _training(
        reasoner, autocast, gradients, lambda: loss(reasoner, sft_batch(reasoner, size), feedback_share=1.0).loss
    )


def policy_step(
    reasoner: LatentReasoner,
    loss: PolicyLoss,
    policy: LatentPolicy,
    size: Size,
    temperature: float,
    autocast: torch.dtype | None,
    gradients: Gradients,
) -> Measured:
    """Forward and backward pass of a micro-batch of reinforcement learning."""

    def step() -> Tensor:
        batch = experience(reasoner, size, policy, temperature)
        return batch.loss(loss, rollout_scores(reasoner, batch)).loss

    return _training(reasoner, autocast, gradients, step)


@dataclass(frozen=True)
class MeasuredDecoding:
    """What decoding takes.

    Attributes:
        memory: beside the weights, without keys and values.
        cache: bytes of keys and values when all responses have their full length.
        operations: operations of one step.
    """

    memory: Measured
    cache: int
    operations: int


def decoding(
    reasoner: LatentReasoner, size: Size, slots: int, autocast: torch.dtype | None, **settings: Any
) -> MeasuredDecoding:
    """Decoding of `slots` prompts with all their branches.

    Two of them are run, with the buffers of all: the first is still there while the second is encoded.
    """
    reasoner.eval()
    seen: list[int] = []
    stock = reasoner.logits
    with shapes_only(reasoner.backbone.vocab_size, autocast) as usage, torch.no_grad():
        _hold_weights(usage, reasoner)

        def logits(hidden: Tensor) -> Tensor:
            seen.append(usage.operations)
            return stock(hidden)

        sources = (PromptSource(prompt_batch(reasoner, size), seed) for seed in range(min(2, slots)))
        with patch.object(reasoner, "logits", logits):
            for _ in reasoner.generate_each(
                sources, slots=slots, num_branches=size.branches, max_new_tokens=TOKENS_SAMPLED,
                eos_token_id=reasoner.tokens.end_id, **settings,
            ):  # fmt: skip
                pass
    found = Measured.of(usage)
    width = _cache_width(reasoner, autocast)
    held = slots * (size.prompt + size.branches * TOKENS_SAMPLED) * width
    return MeasuredDecoding(
        replace(found, activations=max(0, found.activations - held)),
        slots * (size.prompt + size.branches * size.response) * width,
        seen[-1] - seen[-2],
    )


def _cache_width(reasoner: LatentReasoner, autocast: torch.dtype | None) -> int:
    """Bytes of the keys and values of a token."""
    config: Any = reasoner.backbone.language_model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
    layers = sum(kind != "linear_attention" for kind in kinds)  # which has a state of constant size
    channels = int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)
    width: int = 2 * layers * config.num_key_value_heads * channels * (autocast or reasoner.dtype).itemsize
    return width


def optimizer_step(
    parameters: Iterable[nn.Parameter], foreach: bool, make: Callable[[Any], torch.optim.Optimizer] | None = None
) -> tuple[int, int]:
    """Bytes of an optimizer's state, and most bytes that its step needs beside it.

    Args:
        parameters: what is trained.
        foreach: whether it updates all parameters at once, as on a GPU.
        make: makes the optimizer; None: AdamW.

    Raises:
        ConfigError: an optimizer that cannot take a step without values.
    """
    own: list[Any] = [nn.Parameter(torch.empty_like(parameter, device=META)) for parameter in parameters]
    for parameter in own:
        parameter.grad = torch.empty_like(parameter)
    optimizer = (make or torch.optim.AdamW)(own)
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None:
            group["foreach"] = foreach
    with shapes_only() as usage, _told_of(optimizer):
        for parameter in own:
            usage.hold(parameter, "weights")
            usage.hold(parameter.grad, "weights")
        optimizer.step()
        state = usage.live["activations"]
    return state, usage.at_peak["activations"] - state


@contextmanager
def _told_of(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        name, reason = type(optimizer).__qualname__, " ".join(str(error).split())
        raise ConfigError(f"no plan for {name}, which cannot take a step on shapes ({reason})") from error


def _training(
    reasoner: LatentReasoner, autocast: torch.dtype | None, gradients: Gradients, step: Callable[[], Tensor]
) -> Measured:
    reasoner.train()
    counting = {"kept": _kept, "dropped": _dropped, "sharded": gathering}[gradients]
    with shapes_only(reasoner.backbone.vocab_size, autocast) as usage:
        _hold_weights(usage, reasoner)
        with counting(usage, reasoner) as end:
            step().backward()  # type: ignore[no-untyped-call]
            end()
    return Measured.of(usage)


@contextmanager
def _kept(usage: Usage, reasoner: LatentReasoner) -> Iterator[Callable[[], None]]:
    """Count each gradient as such when it is there."""
    with _on_gradients(reasoner, lambda parameter: usage.hold(parameter.grad, "gradients")):
        yield lambda: None


@contextmanager
def _dropped(usage: Usage, reasoner: LatentReasoner) -> Iterator[Callable[[], None]]:
    """Drop each gradient as soon as it is there, as if it was added to one that is counted elsewhere."""

    def drop(parameter: Any) -> None:
        parameter.grad = None

    with _on_gradients(reasoner, drop):
        yield lambda: None


@contextmanager
def _on_gradients(reasoner: LatentReasoner, call: Callable[[Any], None]) -> Iterator[None]:
    trained: list[Any] = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(call) for parameter in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None


def _hold_weights(usage: Usage, reasoner: LatentReasoner) -> None:
    for tensor in (*reasoner.parameters(), *reasoner.buffers()):
        usage.hold(tensor, "weights")
