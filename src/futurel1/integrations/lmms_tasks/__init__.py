"""Task folder for lmms-eval (`--include_path`): FutureBench and TwiFF-Bench, and functions that their tasks share.

lmms-eval executes a task's `utils.py` again for every name that the YAML file takes from it, so they hold no state.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from futurel1.errors import ConfigError, MissingFileError

__all__ = ["dataset_file", "dataset_source", "mean", "total"]

_BUILDERS = {".arrow": "arrow", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}


def dataset_file(variable: str) -> Path:
    """File or folder of a benchmark, named by an environment variable.

    Raises:
        ConfigError: the variable is not set.
        MissingFileError: there is no such file or folder.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(f"set {variable} to the benchmark's file or folder ({', '.join(_BUILDERS)})")
    path = Path(value).expanduser().absolute()
    if not path.exists():
        raise MissingFileError(f"{variable}={value}: no such file or folder")
    return path


def dataset_source(variable: str) -> tuple[str, dict[str, dict[str, list[str]]]]:
    """Arguments of `datasets.load_dataset` to read a benchmark as a single split, ``test``.

    Args:
        variable: environment variable that names a .arrow, .parquet, .json or .jsonl file, or a folder of them such as
            `save_to_disk` writes.

    Returns:
        Name of the builder, and its ``data_files``.

    Raises:
        ConfigError: the variable is not set, or names no such files, or files of several kinds.
        MissingFileError: there is no such file or folder.
    """
    path = dataset_file(variable)
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() in _BUILDERS)
    if path.is_dir() and any(file.suffix.lower() == ".arrow" for file in found):
        # Beside the data, `save_to_disk` writes JSON files about them, and `map` leaves cached copies.
        found = [file for file in found if file.suffix.lower() == ".arrow" and not file.name.startswith("cache-")]
    builders = {_BUILDERS.get(file.suffix.lower(), "") for file in found}
    if len(builders) != 1 or "" in builders:
        kinds = ", ".join(sorted({file.suffix for file in found})) or "no files"
        raise ConfigError(f"{variable}={path}: {kinds}; name one kind of {', '.join(_BUILDERS)}")
    return builders.pop(), {"data_files": {"test": [str(file) for file in found]}}


def mean(items: Sequence[dict[str, float] | None]) -> float:
    """Mean of the items' ``score``, ignoring None (samples that do not count for this metric); NaN if all are None."""
    scores = [item["score"] for item in items if item is not None]
    return sum(scores) / len(scores) if scores else float("nan")


def total(items: Sequence[dict[str, float] | None]) -> float:
    """Sum of the items' ``score``, ignoring None (samples that do not count for this metric)."""
    return sum(item["score"] for item in items if item is not None)
