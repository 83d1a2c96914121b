"""The error for a file that cannot be read as tensors and plain values."""

import pickle
import re
from pathlib import Path

from futurel1.errors import CheckpointError

__all__ = ["unusable"]

_NAMED = re.compile(r"GLOBAL (\S+)|`(\S+)` whose module|type (\S+) ")


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
