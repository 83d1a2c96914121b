"""LA-DAPO, reinforcement learning of latent trajectories, as a LightningModule."""

import copy
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor

from futurel1.data import PromptBatch
from futurel1.data.chat import EncodedSample
from futurel1.errors import ConfigError
from futurel1.files import write_whole
from futurel1.json_lines import json_line
from futurel1.losses import Advantage, PolicyLoss, PolicyLossOutput, group_advantages
from futurel1.losses.policy import ADVANTAGES
from futurel1.models import HeadKind, LatentReasoner, SpanBudget
from futurel1.models.decoding import Rollout, RolloutScores, Sampling
from futurel1.models.policies import LatentPolicy, VonMisesFisherLatents
from futurel1.models.transcript import Transcript, transcripts
from futurel1.modules import adapters
from futurel1.modules.base import ReasonerModule
from futurel1.modules.optimization import Part, Schedule
from futurel1.modules.start import DTYPES, start_checkpoint
from futurel1.rewards import CompositeReward, RewardInputs, RewardOutput
from futurel1.rollout.collector import RolloutSettings
from futurel1.rollout.experience import (
    Experience,
    Group,
    join_rollouts,
    move_vision,
    prompt_batch,
    split_rollout,
    split_vision,
)

logger = logging.getLogger(__name__)
SECONDS_OF_SILENCE = 30.0
"""The Trainer's progress bar stands still while rollouts are sampled; the log then says how far they are."""
SEED_STRIDE = 2**32
"""Draws that a seed may number before they meet those of the next one."""
MOST_SEEDS = 2**31


