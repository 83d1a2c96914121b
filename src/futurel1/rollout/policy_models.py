"""Models that rollouts need: the trained policy, a copy to sample from, and the KL reference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from futurel1.models import LatentReasoner
from futurel1.models.decoding import RolloutScores
from futurel1.models.lora import LoRAAdapters
from futurel1.models.whole_weights import fill, whole_copy
from futurel1.rollout.experience import Experience


class PolicyModels:
    """The policy and its frozen copies.

    Copies belong to no module, so neither checkpoints nor optimizers contain them.

    A sharded policy is not sampled from: ranks decode different numbers of steps, so they would deadlock if decoding
    gathered weights. Each rank has a whole copy, with adapters merged.

    Args:
        policy: the model to train; if it is sharded, all ranks make this object together.
        with_reference: keep the start weights as the reference of the KL.
        adapters: LoRA adapters of the policy; the reference is then the policy without them, and takes no memory. None:
            no adapters.
        stock: the policy's :func:`futurel1.models.whole_weights.skeleton`, if it is sharded.
        sampling_dtype: dtype of the copies of a sharded policy.
    """

    def __init__(
        self,
        policy: LatentReasoner,
        *,
        with_reference: bool = True,
        adapters: LoRAAdapters | None = None,
        stock: LatentReasoner | None = None,
        sampling_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.policy = policy
        self.with_reference = with_reference
        self.reference: LatentReasoner | None = None
        self._adapters = adapters
        self._copy = None if stock is None else whole_copy(policy, stock, sampling_dtype)
        if not with_reference or adapters is not None:
            return
        if stock is None:
            self.reference = frozen_copy(policy)
        else:
            self.reference = whole_copy(policy, stock, sampling_dtype)
            fill(self.reference, policy)

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return self.policy.device

    @property
    def sampling(self) -> LatentReasoner:
        """The model to sample from; see :meth:`refresh`."""
        return self.policy if self._copy is None else self._copy

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it, the policy that is sampled from has its adapters merged: it samples as fast as without them."""
        if self._adapters is None or self._copy is not None:
            yield
            return
        with self._adapters.merged():
            yield

    def refresh(self) -> None:
        """Update the sampling copy from the sharded weights; all ranks have to call it."""
        if self._copy is not None:
            fill(self._copy, self.policy)

    def prepare_reference(self) -> None:
        """Get ready for :meth:`reference_scores`; all ranks have to call it.

        Under sharding the reference of adapters takes the place of the sampling copy, until :meth:`refresh`.
        """
        if self._copy is not None and self.with_reference and self._adapters is not None:
            fill(self._copy, self.policy, merged=False)

    def reference_scores(self, experience: Experience) -> RolloutScores | None:
        """Scores of rollouts under the start weights; None without a reference."""
        if not self.with_reference:
            return None
        if self._copy is not None:
            return rollout_scores(self._copy if self.reference is None else self.reference, experience)
        if self.reference is not None:
            return rollout_scores(self.reference.to(self.device, self.policy.dtype), experience)
        with self._adapters.disabled() if self._adapters is not None else nullcontext():
            return rollout_scores(self.policy, experience)


def rollout_scores(reasoner: LatentReasoner, experience: Experience) -> RolloutScores:
    """Scores of a micro-batch's rollouts under a model."""
    return reasoner.score_rollout(experience.prompt, experience.rollout, vision=experience.vision)


def frozen_copy(reasoner: LatentReasoner) -> LatentReasoner:
    """A copy in eval mode without gradients, which shares every parameter that is already frozen."""
    shared: dict[int, Any] = {id(p): p for p in reasoner.parameters() if not p.requires_grad}
    shared[id(reasoner.processor)] = reasoner.processor
    return copy.deepcopy(reasoner, shared).requires_grad_(False).eval()
