"""Inputs and outputs of rewards. Shapes: N rollouts, S latents of a rollout, H hidden size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import BatchError

RewardVariant = Literal["paper", "released"]


@dataclass
class RewardInputs:
    """N rollouts to score, in any order.

    Attributes:
        responses: decoded texts, including special tokens.
        answers: ground truths, ``"B"`` or ``"<answer>B</answer>"``.
        problems: the questions, with their options.
        group_ids: (N,) int64; rollouts of one prompt share a number.
        response_lengths: (N,) int64 tokens.
        reference_lengths: (N,) int64 tokens of a reference response, 0 or less if there is none.
        latents: (N, S, H) in order of emission, right-padded.
        latent_mask: (N, S) bool, True at latents.
        span_ids: (N, S) int64 number of the span of each latent, -1 at padding.
        span_counts: (N,) int64 complete spans of each response in the rollout's span table, including empty spans.
        correct: (N,) float accuracy if known already, NaN where it could not be determined; `CompositeReward` fills it.

    Raises:
        BatchError: fields that contradict each other.
    """

    responses: Sequence[str]
    answers: Sequence[str]
    problems: Sequence[str]
    group_ids: Tensor
    response_lengths: Tensor
    reference_lengths: Tensor | None = None
    latents: Tensor | None = None
    latent_mask: Tensor | None = None
    span_ids: Tensor | None = None
    span_counts: Tensor | None = None
    correct: Tensor | None = None

    def __post_init__(self) -> None:
        number = len(self)
        for name in ("answers", "problems"):
            if len(getattr(self, name)) != number:
                raise BatchError(f"{len(getattr(self, name))} {name} for {number} responses; give one per response")
        if (self.latents is None) != (self.latent_mask is None) or (self.latents is None and self.span_ids is not None):
            raise BatchError("latents, latent_mask and span_ids belong together; give latents with their mask, or none")
        if self.latents is not None and (self.latents.ndim != 3 or not self.latents.is_floating_point()):
            raise BatchError(f"latents must be (N, S, H) float, got {tuple(self.latents.shape)} {self.latents.dtype}")
        if self.latents is not None and len(self.latents) != number:
            raise BatchError(f"latents of {len(self.latents)} rollouts for {number} responses")
        rows = torch.Size([number])
        slots = rows if self.latents is None else rows + self.latents.shape[1:2]
        for name, shape, kind in (
            ("group_ids", rows, "int"),
            ("response_lengths", rows, "int"),
            ("reference_lengths", rows, "int"),
            ("correct", rows, "float"),
            ("latent_mask", slots, "bool"),
            ("span_ids", slots, "int"),
            ("span_counts", rows, "int"),
        ):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.shape != shape or _kind(tensor) != kind):
                got = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise BatchError(f"{name} must be {tuple(shape)} {kind} for {number} responses, got {got}")
        mask = self.latent_mask
        if mask is not None and (mask[:, 1:] & ~mask[:, :-1]).any():
            row = int((mask[:, 1:] & ~mask[:, :-1]).nonzero()[0, 0])
            raise BatchError(f"latent_mask of response {row} has a gap; latents are padded on the right")

    def __len__(self) -> int:
        return len(self.responses)

    def spans(self) -> Tensor | None:
        """Number of spans of each response in the rollout's span table, as far as it is known.

        Returns:
            (N,) int64: `span_counts`, else the number derived from `span_ids`; None without latents.

        Raises:
            BatchError: latents without `span_ids` and `span_counts`.
        """
        if self.span_counts is not None or self.latents is None:
            return self.span_counts
        if self.span_ids is None:
            raise BatchError("latents without span_ids (N, S) or span_counts (N,): their spans are not known")
        # Empty spans are numbered too, but only show if a span with latents follows them.
        return torch.cat([self.span_ids, self.span_ids.new_full((len(self), 1), -1)], dim=1).amax(dim=1) + 1


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "int"


class Reward(ABC):
    """Scores rollouts; any callable with this signature can be used instead."""

    @abstractmethod
    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32 on the device of `inputs.group_ids`; NaN where a rollout could not be scored.
        """


@dataclass(frozen=True)
class RewardOutput:
    """Scores of N rollouts.

    Attributes:
        total: (N,) float32 weighted sum of the parts, NaN where not valid.
        parts: (N,) float32 of every reward, before weights.
        valid: (N,) bool, False where a part with a non-zero weight is not finite; do not train on such a rollout.
    """

    total: Tensor
    parts: dict[str, Tensor]
    valid: Tensor
