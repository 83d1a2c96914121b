"""Files of records in stores: which are found, what tells that one has changed, and reading parts of them."""

import fsspec
import pytest
from range_server import serving

from futurel1.data.stored_files import local_file, remote_files
from futurel1.errors import ConfigError, MissingFileError, RemoteError

SUFFIXES = (".jsonl", ".parquet")
NAMES = ("b.jsonl", "a/2.parquet", "a/1.jsonl", ".hidden/x.jsonl", "notes.txt")


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "http"])
def store(request, tmp_path, memory):
    """Address of a folder with some files."""
    if request.param == "memory":
        for name in NAMES:
            memory.pipe_file(f"/data/{name}", name.encode())
        yield "memory://data"
        return
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with serving(tmp_path) as server:
        yield server.url


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", ["a/1.jsonl", "a/2.parquet", "b.jsonl"]),
        ("/", ["a/1.jsonl", "a/2.parquet", "b.jsonl"]),
        ("/a", ["a/1.jsonl", "a/2.parquet"]),
        ("/b.jsonl", ["b.jsonl"]),
        ("/*.jsonl", ["b.jsonl"]),
        ("/**/*.jsonl", ["a/1.jsonl", "b.jsonl"]),
        ("/a/[12].*", ["a/1.jsonl", "a/2.parquet"]),
    ],
)
def test_files_folders_and_patterns(store, asked, found):
    files = remote_files(store + asked, SUFFIXES)
    assert [file.url for file in files] == [f"{store}/{name}" for name in found]
    assert [file.size for file in files] == [len(name) for name in found]
    assert [file.read(1, 4) for file in files] == [name.encode()[1:4] for name in found]
    assert [file.using(lambda stream: stream.read()) for file in files] == [name.encode() for name in found]
    assert all(file.version for file in files)


def test_what_is_not_there(store):
    for asked in ("/gone.jsonl", "/gone/*.jsonl", "/gone"):
        with pytest.raises(MissingFileError, match=r"^\S+/gone\S*: no "):
            remote_files(store + asked, SUFFIXES)
    with pytest.raises(ConfigError, match=r": there is no \.arrow file"):
        remote_files(store, (".arrow",))


def test_a_changed_file_has_another_version(tmp_path, memory):
    path = tmp_path / "a.jsonl"
    with serving(tmp_path) as server:
        versions = []
        for text in (b"1", b"2"):
            path.write_bytes(text)
            memory.pipe_file("/a.jsonl", text)
            files = [
                local_file(path),
                *(remote_files(f"{url}/a.jsonl", SUFFIXES)[0] for url in (server.url, "memory:/")),
            ]
            versions.append([file.version for file in files])
    assert all(first != second for first, second in zip(*versions, strict=True))


def test_a_server_without_ranges_is_no_source(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"0123456789")
    with serving(tmp_path) as server:
        [file] = remote_files(f"{server.url}/a.jsonl", SUFFIXES)
        server.ranges = False
        with pytest.raises(RemoteError, match=r"a\.jsonl: 10 bytes came where 2 were asked for: .*ignores ranges"):
            file.read(1, 3)


def test_a_file_that_has_gone(tmp_path, memory):
    memory.pipe_file("/a.jsonl", b"0123")
    [file] = remote_files("memory://a.jsonl", SUFFIXES)
    memory.rm("/a.jsonl")
    with pytest.raises(FileNotFoundError, match=r"^memory://a\.jsonl: no such file"):
        file.read(0, 2)
    with pytest.raises(FileNotFoundError, match=r"^memory://a\.jsonl: no such file"):
        file.using(lambda stream: stream.read())
