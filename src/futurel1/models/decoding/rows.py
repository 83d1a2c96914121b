"""State of the rows that are being decoded, as tensors that one step changes in place.

Shapes: C rows at most, A of them in use, R response tokens at most, H hidden size.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from futurel1.models.decoding.rollout import REASONS
from futurel1.models.noise import RowNoise

NOT_BAD = -1
"""Value of :attr:`Rows.bad_step` while all numbers of a row are finite."""


@dataclass(frozen=True)
class Rows:
    """The state machine of every row, and its output so far. One response is decoded in a row.

    A slice of the rows is a view: a step changes the rows themselves.

    Attributes:
        name: (C,) int64, number of the response.
        key: (C,) int64, key of its random numbers.
        place: (C,) int64, its branch among all branches of all slots: slot * G + branch.
        position: (C,) int64, M-RoPE position of its first token.
        last: (C,) int64, its newest token.
        latent: (C, H), the latent that is fed next, if its newest token is one.
        inside: (C,) bool, whether its newest token is a latent: the row is inside a span.
        emitted: (C,) int64, number of latents in the span that it is inside of; 0 outside.
        latents: (C,) int64, number of latents in its response.
        spans: (C,) int64, number of spans that its response has opened, one that ended the prompt included.
        step: (C,) int64, number of tokens in its response.
        done: (C,) bool, whether its response has ended.
        reason: (C,) int64, why it ended, as an index into :data:`~futurel1.models.decoding.rollout.REASONS`.
        bad_step: (C,) int64, first step with a number that is not finite; ``NOT_BAD`` without one.
        bad_latent: (C,) bool, whether that number belongs to a latent.
        uniform: (C, R + 1) float64, the random number that chooses each token.
        tokens: (C, R + 1) int64 tokens; the last column takes what rows that are done would write.
        log_probs: (C, R + 1) float32, as in :class:`~futurel1.models.decoding.Rollout`.
        chosen: (C, R + 1) bool, as `chosen_mask` there.
        slots: (C, R + 1) bool, as `slot_mask` there.
    """

    name: Tensor
    key: Tensor
    place: Tensor
    position: Tensor
    last: Tensor
    latent: Tensor
    inside: Tensor
    emitted: Tensor
    latents: Tensor
    spans: Tensor
    step: Tensor
    done: Tensor
    reason: Tensor
    bad_step: Tensor
    bad_latent: Tensor
    uniform: Tensor
    tokens: Tensor
    log_probs: Tensor
    chosen: Tensor
    slots: Tensor

    @classmethod
    def empty(cls, count: int, max_new_tokens: int, like: Tensor) -> Self:
        """Rows that are not in use yet.

        Args:
            count: C.
            max_new_tokens: R.
            like: (..., H) tensor with the dtype and the device of latents.
        """
        device = like.device

        def zeros(*more: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(count, *more, dtype=dtype, device=device)

        width = max_new_tokens + 1
        numbers = (
            "name", "key", "place", "position", "last", "emitted", "latents", "spans", "step", "reason", "bad_step",
        )  # fmt: skip
        rows = cls(
            **{name: zeros() for name in numbers},
            **{name: zeros(dtype=torch.bool) for name in ("inside", "bad_latent")},
            done=torch.ones(count, dtype=torch.bool, device=device),
            latent=torch.zeros(count, like.shape[-1], dtype=like.dtype, device=device),
            uniform=zeros(width, dtype=torch.float64),
            tokens=zeros(width),
            log_probs=zeros(width, dtype=torch.float32),
            chosen=zeros(width, dtype=torch.bool),
            slots=zeros(width, dtype=torch.bool),
        )
        for field in fields(rows):  # for CUDA graphs, which change them where they are
            torch._dynamo.mark_static_address(getattr(rows, field.name))
        return rows

    def __len__(self) -> int:
        return len(self.name)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def begin(self, name: Tensor, key: Tensor, place: Tensor, position: int, last: int) -> None:
        """Start new responses in all of these rows; arguments as the attributes."""
        for tensor in (self.inside, self.emitted, self.latents, self.spans, self.step, self.done, self.bad_latent):
            tensor.zero_()
        self.bad_step.fill_(NOT_BAD)
        self.reason.fill_(REASONS.index("length"))
        self.name.copy_(name)
        self.key.copy_(key)
        self.place.copy_(place)
        self.position.fill_(position)
        self.last.fill_(last)
        steps = torch.arange(self.uniform.shape[1], device=key.device).repeat(len(key))
        noise = RowNoise(key.repeat_interleave(self.uniform.shape[1]), steps)
        self.uniform.copy_(noise.uniform(1).view_as(self.uniform))

    def move(self, target: Tensor, source: Tensor) -> None:
        """Copy (K,) `source` rows over (K,) `target` rows."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target] = tensor[source]
