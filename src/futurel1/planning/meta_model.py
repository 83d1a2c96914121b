"""Models on the meta device: all shapes, no memory, nothing downloaded."""

import logging
from pathlib import Path
from typing import Any

import torch

from futurel1.errors import MissingFileError
from futurel1.models import LatentReasoner
from futurel1.models.backbones.random_weights import SHAPES, is_random
from futurel1.models.checkpoint_folders import TINY
from futurel1.runs import Start, find_start

logger = logging.getLogger(__name__)


def meta_reasoner(hparams: Any, dtype: torch.dtype) -> LatentReasoner:
    """A reasoner of the shape of a checkpoint.

    Args:
        hparams: hyper-parameters of a module, of which this reads what its start weights are, its attention, and its
            projection head. A checkpoint is a folder; a published name such as ``Qwen/Qwen3-VL-8B-Instruct``, of which
            no file is needed; or a name with random weights.
        dtype: dtype of the weights.

    Raises:
        MissingFileError: a checkpoint that is not here, and whose shape is not known either.
    """
    start = _start(hparams["backbone"], hparams["init_from"])
    attention = hparams["attn_implementation"]
    head, width = (hparams.get(name) or start.last(name) for name in ("projection_head", "projection_hidden_dim"))
    with torch.device("meta"):
        return LatentReasoner.from_pretrained(
            _with_shape(start.folder),
            dtype=dtype,
            # both are fused kernels, which keep the same tensors; the package of the former needs a GPU
            attn_implementation="sdpa" if attention.startswith("flash_attention") else attention,
            projection_head=head,
            projection_hidden_dim=width,
            with_weights=False,
        )


def _start(backbone: str, init_from: str | None) -> Start:
    """What a model is loaded from, or will be when a run has written it."""
    if init_from is None:
        return Start(backbone)
    if Path(init_from).exists():
        return find_start(backbone, init_from)
    if is_random(init_from) or _published(init_from):
        return Start(init_from)
    logger.warning("%s is not here: the plan is for a model of the shape of %s", init_from, backbone)
    return Start(backbone)


def _with_shape(name: str) -> str:
    """A folder, or a name of random weights, with the shape of a checkpoint."""
    if name == TINY or is_random(name) or Path(name).expanduser().is_dir():
        return name
    shape = _published(name)
    if shape is not None:
        return f"{shape}@random"
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise MissingFileError(
            f"{name} is not on this machine, and a plan downloads nothing; give a folder that has it, or one of the "
            f"shapes that are known, {', '.join(f'{shape}@random' for shape in SHAPES)}"
        ) from error


def _published(name: str) -> str | None:
    """The published shape that a hub name names."""
    own = name.rpartition("/")[2].lower()
    return next((shape for shape in SHAPES if own.startswith(f"{shape}-") or own == shape), None)
