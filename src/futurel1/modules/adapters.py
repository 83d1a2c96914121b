"""Preparation of a loaded model for training: LoRA, Liger kernels, gradient checkpointing, sharding."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner

logger = logging.getLogger(__name__)

LANGUAGE_MODEL_LINEARS = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Linear layers of the language model, as a pattern over module names."""


def add_lora(reasoner: LatentReasoner, *, rank: int, alpha: int, dropout: float, targets: str) -> Any:
    """Add LoRA adapters to the stock model with `peft` and freeze its other weights.

    The rows of the three latent tokens, in the embedding table and in `lm_head`, stay trainable through `peft`'s token
    adapters; otherwise a checkpoint that was never trained on these tokens could not learn when to start a span.

    Args:
        reasoner: the model, changed in place.
        rank: rank of the adapters.
        alpha: scale, divided by the rank.
        dropout: dropout before the adapters.
        targets: pattern of module names that get an adapter.

    Returns:
        The `peft` model, for saving and merging.
    """
    from peft import LoraConfig, get_peft_model

    rows = [reasoner.tokens.start_id, reasoner.tokens.latent_id, reasoner.tokens.end_id]
    tied = reasoner.backbone.ties_embeddings
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        trainable_token_indices={"embed_tokens": rows} if tied else {"embed_tokens": rows, "lm_head": rows},
    )
    try:
        adapted = get_peft_model(reasoner.backbone.model, config)
    except ValueError as error:
        raise ConfigError(f"lora_targets={targets!r} matches no linear layer of the model: {error}") from error
    reasoner.backbone.model = adapted.get_base_model()
    return adapted


def merged(adapted: Any, reasoner: LatentReasoner) -> LatentReasoner:
    """Copy a reasoner and merge the LoRA adapters of the copy into its stock weights.

    The copy has the adapted layers for itself and shares all other weights.

    Args:
        adapted: the `peft` model that :func:`add_lora` returned.
        reasoner: the model with adapters.
    """
    from peft.tuners.lora import LoraLayer

    changed = {id(layer.get_base_layer().weight) for layer in adapted.modules() if isinstance(layer, LoraLayer)}
    # Tables are shared, too: their adapters do not write into them but make new ones.
    shared: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in reasoner.parameters()
        if id(weight) not in changed
    }
    adapted, reasoner = copy.deepcopy((adapted, reasoner), shared)
    reasoner.backbone.model = adapted.merge_and_unload()
    return reasoner


def gathered_state(reasoner: LatentReasoner) -> dict[str, Tensor]:
    """Full weights of a sharded reasoner on rank 0's CPU (empty on other ranks); every rank has to call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {name: torch.as_tensor(value) for name, value in get_model_state_dict(reasoner, options=options).items()}


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write only the LoRA adapter, in the format of `peft`."""
    adapted.save_pretrained(folder, safe_serialization=True)


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


def shard(
    module: nn.Module, reasoner: LatentReasoner, mesh: Any, dtype: torch.dtype, steps: Sequence[str] = STEPS
) -> None:
    """Shard a LightningModule and its reasoner with FSDP2, one group per transformer block.

    A frozen vision tower is not sharded but cast to `dtype`: it needs no gradients or optimizer state, and ranks may
    run it different numbers of times (a batch without images or hints), which would deadlock gathering. A trainable
    tower is sharded; then the batches of all ranks have to agree in whether they have images and hints.

    Args:
        module: the LightningModule; its steps become the root of the sharding, so the weights of every part of the
            model that runs within them are gathered.
        reasoner: the model inside it.
        mesh: one-dimensional data-parallel device mesh.
        dtype: dtype of gathered weights; gradients are reduced in float32.
        steps: methods that compute with the sharded weights; all ranks have to call them equally often.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    tower: Any = reasoner.backbone.vision_tower
    language_model: Any = reasoner.backbone.language_model
    whole: set[nn.Parameter] = set()
    blocks = list(language_model.layers)
    if reasoner.vision_is_trainable:
        blocks += tower.blocks
    else:
        whole = set(tower.to(dtype).parameters())
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for step in steps:
        register_fsdp_forward_method(module, step)
