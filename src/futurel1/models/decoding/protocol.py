"""Interfaces that decoding needs of a model (:class:`futurel1.models.LatentReasoner` has it) and of its prompts."""

from typing import Any, Protocol

from torch import Tensor

from futurel1.models.backbones import Backbone, Vision, VisualRows
from futurel1.models.tokens import LatentTokens


class VisualBatch(Protocol):
    """The visual fields that prompts and training batches share; see :class:`futurel1.data.SFTBatch`."""

    @property
    def pixel_values(self) -> Tensor | None: ...  # noqa: D102 (documented where it is stored)

    @property
    def image_grid_thw(self) -> Tensor | None: ...  # noqa: D102 (documented where it is stored)

    @property
    def pixel_values_videos(self) -> Tensor | None: ...  # noqa: D102 (documented where it is stored)

    @property
    def video_grid_thw(self) -> Tensor | None: ...  # noqa: D102 (documented where it is stored)

    @property
    def video_seconds_per_grid(self) -> Tensor | None: ...  # noqa: D102 (documented where it is stored)


class PromptLike(VisualBatch, Protocol):
    """Left-padded prompts; see :class:`futurel1.data.PromptBatch`."""

    @property
    def input_ids(self) -> Tensor: ...  # noqa: D102 (documented where it is stored)

    @property
    def attention_mask(self) -> Tensor: ...  # noqa: D102 (documented where it is stored)

    @property
    def sample_ids(self) -> tuple[str, ...]: ...  # noqa: D102 (documented where it is stored)


class Reasoner(Protocol):
    """A model that predicts the next token and, inside a span, the next latent."""

    @property
    def backbone(self) -> Backbone:
        """The language model with its embedding table and its M-RoPE positions."""
        ...

    @property
    def tokens(self) -> LatentTokens:
        """Ids of START, LATENT and END."""
        ...

    @property
    def processor(self) -> Any:
        """The processor, whose tokenizer decodes text to find stop strings; None if there is none."""
        ...

    @property
    def hidden_size(self) -> int:
        """H, width of a hidden state and of a latent."""
        ...

    def encode(self, batch: VisualBatch) -> Vision:
        """Features of a batch's images and videos."""
        ...

    def embed(self, input_ids: Tensor, vision: Vision) -> tuple[Tensor, VisualRows | None]:
        """(B, T) token ids to (B, T, H) embeddings with visual tokens, and the DeepStack rows."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states to (..., V) logits of the next token."""
        ...

    def predict_latents(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states to (..., H) predicted latents of the next positions."""
        ...
