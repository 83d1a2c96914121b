"""The lock of a run folder belongs to the first process of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from futurel1.cli.run_lock import writing_run
from futurel1.launch import Launch


@pytest.mark.parametrize("rank", [0, 1, None])
def test_only_the_first_process_takes_the_lock(tmp_path: Path, rank: int | None) -> None:
    with writing_run(tmp_path, Launch("torchrun", rank=rank, world_size=2)):
        assert (tmp_path / ".writer.owner").exists() == (rank == 0)
    assert not list(tmp_path.iterdir())
