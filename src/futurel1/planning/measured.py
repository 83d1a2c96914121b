"""What a step of a run needs beside its weights, measured by running the real code on shapes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from futurel1.losses import LatentSFTLoss, PolicyLoss
from futurel1.models import LatentReasoner
from futurel1.models.decoding import PromptSource
from futurel1.models.policies import LatentPolicy
from futurel1.planning.fabricated import Size, experience, prompt_batch, sft_batch
from futurel1.planning.shapes_only import META, Usage, shapes_only
from futurel1.rollout.policy_models import rollout_scores

TOKENS_SAMPLED = 3
"""Tokens that are decoded to measure a step; each needs as much memory as the one before, but for its keys."""


@dataclass(frozen=True)
class Measured:
    """What there was beside the weights when most memory was in use, in bytes, and FLOPs.

    Attributes:
        activations: all tensors that are not named below.
        logits: tensors as wide as the vocabulary.
        gradients: gradients of weights that were kept.
        flops: floating-point operations.
    """

    activations: int
    logits: int
    gradients: int
    flops: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """What code used."""
        peak = usage.at_peak
        return cls(peak["activations"], peak["logits"], peak["gradients"], usage.flops)


def sft_step(
    reasoner: LatentReasoner, loss: LatentSFTLoss, size: Size, autocast: torch.dtype | None, keep_gradients: bool
) -> Measured:
    """Forward and backward pass of a supervised micro-batch."""
    return _training(
        reasoner, autocast, keep_gradients, lambda: loss(reasoner, sft_batch(reasoner, size), feedback_share=1.0).loss
    )


def policy_step(
    reasoner: LatentReasoner,
    loss: PolicyLoss,
    policy: LatentPolicy,
    size: Size,
    temperature: float,
    autocast: torch.dtype | None,
    keep_gradients: bool,
) -> Measured:
    """Forward and backward pass of a micro-batch of reinforcement learning."""

    def step() -> Tensor:
        batch = experience(reasoner, size, policy, temperature)
        rollout, scores = batch.rollout, rollout_scores(reasoner, batch)
        return loss(
            scores.log_probs, scores.latent_log_probs, advantages=batch.advantages, mask=rollout.chosen_mask,
            latent_mask=rollout.latent_mask, width=reasoner.hidden_size, total=batch.total_tokens,
            reference_log_probs=batch.reference_log_probs,
        ).loss  # fmt: skip

    return _training(reasoner, autocast, keep_gradients, step)


def decoding(
    reasoner: LatentReasoner, size: Size, slots: int, autocast: torch.dtype | None, **settings: Any
) -> tuple[Measured, int]:
    """Decoding of `slots` prompts with all their branches.

    Returns:
        What it takes beside the keys and values, and the bytes of these when all responses have their full length.
    """
    reasoner.eval()
    with shapes_only(reasoner.backbone.vocab_size, autocast) as usage, torch.no_grad():
        _hold_weights(usage, reasoner)
        prompt = prompt_batch(reasoner, size)
        every = reasoner.generate_each(
            [PromptSource(prompt, 0, reasoner.encode(prompt))], slots=slots, num_branches=size.branches,
            max_new_tokens=TOKENS_SAMPLED, eos_token_id=reasoner.tokens.end_id, **settings,
        )  # fmt: skip
        for _ in every:
            pass
    config: Any = reasoner.backbone.language_model.config
    heads, layers = int(config.num_key_value_heads), int(config.num_hidden_layers)
    channels = int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)
    width = 2 * layers * heads * channels * (autocast or reasoner.dtype).itemsize
    measured = slots * (size.prompt + size.branches * TOKENS_SAMPLED) * width
    found = Measured.of(usage)
    return (
        replace(found, activations=max(0, found.activations - measured)),
        slots * (size.prompt + size.branches * size.response) * width,
    )


def optimizer_step(parameters: Iterable[nn.Parameter], foreach: bool) -> tuple[int, int]:
    """Bytes of AdamW's state, and most bytes that its step needs beside it."""
    own = [nn.Parameter(torch.empty_like(parameter, device=META)) for parameter in parameters]
    for parameter in own:
        parameter.grad = torch.empty_like(parameter)
    optimizer = torch.optim.AdamW(own, foreach=foreach)
    with shapes_only() as usage:
        for parameter in own:
            usage.hold(parameter, "weights")
            usage.hold(parameter.grad, "weights")
        optimizer.step()
        state = usage.live["activations"]
    return state, usage.at_peak["activations"] - state


def _training(
    reasoner: LatentReasoner, autocast: torch.dtype | None, keep_gradients: bool, step: Callable[[], Tensor]
) -> Measured:
    reasoner.train()
    with shapes_only(reasoner.backbone.vocab_size, autocast) as usage, _gradients(usage, reasoner, keep_gradients):
        _hold_weights(usage, reasoner)
        step().backward()  # type: ignore[no-untyped-call]
    return Measured.of(usage)


@contextmanager
def _gradients(usage: Usage, reasoner: LatentReasoner, keep: bool) -> Iterator[None]:
    """Count each gradient as such when it is there, or drop it at once; none are left afterwards."""

    def arrived(parameter: Tensor) -> None:
        if keep and parameter.grad is not None:
            usage.hold(parameter.grad, "gradients")
        else:
            parameter.grad = None

    trained = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(arrived) for parameter in trained]
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
