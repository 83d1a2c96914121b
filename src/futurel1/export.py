"""The command `futurel1 export`: a Hugging Face folder of any checkpoint of a run, on one CPU machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from futurel1.errors import ConfigError, MissingFileError
from futurel1.folders import replacing_folder
from futurel1.full_disk import told_when_full
from futurel1.models import LatentReasoner
from futurel1.models.checkpoints import is_stale
from futurel1.models.lora import LoRAAdapters
from futurel1.progress import record_progress
from futurel1.runs import DTYPES, EXPORT_FOLDER, Start, export_dtype, newest_checkpoint, start_of
from futurel1.trainer_checkpoints import read_checkpoint

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """An export that was written.

    Attributes:
        folder: the folder.
        checkpoint: the checkpoint with its weights.
        step: optimizer steps that were taken.
        dtype: dtype of the weights.
        size: bytes of the folder's files.
    """

    folder: Path
    checkpoint: Path
    step: int
    dtype: str
    size: int

    def __str__(self) -> str:
        return f"{self.folder}: step {self.step} ({self.checkpoint.name}), {self.dtype}, {self.size / 1e6:,.1f} MB"


def export(
    run: str,
    out: str | None = None,
    checkpoint: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    backbone: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a checkpoint of a run as a Hugging Face folder, which transformers and futurel1 load.

    Any checkpoint will do, of a run that goes on, ended or was killed: one file, or the folder of shards that FSDP2
    writes. LoRA adapters are merged, and also written to `adapter/`. The folder is what the run's own export would have
    been, model card included; it gets its name when it is whole. No GPU is needed: memory holds the model once, in the
    dtype of the export, and one weight as it is stored.

    Args:
        run: run folder, or a checkpoint.
        out: folder to write (default: huggingface/ in the run folder).
        checkpoint: name of a checkpoint in the run folder, or its path (default: the one with the most steps).
        dtype: dtype of the weights; auto: that in which the run computes (its compute_dtype, or else its dtype).
        backbone: folder or hub name that configuration and processor come from (default: what the run started from).
        overwrite: replace an export or another checkpoint folder that exists.

    Raises:
        ConfigError: the folder exists, holds something else than a model, or cannot be written.
        CheckpointError: the checkpoint is damaged, or holds no model of a training module.
        MissingFileError: there is no such run, checkpoint or backbone.
        DiskFullError: there is no space left; nothing of the export stays.
    """
    file = _checkpoint(Path(run), checkpoint)
    folder = _place(Path(run), out)
    _check_place(folder, overwrite)
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype is auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    start = start_of(file, backbone or "", replaced=backbone is not None)
    wanted = export_dtype(start.lineage[-1]) if dtype == "auto" else DTYPES[dtype]
    from futurel1.modules.training_run import noted_run  # Lightning takes seconds to import

    training = noted_run(read_checkpoint(file))
    with record_progress() as bar:
        reasoner = start.load(dtype=wanted, progress=lambda names: bar.track(names, description="reading weights"))
    with told_when_full(folder, "nothing of the export was kept"), replacing_folder(folder, drops=is_stale) as whole:
        reasoner.save_pretrained(whole, training=training)
        _save_adapter(start, reasoner, whole / "adapter")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(folder, file, training.steps, str(wanted).removeprefix("torch."), size)


def _checkpoint(run: Path, name: str | None) -> Path:
    """The checkpoint to export."""
    if not run.exists():
        raise MissingFileError(f"there is no run folder or checkpoint {run}; check the path")
    if run.suffix == ".ckpt":
        if name is not None:
            raise ConfigError(f"{run} is a checkpoint already; leave --checkpoint out, or give the run folder")
        return run
    if name is None:
        return newest_checkpoint(run)
    found = [place for place in (Path(name), run / name, run / "checkpoints" / name) if place.exists()]
    if not found:
        there = sorted(path.name for path in (run / "checkpoints").glob("*.ckpt"))
        raise MissingFileError(f"there is no checkpoint {name} in {run}; it has {', '.join(there) or 'none'}")
    return found[0]


def _place(run: Path, out: str | None) -> Path:
    """The folder to write."""
    if out is not None:
        return Path(out)
    if run.suffix != ".ckpt":
        return run / EXPORT_FOLDER
    if run.parent.name != "checkpoints":
        raise ConfigError(f"{run} lies in no run folder; name the folder to write by --out")
    return run.parent.parent / EXPORT_FOLDER


def _check_place(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that the export would replace against the user's will; weights in it would be gone."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} exists and is no export (it has no config.json); name another folder by --out")
    if not overwrite:
        raise ConfigError(f"{folder} exists; replace it with --overwrite true, or name another folder by --out")


def _save_adapter(start: Start, reasoner: LatentReasoner, folder: Path) -> None:
    """Write the LoRA adapter of a checkpoint in the format of `peft`; nothing if it has none.

    Args:
        start: the checkpoint.
        reasoner: the model, which gets the adapter.
        folder: folder to write.
    """
    weights = start.weights(reasoner)
    if not weights.adapters:
        return
    merged = reasoner.state_dict()
    lora = LoRAAdapters(
        reasoner,
        rank=start.last("lora_rank"),
        alpha=start.last("lora_alpha"),
        dropout=start.last("lora_dropout"),
        targets=start.last("lora_targets"),
    )
    own = reasoner.state_dict()
    for name in weights.adapters:
        own[name].copy_(weights.stored(name))
    lora.save(folder, lora.state(), merged)
