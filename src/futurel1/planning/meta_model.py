"""Models on the meta device: all shapes, no memory, nothing downloaded."""

import torch

from futurel1.errors import MissingFileError
from futurel1.models import HeadKind, LatentReasoner
from futurel1.models.backbones.random_weights import SHAPES, is_random
from futurel1.models.checkpoint_folders import checkpoint_folder


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
    if not is_random(name):
        try:
            checkpoint_folder(name)
        except MissingFileError:
            shape = _published(name)
            if shape is None:
                raise
            name = f"{shape}@random"
    with torch.device("meta"):
        return LatentReasoner.from_pretrained(
            name, dtype=dtype, attn_implementation=attn_implementation, projection_head=head, with_weights=False
        )


def _published(name: str) -> str | None:
    """The published shape that a hub name names."""
    own = name.rpartition("/")[2].lower()
    return next((shape for shape in SHAPES if own.startswith(f"{shape}-") or own == shape), None)
