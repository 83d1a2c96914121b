"""The lock of a run folder belongs to the first process of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from futurel1.cli.run_lock import writing_run
from futurel1.launch import Launch
from leaving import leave_half


@pytest.mark.parametrize("rank", [0, 1, None])
def test_only_the_first_process_takes_the_lock_and_cleans(tmp_path: Path, rank: int | None) -> None:
    (tmp_path / "checkpoints").mkdir()
    halves = [leave_half(tmp_path / "checkpoints" / "last.ckpt", host=host) for host in (None, "elsewhere")]
    with writing_run(tmp_path, Launch("torchrun", rank=rank, world_size=2)):
        assert [half.exists() for half in halves] == [rank != 0] * 2
        assert (tmp_path / ".writer.owner").exists() == (rank == 0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
