"""One writer per run folder: the first process of a run takes the lock for all its processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from futurel1.locks import one_writer

__all__ = ["is_first_process", "writing_run"]

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Environment variables in which launchers give a process its rank."""


def is_first_process() -> bool:
    """Whether this is the first process of a run, or its only one, as far as its launcher says."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


@contextmanager
def writing_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder during the block.

    Raises:
        ConfigError: another run writes to the folder, or it cannot be written.
    """
    if is_first_process():
        with one_writer(folder):
            yield
    else:
        yield
