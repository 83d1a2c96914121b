"""Experience: the rollouts of one prompt (a group), and groups joined into a micro-batch.

Shapes: G rollouts of a prompt, N rollouts of a micro-batch, R response positions, S latents, H hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.data import PromptBatch
from futurel1.data.collate import Fetched
from futurel1.data.encoded import EncodedSample
from futurel1.data.prompts import PromptCollator
from futurel1.errors import BatchError, CheckpointError
from futurel1.losses import PolicyLoss, PolicyLossOutput
from futurel1.models import Vision, VisionFeatures
from futurel1.models.decoding import Rollout, RolloutScores
from futurel1.models.policies import LatentPolicy

_WIDTHS = {
    "responses": "response_mask", "response_mask": "response_mask", "log_probs": "response_mask",
    "chosen_mask": "response_mask", "slot_mask": "response_mask",
    "latents": "latent_mask", "latent_mask": "latent_mask", "span_ids": "latent_mask",
    "latent_log_probs": "latent_mask",
}  # fmt: skip
"""Per-rollout tensors, and the mask that determines the width of each."""


@dataclass
class Group:
    """All rollouts of one prompt with their rewards.

    Attributes:
        prompt_index: index of the prompt in the endless stream of prompts.
        sample: the encoded prompt.
        rollout: the prompt's G responses.
        parts: (G,) raw reward parts by name.
        rewards: (G,) total rewards, NaN where `valid` is False.
        valid: (G,) bool, False where a reward could not be computed.
        advantages: (G,) advantages.
        vision: features of the prompt's images and videos if the tower is frozen; in host memory, because those of a
            whole rollout batch can be larger than the model.
        old_log_probs: (G, R) under the policy that sampled, if later policies train on the group; else None.
        old_latent_log_probs: (G, S), the same for latents.
        reference_log_probs: (G, R) under the frozen reference; None: not computed (yet).
    """

    prompt_index: int
    sample: EncodedSample
    rollout: Rollout
    parts: dict[str, Tensor]
    rewards: Tensor
    valid: Tensor
    advantages: Tensor
    vision: Vision | None = None
    old_log_probs: Tensor | None = None
    old_latent_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of trained response tokens: the policy's choices and the latents of valid rollouts."""
        rollout = self.rollout
        return int(((rollout.chosen_mask | rollout.slot_mask) & self.valid[:, None]).sum())

    def state_dict(self) -> dict[str, Any]:
        """Everything except what can be recomputed: the encoded prompt, its features and the reference's scores."""
        rollout = {field.name: getattr(self.rollout, field.name) for field in fields(self.rollout)}
        del rollout["policy"]
        tensors = {
            "rewards": self.rewards, "valid": self.valid, "advantages": self.advantages,
            "old_log_probs": self.old_log_probs, "old_latent_log_probs": self.old_latent_log_probs,
        }  # fmt: skip
        state = {
            "prompt_index": self.prompt_index,
            "id": self.sample.sample_id,
            "rollout": rollout,
            "parts": dict(self.parts),
            **tensors,
        }
        on_cpu: dict[str, Any] = _map_tensors(state, torch.device("cpu"))
        return on_cpu

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], sample: EncodedSample, policy: LatentPolicy, device: torch.device
    ) -> "Group":
        """Rebuild a group.

        Raises:
            CheckpointError: the stream has another prompt at the group's index now.
        """
        if state["id"] != sample.sample_id:
            raise CheckpointError(
                f"the checkpoint holds rollouts of {state['id']}, but that place in the data is now "
                f"{sample.sample_id}; resume with the same records and seed, or start a new run with model.init_from"
            )
        on_device = _map_tensors(dict(state), device)
        names = ("prompt_index", "parts", "rewards", "valid", "advantages", "old_log_probs", "old_latent_log_probs")
        return cls(
            sample=sample,
            rollout=Rollout(**on_device["rollout"], policy=policy),
            **{name: on_device[name] for name in names},
        )


def _map_tensors(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _map_tensors(item, device) for name, item in value.items()}
    return value


