"""Models on the meta device: all shapes, no memory, nothing downloaded."""

from typing import Any

import torch

from futurel1.errors import CheckpointError, MissingFileError
from futurel1.models import HeadKind, LatentReasoner, LatentSettings, LatentTokens, load_processor
from futurel1.models.backbones import backbone_class
from futurel1.models.backbones.random_weights import SHAPES, is_random
from futurel1.models.checkpoint_folders import checkpoint_folder, model_type


def meta_reasoner(name: str, attn_implementation: str, head: HeadKind | None, dtype: torch.dtype) -> LatentReasoner:
    """A reasoner of the shape of a checkpoint.

    Args:
        name: a checkpoint folder; a published name such as ``Qwen/Qwen3-VL-8B-Instruct``, of which no file is
            needed; or a name with random weights.
        attn_implementation: attention of `transformers`.
        head: projection head; None keeps the checkpoint's.
        dtype: dtype of the weights.

    Raises:
        MissingFileError: no such folder, and no published shape of this name.
    """
    with torch.device("meta"):
        if is_random(name):
            return LatentReasoner.from_pretrained(
                name, dtype=dtype, attn_implementation=attn_implementation, projection_head=head
            )
        try:
            folder = checkpoint_folder(name)
        except MissingFileError:
            shape = _published(name)
            if shape is None:
                raise
            return meta_reasoner(f"{shape}@random", attn_implementation, head, dtype)
        return _of_folder(str(folder), attn_implementation, head, dtype)


def _published(name: str) -> str | None:
    """The published shape that a hub name names."""
    own = name.rpartition("/")[2].lower()
    return next((shape for shape in SHAPES if own.startswith(f"{shape}-") or own == shape), None)


def _of_folder(folder: str, attn_implementation: str, head: HeadKind | None, dtype: torch.dtype) -> LatentReasoner:
    import transformers

    adapter = backbone_class(model_type(checkpoint_folder(folder)))
    stock: Any = getattr(transformers, adapter.stock_class)
    config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    model = stock._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    settings = LatentSettings.from_config(config)
    if head is not None:
        settings = LatentSettings(**{**vars(settings), "projection_head_type": head})
    tokens = LatentTokens.from_config(config) or LatentTokens.from_tokenizer(load_processor(folder).tokenizer)
    if tokens is None:
        raise CheckpointError(f"{folder}: config.json and tokenizer have no latent tokens")
    return LatentReasoner(adapter(model), tokens, settings).to(dtype)
