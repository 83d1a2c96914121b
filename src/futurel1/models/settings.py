"""Latent settings in a checkpoint's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from futurel1.models.heads import HeadKind
from futurel1.models.tokens import SpanBudget

CONFIG_KEYS = {"max_latent_tokens": "max_latent_token"}
"""Names in released checkpoints of settings that they store under another name."""
HYPER_PARAMETERS = {
    "max_latent_tokens": "max_latent_tokens",
    "fixed_latent_budget": "fixed_latents",
    "max_hint_tokens": "max_hint_tokens",
    "latent_loss": "alignment",
    "latent_lambda": "latent_weight",
}
"""Settings to the hyper-parameters of supervised training that determine them."""


@dataclass(frozen=True)
class LatentSettings:
    """Latent settings in a checkpoint's configuration.

    Attributes:
        max_latent_tokens: L_max, maximum number of latents per hint frame in training.
        fixed_latent_budget: whether every span has exactly `max_latent_tokens` latents.
        max_hint_tokens: most visual tokens of a hint frame before they are pooled; None: `max_latent_tokens`.
        loose_latent_budget: maximum number of latents per span while decoding; None derives it from
            `infer_latent_multiplier`.
        infer_latent_multiplier: maximum number of latents per span while decoding, as a multiple of
            `max_latent_tokens`.
        force_initial_latent_mode: whether START is forced as the first token of a response (`RICE` checkpoints).
        projection_head_type: ``"none"``, ``"swiglu"``, ``"lvr"`` or ``"constant"``.
        projection_hidden_dim: width inside the ``"swiglu"`` head.
        latent_loss: alignment loss that the checkpoint was trained with.
        latent_lambda: weight of that loss.
    """

    max_latent_tokens: int = 4
    fixed_latent_budget: bool = False
    max_hint_tokens: int | None = None
    loose_latent_budget: int | None = None
    infer_latent_multiplier: float = 2.0
    force_initial_latent_mode: bool = False
    projection_head_type: HeadKind = "none"
    projection_hidden_dim: int = 2048
    latent_loss: Literal["mse", "cosine"] = "mse"
    latent_lambda: float = 0.1

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Read the settings from a stock configuration's extra keys; absent keys keep their defaults."""
        names = (
            "max_latent_tokens", "fixed_latent_budget", "max_hint_tokens", "loose_latent_budget",
            "infer_latent_multiplier", "force_initial_latent_mode", "projection_hidden_dim", "latent_loss",
            "latent_lambda",
        )  # fmt: skip
        stored = {name: getattr(config, CONFIG_KEYS.get(name, name), None) for name in names}
        found = {name: value for name, value in stored.items() if value is not None}
        head = "none"
        if getattr(config, "use_projection_head", False):
            head = str(getattr(config, "projection_head_type", None) or "swiglu").lower()
        architectures = getattr(config, "architectures", None) or ()
        if any(str(name).startswith("RICE_") for name in architectures):
            found["force_initial_latent_mode"] = True
        return cls(**found, projection_head_type=head)  # type: ignore[arg-type]

    def trained(self, hparams: Mapping[str, Any]) -> Self:
        """The settings after a training.

        Args:
            hparams: hyper-parameters of the training module; those that are missing or None change nothing.
        """
        given = {setting: hparams.get(name) for setting, name in HYPER_PARAMETERS.items()}
        found = {setting: value for setting, value in given.items() if value is not None}
        if "fixed_latent_budget" in found and "max_hint_tokens" in hparams:
            found["max_hint_tokens"] = hparams["max_hint_tokens"]  # None is a setting, not the lack of one
        return replace(self, **found)

    def write_config(self, config: Any) -> None:
        """Write the settings into a stock configuration as extra keys."""
        for name, value in vars(self).items():
            setattr(config, CONFIG_KEYS.get(name, name), value)
        config.use_projection_head = self.projection_head_type != "none"

    def hint_options(self) -> dict[str, Any]:
        """Arguments of :class:`~futurel1.data.chat.ChatEncoder` that encode future frames as in training."""
        return {
            "max_latent_tokens": self.max_latent_tokens,
            "fixed_latents": self.fixed_latent_budget,
            "max_hint_tokens": self.max_hint_tokens if self.fixed_latent_budget else None,
        }

    def budget(self) -> SpanBudget:
        """How many latents a span may hold while decoding."""
        if self.fixed_latent_budget:
            return SpanBudget.fixed(self.max_latent_tokens)
        if self.loose_latent_budget is not None and self.loose_latent_budget > 0:
            return SpanBudget.loose(self.loose_latent_budget)
        return SpanBudget.loose(max(1, round(self.max_latent_tokens * self.infer_latent_multiplier)))
