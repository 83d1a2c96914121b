"""The lock of a run folder belongs to the first process of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from futurel1.cli.run_lock import RANKS, writing_run


@pytest.mark.parametrize("name", RANKS)
def test_only_the_first_process_takes_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in RANKS:
        monkeypatch.delenv(other, raising=False)
    for rank, locked in (("0", True), ("1", False)):
        monkeypatch.setenv(name, rank)
        with writing_run(tmp_path):
            assert (tmp_path / ".writer.owner").exists() == locked
        assert not list(tmp_path.iterdir())
