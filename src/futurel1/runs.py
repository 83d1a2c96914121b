"""Resolve run folders, checkpoints and names to weights, and load models from them."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from futurel1.checkpoint_files import META_FILE, is_sharded
from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.folders import standing
from futurel1.launch import Launch
from futurel1.models import HeadKind, LatentReasoner
from futurel1.models.backbones.random_weights import is_random
from futurel1.models.checkpoint_folders import TINY
from futurel1.models.model_card import CARD_FILE
from futurel1.stored_weights import StoredWeights
from futurel1.trainer_checkpoints import read_checkpoint

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPORT_FOLDER = "huggingface"
"""Folder inside a run folder that holds the Hugging Face export."""
_LONGEST_LINEAGE = 20
"""Runs that started from each other's checkpoints; more are a circle."""


def load_reasoner(
    model: str, *, dtype: Dtype = "auto", device: str = "auto", attn_implementation: str = "sdpa"
) -> LatentReasoner:
    """Load a model for decoding onto its device, in eval mode; each process of a launcher gets its own GPU.

    Args:
        model: run folder, checkpoint folder, hub name, ``tiny``, random weights such as ``qwen3-vl-8b@random``, or a
            Trainer's checkpoint.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 on a GPU, float32 on a CPU.
        device: ``cpu``, ``cuda``, another device, or ``auto``: a GPU where there is one.
        attn_implementation: attention of `transformers`.

    Raises:
        ConfigError: an unknown dtype, a device that does not work, or a model without a tokenizer.
        CheckpointError: a damaged checkpoint.
        MissingFileError: there is no such model.
    """
    place = usable_device(device, own_gpu(Launch.detect().local_rank))
    name = ("bfloat16" if place.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ConfigError(f"dtype is auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    start = model_start(model)
    reasoner = start.load(dtype=DTYPES[name], attn_implementation=attn_implementation)
    if reasoner.processor is None:
        raise ConfigError(f"{model} has no tokenizer; give a folder that has one")
    return reasoner.to(place)


def model_start(model: str) -> "Start":
    """What a model is loaded from, by the name that :func:`load_reasoner` takes.

    Raises:
        CheckpointError: a damaged checkpoint.
        MissingFileError: there is no such model.
    """
    return Start(model) if model == TINY or is_random(model) else find_start("", model)


def export_dtype(hparams: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a run's exports, that in which it computes: low bits of master weights never reached an output.

    Args:
        hparams: hyper-parameters of the training module.
    """
    return DTYPES[hparams.get("compute_dtype") or hparams.get("dtype") or "float32"]


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


@dataclass(frozen=True)
class Start:
    """What a model is loaded from.

    Attributes:
        folder: folder or name that configuration and processor come from and, without a checkpoint, the weights.
        checkpoint: a Trainer's checkpoint with the weights.
        lineage: hyper-parameters of the runs that led from the folder to the checkpoint, in order.
    """

    folder: str
    checkpoint: Path | None = None
    lineage: tuple[Mapping[str, Any], ...] = ()

    def load(
        self,
        *,
        dtype: torch.dtype | None,
        attn_implementation: str = "sdpa",
        projection_head: HeadKind | None = None,
        projection_hidden_dim: int | None = None,
        progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    ) -> LatentReasoner:
        """Load the model, LoRA adapters merged: what an export of the checkpoint would be.

        Memory holds the model in `dtype`, and one weight (of shards: one shard of it) as it is stored. Of the folder,
        no weights are read.

        Args:
            dtype: dtype of the weights in memory. None: the stored one, in which weights are pages of their files
                (memory-mapped) until something changes them; merged ones and those of shards are held.
            attn_implementation: attention of `transformers`.
            projection_head: head to use; None: that of the checkpoint.
            projection_hidden_dim: width inside a ``swiglu`` head; None: that of the checkpoint.
            progress: wraps the names of the weights that are read from a checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged, or its weights are not those of its configuration.
            MissingFileError: there is no such folder.
        """
        try:
            reasoner = LatentReasoner.from_pretrained(
                self.folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                projection_head=projection_head or self.last("projection_head"),
                projection_hidden_dim=projection_hidden_dim or self.last("projection_hidden_dim"),
                with_weights=self.checkpoint is None,
            )
        except MissingFileError as error:
            if self.checkpoint is None:
                raise
            raise MissingFileError(
                f"{self.checkpoint} was trained from {self.folder}, which is not here: {error}; or name that folder "
                "anew, and use what `futurel1 export --backbone FOLDER` writes"
            ) from error
        for hparams in self.lineage:
            reasoner.settings = reasoner.settings.trained(hparams)
        if self.checkpoint is not None:
            own, stored = reasoner.state_dict(), self.weights(reasoner)
            self._require_same_weights({name: tuple(weight.shape) for name, weight in own.items()}, stored.shapes)
            if dtype is None:
                tied = reasoner.backbone.ties_embeddings
                reasoner.load_state_dict({name: stored.read(name) for name in progress(list(own))}, assign=True)
                if tied:
                    reasoner.backbone.lm_head.weight = reasoner.backbone.model.get_input_embeddings().weight
                return reasoner
            for name in progress(list(own)):
                stored.copy_into(own[name], name)
        return reasoner

    def _require_same_weights(self, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if odd:
            raise CheckpointError(
                f"{self.checkpoint} was trained with another model, LoRA or head than that of {self.folder} "
                f"({len(odd)} weights differ, e.g. {odd[0]}: {there.get(odd[0])} there, {here.get(odd[0])} here); give "
                "the settings that it was trained with, or its Hugging Face export"
            )

    def weights(self, reasoner: LatentReasoner) -> StoredWeights:
        """The weights of the checkpoint.

        Args:
            reasoner: the model, for the tokens whose rows LoRA trains.
        """
        if self.checkpoint is None:
            raise ValueError(f"{self.folder} is no checkpoint of a Trainer")
        tokens = reasoner.tokens
        rows = (tokens.start_id, tokens.latent_id, tokens.end_id)
        return StoredWeights(self.checkpoint, alpha=self.last("lora_alpha") or 0, rows=rows)

    def last(self, name: str) -> Any:
        """A hyper-parameter of the last run that set it; None if none did."""
        return next((hparams[name] for hparams in reversed(self.lineage) if hparams.get(name) is not None), None)


def find_start(backbone: str, init_from: str | None) -> Start:
    """What a model is loaded from.

    Args:
        backbone: folder or name to start from without `init_from`.
        init_from: run folder, checkpoint folder, hub name or a Trainer's checkpoint.

    Raises:
        CheckpointError: a damaged checkpoint, or one that does not say what its run started from.
        MissingFileError: there is no such checkpoint.
    """
    checkpoint = start_checkpoint(init_from)
    if checkpoint is not None:
        return start_of(checkpoint, backbone)
    if init_from is None:
        return Start(backbone)
    export = standing(Path(init_from) / EXPORT_FOLDER)
    return Start(str(export) if export.is_dir() else init_from)


def start_of(checkpoint: Path, backbone: str, *, replaced: bool = False) -> Start:
    """What the model of a checkpoint is loaded from: the start of its run, and the checkpoint.

    Args:
        checkpoint: a Trainer's checkpoint, one file or a folder of shards.
        backbone: where configuration and processor come from if the checkpoint does not say.
        replaced: take them from `backbone` in any case.

    Raises:
        CheckpointError: a damaged checkpoint, or one that does not say what its run started from.
        MissingFileError: there is no such checkpoint.
    """
    lineage: list[Mapping[str, Any]] = []
    file: Path | None = checkpoint
    while file is not None:
        hparams = read_checkpoint(file).get("hyper_parameters", {})
        if not isinstance(hparams, Mapping) or len(lineage) == _LONGEST_LINEAGE:
            raise CheckpointError(f"{file} does not say what its run started from; give an export (huggingface/)")
        lineage.insert(0, hparams)
        file = None if replaced else start_checkpoint(hparams.get("init_from"))
    first = lineage[0]
    folder = backbone if replaced else find_start(first.get("backbone") or backbone, first.get("init_from")).folder
    if not folder:
        raise CheckpointError(
            f"{checkpoint} does not say which model its run started from, so configuration and processor are missing; "
            "write them beside its weights by `futurel1 export --backbone FOLDER`"
        )
    return Start(folder, checkpoint, tuple(lineage))


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


def newest_checkpoint(run: Path) -> Path:
    """The readable checkpoint of a run folder with the most optimizer steps; damaged ones are logged.

    The steps are those that a checkpoint stores. File times and names do not count: copies lose times, and a run that
    was resumed may leave ``last-v1.ckpt`` beside an older ``last.ckpt``. Checkpoints that Lightning writes before SLURM
    requeues a job (``hpc_ckpt_1.ckpt``) count too. Of equal ones, the one that was written last is taken. A link
    (``save_last: link``) counts as the checkpoint that it names, and as nothing once that one is removed.

    Raises:
        MissingFileError: there is no checkpoint.
        CheckpointError: all checkpoints are damaged.
    """
    named = [*(run / "checkpoints").glob("*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
    own = {file.resolve() for file in named if not file.is_symlink()}
    found = [file for file in named if not file.is_symlink() or (file.exists() and file.resolve() not in own)]
    if not found:
        raise MissingFileError(
            f"{run} has no checkpoints/*.ckpt: it is no run folder, or the run ended before its first checkpoint"
        )
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
    file = checkpoint / META_FILE if checkpoint.is_dir() else checkpoint
    try:
        if file is not checkpoint and not is_sharded(checkpoint):
            raise CheckpointError(f"{checkpoint} is damaged: its description is missing")
        return int(read_checkpoint(file)["global_step"])
    except (MissingFileError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint} is damaged ({error!r})") from error
