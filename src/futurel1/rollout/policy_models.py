"""Models that rollouts need: the trained policy, a copy to sample from, and the KL reference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from futurel1.models import LatentReasoner
from futurel1.models.decoding import RolloutScores
from futurel1.rollout.experience import Experience


class PolicyModels:
    """The policy and its frozen copies.

    Copies belong to no module, so neither checkpoints nor optimizers contain them.

    Args:
        policy: the model to train, before its weights are sharded.
        sampling_dtype: dtype of an unsharded copy to sample from, for weights that will be sharded; None: sample from
            the policy itself. Ranks decode different numbers of steps, so they would deadlock if decoding gathered
            sharded weights.
        with_reference: keep the start weights as the reference of the KL.
        adapted: the policy with LoRA adapters, as wrapped by `peft`; the reference is then the policy without adapters,
            and takes no memory. None: no adapters.
    """

    def __init__(
        self,
        policy: LatentReasoner,
        *,
        sampling_dtype: torch.dtype | None = None,
        with_reference: bool = True,
        adapted: Any = None,
    ) -> None:
        self.policy = policy
        self.with_reference = with_reference
        self.sampling_dtype = sampling_dtype
        self.reference: LatentReasoner | None = None
        self._adapted = adapted
        self._copy: LatentReasoner | None = None
        if with_reference and adapted is None:
            self.reference = frozen_copy(policy, sampling_dtype)
        if sampling_dtype is not None:
            self._copy = frozen_copy(policy, sampling_dtype)

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
        """Within it, LoRA adapters are merged into the weights, so that the policy samples as fast as without them.

        The weights before are set aside and come back bit for bit; until then the adapted linear layers are held twice,
        and of a table only the rows of the latent tokens.
        """
        if self._adapted is None:
            yield
            return
        from peft.tuners.trainable_tokens import TrainableTokensLayer
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self._adapted.modules() if isinstance(module, BaseTunerLayer)]
        before: list[tuple[torch.nn.Parameter, Tensor]] = []
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for layer in layers:
                base: Any = layer.get_base_layer()
                weight = base.weight
                if isinstance(layer, TrainableTokensLayer):  # `merge` would copy the table
                    rows.append(_put_rows(layer, weight.data))
                    continue
                before.append((weight, weight.data))
                weight.data = weight.data.clone()
                layer.merge()
            yield
        finally:
            for layer in layers:
                layer.merged_adapters.clear()
            for weight, data in before:
                weight.data = data
            for table, index, originals in reversed(rows):  # tied tables have two adapted layers
                table[index] = originals

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the sampling copy from the sharded weights; all ranks have to call it."""
        if self._copy is None:
            return
        current = dict(self.policy.named_parameters())
        for name, parameter in self._placed(self._copy).named_parameters():
            source: Any = current[name]
            parameter.copy_(source.full_tensor() if hasattr(source, "full_tensor") else source)

    def reference_scores(self, experience: Experience) -> RolloutScores | None:
        """Scores of rollouts under the start weights; None without a reference."""
        if not self.with_reference:
            return None
        if self.reference is not None:
            return rollout_scores(self._placed(self.reference), experience)
        with self._adapted.disable_adapter():
            return rollout_scores(self.policy, experience)

    def _placed(self, copied: LatentReasoner) -> LatentReasoner:
        """A frozen copy on the policy's device, in its compute dtype."""
        return copied.to(self.device, self.sampling_dtype or self.policy.dtype)


def rollout_scores(reasoner: LatentReasoner, experience: Experience) -> RolloutScores:
    """Scores of a micro-batch's rollouts under a model."""
    return reasoner.score_rollout(experience.prompt, experience.rollout, vision=experience.vision)


def _put_rows(layer: Any, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write the trained rows of an adapter of `peft` into its table; returns table, (R,) ids and the rows before."""
    (name,) = layer.active_adapters
    index = torch.tensor(layer.token_indices[name], device=table.device)
    originals = table[index]
    table[index] = layer.trainable_tokens_delta[name].detach().to(table.dtype)
    layer.merged_adapters.append(name)
    return table, index, originals


def frozen_copy(reasoner: LatentReasoner, dtype: torch.dtype | None = None) -> LatentReasoner:
    """A copy in eval mode (in `dtype`) without gradients, which shares every parameter that is already frozen."""
    shared: dict[int, Any] = {id(p): p for p in reasoner.parameters() if not p.requires_grad}
    shared[id(reasoner.processor)] = reasoner.processor
    copied = copy.deepcopy(reasoner, shared)
    if dtype is not None:
        copied = copied.to(dtype)
    return copied.requires_grad_(False).eval()
