"""One writer per folder, named to the others, gone with its process."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock

from futurel1 import locks
from futurel1.errors import ConfigError
from futurel1.locks import Owner, one_writer

HOLDER = """
import os, sys, time
from pathlib import Path
from futurel1.locks import one_writer
with one_writer(Path(sys.argv[1])):
    if os.fork() == 0:  # as the workers of a loader
        time.sleep(600)
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own that holds the lock of `tmp_path`, and has a child."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_second_writer_is_told_who_the_first_one_is(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ConfigError) as caught, one_writer(tmp_path):
        pass
    message = str(caught.value)
    assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} (`-c " in message
    assert str(tmp_path) in message.partition("(`")[2]  # its command
    assert ", since 20" in message
    with one_writer(tmp_path, "another"):
        pass


def test_the_lock_ends_with_its_owner_while_its_children_live(
    tmp_path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / ".writer.owner").is_file()
    with one_writer(tmp_path):
        assert json.loads((tmp_path / ".writer.owner").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_process_may_take_its_lock_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with one_writer(folder):
        with one_writer(tmp_path / "new" / ".." / "new" / "folder"):
            pass
        assert (folder / ".writer.owner").is_file()  # the outer block holds it still
    assert not list(folder.iterdir())
    with pytest.raises(KeyboardInterrupt), one_writer(folder):
        raise KeyboardInterrupt
    assert not list(folder.iterdir())


def test_an_owner_that_does_not_run_here_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = replace(Owner.this_process(), host="another-machine")
    held = FileLock(tmp_path / ".writer.lock", thread_local=False)
    held.acquire()
    (tmp_path / ".writer.owner").write_text(json.dumps(asdict(gone)))
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.3)
    refused = pytest.raises(ConfigError, match=r"in use by process .* on another-machine")
    with caplog.at_level("INFO"), refused, one_writer(tmp_path):
        pass
    assert "waiting for up to" in caplog.text
    monkeypatch.setattr(locks, "LOCK_SECONDS", 60.0)
    (tmp_path / ".writer.owner").write_text("{")  # no note that can be read
    waiting = threading.Timer(0.3, held.release)
    waiting.start()
    with one_writer(tmp_path):
        assert json.loads((tmp_path / ".writer.owner").read_text())["pid"] == os.getpid()
    waiting.join()


@pytest.mark.parametrize(("number", "refused"), [
    (errno.EROFS, True), (errno.EACCES, True), (errno.ENOTDIR, True), (errno.ENOSPC, False),
])  # fmt: skip
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", fail)
    expected = pytest.raises(ConfigError, match=f"{tmp_path} cannot be written")
    with expected if refused else pytest.raises(OSError, match="No space left"), one_writer(tmp_path):
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(ConfigError, match="cannot be written"), one_writer(tmp_path / place):
            pass


def test_a_file_system_without_locks_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", fail)
    with one_writer(tmp_path):
        assert "has no locks" in caplog.text


def test_many_processes_are_one_after_the_other(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from futurel1 import locks
from futurel1.errors import ConfigError
folder = Path(sys.argv[1])
for _ in range(60):
    try:
        with locks.one_writer(folder):
            with (folder / "count").open("r+") as stream:
                number = int(stream.read())
                time.sleep(0.001)
                stream.seek(0)
                stream.write(str(number + 1))
    except ConfigError:
        continue
    print("x")
"""
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    written = sum(process.communicate()[0].count("x") for process in started)
    assert all(process.returncode == 0 for process in started)
    assert written > 0
    assert int((tmp_path / "count").read_text()) == written
    assert [file.name for file in tmp_path.iterdir()] == ["count"]
