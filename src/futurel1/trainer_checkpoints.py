"""Reading the checkpoints that a Trainer writes: tensors and plain values, never code.

A checkpoint is a pickle, and a pickle may name any function to be called while it is read. PyTorch reads only tensors
and plain values with `weights_only=True`, but the shards of a sharded checkpoint without that: see
:mod:`futurel1.sharded_checkpoints`.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from futurel1.errors import CheckpointError, MissingFileError
from futurel1.refused_pickles import unusable
from futurel1.sharded_checkpoints import META_FILE, ShardedWeights, check_shards, is_sharded

__all__ = ["check_checkpoint", "read_checkpoint"]


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors stay on disk until they are used.

    Args:
        file: what `Trainer.save_checkpoint` or `ModelCheckpoint` wrote: a file, or the folder of a sharded checkpoint.

    Returns:
        The checkpoint, tensors on the CPU. The `state_dict` of a sharded one is :class:`ShardedWeights`, and its
        optimizers are left out.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: the file is damaged, or holds more than tensors and plain values.
    """
    if file.is_dir():
        return {**_read_file(_meta_of(file)), "state_dict": ShardedWeights(file)}
    return _read_file(file)


def _meta_of(folder: Path) -> Path:
    if not is_sharded(folder):
        raise CheckpointError(f"{folder} is no whole checkpoint: it needs {META_FILE} and .metadata; name another")
    return folder / META_FILE


def _read_file(file: Path) -> dict[str, Any]:
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
        raise unusable(file, error) from error
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
        _read_file(_meta_of(place))
        check_shards(place)
