"""A disk that fills up at every place of a run: one line that names it, whole files, and a run that goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from campaign_runs import REWARDS, Kind, Trial

from processes import Command

SHARES = (0.02, 0.3, 0.5, 0.7, 0.9)


class Disk:
    """A file system of a given size, in memory."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self._mount(f"size={size}")

    def _mount(self, options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "futurel1", str(self.folder)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"mounting needs root: {done.stderr.decode().strip()}")

    def free(self) -> None:
        """Make it as large as memory."""
        subprocess.run(["mount", "-o", "remount,size=4g", str(self.folder)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Disk]]:
    made: list[Disk] = []

    def make(size: int) -> Disk:
        # as deep as the undisturbed runs: curated records name their media by paths from the folder of a run
        made.append(Disk(tmp_path_factory.mktemp("disk"), size))
        return made[0]

    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["fit (SFT)", "fit (LA-DAPO)", "predict", "curate"])
def test_a_run_goes_on_after_its_disk_was_full(
    name: str,
    share: float,
    kinds: dict[str, Kind],
    undisturbed: Callable[[str], tuple[Path, float]],
    disk: Callable[[int], Disk],
    tmp_path: Path,
    trial: Callable[[str], AbstractContextManager[Trial]],
) -> None:
    kind = kinds[name]
    whole, _ = undisturbed(name)
    used = sum(file.stat().st_blocks * 512 for file in whole.rglob("*") if file.is_file())
    place = disk(max(64 << 10, int(share * used)))
    run = place.folder / "run"
    with trial(f"{name}: disk full"):
        status = Command(kind.start(run), tmp_path / "full.log", REWARDS).wait()
        said = (tmp_path / "full.log").read_text()
        assert status != 0
        assert "Traceback" not in said, said
        assert "no space left on the disk, or in the quota" in said, said
        assert str(place.folder) in said, said
        place.free()
        Command(kind.next(run), tmp_path / "last.log", REWARDS).finish()
        kind.same(run, whole)
