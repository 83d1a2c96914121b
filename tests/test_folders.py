"""Folders that are taken for whole are there whole or not at all."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from futurel1 import folders
from futurel1.errors import ConfigError
from futurel1.folders import place_of, replacing_folder, standing


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, text: str, *names: str) -> Path:
    for name in names or ("config.json", "model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


OLD = ("config.json", "a.safetensors", "b.safetensors", "notes/mine.txt")
NEW = {"config.json": "new", "a.safetensors": "new", "notes/mine.txt": "old"}


def replace(folder: Path) -> None:
    with replacing_folder(folder, drops=is_weights) as staged:
        assert staged != folder
        assert place_of(staged) == folder
        with replacing_folder(staged) as same:
            assert same == staged
        fill(staged, "new", "config.json", "a.safetensors")
    assert place_of(staged) == staged


def test_a_folder_is_replaced_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    folder = fill(tmp_path / "deep" / "out", "old", *OLD)
    folder.chmod(0o750)
    replace(folder)
    assert contents(folder) == NEW
    assert folder.stat().st_mode & 0o777 == 0o750
    (tmp_path / "link").symlink_to(folder)
    fill(folder, "old", *OLD)
    replace(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(folder) == NEW
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        replace(tmp_path / name)
        assert contents(tmp_path / name) == {"config.json": "new", "a.safetensors": "new"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    folder = fill(tmp_path / "out", "old", *OLD)
    before = contents(folder)

    def write() -> None:
        with replacing_folder(folder) as staged:
            fill(staged, "half of the ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from futurel1 import folders
place, when = Path(sys.argv[1]), sys.argv[2]
rename, renamed = os.rename, []
def dies(old, new):
    if when == "before the renames" or renamed:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
    renamed.append(new)
os.rename = dies
with folders.replacing_folder(place) as staged:
    for name in ("config.json", "a.safetensors"):
        (staged / name).write_text("killed")
        if when == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["writing", "before the renames", "between the renames"])
def test_a_kill_leaves_a_whole_folder_and_the_next_writer_cleans_up(tmp_path: Path, when: str) -> None:
    folder = fill(tmp_path / "out", "old", *OLD)
    before = contents(folder)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), when], check=False)
    assert done.returncode == -9
    assert folder.exists() == (when != "between the renames")
    assert contents(standing(folder)) == before
    assert len(list(tmp_path.iterdir())) == 2
    replace(folder)
    assert contents(folder) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    folder = fill(tmp_path / "out", "old", *OLD)
    here = f"{socket.gethostname()}-{os.getppid()}"
    others = [f".out.{here}-0123abcd.part", ".out.elsewhere-1-0123abcd.part", ".out.notes"]
    for name in others:
        fill(tmp_path / name, "theirs")
    replace(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "out"])
    assert standing(tmp_path / "nowhere") == tmp_path / "nowhere"


def test_the_last_of_two_writers_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "out", "old", *OLD)
    rename = os.rename

    def overtaken(old: Path, new: Path) -> None:
        rename(old, new)
        if new.suffix == ".aside":
            monkeypatch.undo()
            fill(folder, "theirs")  # between our renames

    monkeypatch.setattr(folders.os, "rename", overtaken)
    replace(folder)
    assert contents(folder) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("how", ["current directory", "mount point", "parent of somebody else"])
def test_a_folder_that_cannot_be_renamed_gets_its_files_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = fill(tmp_path / "out", "old", *OLD)
    inode = folder.stat().st_ino
    moved: list[str] = []
    put = os.replace

    def replaced(old: Path, new: Path) -> None:
        assert not (folder / "config.json").exists()  # nobody takes it for whole meanwhile
        moved.append(new.name)
        put(old, new)

    monkeypatch.setattr(folders.os, "replace", replaced)
    if how == "current directory":
        monkeypatch.chdir(folder)
    elif how == "mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    else:
        mkdir = Path.mkdir

        def refused(path: Path, *arguments: object, **options: object) -> None:
            if path.parent == tmp_path and path.suffix == ".part":
                raise PermissionError(errno.EACCES, "Permission denied")
            mkdir(path, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "mkdir", refused)
    with replacing_folder(folder, drops=is_weights) as staged:
        fill(staged, "new", "config.json", "a.safetensors")
    assert contents(folder) == NEW
    assert moved[-1] == "config.json"
    assert folder.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT])  # the latter in /proc
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), replacing_folder(tmp_path / "file" / "out"):
        pass

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(ConfigError, match=r"out cannot be written \(not here"), replacing_folder(tmp_path / "out"):
        pass
