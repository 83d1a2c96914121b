"""One writer per run folder: the first process of a run takes the lock for all its processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from futurel1.launch import Launch
from futurel1.leftovers import remove_leftovers
from futurel1.locks import one_writer

__all__ = ["writing_run"]


@contextmanager
def writing_run(folder: Path, launch: Launch) -> Iterator[None]:
    """Hold the lock of a run folder during the block, and first remove what a killed run had begun to write there.

    Args:
        folder: the run folder.
        launch: how this process was started.

    Raises:
        ConfigError: another run writes to the folder, or it cannot be written.
    """
    if launch.is_first:
        with one_writer(folder):
            remove_leftovers(folder, alone=True)
            yield
    else:
        yield