class LADAPOModule(ReasonerModule):
    """LA-DAPO (Future-L1, arXiv 2606.05769, Section 4): group-relative policy optimization of text and latents.

    Prompts are answered `num_rollouts` times, rewarded, filtered by group and trained on with a clipped objective; see
    :class:`futurel1.rollout.RolloutCollector` and :class:`futurel1.losses.PolicyLoss`. Micro-batches of an optimizer
    step are the Trainer's ``accumulate_grad_batches``: a rollout batch is divided into that many per minibatch and
    device, however many groups each then holds. Defaults are the paper's;
    ``futurel1 fit --config configs/tiny/la_dapo.yaml`` shows a small run.

    Args:
        backbone: checkpoint folder, hub name, or ``tiny``.
        init_from: start weights in place of `backbone`'s, and the reference of the KL: an SFT run's folder, its Hugging
            Face export, or a .ckpt file. To continue a run exactly, use ``--resume`` instead.
        dtype: dtype of the weights in memory, whatever they were stored in.
        compute_dtype: dtype in which sharded weights (``ModelParallelStrategy``, FSDP2) are gathered, computed with and
            sampled from; None: `dtype`. Without sharding, use ``trainer.precision``.
        attn_implementation: attention of `transformers` (sdpa, eager).
        projection_head: ``none``, ``swiglu`` or ``lvr``; None keeps the checkpoint's.
        projection_hidden_dim: width inside a ``swiglu`` head; None keeps the checkpoint's.
        reward: what rollouts are rewarded for; None: the paper's (`CompositeReward.preset("paper")`).
        latent_policy: how latents are drawn; None: ``VonMisesFisherLatents()``. With ``DeterministicLatents`` there is
            no latent term.
        num_rollouts: G, responses per prompt.
        rollout_batch_size: groups of a rollout batch, over all devices.
        generation_batch_size: prompts that are decoded at once on a device.
        num_minibatches: optimizer steps that a rollout batch is divided into.
        num_epochs: passes over a rollout batch.
        filter_key: reward part (or ``total``) whose group mean decides whether a group is kept; null keeps all.
        filter_low: groups at or below are too hard.
        filter_high: groups at or above are too easy.
        max_rounds: most rounds of `rollout_batch_size` prompts for one rollout batch.
        max_failed: largest share of rollouts of a round without a reward, above which the run stops.
        max_new_tokens: most tokens of a response; latents count.
        temperature: divides logits before drawing; log-probabilities are taken at it.
        top_p: draw among the most likely tokens that together have this probability.
        span_budget: ``checkpoint``, ``fixed`` (exactly `span_latents`) or ``loose`` (at most `span_latents`).
        span_latents: latents per span for ``fixed`` and ``loose``.
        seed: seed of the draws.
        advantage: ``grpo`` (divided by the group's std), ``dr_grpo`` (not divided) or ``rloo`` (leave one out).
        clip_low: ratios below `1 - clip_low` are held back.
        clip_high: ratios above `1 + clip_high` are held back.
        dual_clip: bound of the loss at negative advantages.
        latent_clip_low: `clip_low` of latents.
        latent_clip_high: `clip_high` of latents.
        latent_weight: weight of the latent term.
        kl_weight: weight of the KL to the start weights; 0: no reference is kept.
        log_samples_every: write the rollouts of every n-th rollout batch to `rollouts.jsonl`; 0: never.
        freeze: parts that are not trained, among ``vision``, ``merger``, ``llm``, ``head``.
        learning_rate: AdamW learning rate.
        vision_learning_rate: rate of the vision tower; None: `learning_rate`.
        merger_learning_rate: rate of the mergers; None: `learning_rate`.
        betas: AdamW betas.
        weight_decay: AdamW decay of matrices; norms and biases are not decayed.
        lr_schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        warmup_ratio: share of all steps that warms up linearly.
        lora_rank: rank of LoRA adapters in the language model; 0 for none. The reference is then the model without
            them, and takes no memory.
        lora_alpha: LoRA scale, divided by the rank.
        lora_dropout: dropout in front of the adapters.
        lora_targets: pattern of module names that get an adapter.
        gradient_checkpointing: recompute activations in backward.
        liger_kernel: run norms and MLPs of the language model on Liger's kernels on CUDA; never on CPU.

    Raises:
        ConfigError: settings that contradict each other.
    """

    # Evaluation decodes with a whole copy: ranks may have different numbers of batches, or none.
    sharded_steps: ClassVar[tuple[str, ...]] = ("training_step",)

    def __init__(
        self,
        backbone: str = "tiny",
        init_from: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        attn_implementation: str = "sdpa",
        projection_head: HeadKind | None = None,
        projection_hidden_dim: int | None = None,
        reward: CompositeReward | None = None,
        latent_policy: LatentPolicy | None = None,
        num_rollouts: int = 8,
        rollout_batch_size: int = 64,
        generation_batch_size: int = 8,
        num_minibatches: int = 1,
        num_epochs: int = 1,
        filter_key: str | None = "accuracy",
        filter_low: float = 0.1,
        filter_high: float = 0.9,
        max_rounds: int = 20,
        max_failed: float = 0.5,
        max_new_tokens: int = 2048,
        temperature: float = 0.9,
        top_p: float = 0.99,
        span_budget: Literal["checkpoint", "fixed", "loose"] = "checkpoint",
        span_latents: int = 8,
        seed: int = 0,
        advantage: Advantage = "grpo",
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        dual_clip: float = 3.0,
        latent_clip_low: float = 0.1,
        latent_clip_high: float = 0.1,
        latent_weight: float = 0.5,
        kl_weight: float = 1e-2,
        log_samples_every: int = 0,
        freeze: list[Part] = ["vision", "merger"],  # noqa: B006 (never changed; a tuple cannot be written in YAML)
        learning_rate: float = 1e-6,
        vision_learning_rate: float | None = None,
        merger_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        lr_schedule: Schedule = "constant",
        warmup_ratio: float = 0.0,
        lora_rank: int = 0,
        lora_alpha: int = 32,
        lora_dropout: float = 0.0,
        lora_targets: str = adapters.LANGUAGE_MODEL_LINEARS,
        gradient_checkpointing: bool = False,
        liger_kernel: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["reward", "latent_policy"])
        self.check_dtypes()
        if num_rollouts < 2:
            raise ConfigError(f"num_rollouts must be at least 2, got {num_rollouts}: advantages compare rollouts")
        if generation_batch_size < 1 or max_new_tokens < 1 or log_samples_every < 0:
            raise ConfigError(
                "generation_batch_size and max_new_tokens are at least 1 and log_samples_every at least 0, got "
                f"{generation_batch_size}, {max_new_tokens} and {log_samples_every}"
            )
        if advantage not in ADVANTAGES:
            raise ConfigError(f"advantage is one of {', '.join(ADVANTAGES)}, got {advantage!r}")
        if lora_dropout and num_epochs * num_minibatches > 1:
            logger.warning("lora_dropout=%s makes importance ratios noisy: set it to 0", lora_dropout)
        self.reward = reward or CompositeReward.preset("paper")
        if filter_key is not None and filter_key not in ("total", *self.reward.rewards):
            known = ", ".join(["total", *self.reward.rewards])
            raise ConfigError(f"filter_key={filter_key!r} is no reward part; there are {known} (null: keep all groups)")
        self.latent_policy = latent_policy or VonMisesFisherLatents()
        if not 0 <= seed < MOST_SEEDS:
            raise ConfigError(f"seed must be at least 0 and below {MOST_SEEDS}, got {seed}")
        Sampling(True, temperature, top_p=top_p)  # raises for values outside their range
        self._budget()
        self.rollout_settings = RolloutSettings(
            rollout_batch_size, num_minibatches, num_epochs, filter_key, filter_low, filter_high, max_rounds, max_failed
        )
        self.objective = PolicyLoss(
            clip_low, clip_high, dual_clip, latent_clip_low, latent_clip_high, latent_weight, kl_weight
        )
        # Frozen copies stand in tuples: they are no submodules, so no checkpoint or optimizer holds them.
        self._reference: tuple[LatentReasoner, ...] = ()
        self._sampling_copy: tuple[LatentReasoner, ...] = ()
        self._sums: Tensor | None = None
        self._extremes: Tensor | None = None
        self._statistics: dict[str, float] = {}
        self._step_began: float | None = None
        self._evaluation: dict[str, Tensor] = {}
        self._samples_begun = False

    # ------------------------------------------------------------------ the model

    def before_sharding(self) -> None:
        """Keep the start weights as reference; with sharded weights also a whole copy to sample from."""
        if self.reasoner.processor is None:
            raise ConfigError("reinforcement learning reads and rewards text: the checkpoint needs a tokenizer")
        self._freeze_idle_head()
        attached = getattr(self, "_trainer", None) is not None
        sharded = attached and self.device_mesh is not None
        dtype = DTYPES[self.hparams["compute_dtype"] or self.hparams["dtype"]]
        if self.hparams["kl_weight"] and not self._adapted and not (attached and self.trainer.evaluating):
            self._reference = (frozen_copy(self.reasoner, dtype if sharded else None),)
        if self.hparams["kl_weight"] and self._adapted and start_checkpoint(self.hparams["init_from"]) is not None:
            raise ConfigError(
                f"init_from={self.hparams['init_from']} holds trained LoRA adapters, and the reference of the KL is "
                "the model without them: give the run's Hugging Face export, which has them merged, or kl_weight: 0"
            )
        if sharded:
            # Ranks decode different numbers of steps: gathering block by block, they would wait for each other forever.
            self._sampling_copy = (frozen_copy(self.reasoner, dtype),)

    def _freeze_idle_head(self) -> None:
        """Freeze a head that no gradient reaches: weight decay alone would change it, and DDP waits for gradients."""
        head = self.reasoner.projection_head
        if any(p.requires_grad for p in head.parameters()) and not self._has_latent_term:
            policy = type(self.latent_policy).__name__
            logger.info("no gradient reaches the projection head (%s, latent_weight): it is frozen", policy)
            head.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in self.reasoner.parameters()):
                raise ConfigError(
                    f"nothing to train: freeze={self.hparams['freeze']} leaves the projection head, which learns from "
                    f"latents alone, but latent_policy={policy} with latent_weight={self.hparams['latent_weight']} "
                    "has no latent term"
                )

    @cached_property
    def _has_latent_term(self) -> bool:
        """Whether latents enter the loss: they have a weight, and a density that depends on what was predicted."""
        with torch.enable_grad():
            density = self.latent_policy.log_prob(torch.ones(1, 2), torch.ones(1, 2, requires_grad=True))
        return bool(self.hparams["latent_weight"]) and density.requires_grad

    def _placed(self, copied: LatentReasoner) -> LatentReasoner:
        """A frozen copy on this device, in the dtype that is computed with."""
        dtype = self.hparams["compute_dtype"] if self._sampling_copy else None
        wanted = DTYPES[dtype] if dtype else self.reasoner.backbone.lm_head.weight.dtype
        return copied.to(self.device, wanted)

    def _sampler(self) -> LatentReasoner:
        """The model to sample from; with sharded weights a whole copy, see :meth:`_refresh`."""
        return self._sampling_copy[0] if self._sampling_copy else self.reasoner

    @torch.no_grad()
    def _refresh(self) -> None:
        """Bring the whole copy up to date with sharded weights; all ranks have to call it."""
        for copied in self._sampling_copy:
            current = dict(self.reasoner.named_parameters())
            for name, parameter in self._placed(copied).named_parameters():
                source: Any = current[name]
                parameter.copy_(source.full_tensor() if hasattr(source, "full_tensor") else source)

    @property
    def pad_token_id(self) -> int:
        """Id that fills prompts and responses."""
        return int(self.processor.tokenizer.pad_token_id)

    # ------------------------------------------------------------------ sampling

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """The Trainer's precision, without gradient: collecting runs outside of its steps."""
        attached = getattr(self, "_trainer", None) is not None
        precision = self.trainer.precision_plugin.forward_context() if attached else nullcontext()
        with precision, torch.no_grad():
            yield

    def on_collect(self) -> None:
        """Prepare for sampling with the current weights."""
        self._refresh()

    def sample_groups(self, prompts: Sequence[tuple[int, EncodedSample]]) -> tuple[list[Group], list[dict[str, Any]]]:
        """Answer every prompt `num_rollouts` times and reward the answers.

        Args:
            prompts: (draw, prompt).

        Returns:
            One group per prompt, and one plain record per rollout: draw, id, prompt, response, answer, reward parts.
        """
        if not prompts:
            return [], []
        rollouts: list[Rollout] = []
        visions: list[Any] = []
        texts: list[Transcript] = []
        size = self.hparams["generation_batch_size"]
        said = time.monotonic()
        with self._sampling():
            for start in range(0, len(prompts), size):
                if time.monotonic() - said > SECONDS_OF_SILENCE:
                    said = time.monotonic()
                    logger.info("rollouts: %d of %d prompts of this round are answered", start, len(prompts))
                draws, samples = zip(*prompts[start : start + size], strict=True)
                batch = prompt_batch(samples, self.pad_token_id, self.device)
                vision = self._sampler().encode(batch)
                rollout = self.generate(batch, draws=draws, vision=vision)
                texts += transcripts(rollout, self.processor.tokenizer)
                rollouts += split_rollout(rollout)
                # Features of a tower that is trained are out of date after the next update.
                keep = not self.reasoner.vision_is_trainable
                in_memory = move_vision(vision, torch.device("cpu")) if keep else None
                visions += [None] * len(samples) if in_memory is None else split_vision(in_memory, samples)
        metas = [sample.meta for _, sample in prompts]
        output = self._rewarded(join_rollouts(rollouts, self.pad_token_id), texts, metas)
        groups = []
        branches = self.hparams["num_rollouts"]
        group_ids = torch.arange(len(prompts), device=self.device).repeat_interleave(branches)
        advantages = group_advantages(output.total, group_ids, output.valid, self.hparams["advantage"])
        for place, (draw, sample) in enumerate(prompts):
            rows = slice(place * branches, (place + 1) * branches)
            groups.append(
                Group(
                    draw=draw,
                    sample=sample,
                    rollout=rollouts[place],
                    parts={name: values[rows] for name, values in output.parts.items()},
                    rewards=output.total[rows],
                    valid=output.valid[rows],
                    advantages=advantages[rows],
                    vision=visions[place],
                )
            )
        return groups, list(self._records(groups, texts))

    def generate(self, batch: PromptBatch, *, draws: Sequence[int], vision: Any) -> Rollout:
        """Sample the rollouts of prompts; the same draw with the same weights gives the same rollouts."""
        hparams = self.hparams
        seeds = torch.tensor([hparams["seed"] * SEED_STRIDE + draw for draw in draws])
        return self._sampler().generate(
            batch,
            num_branches=hparams["num_rollouts"],
            max_new_tokens=hparams["max_new_tokens"],
            do_sample=True,
            temperature=hparams["temperature"],
            top_p=hparams["top_p"],
            budget=self._budget(),
            latent_policy=self.latent_policy,
            seed=seeds,
            vision=vision,
        )

    def _budget(self) -> SpanBudget | None:
        kind, latents = self.hparams["span_budget"], self.hparams["span_latents"]
        return None if kind == "checkpoint" else SpanBudget(kind, latents)

    def _rewarded(
        self, rollout: Rollout, texts: Sequence[Transcript], metas: Sequence[Mapping[str, Any]]
    ) -> RewardOutput:
        """Rewards of all rollouts of some prompts at once: a judge is asked about all of them together."""
        branches = rollout.num_branches
        rows = [meta for meta in metas for _ in range(branches)]
        lengths = [-1 if meta.get("reference_length") is None else int(meta["reference_length"]) for meta in rows]
        table = rollout.span_table
        return self.reward(
            RewardInputs(
                responses=[text.text for text in texts],
                answers=[str(meta["answer"]) for meta in rows],
                problems=[str(meta["question"]) for meta in rows],
                group_ids=torch.arange(len(metas), device=rollout.responses.device).repeat_interleave(branches),
                response_lengths=rollout.response_mask.sum(dim=1),
                reference_lengths=torch.tensor(lengths, device=rollout.responses.device),
                latents=rollout.latents,
                latent_mask=rollout.latent_mask,
                span_ids=rollout.span_ids,
                span_counts=torch.bincount(table[table[:, 3] >= 0, 0], minlength=len(rollout)),
            )
        )

    @staticmethod
    def _records(groups: Sequence[Group], texts: Sequence[Transcript]) -> Iterator[dict[str, Any]]:
        written = iter(texts)
        for group in groups:
            for row in range(len(group.rollout)):
                text = next(written)
                numbers = {name: values[row] for name, values in group.parts.items()}
                numbers = {"reward": group.rewards[row], **numbers, "advantage": group.advantages[row]}
                plain = {name: float(value) for name, value in numbers.items()}
                yield {
                    "draw": group.draw,
                    "id": group.sample.sample_id,
                    "prompt": group.sample.meta.get("question"),
                    "response": text.readable,
                    "answer": group.sample.meta.get("answer"),
                    "finish_reason": text.finish_reason,
                    **{name: value if math.isfinite(value) else None for name, value in plain.items()},
                }

    def score_behaviour(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """(N, R) and (N, S) log-probabilities under the current policy, without gradient."""
        with self._sampling():
            scores = self._scores(self._sampler(), experience)
        return scores.log_probs, scores.latent_log_probs

    def score_reference(self, experience: Experience) -> Tensor | None:
        """(N, R) log-probabilities under the start weights; None without a KL term."""
        if not self.hparams["kl_weight"]:
            return None
        with self._sampling():
            if self._adapted:
                with self._adapted[0].disable_adapter():
                    return self._scores(self.reasoner, experience).log_probs
            return self._scores(self._placed(self._reference[0]), experience).log_probs

    @staticmethod
    def _scores(reasoner: LatentReasoner, experience: Experience) -> RolloutScores:
        return reasoner.score_rollout(experience.prompt, experience.rollout, vision=experience.vision)

    def log_samples(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Append the rollouts of a rollout batch to `rollouts.jsonl` in the run folder (rank 0's share)."""
        every = self.hparams["log_samples_every"]
        if not every or self.global_rank != 0:
            return
        file = Path(self.trainer.default_root_dir) / "rollouts.jsonl"
        if not self._samples_begun:
            file.parent.mkdir(parents=True, exist_ok=True)
            drop_samples(file, number)
            self._samples_begun = True
        if number % every == 0:
            with file.open("ab") as stream:
                stream.writelines(json_line({"rollout_batch": number, **record}) for record in records)

    def on_fit_start(self) -> None:
        """The first rollouts that are written replace those that an interrupted run wrote after its checkpoint."""
        self._samples_begun = False

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Refuse what this module does not do before anything is loaded."""
        if stage == "predict":
            raise ConfigError(
                "LADAPOModule makes no predictions: use LatentPredictor, with model.init_args.init_from the run folder"
            )

    def predict_step(self, *args: Any) -> Any:
        """Not here; Lightning asks for it before :meth:`setup` says so."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Refuse epochs that end inside an optimizer step: it would miss micro-batches of its rollout batch."""
        super().on_train_start()
        trainer: Any = self.trainer
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise ConfigError(
                "GradientAccumulationScheduler changes the micro-batches of a rollout batch in the middle of a run; "
                "set trainer.accumulate_grad_batches instead"
            )
        batches, window = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        if batches % window:
            raise ConfigError(
                f"trainer.limit_train_batches leaves {batches} micro-batches per epoch, which is no multiple of "
                f"trainer.accumulate_grad_batches={window}: some optimizer steps would miss a part; choose a multiple"
            )

    def training_step(self, batch: Experience, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, normalised by the tokens of its whole optimizer step."""
        self._check_batch(batch, Experience)
        if self._step_began is None:
            self._step_began = time.perf_counter()
        if batch.statistics:
            self._statistics = dict(batch.statistics)
            if "rollout/tokens" in batch.statistics:
                self._statistics["rollout/tokens_per_second"] = (
                    batch.statistics["rollout/tokens"] / batch.statistics["rollout/seconds"]
                )
        rollout, scores = batch.rollout, self._scores(self.reasoner, batch)
        mask = rollout.chosen_mask & batch.valid[:, None]
        output: PolicyLossOutput = self.objective(
            scores.log_probs,
            scores.latent_log_probs,
            advantages=batch.advantages,
            mask=mask,
            latent_mask=rollout.latent_mask & batch.valid[:, None],
            width=rollout.latents.shape[-1],
            total=batch.total_tokens,
            old_log_probs=batch.old_log_probs,
            old_latent_log_probs=batch.old_latent_log_probs,
            reference_log_probs=batch.reference_log_probs,
        )
        self._note(batch, scores, output, mask)
        # The Trainer divides by the accumulation and averages gradients over ranks; the total has done both.
        loss: Tensor = output.loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)
        return loss

    @staticmethod
    def _check_batch(batch: Any, wanted: type) -> None:
        if not isinstance(batch, wanted):
            raise ConfigError(
                f"LADAPOModule got a {type(batch).__name__} in place of a {wanted.__name__}: use it with "
                "RolloutPromptDataModule, or LatentSFTModule for SFT"
            )

    @torch.no_grad()
    def _note(self, batch: Experience, scores: RolloutScores, output: PolicyLossOutput, mask: Tensor) -> None:
        """Add a micro-batch to the sums of its optimizer step."""
        rollout, text, latents = batch.rollout, output.text, output.latents
        slots = mask & rollout.slot_mask
        words = mask & ~rollout.slot_mask
        trained = batch.prompt.attention_mask.sum() + rollout.response_mask.sum()
        sums = [
            output.loss, text.loss / batch.total_tokens, latents.loss / batch.total_tokens, output.kl, text.count,
            latents.count, text.ratio_sum, latents.ratio_sum, text.clipped_high, text.clipped_low, text.dual_clipped,
            latents.clipped_high, latents.clipped_low, latents.dual_clipped, scores.entropy[words].sum(), words.sum(),
            scores.entropy[slots].sum(), slots.sum(), trained,
        ]  # fmt: skip
        packed = torch.stack([value.detach().double() for value in sums])
        self._sums = packed if self._sums is None else self._sums + packed
        sampled = scores.log_probs
        if batch.old_log_probs is not None:
            sampled = torch.where(batch.old_log_probs.isnan(), sampled, batch.old_log_probs)
        gap = torch.where(mask, (sampled - rollout.log_probs).abs(), 0.0).amax()
        extremes = torch.stack(
            [value.double() for value in (gap, text.ratio_max, -text.ratio_min, latents.ratio_max, -latents.ratio_min)]
        )
        self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the whole optimizer step: means over all its tokens, whatever the accumulation and the ranks."""
        if self._sums is None or self._extremes is None or self._step_began is None:
            return
        norm = self.gradient_norm()
        sums, extremes = self.reduced(self._sums), self._extremes
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
        (
            loss, text_loss, latent_loss, kl, decisions, latents, ratios, latent_ratios, high, low, dual, latent_high,
            latent_low, latent_dual, entropy, words, slot_entropy, slots, trained,
        ) = sums  # fmt: skip
        gap, ratio_max, ratio_min, latent_ratio_max, latent_ratio_min = extremes.tolist()
        seconds = time.perf_counter() - self._step_began
        # Every name at every step, NaN where there was nothing: Lightning logs the last value of a name again.
        logs = {
            "train/policy_loss": text_loss,
            "train/kl": ratio(kl, decisions),
            "train/entropy": ratio(entropy, words),
            "train/continue_entropy": ratio(slot_entropy, slots),
            "train/ratio": ratio(ratios, decisions),
            "train/ratio_max": ratio_max if decisions else math.nan,
            "train/ratio_min": -ratio_min if decisions else math.nan,
            "train/clip_high": ratio(high, decisions),
            "train/clip_low": ratio(low, decisions),
            "train/dual_clip": ratio(dual, decisions),
            "train/decisions": decisions,
            "train/log_prob_gap": gap,
            "train/grad_norm": norm,
            "train/update_seconds": seconds,
            "train/tokens_per_second": trained / seconds,
            "train/lr": float(optimizer.param_groups[0]["lr"]),
        }
        if self._has_latent_term:
            logs |= {
                "train/latent_loss": latent_loss,
                "train/latents": latents,
                "train/latent_ratio": ratio(latent_ratios, latents),
                "train/latent_ratio_max": latent_ratio_max if latents else math.nan,
                "train/latent_ratio_min": -latent_ratio_min if latents else math.nan,
                "train/latent_clip_high": ratio(latent_high, latents),
                "train/latent_clip_low": ratio(latent_low, latents),
                "train/latent_dual_clip": ratio(latent_dual, latents),
            }
        self._sums, self._extremes, self._step_began = None, None, None
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict(logs)
        # The rollout batch that this step trains on
        shown = ("reward/total", "reward/accuracy")
        self.log_dict({name: value for name, value in self._statistics.items() if name in shown}, prog_bar=True)
        self.log_dict({name: value for name, value in self._statistics.items() if name not in shown})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is logged about the rollout batch that is trained on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollout_statistics"] = dict(self._statistics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put it back."""
        super().on_load_checkpoint(checkpoint)
        self._statistics = dict(checkpoint.get("rollout_statistics", {}))

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, batch: PromptBatch) -> None:
        """Greedy answers, with latents as predicted, scored by every reward part."""
        self._check_batch(batch, PromptBatch)
        rollout = self._sampler().generate(
            batch, max_new_tokens=self.hparams["max_new_tokens"], budget=self._budget(), seed=self.hparams["seed"]
        )
        texts = transcripts(rollout, self.processor.tokenizer)
        output = self._rewarded(rollout, texts, batch.meta)
        columns = {
            **output.parts,
            "reward": output.total,
            "response_length": rollout.response_mask.sum(dim=1),
            "spans": torch.tensor([float(len(text.spans)) for text in texts], device=self.device),
        }
        if "accuracy" in columns:
            # The share that is right: the reward charges repetition on top, with -1.
            accuracy = columns["accuracy"]
            columns["accuracy"] = torch.where(accuracy.isfinite(), (accuracy >= 1).to(accuracy.dtype), accuracy)
        for name, values in columns.items():
            values = values.double()
            known = values.isfinite()
            sums = torch.stack([values[known].sum(), known.sum().double()]).cpu()
            self._evaluation[name] = self._evaluation.get(name, torch.zeros_like(sums)) + sums

    def _log_evaluation(self, prefix: str) -> None:
        # A rank without samples has no names of its own.
        names = sorted({*self.reward.rewards, "reward", "response_length", "spans"})
        zero = torch.zeros(2, dtype=torch.float64)
        values = self.reduced(torch.cat([self._evaluation.get(name, zero) for name in names]))
        self._evaluation = {}
        logs = {
            f"{prefix}/{name}": total / known
            for name, total, known in zip(names, values[::2], values[1::2], strict=True)
            if known
        }
        self.log_dict(logs, prog_bar=prefix != "val")
        if prefix == "val" and "val/accuracy" in logs:
            # a name without a slash, for file names
            self.log("val_accuracy", logs["val/accuracy"], prog_bar=True, logger=False)

    def on_validation_start(self) -> None:
        """Take the time, and the current weights to decode with."""
        super().on_validation_start()
        self._refresh()

    def on_test_start(self) -> None:
        """Take the current weights to decode with."""
        self._refresh()

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Greedy accuracy, and every other reward part, on held-out prompts."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log validation means over all ranks."""
        self._log_evaluation("val")

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """The same as validation, on the test split."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log test means over all ranks."""
        self._log_evaluation("test")


def drop_samples(file: Path, number: int) -> None:
    """Cut written rollouts back to those of rollout batches before `number`, and a line that was cut off."""
    if not file.is_file():
        return
    # Bytes, because texts may hold other characters that end a line for `str`.
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["rollout_batch"] < number]
    if len(kept) < len(lines):
        write_whole(file, b"".join(kept))


def ratio(total: float, count: float) -> float:
    """`total / count`, NaN where there is nothing to count."""
    return total / count if count else math.nan


def frozen_copy(reasoner: LatentReasoner, dtype: torch.dtype | None = None) -> LatentReasoner:
    """A copy in eval mode (in `dtype`) that takes no gradient and shares every parameter that is not trained."""
    shared: dict[int, Any] = {id(p): p for p in reasoner.parameters() if not p.requires_grad}
    shared[id(reasoner.processor)] = reasoner.processor
    copied = copy.deepcopy(reasoner, shared)
    if dtype is not None:
        copied = copied.to(dtype)
    return copied.requires_grad_(False).eval()
