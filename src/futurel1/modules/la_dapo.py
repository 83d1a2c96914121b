"""LA-DAPO, reinforcement learning of latent trajectories, as a LightningModule."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from futurel1.data import PromptBatch
from futurel1.errors import ConfigError
from futurel1.losses import PolicyLoss
from futurel1.models import HeadKind, LatentReasoner
from futurel1.models.policies import LatentPolicy, VonMisesFisherLatents
from futurel1.modules import adapters
from futurel1.modules.base import ReasonerModule
from futurel1.modules.optimization import Part, Schedule
from futurel1.modules.optimizers import chosen_optimizer
from futurel1.modules.policy_statistics import EvaluationStatistics, StepStatistics
from futurel1.modules.settings import settings_of
from futurel1.recipes import keep_recipe, object_of
from futurel1.rewards import CompositeReward
from futurel1.rollout import Experience, GroupSampler, PolicyModels, RolloutSettings, SampleLog, SamplingSettings
from futurel1.rollout.policy_models import rollout_scores
from futurel1.runs import DTYPES

logger = logging.getLogger(__name__)


class LADAPOModule(ReasonerModule):
    """LA-DAPO (Future-L1, arXiv 2606.05769, Section 3.3): group-relative policy optimization of text and latents.

    Each prompt gets `num_rollouts` responses. These are rewarded, filtered by group and trained on with a clipped
    objective; see :class:`futurel1.rollout.RolloutCollector` and :class:`futurel1.losses.PolicyLoss`. The Trainer's
    ``accumulate_grad_batches`` is the number of micro-batches per minibatch and device, whatever the number of groups
    in each. Defaults are the paper's; ``futurel1 fit --config configs/tiny/la_dapo.yaml`` shows a small run.

    Args:
        backbone: checkpoint folder, hub name, or ``tiny``; from Python also a loaded :class:`LatentReasoner`.
        init_from: start weights instead of `backbone`'s, and the reference of the KL: an SFT run's folder, its Hugging
            Face export, or a checkpoint (with the low bits of fp32 masters), LoRA merged. To continue a run exactly,
            use ``--resume`` instead.
        dtype: dtype of the weights in memory, whatever the stored dtype.
        compute_dtype: dtype in which sharded weights (``ModelParallelStrategy``, FSDP2) are gathered, computed with and
            sampled from, and exports are written; None: `dtype`. Without sharding, use ``trainer.precision``.
        attn_implementation: attention of `transformers` (sdpa, eager).
        projection_head: ``none``, ``swiglu``, ``lvr`` or ``constant``; None keeps the checkpoint's.
        projection_hidden_dim: width inside a ``swiglu`` head; None keeps the checkpoint's.
        reward: reward of rollouts; None: the paper's (`CompositeReward.preset("paper")`).
        latent_policy: how latents are sampled; None: ``VonMisesFisherLatents()``. With ``DeterministicLatents`` there
            is no latent term.
        rollout: how rollout batches are collected and used.
        sampling: how responses are sampled.
        objective: the clipped objective and its weights; with ``kl_weight`` 0 no reference is kept.
        log_samples_every: write the rollouts of every n-th rollout batch to `rollouts.jsonl`; 0: never.
        freeze: parts not to train, among ``vision``, ``merger``, ``llm``, ``head``.
        optimizer: class and settings of the optimizer; None: AdamW. Rates, betas and decay are those below.
        learning_rate: learning rate.
        vision_learning_rate: rate of the vision tower; None: `learning_rate`.
        merger_learning_rate: rate of the mergers; None: `learning_rate`.
        betas: betas of AdamW, and of every optimizer that has two.
        weight_decay: decay of matrices; norms and biases are not decayed.
        lr_schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        warmup_ratio: share of all steps used for linear warm-up.
        lora_rank: rank of LoRA adapters in the language model; 0 for none. With adapters, the reference is the model
            without them, and takes no memory.
        lora_alpha: LoRA scale, divided by the rank.
        lora_dropout: dropout before the adapters.
        lora_targets: pattern of module names that get an adapter.
        gradient_checkpointing: recompute activations in backward.
        reduce_once: exchange gradients of sharded weights (``ModelParallelStrategy``) once per optimizer step, not in
            every micro-batch; between, each device holds all gradients, 4 bytes per trained weight.
        liger_kernel: run norms and MLPs of the language model on Liger's kernels on CUDA; never on CPU.

    Raises:
        ConfigError: settings that contradict each other.
    """

    # Evaluation decodes with an unsharded copy, so ranks may have different numbers of batches, or none.
    sharded_steps: ClassVar[tuple[str, ...]] = ("training_step",)
    sampler: GroupSampler

    def __init__(
        self,
        backbone: str | LatentReasoner = "tiny",
        init_from: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        attn_implementation: str = "sdpa",
        projection_head: HeadKind | None = None,
        projection_hidden_dim: int | None = None,
        reward: CompositeReward | None = None,
        latent_policy: LatentPolicy | None = None,
        rollout: RolloutSettings = RolloutSettings(),  # noqa: B008 (frozen)
        sampling: SamplingSettings = SamplingSettings(),  # noqa: B008 (frozen)
        objective: PolicyLoss = PolicyLoss(),  # noqa: B008 (frozen)
        log_samples_every: int = 0,
        freeze: list[Part] = ["vision", "merger"],  # noqa: B006 (never changed; a tuple cannot be written in YAML)
        optimizer: OptimizerCallable | None = None,
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
        reduce_once: bool = False,
        liger_kernel: bool = False,
    ) -> None:
        super().__init__()
        backbone = self.take(backbone)
        self.save_hyperparameters(ignore=["reward", "latent_policy", "optimizer"])
        self.make_optimizer = chosen_optimizer(self.hparams, optimizer)
        reward = object_of(CompositeReward, "reward", reward)
        latent_policy = object_of(LatentPolicy, "latent_policy", latent_policy)
        keep_recipe(self.hparams, "reward", reward)
        keep_recipe(self.hparams, "latent_policy", latent_policy)
        self.check_dtypes()
        self.rollout = settings_of(self.hparams, "rollout", rollout, RolloutSettings)
        self.sampling = settings_of(self.hparams, "sampling", sampling, SamplingSettings)
        self.objective = settings_of(self.hparams, "objective", objective, PolicyLoss)
        if log_samples_every < 0:
            raise ConfigError(f"log_samples_every must be at least 0, got {log_samples_every}")
        if lora_dropout and not self.rollout.is_on_policy:
            logger.warning("lora_dropout=%s makes importance ratios noisy: set it to 0", lora_dropout)
        self.reward = reward or CompositeReward.preset("paper")
        self.rollout.check_filter(self.reward.rewards)
        self.latent_policy = latent_policy or VonMisesFisherLatents()
        self._step: StepStatistics | None = None
        self._rollout_statistics: dict[str, float] = {}
        self._evaluation = self._new_evaluation()
        self._sample_log: SampleLog | None = None

    # ------------------------------------------------------------------ the model

    def before_sharding(self) -> None:
        """Freeze a head that would not learn, and refuse start weights that cannot be the reference."""
        if self.reasoner.processor is None:
            raise ConfigError("reinforcement learning reads and rewards text: the checkpoint needs a tokenizer")
        self._freeze_idle_head()

    def after_sharding(self) -> None:
        """Keep the start weights as reference, and for sharding also an unsharded copy to sample from."""
        trainer: Any = getattr(self, "_trainer", None)
        sharded = trainer is not None and self.device_mesh is not None
        models = PolicyModels(
            self.reasoner,
            with_reference=self.objective.kl_weight > 0 and not (trainer is not None and trainer.evaluating),
            adapters=self.lora,
            stock=self.stock if sharded else None,
            sampling_dtype=DTYPES[self.hparams["compute_dtype"] or self.hparams["dtype"]],
        )
        self.sampler = GroupSampler(
            models, self.reward, self.latent_policy, self.rollout, self.sampling, self._precision_context
        )

    def _precision_context(self) -> AbstractContextManager[Any]:
        attached = getattr(self, "_trainer", None) is not None
        return self.trainer.precision_plugin.forward_context() if attached else nullcontext()

    def _freeze_idle_head(self) -> None:
        """Freeze a head without gradient: weight decay alone would change it, and DDP would wait for its gradients."""
        head = self.reasoner.projection_head
        if any(p.requires_grad for p in head.parameters()) and not self._has_latent_term:
            policy = type(self.latent_policy).__name__
            logger.info("no gradient reaches the projection head (%s, latent_weight): it is frozen", policy)
            head.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in self.reasoner.parameters()):
                raise ConfigError(
                    f"nothing to train: freeze={self.hparams['freeze']} leaves the projection head, which learns from "
                    f"latents alone, but latent_policy={policy} with latent_weight={self.objective.latent_weight} "
                    "has no latent term"
                )

    @cached_property
    def _has_latent_term(self) -> bool:
        """Whether latents enter the loss: with a weight, and a density that depends on the prediction."""
        with torch.enable_grad():
            density = self.latent_policy.log_prob(torch.ones(1, 2), torch.ones(1, 2, requires_grad=True))
        return bool(self.objective.latent_weight) and density.requires_grad

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Refuse prediction before anything is loaded."""
        if stage == "predict":
            raise ConfigError(
                "LADAPOModule makes no predictions: use LatentPredictor, with model.init_args.init_from the run folder"
            )

    def predict_step(self, *args: Any) -> Any:
        """Not supported; defined because Lightning checks for it before :meth:`setup` can refuse."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Open the sample log, whose first entry replaces those of an interrupted run after its checkpoint."""
        file = Path(self.trainer.default_root_dir) / "rollouts.jsonl"
        self._sample_log = SampleLog(file, self.hparams["log_samples_every"])

    def log_samples(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Append the rollouts of a rollout batch to `rollouts.jsonl` in the run folder (rank 0's share)."""
        if self._sample_log is not None and self.global_rank == 0:
            self._sample_log.write(number, records)

    def on_train_start(self) -> None:
        """Refuse epochs that end within an optimizer step, which would then miss micro-batches."""
        super().on_train_start()
        self._step = None
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
        """Loss of one micro-batch, divided by the tokens of its whole optimizer step."""
        self._check_batch(batch, Experience)
        self._step = self._step or StepStatistics()
        if batch.statistics:
            self._rollout_statistics = dict(batch.statistics)
            if "rollout/tokens" in batch.statistics:
                self._rollout_statistics["rollout/tokens_per_second"] = (
                    batch.statistics["rollout/tokens"] / batch.statistics["rollout/seconds"]
                )
        scores = rollout_scores(self.reasoner, batch)
        output = batch.loss(self.objective, scores)
        self._step.add(batch, scores, output, batch.mask)
        # The total covers all micro-batches and ranks; undo the Trainer's division by accumulation and world size.
        loss: Tensor = output.loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)
        return loss

    @staticmethod
    def _check_batch(batch: Any, wanted: type) -> None:
        if not isinstance(batch, wanted):
            raise ConfigError(
                f"LADAPOModule got a {type(batch).__name__} in place of a {wanted.__name__}: use it with "
                "RolloutPromptDataModule, or LatentSFTModule for SFT"
            )

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the whole optimizer step, and the rollout batch that it trains on."""
        if self._step is None:
            return
        logs = {"train/grad_norm": self.gradient_norm(), "train/lr": float(optimizer.param_groups[0]["lr"])}
        logs |= self._step.logs(self.reduced, latent_term=self._has_latent_term)
        self._step = None
        self.log("train/loss", logs.pop("train/loss"), prog_bar=True)
        self.log_dict(logs)
        shown = ("reward/total", "reward/accuracy")
        statistics = self._rollout_statistics
        self.log_dict({name: value for name, value in statistics.items() if name in shown}, prog_bar=True)
        self.log_dict({name: value for name, value in statistics.items() if name not in shown})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the statistics of the current rollout batch."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollout_statistics"] = dict(self._rollout_statistics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the statistics of the current rollout batch."""
        super().on_load_checkpoint(checkpoint)
        self._rollout_statistics = dict(checkpoint.get("rollout_statistics", {}))

    # ------------------------------------------------------------------ evaluation

    def _new_evaluation(self) -> EvaluationStatistics:
        return EvaluationStatistics([*self.reward.rewards, "reward", "response_length", "spans"])

    def _evaluate(self, batch: PromptBatch) -> None:
        """Greedy answers, scored by every reward part."""
        self._check_batch(batch, PromptBatch)
        self._evaluation.add(self.sampler.answer_greedily(batch))

    def _log_evaluation(self, prefix: str) -> None:
        logs = {f"{prefix}/{name}": value for name, value in self._evaluation.means(self.reduced).items()}
        self._evaluation = self._new_evaluation()
        accuracy = {name: value for name, value in logs.items() if name == f"{prefix}/accuracy"}
        self.log_reduced(accuracy, prog_bar=True)
        self.log_reduced({n: value for n, value in logs.items() if n not in accuracy}, prog_bar=prefix != "val")
        if prefix == "val":
            # a name without a slash, for file names
            self.log_reduced({name.replace("/", "_"): value for name, value in accuracy.items()}, logger=False)

    def on_validation_start(self) -> None:
        """Note the time, and refresh the weights to decode with."""
        super().on_validation_start()
        self._evaluation = self._new_evaluation()  # a validation that an error ended leaves some in the old one
        self.sampler.models.refresh()

    def on_test_start(self) -> None:
        """Refresh the weights to decode with."""
        self.sampler.models.refresh()

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Greedy accuracy and all other reward parts on held-out prompts."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log validation means over all ranks."""
        self._log_evaluation("val")
        super().on_validation_epoch_end()

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Like validation, on the test split."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log test means over all ranks."""
        self._log_evaluation("test")
