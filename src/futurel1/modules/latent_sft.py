"""Supervised latent training as a LightningModule."""

import math
import os
import time
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from futurel1.data import SFTBatch
from futurel1.errors import ConfigError
from futurel1.losses import (
    Alignment,
    CrossEntropyPath,
    LatentFeedback,
    LatentGradient,
    LatentSFTLoss,
    LatentSFTOutput,
    hint_retrieval,
)
from futurel1.models import HeadKind, LatentReasoner
from futurel1.modules import adapters
from futurel1.modules.base import ReasonerModule
from futurel1.modules.optimization import Part, Schedule
from futurel1.modules.optimizers import chosen_optimizer


class LatentSFTModule(ReasonerModule):
    """Latent SFT (Future-L1, arXiv 2606.05769, Section 3): token cross entropy plus latent alignment.

    Defaults are the paper's; ``futurel1 fit --config configs/tiny/sft.yaml`` shows a small run.

    Args:
        backbone: checkpoint folder, hub name, or ``tiny``; from Python also a loaded :class:`LatentReasoner`.
        init_from: start weights instead of `backbone`'s: a run folder, its Hugging Face export, or a checkpoint (with
            the low bits of fp32 masters), LoRA merged. To continue a run exactly, use ``--resume`` instead.
        dtype: dtype of the weights in memory, whatever the stored dtype.
        compute_dtype: dtype in which sharded weights (``ModelParallelStrategy``, FSDP2) are gathered and computed with,
            and exports are written; None: `dtype`. Without sharding, use ``trainer.precision``.
        attn_implementation: attention of `transformers` (sdpa, eager, flash_attention_2).
        projection_head: ``none``, ``swiglu``, ``lvr`` or ``constant``; None keeps the checkpoint's.
        projection_hidden_dim: width inside a ``swiglu`` head; None keeps the checkpoint's.
        latent_weight: lambda, weight of the alignment term.
        alignment: ``mse`` or ``cosine``.
        latent_feedback: ``teacher`` (true features as inputs), ``mixed`` (a share of rows reads its own latents) or
            ``self`` (all rows do).
        feedback_share: final share of rows that read their own latents in ``mixed``.
        feedback_start: optimizer step at which this share begins to grow from 0.
        feedback_ramp: number of optimizer steps over which it grows linearly to `feedback_share`; 0: at once.
        feedback_passes: number of parallel passes that compute own latents.
        latent_gradient: ``stop`` or ``pathwise`` (gradient through the fed latents of the last pass).
        cross_entropy: ``auto``, ``liger``, ``torch`` or ``chunked``.
        packing: run the records of a padded batch end to end in one row, without their padding; same loss and
            gradients. Needs a backbone without recurrent layers, and sdpa attention (eager would compute all pairs).
        continuation_weight: weight of -log(1 - p(END)) before each latent, which teaches the model not to end spans
            early; 0: the paper's objective, with which spans may end at once unless decoding fixes their length.
        freeze: parts not to train, among ``vision``, ``merger``, ``llm``, ``head``.
        optimizer: class and settings of the optimizer; None: AdamW. Rates, betas and decay are those below.
        learning_rate: learning rate.
        vision_learning_rate: rate of the vision tower; None: `learning_rate`.
        merger_learning_rate: rate of the mergers; None: `learning_rate`.
        betas: betas of AdamW, and of every optimizer that has two.
        weight_decay: decay of matrices; norms and biases are not decayed.
        lr_schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        warmup_ratio: share of all steps used for linear warm-up.
        lora_rank: rank of LoRA adapters in the language model; 0 for none.
        lora_alpha: LoRA scale, divided by the rank.
        lora_dropout: dropout before the adapters.
        lora_targets: pattern of module names that get an adapter.
        gradient_checkpointing: recompute activations in backward.
        reduce_once: exchange gradients of sharded weights (``ModelParallelStrategy``) once per optimizer step, not in
            every micro-batch; between, each device holds all gradients, 4 bytes per trained weight.
        liger_kernel: run norms and MLPs of the language model on Liger's kernels on CUDA; never on CPU.
        max_latent_tokens: L_max stored in exported checkpoints; None: the data module's or else the start checkpoint's.
        fixed_latents: whether exported checkpoints decode exactly `max_latent_tokens` latents per span; None: the data
            module's setting or else the start checkpoint's.
        max_hint_tokens: most visual tokens of a hint frame before they are pooled, stored in exported checkpoints;
            None: the data module's or else the start checkpoint's.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        backbone: str | LatentReasoner = "tiny",
        init_from: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        attn_implementation: str = "sdpa",
        projection_head: HeadKind | None = None,
        projection_hidden_dim: int | None = None,
        latent_weight: float = 0.1,
        alignment: Alignment = "mse",
        latent_feedback: LatentFeedback = "teacher",
        feedback_share: float = 0.75,
        feedback_start: int = 0,
        feedback_ramp: int = 0,
        feedback_passes: int = 2,
        latent_gradient: LatentGradient = "stop",
        cross_entropy: CrossEntropyPath = "auto",
        packing: bool = False,
        continuation_weight: float = 0.0,
        freeze: list[Part] = ["vision", "merger"],  # noqa: B006 (never changed; a tuple cannot be written in YAML)
        optimizer: OptimizerCallable | None = None,
        learning_rate: float = 1e-5,
        vision_learning_rate: float | None = None,
        merger_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        lr_schedule: Schedule = "cosine",
        warmup_ratio: float = 0.1,
        lora_rank: int = 0,
        lora_alpha: int = 32,
        lora_dropout: float = 0.0,
        lora_targets: str = adapters.LANGUAGE_MODEL_LINEARS,
        gradient_checkpointing: bool = False,
        reduce_once: bool = False,
        liger_kernel: bool = False,
        max_latent_tokens: int | None = None,
        fixed_latents: bool | None = None,
        max_hint_tokens: int | None = None,
    ) -> None:
        super().__init__()
        backbone = self.take(backbone)
        self.save_hyperparameters(ignore=["optimizer"])
        self.make_optimizer = chosen_optimizer(self.hparams, optimizer)
        if not 0 <= feedback_share <= 1:
            raise ConfigError(f"feedback_share must be between 0 and 1, got {feedback_share}")
        self.check_dtypes()
        self.objective = LatentSFTLoss(
            latent_weight, alignment, latent_feedback, feedback_passes, latent_gradient, cross_entropy, packing,
            continuation_weight,
        )  # fmt: skip
        # Not submodules: they have no state and would only lengthen the model summary.
        self._evaluators: dict[LatentFeedback, LatentSFTLoss] = {
            feedback: LatentSFTLoss(
                latent_weight, alignment, feedback, feedback_passes, cross_entropy=cross_entropy, packing=packing
            )
            for feedback in ("teacher", "self")
        }
        self._train_sums: Tensor | None = None
        self._eval_sums: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Fill span settings that were not given with those of the data module.

        Raises:
            ConfigError: in training, model and data contradict each other.
        """
        data = getattr(self.trainer, "datamodule", None)
        settled = {name: self.hparams[name] for name in ("max_latent_tokens", "fixed_latents", "max_hint_tokens")}
        for name, own in settled.items():
            theirs = None if data is None else data.hparams.get(name)
            if stage == "fit" and None not in (own, theirs) and own != theirs:
                raise ConfigError(
                    f"data.{name} is {theirs} but model.{name} is {own}: the exported checkpoint would decode with "
                    "another span budget than it was trained with; leave the model's out"
                )
            settled[name] = theirs if own is None else own
        self.save_hyperparameters(settled)  # so that checkpoints contain them
        if hasattr(self, "reasoner"):
            self.adjust_settings(self.reasoner)

    def adjust_settings(self, reasoner: LatentReasoner) -> None:
        """Set the latent settings of exported checkpoints to those used in training."""
        reasoner.settings = reasoner.settings.trained(self.hparams)

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Begin without sums of an optimizer step that was not finished."""
        super().on_train_start()
        self._train_sums = None

    def on_validation_start(self) -> None:
        """Begin without sums of a validation that was not finished."""
        super().on_validation_start()
        self._eval_sums = None

    def current_feedback_share(self) -> float:
        """Share of rows that read their own latents at this optimizer step."""
        start, ramp = self.hparams["feedback_start"], self.hparams["feedback_ramp"]
        if self.global_step < start:
            return 0.0
        grown = 1.0 if ramp == 0 else min(1.0, (self.global_step - start + 1) / ramp)
        return float(self.hparams["feedback_share"]) * grown

    def training_step(self, batch: SFTBatch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, divided by the totals of its whole optimizer step."""
        accumulate, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if batch.total_tokens is None and accumulate * world > 1:
            raise ConfigError(
                "batches without total_tokens under gradient accumulation or several ranks: a mean of micro-batch "
                "means is not the mean over tokens. Load data with a futurel1 datamodule, or set total_tokens and "
                "total_latents of every SFTBatch"
            )
        # Each epoch and each seed of `seed_everything` chooses other rows to read their own latents.
        salt = int(os.environ.get("PL_GLOBAL_SEED", "0")) * 1_000_003 + self.current_epoch
        output = self.objective(self.reasoner, batch, feedback_share=self.current_feedback_share(), salt=salt)
        sums = self._sums(output, batch)
        self._train_sums = sums if self._train_sums is None else self._train_sums + sums
        # The totals cover all micro-batches and ranks; undo the Trainer's division by accumulation and world size.
        loss: Tensor = output.loss * (accumulate * world)
        return loss

    def _sums(self, output: LatentSFTOutput, batch: SFTBatch) -> Tensor:
        """(8,) float64 sums, additive over micro-batches and ranks."""
        cosine = nn.functional.cosine_similarity(output.predicted.float(), output.target.float(), dim=-1).sum()
        numbers = (
            output.ce_sum, output.latent_sum, cosine, output.num_tokens, output.num_latents, len(batch),
            int((batch.attention_mask != 0).sum()), output.continuation_sum,
        )  # fmt: skip
        return torch.tensor([float(number) for number in numbers], dtype=torch.float64)

    def _means(self, values: list[float]) -> dict[str, float]:
        ce_sum, latent_sum, cosine, tokens, latents, samples, _, continuation_sum = values[:8]
        ce, latent = ce_sum / max(1.0, tokens), latent_sum / max(1.0, latents)
        continuation = continuation_sum / max(1.0, latents)
        hparams = self.hparams
        means = {
            "loss": ce + hparams["latent_weight"] * latent + hparams["continuation_weight"] * continuation, "ce": ce,
        }  # fmt: skip
        if latents:
            means |= {"latent": latent, "cosine": cosine / latents, "continuation": continuation}
        means["latents_per_sample"] = latents / max(1.0, samples)
        return means

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log means over all tokens of the optimizer step, across micro-batches and ranks."""
        norm = self.gradient_norm()
        if self._train_sums is None:
            return
        values = self.reduced(self._train_sums)
        self._train_sums = None
        now = time.perf_counter()
        elapsed, self._window_began = now - self._window_began, now
        logs = {f"train/{name}": value for name, value in self._means(values).items()}
        logs["train/grad_norm"] = norm
        logs["train/tokens_per_second"] = values[6] / elapsed
        logs["train/lr"] = float(optimizer.param_groups[0]["lr"])
        if self.hparams["latent_feedback"] == "mixed":
            logs["train/feedback_share"] = self.current_feedback_share()
        self.log("train/loss", logs.pop("train/loss"), prog_bar=True)
        self.log_dict(logs)

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, batch: SFTBatch) -> None:
        teacher = self._evaluators["teacher"](self.reasoner, batch)
        # True features as inputs reveal the rest of a frame after its first token, and the next frame after this one.
        # Only the model's own latents show whether it imagined a frame.
        own = self._evaluators["self"](self.reasoner, batch)
        retrieved = hint_retrieval(own.predicted, own.target, own.span)
        hints = len(retrieved)
        extra = [float(own.ce_sum), float(retrieved.sum()), float(hints), float(min(1, hints))]
        sums = torch.cat([self._sums(teacher, batch), torch.tensor(extra, dtype=torch.float64)])
        self._eval_sums = sums if self._eval_sums is None else self._eval_sums + sums

    def _log_evaluation(self, prefix: str) -> None:
        sums = torch.zeros(12, dtype=torch.float64) if self._eval_sums is None else self._eval_sums
        self._eval_sums = None
        values = self.reduced(sums)
        logs = self._means(values)
        own_ce, retrieved, hints, batches = values[8:]
        if hints:
            logs["ce_own_latents"] = own_ce / max(1.0, values[3])
            logs["retrieval"] = retrieved / hints
            logs["retrieval_chance"] = batches / hints
        loss = logs.pop("loss")
        self.log_reduced({f"{prefix}/loss": loss}, prog_bar=True)
        self.log_reduced({f"{prefix}/{name}": value for name, value in logs.items()}, prog_bar=prefix != "val")
        if prefix == "val":
            self.log_reduced({"val_loss": loss}, logger=False)  # a name without a slash, for file names

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:
        """Teacher-forced loss, and with the model's own latents, cross entropy and retrieval of the true hint.

        Retrieval is the share of imagined hints whose nearest true hint in the batch is their own.
        """
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log validation means over all ranks."""
        self._log_evaluation("val")
        super().on_validation_epoch_end()

    def test_step(self, batch: SFTBatch, batch_idx: int) -> None:
        """Like validation, on the test split."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log test means over all ranks."""
        self._log_evaluation("test")

    def predict_step(self, batch: SFTBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Teacher-forced scores of every record.

        Returns:
            Per record, `id` (file and number), `record_id` (the record's own `id`), `ce` (nats per token), `latent`
            (alignment error) and `cosine`.
        """
        scores = {
            name: column.tolist() for name, column in self._evaluators["teacher"].scores(self.reasoner, batch).items()
        }
        return [
            {
                "id": sample,
                "record_id": batch.record_ids[row] if batch.record_ids else None,
                **{name: None if math.isnan(column[row]) else column[row] for name, column in scores.items()},
            }
            for row, sample in enumerate(batch.sample_ids)
        ]
