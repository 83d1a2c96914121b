"""Base of all training modules: loading and preparing the model, the optimizer, exact resumes, the export."""

import logging
import time
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.models import LatentReasoner, TrainingRun, load_processor
from futurel1.modules import adapters
from futurel1.modules.exact_resume import ExactResumeModule
from futurel1.modules.lazy_reasoner import LazyReasonerModule
from futurel1.modules.optimization import Part, freeze_parts, parameter_groups, schedule_factor, total_steps
from futurel1.runs import DTYPES, start_checkpoint, start_folder

logger = logging.getLogger(__name__)


class ReasonerModule(LazyReasonerModule, ExactResumeModule):
    """Base of the training modules.

    The constructor of a subclass has the hyper-parameters of :class:`LatentSFTModule` for start weights, frozen parts,
    LoRA and the optimizer.
    """

    sharded_steps: ClassVar[tuple[str, ...]] = adapters.STEPS
    """Steps that compute with sharded weights, so all ranks have to call them equally often."""

    def __init__(self) -> None:
        super().__init__()
        self._adapted: tuple[Any, ...] = ()  # the peft model, in a tuple so that it is not a submodule
        self._window_began = self._validation_began = time.perf_counter()

    def check_dtypes(self) -> None:
        """Raise a `ConfigError` unless `dtype` and `compute_dtype` are known."""
        dtype, compute_dtype = self.hparams["dtype"], self.hparams["compute_dtype"]
        if dtype not in DTYPES or (compute_dtype or dtype) not in DTYPES:
            raise ConfigError(f"dtype and compute_dtype are among {sorted(DTYPES)}, got {dtype!r}, {compute_dtype!r}")

    # ------------------------------------------------------------------ the model

    @cached_property
    def processor(self) -> Any:
        """The processor of the checkpoint, loaded without its weights."""
        if self._given:
            return self._given[0].processor
        return load_processor(start_folder(self.hparams["backbone"], self.hparams["init_from"]))

    def configure_model(self) -> None:
        """Load and prepare the model once, inside the strategy's context."""
        if hasattr(self, "reasoner"):
            return
        hparams = self.hparams
        reasoner = self.given_reasoner() or LatentReasoner.from_pretrained(
            start_folder(hparams["backbone"], hparams["init_from"]),
            dtype=DTYPES[hparams["dtype"]],
            attn_implementation=hparams["attn_implementation"],
            projection_head=hparams["projection_head"],
            projection_hidden_dim=hparams["projection_hidden_dim"],
        )
        self.adjust_settings(reasoner)
        attached = getattr(self, "_trainer", None) is not None
        mesh: Any = self.device_mesh if attached else None
        sharded = mesh is not None
        if hparams["lora_rank"] and sharded:
            raise ConfigError("LoRA with sharded weights (ModelParallelStrategy) cannot be exported; use strategy: ddp")
        if hparams["lora_rank"]:
            adapted = adapters.add_lora(
                reasoner,
                rank=hparams["lora_rank"],
                alpha=hparams["lora_alpha"],
                dropout=hparams["lora_dropout"],
                targets=hparams["lora_targets"],
            )
            self._adapted = (adapted,)
        freeze_parts(reasoner, hparams["freeze"])
        if hparams["gradient_checkpointing"]:
            adapters.enable_gradient_checkpointing(reasoner)
        if hparams["liger_kernel"]:
            adapters.apply_liger(reasoner, self.trainer.strategy.root_device if attached else self.device)
        self.reasoner = reasoner
        checkpoint = start_checkpoint(hparams["init_from"])
        if checkpoint is not None:
            self._load_start_weights(checkpoint)
        self.reasoner.train()
        # Buffers are constants. DDP would broadcast them in every step, also in evaluation, where ranks with unequal
        # numbers of batches would then deadlock.
        ddp: Any = DistributedDataParallel
        ddp._set_params_and_buffers_to_ignore_for_model(self, [name for name, _ in self.named_buffers()])
        self.before_sharding()
        if sharded:
            compute_dtype = DTYPES[hparams["compute_dtype"] or hparams["dtype"]]
            adapters.shard(self, reasoner, mesh["data_parallel"], compute_dtype, self.sharded_steps)

    def adjust_settings(self, reasoner: LatentReasoner) -> None:
        """Change the settings that exports store; by default those of the start checkpoint stay."""

    def before_sharding(self) -> None:
        """Hook for work that needs the whole start weights, such as copies; does nothing by default."""

    def _load_start_weights(self, file: Path) -> None:
        if not file.is_file():
            raise MissingFileError(f"init_from: no checkpoint file {file}")
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        own = self.state_dict()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise CheckpointError(
                f"init_from: {file} was trained with another model, LoRA or head ({len(odd)} weights differ, e.g. "
                f"{odd[0]}); give the settings it was trained with, or its Hugging Face export"
            )
        self.load_state_dict(state)

    # ------------------------------------------------------------------ starting and resuming

    def on_train_start(self) -> None:
        """Switch to training mode: `from_pretrained` returns eval mode, and `fit` keeps it."""
        super().on_train_start()
        self.train()
        # A resumed run may have another number of steps: apply the new schedule's rates from its first step.
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            rates = [
                base * at(schedule.last_epoch) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self._window_began = time.perf_counter()

    # ------------------------------------------------------------------ logging

    def on_validation_start(self) -> None:
        """Note the time, so that validation does not count as training time."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self) -> None:
        """Exclude validation time from the training throughput."""
        super().on_validation_end()
        self._window_began += time.perf_counter() - self._validation_began

    def gradient_norm(self) -> float:
        """Norm of all gradients, gathered where weights are sharded."""
        norm: Any = torch.nn.utils.get_total_norm([p.grad for p in self.reasoner.parameters() if p.grad is not None])
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def reduced(self, values: Tensor, *, maximum: bool = False) -> list[float]:
        """Sum float64 numbers over all ranks, or take their maxima."""
        if self.trainer.world_size > 1:
            # NCCL reduces only tensors on its device
            values = values.to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
            operation = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
            torch.distributed.all_reduce(values, op=operation)
        numbers: list[float] = values.cpu().tolist()
        return numbers

    # ------------------------------------------------------------------ optimizer

    def configure_optimizers(self) -> Any:
        """AdamW by part, and a schedule over the run's optimizer steps, as Lightning's dictionary."""
        hparams = self.hparams
        rate = hparams["learning_rate"]
        trained = [p for p in self.reasoner.parameters() if p.requires_grad]
        half = [p for p in trained if p.dtype in (torch.bfloat16, torch.float16)]
        if half:
            logger.warning(
                "%d trained weights are %s, which cannot hold steps below 1/256 of a weight: most updates are lost. "
                "Use dtype: float32 with trainer.precision bf16-mixed, or compute_dtype with ModelParallelStrategy",
                sum(p.numel() for p in half), half[0].dtype,
            )  # fmt: skip
        rates: dict[Part, float] = {
            "vision": rate if hparams["vision_learning_rate"] is None else hparams["vision_learning_rate"],
            "merger": rate if hparams["merger_learning_rate"] is None else hparams["merger_learning_rate"],
            "llm": rate,
            "head": rate,
        }
        groups = parameter_groups(self.reasoner, learning_rates=rates, weight_decay=hparams["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=tuple(hparams["betas"]))
        factor = schedule_factor(hparams["lr_schedule"], self._total_steps(), hparams["warmup_ratio"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        return total_steps(self.trainer)

    # ------------------------------------------------------------------ export

    def export(self, folder: str | Path, *, training: TrainingRun | None = None) -> Path:
        """Write the model in the format of `transformers` and :meth:`LatentReasoner.from_pretrained`.

        LoRA adapters are merged into the weights and also written separately, to `adapter/`. Sharded weights are
        gathered; every rank has to call this.

        Args:
            folder: folder to write.
            training: the run, for the model card.

        Returns:
            The folder.
        """
        folder = Path(folder)
        sharded = getattr(self, "_trainer", None) is not None and self.device_mesh is not None
        state = adapters.gathered_state(self.reasoner) if sharded else None
        if self.global_rank == 0:
            for adapted in self._adapted:
                adapters.save_adapter(adapted, folder / "adapter")
                adapters.merged(adapted, self.reasoner).save_pretrained(folder, training=training)
            if not self._adapted:
                self.reasoner.save_pretrained(folder, state_dict=state, training=training)
        return folder
