"""The three tokens that open, fill and close a latent span, and how many latents a span may hold."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from futurel1.errors import CheckpointError, ConfigError

LATENT = "<|latent|>"
LATENT_START = "<|latent_start|>"
LATENT_END = "<|latent_end|>"
LATENT_TOKENS = (LATENT, LATENT_START, LATENT_END)
"""The latent tokens, in the order in which released checkpoints added them to their tokenizer."""


@dataclass(frozen=True)
class LatentTokens:
    """Vocabulary ids of START, LATENT and END.

    Args:
        start_id: id of ``<|latent_start|>``, the text token that opens a span.
        latent_id: id of ``<|latent|>``, the placeholder whose input embedding is a latent vector.
        end_id: id of ``<|latent_end|>``, the text token that closes a span.

    Raises:
        ConfigError: two ids are equal or one is negative.
    """

    start_id: int
    latent_id: int
    end_id: int

    def __post_init__(self) -> None:
        ids = (self.start_id, self.latent_id, self.end_id)
        if len(set(ids)) != 3 or min(ids) < 0:
            raise ConfigError(f"latent tokens need three different ids of at least 0, got {self}")

    @classmethod
    def from_config(cls, config: Any) -> Self | None:
        """Read the ids from a checkpoint's configuration; None when it has none of them.

        Raises:
            CheckpointError: it has some of the three ids but not all.
        """
        found = {key: getattr(config, key, None) for key in ("latent_start_id", "latent_id", "latent_end_id")}
        if all(value is None for value in found.values()):
            return None
        if any(value is None for value in found.values()):
            raise CheckpointError(
                f"the checkpoint's config.json has only part of the latent token ids: {found}; "
                "add the missing ones, or remove all three to have them registered anew"
            )
        return cls(*(int(value) for value in found.values() if value is not None))

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Self | None:
        """Look up the three tokens in a tokenizer; None unless it has all of them as single tokens."""
        known = tokenizer.get_vocab()
        if not all(token in known for token in LATENT_TOKENS):
            return None
        return cls(start_id=known[LATENT_START], latent_id=known[LATENT], end_id=known[LATENT_END])


@dataclass(frozen=True)
class SpanBudget:
    """How many latents one span may hold while decoding.

    Args:
        kind: ``"fixed"``: exactly ``latents`` (an END chosen early is ignored); ``"loose"``: at most ``latents``.
        latents: number of latents, at least 1; ``"fixed"`` also allows 0: END directly after START.

    Raises:
        ConfigError: an unknown kind, or too few latents.
    """

    kind: Literal["fixed", "loose"]
    latents: int

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "loose"):
            raise ConfigError(f"a span budget is 'fixed' or 'loose', got {self.kind!r}")
        if self.kind == "fixed" and self.latents < 0:
            raise ConfigError(f"a fixed span budget needs at least 0 latents, got {self.latents}")
        if self.kind == "loose" and self.latents < 1:
            raise ConfigError(f"a loose span budget needs at least 1 latent, got {self.latents}")

    @classmethod
    def fixed(cls, latents: int) -> Self:
        """Exactly ``latents`` in every span; with 0, END follows START directly."""
        return cls("fixed", latents)

    @classmethod
    def loose(cls, latents: int) -> Self:
        """At most ``latents`` in every span."""
        return cls("loose", latents)
