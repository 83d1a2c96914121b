"""Resolve run folders, checkpoints and names to weights, and load models from them."""

import json
import logging
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.folders import standing
from futurel1.launch import Launch
from futurel1.models import LatentReasoner
from futurel1.models.backbones.random_weights import is_random
from futurel1.models.checkpoint_folders import TINY
from futurel1.models.model_card import CARD_FILE
from futurel1.trainer_checkpoints import read_checkpoint

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
        model: run folder, checkpoint folder, hub name, ``tiny``, or random weights such as ``qwen3-vl-8b@random``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 on a GPU, float32 on a CPU.
        device: ``cpu``, ``cuda``, another device, or ``auto``: a GPU where there is one.
        attn_implementation: attention of `transformers`.

    Raises:
        ConfigError: an unknown dtype, a device that does not work, or a model without a tokenizer.
        CheckpointError: a run without a Hugging Face export, or a damaged checkpoint.
        MissingFileError: there is no such model.
    """
    place = usable_device(device, own_gpu(Launch.detect().local_rank))
    name = ("bfloat16" if place.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ConfigError(f"dtype is auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    own = model == TINY or is_random(model)
    reasoner = LatentReasoner.from_pretrained(
        exported_folder(model, None if own else model), dtype=DTYPES[name], attn_implementation=attn_implementation
    )
    if reasoner.processor is None:
        raise ConfigError(f"{model} has no tokenizer; give a folder that has one")
    return reasoner.to(place)


def own_gpu(local_rank: int) -> str:
    """The GPU of a process of a launcher.

    Args:
        local_rank: number of the process on its node. A launcher may show each process one GPU, its own, as number 0.
    """
    return f"cuda:{0 if torch.cuda.device_count() == 1 else local_rank}"


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

    For a run folder without a whole export (of a killed run), this is its newest checkpoint.
    """
    if init_from is None:
        return None
    start = Path(init_from)
    if start.suffix == ".ckpt":
        return start
    if (start / "config.json").is_file() or not (start / "checkpoints").is_dir():
        return None
    export = standing(start / EXPORT_FOLDER)
    if export.is_dir():
        if is_whole_export(export) or not any((start / "checkpoints").glob("*.ckpt")):
            return None
        logger.warning("%s is not whole (the run was killed while it was written?): taking a checkpoint", export)
    return newest_checkpoint(start)


def is_whole_export(folder: Path) -> bool:
    """Whether an export has its configuration, all its weights to the last byte, and what is written after them.

    Exports of this version are whole, because they are renamed when they are; a killed run of an earlier version may
    have left a part.
    """
    try:
        json.loads((folder / "config.json").read_bytes())
        index = folder / "model.safetensors.index.json"
        named = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ["model.safetensors"]
        for file in {folder / name for name in named} | set(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt"):  # compares the file's size with its header
                pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return False
    return any((folder / name).is_file() for name in ("tokenizer_config.json", CARD_FILE))


def start_folder(backbone: str, init_from: str | None) -> str:
    """Folder or name that configuration, processor and (without a checkpoint) weights come from."""
    if init_from is None or start_checkpoint(init_from) is not None:
        return backbone
    export = standing(Path(init_from) / EXPORT_FOLDER)
    return str(export) if export.is_dir() else init_from


def exported_folder(backbone: str, init_from: str | None) -> str:
    """Like :func:`start_folder`, for callers that only decode and cannot read Lightning checkpoints.

    Raises:
        CheckpointError: `init_from` has its weights only in a Lightning checkpoint.
    """
    checkpoint = start_checkpoint(init_from)
    if checkpoint is not None and str(checkpoint) == str(Path(str(init_from))):
        raise CheckpointError(
            f"{init_from} is a checkpoint to train from, and decoding needs the run's Hugging Face export; give the "
            "run folder, whose huggingface/ has it"
        )
    if checkpoint is not None:
        raise CheckpointError(
            f"{init_from} has no Hugging Face export, only {checkpoint.name} (the run was stopped before its end?); "
            "finish it with `futurel1 fit --resume`, which exports it"
        )
    return start_folder(backbone, init_from)


def newest_checkpoint(run: Path) -> Path:
    """The readable checkpoint of a run folder with the most optimizer steps; damaged ones are logged.

    The steps are those that a checkpoint stores. File times and names do not count: copies lose times, and a run that
    was resumed may leave ``last-v1.ckpt`` beside an older ``last.ckpt``. Checkpoints that Lightning writes before SLURM
    requeues a job (``hpc_ckpt_1.ckpt``) count too. Of equal ones, the one that was written last is taken.

    Raises:
        MissingFileError: there is no checkpoint.
        CheckpointError: all checkpoints are damaged.
    """
    found = [*(run / "checkpoints").glob("*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
    if not found:
        raise MissingFileError(f"{run} has no checkpoints/*.ckpt; the run ended before its first checkpoint")
    steps: dict[Path, tuple[int, int, str]] = {}
    reason = ""
    for file in found:
        try:
            steps[file] = (_stored_step(file), file.stat().st_mtime_ns, file.name)
        except CheckpointError as error:
            logger.warning("passed over, perhaps the run was killed while it was written: %s", error)
            reason = str(error)
    if not steps:
        names = sorted(file.name for file in found)
        raise CheckpointError(f"all checkpoints of {run} are damaged, {names}: {reason}")
    return max(steps, key=lambda file: steps[file])


def _stored_step(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint stores.

    A checkpoint of sharded weights is a folder, which is whole if it has its metadata; its own state is in `meta.pt`.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    try:
        if file is not checkpoint and not (checkpoint / ".metadata").is_file():
            raise CheckpointError(f"{checkpoint} is damaged: it has no .metadata")
        return int(read_checkpoint(file)["global_step"])
    except (MissingFileError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint} is damaged ({error!r})") from error
