"""The files of a Trainer's checkpoint, and the error for one that is not made of tensors and plain values."""

import pickle
import re
from pathlib import Path

from futurel1.errors import CheckpointError

__all__ = ["META_FILE", "SHARDS_FILE", "is_sharded", "unusable"]

META_FILE = "meta.pt"
"""What a sharded checkpoint holds besides weights and optimizers."""
SHARDS_FILE = ".metadata"
"""The description of its shards."""
_NAMED = re.compile(r"GLOBAL (\S+)|`(\S+)` whose module|type (\S+) ")


def is_sharded(path: Path) -> bool:
    """Whether a path is a whole sharded checkpoint: the description is written after shards, the rest at the end."""
    return (path / SHARDS_FILE).is_file() and (path / META_FILE).is_file()


def unusable(file: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read, or that asks for more than reading.

    Args:
        file: the file.
        error: what reading it raised.
    """
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
