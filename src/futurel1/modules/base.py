"""Base of all training modules: loading and preparing the model, the optimizer, exact resumes, the export."""

import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from futurel1.errors import ConfigError
from futurel1.folders import replacing_folder
from futurel1.models import LatentReasoner, TrainingRun, load_processor
from futurel1.models.checkpoints import is_stale
from futurel1.models.lora import LoRAAdapters
from futurel1.models.whole_weights import skeleton, whole_state
from futurel1.modules import adapters
from futurel1.modules.exact_resume import ExactResumeModule
from futurel1.modules.lazy_reasoner import LazyReasonerModule
from futurel1.modules.optimization import (
    Part,
    freeze_parts,
    group_settings,
    parameter_groups,
    schedule_factor,
    total_steps,
)
from futurel1.modules.optimizer_states import put_together, take_apart
from futurel1.modules.optimizers import make_optimizer, optimizer_name
from futurel1.modules.training_run import KEY, run_note
from futurel1.modules.weights_check import require_same_weights
from futurel1.runs import DTYPES, export_dtype, find_start

logger = logging.getLogger(__name__)

_SHAPING = ("backbone", "freeze", "lora_rank", "lora_targets", "projection_head", "projection_hidden_dim")
"""Hyper-parameters that determine which weights there are and which are trained."""