class Experience:
    """A micro-batch of groups, with what it needs to know about its whole optimizer step.

    Not a dataclass, because Lightning's precision plugins would convert its float32 and float64 log-probabilities.

    Args:
        prompt: B prompts.
        rollout: N = B * G responses.
        advantages: (N,) advantages.
        valid: (N,) bool, rollouts to train on.
        total_tokens: tokens of the whole optimizer step over micro-batches and ranks.
        vision: features of the prompts' images and videos if the tower is frozen.
        old_log_probs: (N, R) under the policy that sampled; NaN where that is the current policy. None: it is for all.
        old_latent_log_probs: (N, S), the same for latents.
        reference_log_probs: (N, R) under the frozen reference; None without one.
        statistics: numbers to log about the rollout batch; empty except in its first micro-batch.
    """

    def __init__(
        self,
        prompt: PromptBatch,
        rollout: Rollout,
        advantages: Tensor,
        valid: Tensor,
        total_tokens: int,
        vision: Vision | None = None,
        old_log_probs: Tensor | None = None,
        old_latent_log_probs: Tensor | None = None,
        reference_log_probs: Tensor | None = None,
        statistics: Mapping[str, float] | None = None,
    ) -> None:
        self.prompt = prompt
        self.rollout = rollout
        self.advantages = advantages
        self.valid = valid
        self.total_tokens = total_tokens
        self.vision = vision
        self.old_log_probs = old_log_probs
        self.old_latent_log_probs = old_latent_log_probs
        self.reference_log_probs = reference_log_probs
        self.statistics = dict(statistics or {})

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def mask(self) -> Tensor:
        """(N, R) bool, decisions to train on."""
        return self.rollout.chosen_mask & self.valid[:, None]

    def loss(self, objective: PolicyLoss, scores: RolloutScores) -> PolicyLossOutput:
        """The objective of this micro-batch.

        Args:
            objective: the clipped objective.
            scores: scores of the rollouts under the weights that are trained.
        """
        rollout = self.rollout
        return objective(
            scores.log_probs,
            scores.latent_log_probs,
            advantages=self.advantages,
            mask=self.mask,
            latent_mask=rollout.latent_mask & self.valid[:, None],
            width=rollout.latents.shape[-1],
            total=self.total_tokens,
            old_log_probs=self.old_log_probs,
            old_latent_log_probs=self.old_latent_log_probs,
            reference_log_probs=self.reference_log_probs,
        )

    def to(self, device: torch.device | str) -> "Experience":
        """Return the experience itself; a device other than its own is an error."""
        own, wanted = self.advantages.device, torch.device(device)
        if wanted.type != own.type or wanted.index not in (None, own.index):
            raise BatchError(f"experience was sampled on {own}, it cannot be used on {wanted}")
        return self


def split_rollout(rollout: Rollout) -> list[Rollout]:
    """Split a rollout by prompt; each part is as wide as its longest response."""
    size = rollout.num_branches
    return [_rows(rollout, start, size) for start in range(0, len(rollout), size)]


def _rows(rollout: Rollout, start: int, size: int) -> Rollout:
    rows = slice(start, start + size)
    widths = {name: int(getattr(rollout, name)[rows].sum(dim=1).max()) for name in ("response_mask", "latent_mask")}
    cut: dict[str, Any] = {name: getattr(rollout, name)[rows, : widths[mask]].clone() for name, mask in _WIDTHS.items()}
    table = rollout.span_table
    table = table[(table[:, 0] >= start) & (table[:, 0] < start + size)]
    return replace(
        rollout, **cut, span_table=table - table.new_tensor([start, 0, 0, 0, 0]),
        finish_reasons=rollout.finish_reasons[rows],
    )  # fmt: skip


