"""Preparation of a loaded model for training: Liger kernels, gradient checkpointing, sharding."""

import logging
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner

logger = logging.getLogger(__name__)

LANGUAGE_MODEL_LINEARS = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Linear layers of the language model, as a pattern over module names."""


def enable_gradient_checkpointing(reasoner: LatentReasoner) -> None:
    """Recompute activations in backward; latents are input embeddings, so the recomputation sees them too."""
    model, options = reasoner.backbone.model, {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.24
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


LIGER_NORMS = ("Qwen3VLTextRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen2RMSNorm")
LIGER_MLPS = ("Qwen3VLTextMLP", "Qwen2MLP")


def apply_liger(reasoner: LatentReasoner, device: torch.device) -> int:
    """Run the norms and MLPs of this model's language model on Liger's Triton kernels, on CUDA only.

    Only the modules of this model get another `forward`; classes and functions of `transformers` do not change
    (Liger's own `apply_liger_kernel_to_...` replaces them for the whole process, and in 0.8.5 fails to import under
    transformers 5.23). `futurel1.losses` fuses the token loss.

    Args:
        reasoner: the model, changed in place.
        device: device that the model will be trained on.

    Returns:
        Number of changed modules; on other devices than CUDA 0, with the reason in the log.

    Raises:
        ConfigError: liger-kernel is not installed, or the family has other norms.
    """
    if device.type != "cuda":
        logger.info("Liger kernels are Triton kernels for CUDA: not applied on %s", device.type)
        return 0
    try:
        from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu
    except ImportError as error:
        raise ConfigError(f"liger_kernel: true needs a working liger-kernel package: {error}") from error

    def norm(module: Any, hidden: Tensor) -> Tensor:
        out: Tensor = liger_rms_norm(hidden, module.weight, module.variance_epsilon)
        return out

    def mlp(module: Any, hidden: Tensor) -> Tensor:
        out: Tensor = module.down_proj(liger_swiglu(module.gate_proj(hidden), module.up_proj(hidden)))
        return out

    changed = 0
    for module in reasoner.backbone.language_model.modules():
        kernel = {**dict.fromkeys(LIGER_NORMS, norm), **dict.fromkeys(LIGER_MLPS, mlp)}.get(type(module).__name__)
        if kernel is not None:
            module.forward = MethodType(kernel, module)
            changed += 1
    if not changed:
        raise ConfigError(f"no Liger kernels fit {reasoner.backbone.stock_class}; set liger_kernel: false")
    logger.info("Liger kernels run %d norms and MLPs of %s", changed, reasoner.backbone.stock_class)
    return changed


STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def sharded_blocks(reasoner: LatentReasoner) -> tuple[list[nn.Module], set[nn.Parameter]]:
    """Transformer blocks that :func:`shard` makes a group of each, in order, and parameters that it leaves whole."""
    language_model: Any = reasoner.backbone.language_model
    tower: Any = reasoner.backbone.vision_tower
    if reasoner.vision_is_trainable:
        return [*tower.blocks, *language_model.layers], set()
    return list(language_model.layers), set(tower.parameters())


def shard(
    module: nn.Module,
    reasoner: LatentReasoner,
    mesh: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trained_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    steps: Sequence[str] = STEPS,
) -> None:
    """Shard a LightningModule and its reasoner with FSDP2, one group per transformer block.

    Each group is moved and cast just before it is sharded, so the device holds its shards and one whole group, and the
    host no copy of the weights that it read.

    A frozen vision tower is not sharded but cast to `compute_dtype`: it needs no gradients or optimizer state, and
    ranks may run it different numbers of times (a batch without images or hints), which would deadlock gathering. A
    trainable tower is sharded; then the batches of all ranks have to agree in whether they have images and hints.

    Args:
        module: the LightningModule; its steps become the root of the sharding, so the weights of every part of the
            model that runs within them are gathered.
        reasoner: the model inside it.
        mesh: one-dimensional: shards over all ranks; two-dimensional: the same shards along the first dimension, such
            as nodes, and parts of the weights along the second (HSDP).
        device: where shards are.
        dtype: dtype of the shards of frozen weights.
        trained_dtype: dtype of the shards of weights that are trained.
        compute_dtype: dtype of gathered weights; gradients are reduced in float32.
        steps: methods that compute with the sharded weights; all ranks have to call them equally often.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks, whole = sharded_blocks(reasoner)
    for parameter in whole:  # and no buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(device, compute_dtype)
    for part in (*blocks, module):
        for parameter in part.parameters():
            if parameter not in whole and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device, trained_dtype if parameter.requires_grad else dtype)
        fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=whole if part is module else None)
    for step in steps:
        register_fsdp_forward_method(module, step)
