"""How responses are decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from futurel1.errors import ConfigError
from futurel1.models.decoding.sampling import Sampling
from futurel1.models.interventions import LatentIntervention
from futurel1.models.policies import LatentPolicy
from futurel1.models.tokens import SpanBudget

__all__ = ["DecodingSettings"]


@dataclass(frozen=True, eq=False)
class DecodingSettings:
    """How responses are decoded; :meth:`futurel1.models.LatentReasoner.generate` documents each setting.

    Raises:
        ConfigError: a number below 1, or an empty stop string.
    """

    num_branches: int
    max_new_tokens: int
    sampling: Sampling
    eos_token_ids: Sequence[int]
    pad_token_id: int
    budget: SpanBudget
    latent_policy: LatentPolicy
    intervention: LatentIntervention | None = None
    stop_strings: Sequence[str] = ()
    force_start: bool = False
    slots: int | None = None
    look_every: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("num_branches", "max_new_tokens", "slots", "look_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.compile and self.intervention is not None:
            raise ConfigError("an intervention cannot be compiled; set compile=False, or leave the intervention out")
        if not all(self.stop_strings):
            raise ConfigError(f"stop_strings must not be empty texts, got {list(self.stop_strings)}")
