"""Resolve run folders, checkpoints and names to weights, and load models from them."""

import logging
import os
import zipfile
from pathlib import Path
from typing import Literal

import torch

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.models import LatentReasoner
from futurel1.models.checkpoint_folders import TINY, TINY_RANDOM

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPORT_FOLDER = "huggingface"
"""Folder inside a run folder that holds the Hugging Face export."""


def load_reasoner(
    model: str, *, dtype: Dtype = "auto", device: str = "auto", attn_implementation: str = "sdpa"
) -> LatentReasoner:
    """Load a model for decoding onto its device, in eval mode; each process of a launcher gets its own GPU.

    Args:
        model: run folder, checkpoint folder, hub name, ``tiny`` or ``tiny-random``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 on a GPU, float32 on a CPU.
        device: ``cpu``, ``cuda``, another device, or ``auto``: a GPU where there is one.
        attn_implementation: attention of `transformers`.

    Raises:
        ConfigError: an unknown dtype, a device that does not work, or a model without a tokenizer.
        CheckpointError: a run without a Hugging Face export, or a damaged checkpoint.
        MissingFileError: there is no such model.
    """
    place = usable_device(device, f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    name = ("bfloat16" if place.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ConfigError(f"dtype is auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    own = model in (TINY, TINY_RANDOM)
    reasoner = LatentReasoner.from_pretrained(
        exported_folder(model, None if own else model), dtype=DTYPES[name], attn_implementation=attn_implementation
    )
    if reasoner.processor is None:
        raise ConfigError(f"{model} has no tokenizer; give a folder that has one")
    return reasoner.to(place)


def usable_device(device: str, cuda: str = "cuda") -> str:
    """Resolve an option `--device` to a device, and check that it works.

    Args:
        device: name of a device; ``auto``: a GPU if there is one, else the CPU.
        cuda: the GPU to use for ``auto`` and ``cuda``.

    Raises:
        ConfigError: there is no such device, or it does not work.
    """
    if device == "auto":
        device = cuda if torch.cuda.is_available() else "cpu"
    elif device == "cuda":
        device = cuda
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: there is no usable GPU; leave --device out, or say cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError) as error:
        sentence = str(error).splitlines()[0].split(". ")[0]
        raise ConfigError(f"--device {device}: {sentence}") from error
    return device


def start_checkpoint(init_from: str | None) -> Path | None:
    """The Lightning checkpoint that `init_from` refers to; None if it is a Hugging Face folder or None.

    For a run folder without an export (of a killed run), this is its newest checkpoint.
    """
    if init_from is None:
        return None
    start = Path(init_from)
    if start.suffix == ".ckpt":
        return start
    has_weights = (start / EXPORT_FOLDER).is_dir() or (start / "config.json").is_file()
    return newest_checkpoint(start) if not has_weights and (start / "checkpoints").is_dir() else None


def start_folder(backbone: str, init_from: str | None) -> str:
    """Folder or name that configuration, processor and (without a checkpoint) weights come from."""
    if init_from is None or start_checkpoint(init_from) is not None:
        return backbone
    export = Path(init_from) / EXPORT_FOLDER
    return str(export) if export.is_dir() else init_from


def exported_folder(backbone: str, init_from: str | None) -> str:
    """Like :func:`start_folder`, for callers that only decode and cannot read Lightning checkpoints.

    Raises:
        CheckpointError: `init_from` has its weights only in a Lightning checkpoint.
    """
    checkpoint = start_checkpoint(init_from)
    if checkpoint is not None:
        raise CheckpointError(
            f"{init_from} has no Hugging Face export, only {checkpoint.name} (the run was stopped before its end?); "
            "finish it with `futurel1 fit --resume`, which exports it"
        )
    return start_folder(backbone, init_from)


def newest_checkpoint(run: Path) -> Path:
    """The newest readable checkpoint of a run folder; damaged newer ones are logged.

    Raises:
        MissingFileError: there is no checkpoint.
        CheckpointError: all checkpoints are damaged.
    """
    found = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    if not found:
        raise MissingFileError(f"{run}/checkpoints has no *.ckpt; the run ended before its first checkpoint")
    for file in found:
        # A truncated file lacks the directory at the end of its zip archive; a sharded checkpoint its metadata.
        if (file / ".metadata").is_file() if file.is_dir() else zipfile.is_zipfile(file):
            return file
        logger.warning("%s is damaged (the run was killed while it was written?): trying an older checkpoint", file)
    raise CheckpointError(f"all checkpoints in {run}/checkpoints are damaged: {[file.name for file in found]}")
