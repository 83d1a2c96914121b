"""A full disk is told in one line: which file, and what is whole."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from futurel1.errors import DiskFullError
from futurel1.files import replacing, write_first, write_whole
from futurel1.full_disk import is_full, told_when_full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_file_is_named_and_what_is_whole(number: int) -> None:
    told = r"^a/b: no space left on the disk, or in the quota; the rest is whole$"
    with pytest.raises(DiskFullError, match=told), told_when_full("a/b", "the rest is whole"):
        raise OSError(number, "no space")


def test_a_full_disk_below_other_errors() -> None:
    below = RuntimeError("unexpected pos 64 vs 0")
    below.__context__ = OSError(errno.ENOSPC, "no space")
    with pytest.raises(DiskFullError), told_when_full("a", "b"):
        raise below


def test_who_writes_many_files_adds_what_is_whole() -> None:
    with (
        pytest.raises(DiskFullError, match=r"^world/clip: no space .*; it is as before; clips are whole$"),
        told_when_full("world", "clips are whole"),
        told_when_full("world/clip", "it is as before"),
    ):
        raise OSError(errno.ENOSPC, "no space")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("No space"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, told_when_full("a", "b"):
        raise error
    assert caught.value is error


def test_writers_that_are_not_written_in_python() -> None:
    # what safetensors 0.8 said on a full tmpfs
    assert is_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full(SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"))


def test_files_that_are_replaced_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, "old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=r"a\.txt: no space left .*; it is as it was before$"):
            write_whole(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "quota")))
        with pytest.raises(DiskFullError, match=r"b\.txt: no space left .*; it is not there$"):
            write_first(tmp_path / "b.txt", b"new")
    with pytest.raises(DiskFullError), replacing(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
