"""Interface between the reasoner and a vision-language model, with the code that all Qwen families share.

A backbone is an adapter around an untouched `transformers` model: it calls the public submodules of the stock class
(vision tower, token embedding, language model, `lm_head`) and never replaces any of their code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from futurel1.errors import BatchError
from futurel1.models.token_rows import RowDelta, TokenRows


@dataclass
class VisionFeatures:
    """Output of the vision tower for images (or for the temporal patches of videos).

    Attributes:
        embeds: (N, H) merged visual tokens of all images, in order, each image in raster order.
        deepstack: per DeepStack layer an (N, H) tensor that is added to the hidden states after that layer of the
            language model; empty for families without DeepStack.
        grid_thw: (I, 3) int64, temporal, vertical and horizontal number of patches of each image.
        counts: number of visual tokens of each image; ``sum(counts) == N``.
        seconds_per_grid: (I,) seconds between temporal patches of each video, for families whose temporal positions
            follow real time; None for images and for other families.
    """

    embeds: Tensor
    deepstack: tuple[Tensor, ...]
    grid_thw: Tensor
    counts: tuple[int, ...]
    seconds_per_grid: Tensor | None = None

    def detach(self) -> "VisionFeatures":
        """The same features without gradient."""
        return VisionFeatures(
            self.embeds.detach(),
            tuple(level.detach() for level in self.deepstack),
            self.grid_thw,
            self.counts,
            self.seconds_per_grid,
        )


@dataclass(frozen=True)
class Vision:
    """Visual input of a batch: its images and its videos, either of which may be missing."""

    images: VisionFeatures | None = None
    videos: VisionFeatures | None = None


@dataclass(frozen=True)
class VisualRows:
    """DeepStack input of one run of the language model.

    Attributes:
        mask: (B, T) bool, visual positions.
        deepstack: per DeepStack layer (N, H), rows in the order of ``mask``.
    """

    mask: Tensor
    deepstack: list[Tensor]


class Backbone(nn.Module):
    """Adapter around a stock vision-language model of `transformers`.

    Subclasses name the stock class they wrap and override what their family does differently.

    Args:
        model: an instance of the stock ``...ForConditionalGeneration`` class.
    """

    model_type: ClassVar[str]
    """`model_type` of the stock configuration."""
    stock_class: ClassVar[str]
    """Name of the stock class in `transformers`."""
    shares_prompt: ClassVar[bool] = True
    """Whether branches can share a prompt through an attention mask; False for recurrent layers."""
    splits_videos: ClassVar[bool] = True
    """Whether a video is one block of placeholders per temporal patch (with timestamps between) or one block in all."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.token_rows: TokenRows | None = None
        # transformers 5.24 renamed `past_key_values`, and warns about the old name at every call.
        named = signature(self.language_model.forward).parameters
        self._cache_argument = "cache" if "cache" in named else "past_key_values"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Rotary frequencies stay in float32 when weights are cast, as in the stock `from_pretrained`: in bfloat16 their
        # relative error of 2^-9 is an angle of many radians at position 8,000.
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for path, buffer in self.named_buffers():
            if buffer.dtype != before[path].dtype:
                owner, _, name = path.rpartition(".")
                setattr(self.get_submodule(owner), name, before[path].to(buffer.device))
        return self

    @property
    def config(self) -> Any:
        """The stock configuration."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """H, width of the language model."""
        return int(self.config.text_config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding table."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def ties_embeddings(self) -> bool:
        """Whether `lm_head` and the embedding table are one tensor."""
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight

    @property
    def attn_implementation(self) -> str:
        """The language model's attention: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ..."""
        config: Any = self.language_model.config
        return str(config._attn_implementation)

    @property
    def vision_tower(self) -> nn.Module:
        """The vision tower, its mergers included."""
        tower: nn.Module = self.model.model.visual
        return tower

    @property
    def language_model(self) -> nn.Module:
        """The language model without `lm_head`."""
        language_model: nn.Module = self.model.model.language_model
        return language_model

    @property
    def lm_head(self) -> nn.Linear:
        """The vocabulary projection."""
        head: nn.Linear = self.model.lm_head
        return head

    def mergers(self) -> list[nn.Module]:
        """Parts of the tower that map into the language model's space (merger and DeepStack mergers)."""
        tower: Any = self.vision_tower
        return [tower.merger, *getattr(tower, "deepstack_merger_list", [])]

    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> VisionFeatures:
        """Run the vision tower on images.

        Args:
            pixel_values: (P, D) patches of all images, in the layout of the family's image processor.
            grid_thw: (I, 3) int64 patch grid of each image.

        Raises:
            BatchError: the number of patches does not match the grids.
        """
        check_patches("image", pixel_values, grid_thw)
        return self._features(self.model.get_image_features(pixel_values, grid_thw), grid_thw)

    def encode_videos(
        self, pixel_values: Tensor, grid_thw: Tensor, seconds_per_grid: Tensor | None = None
    ) -> VisionFeatures:
        """Run the vision tower on videos, like :meth:`encode_images`.

        Args:
            pixel_values: (P, D) patches of all videos.
            grid_thw: (I, 3) int64 patch grid of each video.
            seconds_per_grid: (I,) seconds between temporal patches; None for families that do not use it.
        """
        check_patches("video", pixel_values, grid_thw)
        return self._features(self.model.get_video_features(pixel_values, grid_thw), grid_thw, seconds_per_grid)

    def _features(self, output: Any, grid_thw: Tensor, seconds_per_grid: Tensor | None = None) -> VisionFeatures:
        per_image = output.pooler_output
        return VisionFeatures(
            embeds=torch.cat(tuple(per_image)),
            deepstack=tuple(
                level if isinstance(level, Tensor) else torch.cat(tuple(level))  # by image since transformers 5.18
                for level in getattr(output, "deepstack_features", None) or ()
            ),
            grid_thw=grid_thw,
            counts=tuple(len(image) for image in per_image),
            seconds_per_grid=seconds_per_grid,
        )

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Rows of the embedding table, those of `token_rows` included: (B, T) ids to (B, T, H)."""
        embeds: Tensor = self.model.get_input_embeddings()(input_ids)
        return embeds if self.token_rows is None else self.token_rows.embedded(embeds, input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits, with the columns of `token_rows`: (..., H) hidden states to (..., V)."""
        logits: Tensor = self.lm_head(hidden)
        return logits if self.token_rows is None else self.token_rows.projected(logits, hidden)

    @property
    def head_delta(self) -> RowDelta | None:
        """What `token_rows` adds to rows of `lm_head`, for losses that take its weight; None: nothing."""
        rows = self.token_rows
        return None if rows is None or not rows.enabled else RowDelta(rows.ids, rows.of_projection)

    def visual_type_ids(self, input_ids: Tensor) -> Tensor:
        """(B, T) int: 1 at image tokens, 2 at video tokens, 0 elsewhere; latents are text."""
        types = torch.zeros_like(input_ids)
        types[input_ids == self.config.image_token_id] = 1
        types[input_ids == self.config.video_token_id] = 2
        return types

    def positions(self, input_ids: Tensor, attention_mask: Tensor, vision: Vision) -> Tensor:
        """M-RoPE positions of whole sequences, padded on either side; latents take text positions.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), non-zero at real tokens.
            vision: features whose grids determine the positions of visual tokens.

        Returns:
            (3, B, T) int64 temporal, vertical and horizontal position of every token.

        Raises:
            BatchError: blocks of placeholders that do not match the grids.
        """
        images, videos = vision.images, vision.videos
        types = self.visual_type_ids(input_ids)
        self._check_blocks("image", (types == 1) & attention_mask.bool(), images)
        self._check_blocks("video", (types == 2) & attention_mask.bool(), videos)
        positions, _ = self.model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=types,
            image_grid_thw=None if images is None else images.grid_thw,
            video_grid_thw=None if videos is None else videos.grid_thw,
            attention_mask=attention_mask,
            **self.position_options(vision),
        )
        return torch.as_tensor(positions)

    def _check_blocks(self, kind: str, mask: Tensor, features: VisionFeatures | None) -> None:
        """Raise a `BatchError` unless the unbroken blocks of placeholders match the grids in size and order."""
        edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1)
        blocks = ((edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]).tolist()
        expected: list[int] = []
        if features is not None:
            merged = int(self.config.vision_config.spatial_merge_size) ** 2
            for frames, height, width in features.grid_thw.tolist():
                split = frames if self.splits_videos else 1
                expected += [frames * height * width // merged // split] * split
        if blocks != expected:
            raise BatchError(
                f"input_ids have {kind} placeholders in {len(blocks)} blocks of {blocks} tokens, the {kind} grids need "
                f"{len(expected)} blocks of {expected}; put other tokens (vision start and end) between two blocks, "
                f"with {'one block per temporal patch' if self.splits_videos else 'one block'} for each video"
            )

    def position_options(self, vision: Vision) -> dict[str, Any]:
        """Extra arguments for the family's `get_rope_index`."""
        return {}

    def scatter_vision(self, embeds: Tensor, input_ids: Tensor, vision: Vision) -> tuple[Tensor, VisualRows | None]:
        """Replace placeholders with visual tokens.

        Args:
            embeds: (B, T, H) embeddings.
            input_ids: (B, T) token ids with image and video placeholders.
            vision: features of the images and videos, in order of appearance.

        Returns:
            The embeddings with visual tokens, and the DeepStack rows (None without DeepStack or visual tokens).

        Raises:
            BatchError: the number of placeholders is not the number of visual tokens.
        """
        levels: list[Tensor] = []
        masks: list[Tensor] = []
        for kind, features, token_id in (
            ("image", vision.images, self.config.image_token_id),
            ("video", vision.videos, self.config.video_token_id),
        ):
            mask = input_ids == token_id
            expected = 0 if features is None else len(features.embeds)
            if int(mask.sum()) != expected:
                raise BatchError(
                    f"input_ids have {int(mask.sum())} {kind} placeholders (token id {token_id}) but the {kind}s give "
                    f"{expected} visual tokens; expand each placeholder to the size of its grid"
                )
            if features is None:
                continue
            embeds = embeds.masked_scatter(mask[..., None], features.embeds.to(embeds.dtype))
            masks.append(mask)
            if features.deepstack:
                levels.append(torch.stack(features.deepstack))
        if not levels:
            return embeds, None
        if len(levels) == 1:
            return embeds, VisualRows(masks[0], list(levels[0].unbind()))
        both = masks[0] | masks[1]
        merged = levels[0].new_empty((len(levels[0]), int(both.sum()), levels[0].shape[-1]))
        # Order of appearance: a row of the joint mask is an image row or a video row.
        merged[:, masks[0][both]] = levels[0]
        merged[:, masks[1][both]] = levels[1]
        return embeds, VisualRows(both, list(merged.unbind()))

    def run(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None,
        visual: VisualRows | None = None,
        cache: Any = None,
        **attention: Any,
    ) -> Tensor:
        """Run the language model on embeddings.

        Args:
            embeds: (B, T, H) input embeddings.
            positions: (3, B, T) M-RoPE positions.
            attention_mask: (B, S) over cached and new tokens, or (B, 1, T, S) additive, bool or a
                :class:`~futurel1.models.decoding.attention.BranchMask`, or None (causal).
            visual: DeepStack rows of the new tokens.
            cache: a `transformers` cache, filled in place; None to run without a cache.
            attention: further arguments for the attention of every layer.

        Returns:
            (B, T, H) hidden states after the final norm, the input of `lm_head`.
        """
        kwargs: dict[str, Any] = {}
        if visual is not None:
            kwargs = {"visual_pos_masks": visual.mask, "deepstack_visual_embeds": visual.deepstack}
        output = self.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=attention_mask,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
            **kwargs,
            **attention,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def check_patches(kind: str, pixel_values: Tensor, grid_thw: Tensor) -> None:
    """Raise a `BatchError` unless the number of patches matches the grids."""
    expected = int(grid_thw.prod(dim=-1).sum())
    if pixel_values.shape[0] != expected:
        raise BatchError(
            f"{kind} grids {grid_thw.tolist()} need {expected} patches, pixel values have {pixel_values.shape[0]}"
        )
