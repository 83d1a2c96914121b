"""The latent reasoner: a vision-language model whose latent slots take continuous vectors instead of table rows.

Shapes: B batch, T sequence length, H hidden size, V vocabulary, N latents of a batch in row-major order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor, nn

from futurel1.errors import BatchError, CheckpointError, ConfigError
from futurel1.folders import replacing_folder
from futurel1.models import checkpoints, decoding
from futurel1.models.backbones import Backbone, Vision, VisionFeatures, VisualRows, backbone_class
from futurel1.models.decoding import (
    DecodingSettings,
    DecodingStep,
    PromptLike,
    PromptSource,
    Rollout,
    RolloutScores,
    Sampling,
    VisualBatch,
)
from futurel1.models.end_tokens import chosen_end_tokens, end_token_ids
from futurel1.models.heads import HeadKind, build_head
from futurel1.models.hub import push_folder, require_online
from futurel1.models.interventions import LatentIntervention
from futurel1.models.model_card import TrainingRun, base_model_of, describe, write_card
from futurel1.models.policies import DeterministicLatents, LatentPolicy
from futurel1.models.settings import LatentSettings
from futurel1.models.spans import find_spans, put_latents
from futurel1.models.tokens import LatentTokens, SpanBudget


class LatentReasoner(nn.Module):
    """A vision-language model that reads and predicts continuous latents inside START ... END spans.

    `z_t = head(h_{t-1})` is the latent at position `t`, `h` the final-norm hidden state that `lm_head` reads
    (Future-L1, arXiv 2606.05769, Section 3).

    Args:
        backbone: adapter around a stock model.
        tokens: ids of START, LATENT and END.
        settings: latent settings of the checkpoint.
        processor: the model's `transformers` processor, if there is one.

    Raises:
        CheckpointError: the vocabulary has no row for a latent token, or tokenizer and model disagree.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokens: LatentTokens,
        settings: LatentSettings | None = None,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokens = tokens
        self.settings = settings or LatentSettings()
        self.processor = processor
        self.base_model: str | None = None  # for the model card
        self.projection_head = build_head(
            self.settings.projection_head_type, backbone.hidden_size, self.settings.projection_hidden_dim
        )
        self._check_tokens()

    def _check_tokens(self) -> None:
        ids = vars(self.tokens)
        rows = self.backbone.vocab_size
        if max(ids.values()) >= rows:
            raise CheckpointError(
                f"latent token ids {ids} do not fit the model's {rows} embedding rows; add the tokenizer that belongs "
                "to these ids, so that the table is resized to it, or correct the ids"
            )
        special = {
            name: getattr(self.backbone.config, name)
            for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        }
        clash = {name: value for name, value in special.items() if value in ids.values()}
        if clash:
            raise CheckpointError(
                f"latent token ids {ids} clash with {clash} of the model's configuration; "
                "correct latent_id, latent_start_id and latent_end_id (in config.json, or as tokens=...)"
            )
        if self.processor is None:
            return
        known = LatentTokens.from_tokenizer(self.processor.tokenizer)
        if known != self.tokens:
            raise CheckpointError(
                f"config.json says {self.tokens} but the tokenizer has {known}; they come from different checkpoints. "
                "Copy the tokenizer files that belong to these weights, or remove latent_id, latent_start_id and "
                "latent_end_id from config.json to use the tokenizer's"
            )

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        attn_implementation: str = "sdpa",
        tokens: LatentTokens | None = None,
        projection_head: HeadKind | None = None,
        projection_hidden_dim: int | None = None,
        with_weights: bool = True,
    ) -> Self:
        """Load a stock checkpoint, a released Future-L1 checkpoint or one that this package saved, in eval mode.

        Args:
            path: a folder, a hub name, ``"tiny"`` for this package's pretrained backbone, or a shape with random
                weights (``"tiny@random"``, ``"qwen3-vl-8b@random"``), without memory under ``torch.device("meta")``.
            dtype: dtype of all loaded weights, whatever the stored dtype. None: the stored one, in which weights are
                pages of their files (memory-mapped) until something changes them.
            attn_implementation: attention of `transformers`: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...
            tokens: ids of the latent tokens, for a checkpoint that has neither tokenizer nor ids in its configuration.
            projection_head: head to use, random without stored weights; None keeps the checkpoint's.
            projection_hidden_dim: width inside a ``"swiglu"`` head; None keeps the checkpoint's.
            with_weights: False leaves all weights unwritten, for a caller that fills them.

        Raises:
            MissingFileError: no such checkpoint.
            CheckpointError: weights, configuration, tokenizer or head contradict each other.
        """
        found = checkpoints.load_checkpoint(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            tokens=tokens,
            projection_head=projection_head,
            projection_hidden_dim=projection_hidden_dim,
            with_weights=with_weights,
        )
        backbone = backbone_class(found.model.config.model_type)(found.model)
        reasoner = cls(backbone, found.tokens, found.settings, found.processor)
        if with_weights:
            checkpoints.load_head(reasoner.projection_head, found, str(path), replaced=projection_head is not None)
        reasoner.base_model = base_model_of(path)
        return (reasoner if dtype is None else reasoner.to(dtype)).eval()

    def save_pretrained(
        self,
        path: str | Path,
        *,
        state_dict: dict[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        training: TrainingRun | None = None,
    ) -> Path:
        """Save a folder that `transformers` loads as the stock class; the projection head gets its own file.

        A model card is written to `README.md`, unless the folder has one that somebody wrote or edited. The folder is
        written beside and renamed, so that a kill leaves the old one; files that are not of the old weights are kept.

        Args:
            path: folder to write; created if missing.
            state_dict: full (unsharded) weights of this module to write instead of those in memory, for sharded
                training.
            dtype: dtype of the written weights, which `config.json` names; None: that of the weights in memory.
            training: the run that the weights come from, for the model card.

        Returns:
            The folder.

        Raises:
            CheckpointError: a `state_dict` whose names are not this module's.
            ConfigError: the folder cannot be written.
        """
        state = self.state_dict()
        if state_dict is not None:
            checkpoints.require_names(state_dict, state)
            state = state_dict
        with replacing_folder(Path(path), drops=checkpoints.is_stale) as folder:
            checkpoints.save_checkpoint(
                folder, state, self.backbone, self.tokens, self.settings, self.processor, dtype or self.dtype
            )
            write_card(folder, describe(self, training))
        return Path(path)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a latent reasoner",
        training: TrainingRun | None = None,
    ) -> str:
        """Save into a temporary folder and push it; see :func:`futurel1.models.hub.push_folder`.

        To push the export of a run with its card (data, settings, metrics), give `push_folder` its folder.

        Args:
            repo_id: repository on the hub, such as ``me/my-model``; made if it is not there.
            private: whether a new repository is private; None: as the account says.
            token: access token; None: that of `hf auth login` or of HF_TOKEN.
            revision: branch, made if it is not there; None: the main one.
            commit_message: first line of the commit.
            training: the run that the weights come from, for the model card.

        Returns:
            Address of the repository.

        Raises:
            ConfigError: offline mode, a name that the hub does not allow, or a request that it refuses.
        """
        require_online(repo_id)
        with TemporaryDirectory() as folder:
            return push_folder(
                self.save_pretrained(folder, training=training),
                repo_id, private=private, token=token, revision=revision, commit_message=commit_message,
            )  # fmt: skip

    # ------------------------------------------------------------------ running

    @property
    def hidden_size(self) -> int:
        """H, width of the language model and of a latent."""
        return self.backbone.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights in memory."""
        return self.backbone.lm_head.weight.dtype

    @property
    def config(self) -> Any:
        """The `transformers` configuration of the model."""
        return self.backbone.config

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the processor.

        Raises:
            ConfigError: the checkpoint has no tokenizer.
        """
        if self.processor is None:
            raise ConfigError("the model has no tokenizer; load it from a folder that has one")
        return self.processor.tokenizer

    def encode(self, batch: VisualBatch) -> Vision:
        """Run the vision tower on a batch's images and videos; without gradient when the tower is frozen.

        Raises:
            BatchError: pixel values without grids, grids without pixel values, or another number of patches than the
                grids say.
        """
        images = _pair("image", batch.pixel_values, batch.image_grid_thw)
        videos = _pair("video", batch.pixel_values_videos, batch.video_grid_thw)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision_is_trainable):
            return Vision(
                images=None if images is None else self.backbone.encode_images(*images),
                videos=None if videos is None else self.backbone.encode_videos(*videos, batch.video_seconds_per_grid),
            )

    def encode_hints(self, pixel_values: Tensor, grid_thw: Tensor) -> VisionFeatures:
        """Features of hint frames, the inputs and targets of latents; always without gradient (Future-L1, Section 3).

        Args:
            pixel_values: (P, D) patches of all hints.
            grid_thw: (I, 3) int64 patch grid of each hint.
        """
        with torch.no_grad():
            return self.backbone.encode_images(pixel_values, grid_thw).detach()

    @property
    def vision_is_trainable(self) -> bool:
        """Whether any parameter of the vision tower (mergers included) requires a gradient."""
        return any(parameter.requires_grad for parameter in self.backbone.vision_tower.parameters())

    def latent_mask(self, input_ids: Tensor) -> Tensor:
        """(B, T) bool: LATENT slots inside spans, whose input is a latent vector."""
        return find_spans(input_ids, self.tokens).latent_mask

    def embed(
        self, input_ids: Tensor, vision: Vision, latents: Tensor | None = None
    ) -> tuple[Tensor, VisualRows | None]:
        """Input embeddings: table rows, visual tokens at placeholders, latents at LATENT slots inside spans.

        Args:
            input_ids: (B, T) token ids.
            vision: features of the images and videos among them.
            latents: (N, H) one vector per LATENT slot inside a span, row-major; None keeps the table's rows.

        Returns:
            (B, T, H) embeddings, and the DeepStack rows for :meth:`Backbone.run`.

        Raises:
            BatchError: placeholders and features, or slots and latents, differ in number.
        """
        embeds, visual = self.backbone.scatter_vision(self.backbone.embed_tokens(input_ids), input_ids, vision)
        if latents is not None:
            embeds = put_latents(embeds, self.latent_mask(input_ids), latents)
        return embeds, visual

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        vision: Vision | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of whole sequences, padded on either side.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), non-zero at real tokens.
            vision: features of the images and videos; None when there are none.
            latents: (N, H) vectors for the LATENT slots inside spans.

        Returns:
            (B, T, H) hidden states after the final norm, the input of `lm_head`; `lm_head` itself is not run.
        """
        vision = vision or Vision()
        embeds, visual = self.embed(input_ids, vision, latents)
        positions = self.backbone.positions(input_ids, attention_mask, vision)
        return self.backbone.run(embeds, positions, attention_mask, visual)

    def predict_latents(self, hidden: Tensor) -> Tensor:
        """Predict the latents of the *next* positions from hidden states: (..., H) to (..., H)."""
        latents: Tensor = self.projection_head(hidden)
        return latents

    # ------------------------------------------------------------------ decoding

    def generate(
        self,
        prompt: PromptLike,
        *,
        num_branches: int = 1, max_new_tokens: int = 2048,
        do_sample: bool = False, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0,
        eos_token_id: int | Sequence[int] | None = None, pad_token_id: int | None = None,
        budget: SpanBudget | None = None,
        latent_policy: LatentPolicy | None = None, intervention: LatentIntervention | None = None,
        seed: int | Tensor = 0,
        stop_strings: str | Sequence[str] = (), force_start: bool | None = None,
        share_prompt: bool | None = None, slots: int | None = None, look_every: int | None = None,
        compile: bool = False, vision: Vision | None = None,
        on_step: Callable[[DecodingStep], None] | None = None,
    ) -> Rollout:  # fmt: skip
        """Decode interleaved text and latents, many branches per prompt (Future-L1, arXiv 2606.05769, Section 3).

        A branch's response depends on the seed, its prompt and its branch number, not on what else is in the batch.
        Prompts are identified by `sample_ids`, or by token ids and pixels if there are none. Decoding runs in eval mode
        and restores every module's mode. `do_sample`, `temperature`, `top_p`, `top_k` and `min_p` choose tokens as
        :class:`futurel1.models.decoding.Sampling` describes.

        Args:
            prompt: left-padded prompts with their images and videos, such as :class:`futurel1.data.PromptBatch`.
            num_branches: G, responses per prompt.
            max_new_tokens: R, maximum number of tokens per response, latents included.
            eos_token_id: id or ids that end a response; None: all that the checkpoint names (`end_token_ids`).
            pad_token_id: id that pads responses on the right; None: the tokenizer's.
            budget: latents per span; None: the checkpoint's (`LatentSettings.budget`).
            latent_policy: how latents are sampled; None: :class:`DeterministicLatents`.
            intervention: replaces each sampled latent before its log-density is computed and before it is recorded and
                fed (`futurel1.models.interventions`); None: no replacement.
            seed: one seed, or (B,) one per prompt.
            stop_strings: texts that end a response as soon as it contains one of them.
            force_start: force START as the first token; None: the checkpoint's setting (`RICE`).
            share_prompt: store a prompt's keys and values once for all its branches; None: if the backbone supports it.
            slots: most prompts that are decoded at once; the others wait until all branches of one have ended. None:
                all prompts.
            look_every: steps between two looks of the host for responses that have ended; None: 1 on a CPU, and 8 on
                other devices, where every look waits for the device.
            compile: compile all sizes of the step before the first one, which takes minutes, once per process and
                shape; on CUDA, it is replayed as a graph.
            vision: features of the prompts' images and videos, if they are already computed.
            on_step: called after every step, for streaming of all prompts at once; a token may be part of a character.

        Returns:
            The responses, their log-probabilities and latents.

        Raises:
            BatchError: prompts that are not left-padded or do not match their images.
            ConfigError: sampling values outside their range, or no known end-of-response token.
            DecodingError: latents or logits that are not finite; the message names the step and the row.
        """
        settings = self._decoding_settings(
            num_branches=num_branches, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id,
            do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            pad_token_id=pad_token_id, budget=budget, stop_strings=stop_strings, latent_policy=latent_policy,
            intervention=intervention, force_start=force_start, slots=slots, look_every=look_every, compile=compile,
        )  # fmt: skip
        with _evaluating(self):
            return decoding.generate(
                self, prompt, settings, seed=seed, share_prompt=share_prompt, vision=vision, on_step=on_step
            )

    def generate_each(
        self, sources: Iterable[PromptSource], *, slots: int, share_prompt: bool | None = None, **settings: Any
    ) -> Iterator[Rollout]:
        """Decode a stream of batches, such as a data set; a batch is read when a slot is free for its first prompt.

        Each batch gets the samples of :meth:`generate`, whatever the number of slots and the other batches. With an
        intervention, a batch is decoded before the next one is read. Errors are those of :meth:`generate`.

        Args:
            sources: batches of prompts with their seeds.
            slots: most prompts at once.
            share_prompt: as in :meth:`generate`.
            settings: all other settings of :meth:`generate` but `seed`, `vision` and `on_step`.

        Yields:
            The rollout of each batch, in their order.
        """
        how = self._decoding_settings(slots=slots, **settings)
        with _evaluating(self):
            yield from decoding.generate_each(self, sources, how, share_prompt=share_prompt)

    def _decoding_settings(
        self, *, num_branches: int = 1, max_new_tokens: int = 2048,
        do_sample: bool = False, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
        min_p: float = 0.0, eos_token_id: int | Sequence[int] | None = None, pad_token_id: int | None = None,
        stop_strings: str | Sequence[str] = (), budget: SpanBudget | None = None,
        latent_policy: LatentPolicy | None = None, force_start: bool | None = None, **settings: Any,
    ) -> DecodingSettings:  # fmt: skip
        ends, pad = chosen_end_tokens(self.backbone, self.processor, eos_token_id, pad_token_id)
        return DecodingSettings(
            num_branches=num_branches, max_new_tokens=max_new_tokens,
            sampling=Sampling(do_sample, temperature, top_k, top_p, min_p), eos_token_ids=ends, pad_token_id=pad,
            stop_strings=(stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings),
            budget=budget or self.settings.budget(), latent_policy=latent_policy or DeterministicLatents(),
            force_start=self.settings.force_initial_latent_mode if force_start is None else force_start, **settings,
        )  # fmt: skip

    @property
    def end_token_ids(self) -> list[int]:
        """Ids of the tokens that end a response according to the checkpoint, without duplicates; may be empty."""
        return end_token_ids(self.backbone, self.processor)

    def score(
        self,
        prompt: PromptLike,
        rollout: Rollout,
        *,
        share_prompt: bool | None = None,
        vision: Vision | None = None,
    ) -> Tensor:
        """Log-probabilities of a rollout's decisions under the current weights, with gradient.

        Args:
            prompt: the prompts that were decoded.
            rollout: what :meth:`generate` returned; its latents are constants (teacher forcing).
            share_prompt: run a prompt once for all its branches; None: if the backbone supports it.
            vision: features of the prompts' images and videos, if they are already computed.

        Returns:
            (N, R), the counterpart of `rollout.log_probs`; 0 where the model made no choice.
        """
        return self.score_rollout(prompt, rollout, share_prompt=share_prompt, vision=vision).log_probs

    def score_rollout(
        self,
        prompt: PromptLike,
        rollout: Rollout,
        *,
        share_prompt: bool | None = None,
        vision: Vision | None = None,
    ) -> RolloutScores:
        """Like :meth:`score`, with the log-densities of the latents, entropies and predicted latents."""
        return decoding.score(self, prompt, rollout, share_prompt=share_prompt, vision=vision)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits of selected hidden states: (..., H) to (..., V)."""
        return self.backbone.logits(hidden)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to eval mode temporarily: with gradient checkpointing, layers in training mode drop the KV cache."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _pair(kind: str, pixels: Tensor | None, grid: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if (pixels is None) != (grid is None):
        raise BatchError(f"{kind} pixel values and {kind} grids belong together, but only one of them was given")
    if pixels is None or grid is None or len(grid) == len(pixels) == 0:
        return None
    return pixels, grid
