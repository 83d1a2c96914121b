"""What killed processes were writing is removed; what others are writing is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from futurel1 import leftovers
from futurel1.files import replacing
from futurel1.leftovers import is_abandoned, is_temporary, remove_leftovers, temporaries_of, temporary
from leaving import NO_PROCESS, leave_half

DIES = """
import os, signal, sys
from pathlib import Path
from futurel1.files import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["last.ckpt", "x" * 255, "\U0001f3a5" * 63, "a-1-b.c.d", ".hidden"])
def test_a_name_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-17.cluster-2.example.org")
    place = tmp_path / name
    one, two = temporary(place, "part"), temporary(place, "aside")
    for path in (one, two):
        path.touch()
        assert not is_abandoned(path, alone=True)
    assert (is_temporary(one), is_temporary(two), is_temporary(two, "aside")) == (True, False, True)
    assert sorted(temporaries_of(place)) == sorted([one, two])
    monkeypatch.setattr(leftovers, "_MADE", set())  # a new process that has the number of the one that was killed
    assert is_abandoned(one)


@pytest.mark.parametrize("deep", ["", "checkpoints/deep"])
def test_what_a_kill_left_is_removed(tmp_path: Path, deep: str) -> None:
    folder = tmp_path / deep
    folder.mkdir(parents=True, exist_ok=True)
    before = names(tmp_path)
    done = subprocess.run([sys.executable, "-c", DIES, str(folder / "last.ckpt")], check=False)
    assert done.returncode == -9
    assert len(names(tmp_path)) == len(before) + 1
    half = temporary(folder / "huggingface", "part")
    half.mkdir()
    (half / "config.json").write_text("half")
    half.rename(half.with_name(half.name.replace(f"-{os.getpid()}-", f"-{NO_PROCESS}-")))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before
    remove_leftovers(tmp_path / "nowhere")


def test_what_somebody_is_writing_stays(tmp_path: Path) -> None:
    for name in ("clip.part", ".notes.part", ".a.b.part", ".a.part.txt", f".a.{socket.gethostname()}-1-xyz.part"):
        (tmp_path / name).write_text("a user's")
    leave_half(tmp_path / "a", pid=os.getppid())
    leave_half(tmp_path / "a", kind="aside")  # perhaps the only whole copy
    there = leave_half(tmp_path / "a", host="elsewhere", pid=1)
    longer = leave_half(tmp_path / "a", host=f"not{socket.gethostname()}", pid=1)
    before = names(tmp_path)
    with replacing(tmp_path / "b"):
        remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == len(before) + 1
    before = names(tmp_path)
    old = there.stat().st_mtime - 2 * leftovers.ABANDONED_SECONDS
    os.utime(there, (old, old))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [name for name in before if name != there.name]
    remove_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == [name for name in before if name not in (there.name, longer.name)]
