"""Files are there whole or not at all, whoever else writes them and whatever stops a writer."""

import errno
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from futurel1.files import replacing, write_first, write_whole


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    ("data", "written"), [(b"\xff\x00", b"\xff\x00"), ("é\r\n\u2028", "é\r\n\u2028".encode()), ("", b"")]
)
def test_bytes_and_text_are_written_as_they_are(tmp_path: Path, data: bytes | str, written: bytes) -> None:
    file = tmp_path / "new.txt"
    for _ in range(2):
        write_whole(file, data)
        assert file.read_bytes() == written
    assert names(tmp_path) == ["new.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: BaseException, there: bool) -> None:
    file = tmp_path / "file.txt"
    if there:
        file.write_text("old")

    def write() -> None:
        with replacing(file) as partial:
            partial.write_text("half of the ne")
            assert partial.parent == tmp_path  # another file system could not rename it
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(tmp_path) == ["file.txt"] * there
    assert not there or file.read_text() == "old"


def test_a_rename_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def full(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(file, "new")
    assert names(tmp_path) == ["file.txt"]
    assert file.read_text() == "old"


def test_text_that_utf_8_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    assert names(tmp_path) == ["file.txt"]
    assert file.read_text() == "old"


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    with replacing(file) as partial, partial.open("w") as stream:
        stream.write("new")
        stream.flush()
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    with replacing(file) as first, replacing(file) as second:
        assert first != second
        second.write_text("second")
        first.write_text("first")
        assert len(names(tmp_path)) == 2
    # The inner block ends first, so the outer one is the last to rename.
    assert file.read_text() == "first"
    assert names(tmp_path) == ["file.txt"]


def write_often(file: Path, letter: str) -> None:
    for _ in range(200):
        write_whole(file, letter * 100_000)


def test_a_reader_never_sees_half_a_file_of_two_processes(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_whole(file, "-" * 100_000)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_often, args=(file, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        text = file.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
        seen.add(text[0])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen & {"a", "b"}
    assert names(tmp_path) == ["file.txt"]


def plainly(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b"plain")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("before", [None, 0o640, 0o666])
@pytest.mark.parametrize(
    "write",
    [
        lambda partial: partial.write_bytes(b"new"),
        lambda partial: save_file({"a": np.zeros(1)}, partial),  # sets its own
    ],
    ids=["bytes", "safetensors"],
)
def test_permissions_are_those_of_a_file_that_was_opened_plainly(
    tmp_path: Path, umask: Callable[[int], int], mask: int, before: int | None, write: Callable[[Path], None]
) -> None:
    umask(mask)
    plain, replaced = tmp_path / "plain", tmp_path / "replaced"
    for file in (plain, replaced):
        if before is not None:
            file.touch()
            file.chmod(before)
    plainly(plain)
    with replacing(replaced) as partial:
        write(partial)
    assert mode(replaced) == mode(plain)


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, "\U0001f3a5" * 63):
        write_whole(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert len(names(tmp_path)) == 3


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "gone" / "file.txt", "new")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write_whole(tmp_path / "file" / "below.txt", "new")


def test_the_first_of_several_writers_counts(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    start = threading.Barrier(8)

    def write(letter: str) -> None:
        start.wait()
        write_first(file, letter.encode() * 1000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = file.read_bytes()
    assert len(text) == 1000
    assert len(set(text)) == 1
    write_first(file, b"late")
    assert file.read_bytes() == text
    assert names(tmp_path) == ["file.txt"]


def test_a_first_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_first(tmp_path / "file.txt", b"new")
    assert names(tmp_path) == []