def _pad(parts: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """Concatenate the rows of all parts, padded on the right of dimension 1."""
    width = max(part.shape[1] for part in parts)
    return torch.cat(
        [F.pad(part, (0, 0) * (part.dim() - 2) + (0, width - part.shape[1]), value=value) for part in parts]
    )


def join_rollouts(rollouts: Sequence[Rollout], pad_token_id: int) -> Rollout:
    """Join rollouts into one, padded to the longest response."""
    first = rollouts[0]
    for name in ("num_branches", "temperature"):
        found = sorted({getattr(rollout, name) for rollout in rollouts})
        if len(found) > 1:
            raise BatchError(
                f"rollouts of {name} {found} cannot be joined; resume with the settings they were made with"
            )
    fill = {"responses": pad_token_id, "span_ids": -1}
    joined: dict[str, Any] = {
        name: _pad([getattr(rollout, name) for rollout in rollouts], fill.get(name, 0)) for name in _WIDTHS
    }
    tables, row = [], 0
    for rollout in rollouts:
        tables.append(rollout.span_table + rollout.span_table.new_tensor([row, 0, 0, 0, 0]))
        row += len(rollout)
    reasons = [reason for rollout in rollouts for reason in rollout.finish_reasons]
    return replace(first, **joined, span_table=torch.cat(tables), finish_reasons=reasons)


def prompt_batch(samples: Sequence[EncodedSample], pad_token_id: int, device: torch.device) -> PromptBatch:
    """Left-padded prompts on a device."""
    return PromptCollator(pad_token_id)([Fetched(list(samples), [])]).to(device)


def join_groups(
    groups: Sequence[Group],
    *,
    pad_token_id: int,
    device: torch.device,
    total_tokens: int,
    statistics: Mapping[str, float] | None = None,
) -> Experience:
    """Join groups into one micro-batch.

    Args:
        groups: at least one.
        pad_token_id: id that pads prompts and responses.
        device: device of the groups' tensors, to which the prompts are moved.
        total_tokens: tokens of the whole optimizer step.
        statistics: numbers to log with this micro-batch.
    """

    def optional(name: str, mask: str) -> Tensor | None:
        parts = [getattr(group, name) for group in groups]
        if all(part is None for part in parts):
            return None
        shapes = [getattr(group.rollout, mask).shape for group in groups]
        return _pad(
            [
                torch.full(shape, torch.nan, device=device) if part is None else part
                for part, shape in zip(parts, shapes, strict=True)
            ]
        )

    return Experience(
        prompt=prompt_batch([group.sample for group in groups], pad_token_id, device),
        rollout=join_rollouts([group.rollout for group in groups], pad_token_id),
        advantages=torch.cat([group.advantages for group in groups]),
        valid=torch.cat([group.valid for group in groups]),
        total_tokens=total_tokens,
        vision=move_vision(join_vision([group.vision for group in groups]), device),
        old_log_probs=optional("old_log_probs", "response_mask"),
        old_latent_log_probs=optional("old_latent_log_probs", "latent_mask"),
        reference_log_probs=optional("reference_log_probs", "response_mask"),
        statistics=statistics,
    )


def move_vision(vision: Vision | None, device: torch.device) -> Vision | None:
    """Move features to a device."""

    def moved(features: VisionFeatures | None) -> VisionFeatures | None:
        if features is None:
            return None
        seconds = features.seconds_per_grid
        return VisionFeatures(
            features.embeds.to(device),
            tuple(level.to(device) for level in features.deepstack),
            features.grid_thw.to(device),
            features.counts,
            None if seconds is None else seconds.to(device),
        )

    return None if vision is None else Vision(moved(vision.images), moved(vision.videos))


def join_vision(parts: Sequence[Vision | None]) -> Vision | None:
    """Join features of prompts; None if those of a prompt are missing."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None  # all features are computed again
    return Vision(_join_features([part.images for part in present]), _join_features([part.videos for part in present]))


def _join_features(parts: Sequence[VisionFeatures | None]) -> VisionFeatures | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    seconds = [part.seconds_per_grid for part in present if part.seconds_per_grid is not None]
    return VisionFeatures(
        torch.cat([part.embeds for part in present]),
        tuple(torch.cat(levels) for levels in zip(*(part.deepstack for part in present), strict=True)),
        torch.cat([part.grid_thw for part in present]),
        tuple(count for part in present for count in part.counts),
        torch.cat(seconds) if seconds else None,
    )