class ReasonerModule(LazyReasonerModule, ExactResumeModule):
    """Base of the training modules.

    The constructor of a subclass has the hyper-parameters of :class:`LatentSFTModule` for start weights, frozen parts,
    LoRA and the optimizer, and sets `make_optimizer` with :func:`futurel1.modules.optimizers.chosen_optimizer`.
    """

    sharded_steps: ClassVar[tuple[str, ...]] = adapters.STEPS
    """Steps that compute with sharded weights, so all ranks have to call them equally often."""

    def __init__(self) -> None:
        super().__init__()
        self.make_optimizer: OptimizerCallable | None = None  # None: AdamW
        self._lora: tuple[LoRAAdapters, ...] = ()
        self._stock: tuple[LatentReasoner, ...] = ()  # in a tuple so that it is not a submodule
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
        return load_processor(find_start(self.hparams["backbone"], self.hparams["init_from"]).folder)

    def configure_model(self) -> None:
        """Load and prepare the model once, inside the strategy's context."""
        if hasattr(self, "reasoner"):
            return
        hparams = self.hparams
        attached = getattr(self, "_trainer", None) is not None
        mesh: Any = self.device_mesh if attached else None
        sharded = mesh is not None
        dtype = DTYPES[hparams["dtype"]]
        if attached and self.trainer.world_size > 1:  # new weights, of adapters or a head, are the same on all ranks
            torch.set_rng_state(self.trainer.strategy.broadcast(torch.get_rng_state()))
        # Weights in their stored dtype are pages of their files: a rank that shards them holds no copy of its own.
        reasoner = self.given_reasoner() or find_start(hparams["backbone"], hparams["init_from"]).load(
            dtype=None if sharded else dtype,
            attn_implementation=hparams["attn_implementation"],
            projection_head=hparams["projection_head"],
            projection_hidden_dim=hparams["projection_hidden_dim"],
        )
        self.adjust_settings(reasoner)
        self.prepare(reasoner, self.trainer.strategy.root_device if attached else self.device)
        self.reasoner = reasoner
        self.reasoner.train()
        # Buffers are constants. DDP would broadcast them in every step, also in evaluation, where ranks with unequal
        # numbers of batches would then deadlock.
        ddp: Any = DistributedDataParallel
        ddp._set_params_and_buffers_to_ignore_for_model(self, [name for name, _ in self.named_buffers()])
        self.before_sharding()
        if sharded or self._lora:
            self._stock = (skeleton(reasoner, dtype, self.lora),)
        if sharded:
            self._shard(reasoner, mesh)
        self.after_sharding()

    def prepare(self, reasoner: LatentReasoner, device: torch.device) -> None:
        """Add adapters to a loaded model, freeze its parts, and choose how its layers run on `device`."""
        hparams = self.hparams
        if hparams["lora_rank"]:
            lora = {name: hparams[f"lora_{name}"] for name in ("rank", "alpha", "dropout", "targets")}
            self._lora = (LoRAAdapters(reasoner, **lora),)
        freeze_parts(reasoner, hparams["freeze"])
        if hparams["gradient_checkpointing"]:
            adapters.enable_gradient_checkpointing(reasoner)
        if hparams["liger_kernel"]:
            adapters.apply_liger(reasoner, device)

    def _shard(self, reasoner: LatentReasoner, mesh: Any) -> None:
        dtype, compute_dtype = self.hparams["dtype"], self.hparams["compute_dtype"]
        adapters.shard(
            self,
            reasoner,
            # Lightning calls the devices of a node tensor-parallel: here they hold the shards.
            mesh if mesh["tensor_parallel"].size() > 1 else mesh["data_parallel"],
            device=self.trainer.strategy.root_device,
            dtype=DTYPES[dtype],
            trained_dtype=torch.float32 if self._lora else DTYPES[dtype],
            compute_dtype=DTYPES[compute_dtype or dtype],
            steps=self.sharded_steps,
        )

    @property
    def lora(self) -> LoRAAdapters | None:
        """The model's LoRA adapters; None without them, and before the model is loaded."""
        return self._lora[0] if self._lora else None

    @property
    def stock(self) -> LatentReasoner | None:
        """A sharded or adapted model without its adapters and weights; None for other models."""
        return self._stock[0] if self._stock else None

    def adjust_settings(self, reasoner: LatentReasoner) -> None:
        """Change the settings that exports store; by default those of the start checkpoint stay."""

    def before_sharding(self) -> None:
        """Hook for changes of what is trained; does nothing by default."""

    def after_sharding(self) -> None:
        """Hook for work with the start weights where they will stay, such as copies; does nothing by default."""

    @property
    def _resumes(self) -> bool:
        """Whether a checkpoint that is loaded now goes on training."""
        return getattr(self, "_trainer", None) is not None and self.trainer.training

    def _check_fits(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint whose weights or optimizer state do not fit this module."""
        then: Mapping[str, Any] = checkpoint.get("hyper_parameters", {})
        both = [name for name in _SHAPING if name in then and name in self.hparams]
        pairs = ((name, _listed(then[name]), _listed(self.hparams[name])) for name in both)
        changed = ", ".join(f"{name}: {before!r} -> {now!r}" for name, before, now in pairs if before != now)
        reason = f" ({changed})" if changed else ""
        require_same_weights(checkpoint, self.state_dict(), reason)
        if self._resumes and checkpoint.get("optimizer_states"):
            before, now = (optimizer_name(hparams.get("optimizer")) for hparams in (then, self.hparams))
            if before != now:
                raise ConfigError(
                    f"the checkpoint's optimizer is {before}, and this run's is {now}, which cannot use its state; "
                    "resume with the same one, or start a new run from these weights (model.init_from)"
                )
            stored = checkpoint["optimizer_states"][0]["param_groups"]
            trained = {group["name"]: len(group["params"]) for group in stored}
            trains = {group["name"]: len(group["params"]) for group in self._parameter_groups()}
            if trained != trains:
                raise ConfigError(
                    f"the checkpoint's optimizer trained {_counted(trained)}, and this run would train "
                    f"{_counted(trains)}{reason}; frozen parts cannot change within a run: start a new one from these "
                    "weights (model.init_from)"
                )

    # ------------------------------------------------------------------ starting and resuming

    def on_train_start(self) -> None:
        """Switch to training mode, because `from_pretrained` returns eval mode, and `fit` keeps it."""
        super().on_train_start()
        self.train()
        self._window_began = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what an export of the checkpoint says about the run, and the optimizer's state as plain tensors."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = take_apart(checkpoint["optimizer_states"])
        checkpoint[KEY] = run_note(self.trainer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or to train other weights than it did; go on where it was taken."""
        if hasattr(self, "reasoner"):
            self._check_fits(checkpoint)
        if "optimizer_states" in checkpoint and self._resumes:
            checkpoint["optimizer_states"] = put_together(checkpoint["optimizer_states"])
        super().on_load_checkpoint(checkpoint)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """With `reduce_once`, exchange gradients of sharded weights only in the last micro-batch of a step."""
        super().on_train_batch_start(batch, batch_idx)
        sharded: Any = self
        if self.hparams["reduce_once"] and self.device_mesh is not None:
            sharded.set_requires_gradient_sync(not self.trainer.fit_loop.epoch_loop._should_accumulate())

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
        """The optimizer by part, and a schedule over the run's optimizer steps, as Lightning's dictionary."""
        hparams = self.hparams
        trained = [p for p in self.reasoner.parameters() if p.requires_grad]
        half = [p for p in trained if p.dtype in (torch.bfloat16, torch.float16)]
        if half:
            logger.warning(
                "%d trained weights are %s, which cannot hold steps below 1/256 of a weight: most updates are lost. "
                "Use dtype: float32 with trainer.precision bf16-mixed, or compute_dtype with ModelParallelStrategy",
                sum(p.numel() for p in half), half[0].dtype,
            )  # fmt: skip
        optimizer = make_optimizer(
            self.make_optimizer,
            self._parameter_groups(),
            learning_rate=hparams["learning_rate"],
            betas=tuple(hparams["betas"]),
        )
        self._optimizer_settings = group_settings(optimizer)
        factor = schedule_factor(hparams["lr_schedule"], total_steps(self.trainer), hparams["warmup_ratio"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        hparams = self.hparams
        rate = hparams["learning_rate"]
        rates: dict[Part, float] = {
            "vision": rate if hparams["vision_learning_rate"] is None else hparams["vision_learning_rate"],
            "merger": rate if hparams["merger_learning_rate"] is None else hparams["merger_learning_rate"],
            "llm": rate,
            "head": rate,
        }
        return parameter_groups(self.reasoner, learning_rates=rates, weight_decay=hparams["weight_decay"])

    # ------------------------------------------------------------------ export

    def export(self, folder: str | Path, *, training: TrainingRun | None = None) -> Path:
        """Write the model in the format of `transformers` and :meth:`LatentReasoner.from_pretrained`.

        Weights are written in `compute_dtype` (None: `dtype`). LoRA adapters are merged into them and also written
        separately, to `adapter/`. Sharded weights are gathered; every rank has to call this.

        Args:
            folder: folder to write.
            training: the run, for the model card.

        Returns:
            The folder.
        """
        folder, stock, lora = Path(folder), self.stock, self.lora
        dtype, keep = export_dtype(self.hparams), self.global_rank == 0
        if stock is None:  # neither sharded nor adapted
            return self.reasoner.save_pretrained(folder, dtype=dtype, training=training) if keep else folder
        adapter = None if lora is None else lora.state()
        state = whole_state(self.reasoner, stock, dtype, keep=keep)
        if not keep:
            return folder
        stock.settings = self.reasoner.settings
        with replacing_folder(folder, drops=is_stale) as whole:
            if lora is not None and adapter is not None:
                lora.save(whole / "adapter", adapter, state)
            stock.save_pretrained(whole, state_dict=state, dtype=dtype, training=training)
        return folder


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # YAML has no tuples


def _counted(groups: Mapping[str, int]) -> str:
    return ", ".join(f"{number} weights of {name}" for name, number in groups.items())
