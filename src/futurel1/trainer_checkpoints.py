"""Reading the checkpoints that a Trainer writes: tensors and plain values, never code.

A checkpoint is a pickle, and a pickle may name any function to be called while it is read. PyTorch reads only tensors
and plain values with `weights_only=True`; a sharded checkpoint has one file more, which PyTorch reads without that.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from futurel1.errors import CheckpointError, MissingFileError

__all__ = ["check_checkpoint", "read_checkpoint"]

_META_FILE = "meta.pt"
_SHARDS_FILE = ".metadata"
_NAMED = re.compile(r"GLOBAL (\S+)|`(\S+)` whose module|type (\S+) ")
_ALLOWED = {
    "builtins": {"set"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "torch": {"Size", "device", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
}  # fmt: skip
"""What the description of shards is made of."""


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint that is one file; tensors stay on disk until they are used.

    Args:
        file: what `Trainer.save_checkpoint` or `ModelCheckpoint` wrote.

    Returns:
        The checkpoint, tensors on the CPU.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: the file is damaged or a folder of shards, or holds more than tensors and plain values.
    """
    if file.is_dir():
        raise CheckpointError(
            f"{file} is a sharded checkpoint, whose weights only the run that wrote it can read; finish that run with "
            "`futurel1 fit --resume`, and use its huggingface/ folder"
        )
    try:
        with file.open("rb") as stream:
            zipped = zipfile.is_zipfile(stream)
        with warnings.catch_warnings(action="ignore"):  # torch warns about pickles that it goes on to refuse
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except FileNotFoundError:
        raise MissingFileError(f"there is no checkpoint {file}; check the path") from None
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle raises whatever it likes
        raise _unusable(file, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__}, no checkpoint of a Trainer; name such a file")
    return content


def check_checkpoint(path: str | Path) -> None:
    """Refuse a checkpoint that asks for code to be run, before a Trainer reads it.

    Args:
        path: a file, or the folder of a sharded checkpoint. What Trainers take besides (``best``, ``last``, addresses)
            is left to them.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds more than tensors and plain values.
    """
    place = Path(path)
    if place.is_file():
        read_checkpoint(place)
    elif place.is_dir():
        read_checkpoint(place / _META_FILE)
        try:
            with (place / _SHARDS_FILE).open("rb") as stream:
                _ShardsUnpickler(stream).load()
        except FileNotFoundError:
            raise CheckpointError(f"{place} is no whole checkpoint: it has no {_SHARDS_FILE}; name another") from None
        except OSError:
            raise
        except Exception as error:
            raise _unusable(place / _SHARDS_FILE, error) from error


class _ShardsUnpickler(pickle.Unpickler):
    """Reads the description of shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _unusable(file: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read, or that asks for more than reading."""
    named = _NAMED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if named is not None:
        asked = next(name for name in named.groups() if name)
        return CheckpointError(
            f"{file} asks for {asked}, which is neither a tensor nor a plain value: such a file can run code, so "
            "nothing of it was loaded; use a checkpoint of this library, or an export (huggingface/)"
        )
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    first = " ".join(text.strip().partition("\n\n")[0].split())[:200]
    return CheckpointError(
        f"{file} is damaged or no checkpoint of a Trainer ({type(error).__name__}: {first}); use an older checkpoint, "
        "or copy it again"
    )
