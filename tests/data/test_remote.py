"""Remote files: their places in the mirror, what fails, and how much of them is kept."""

import os
import sys
from pathlib import Path

import pytest
from range_server import serving

from futurel1.data import remote
from futurel1.data.remote import ensure_local, filesystem, is_url, media_folder, mirror_place, shown, url_of
from futurel1.errors import ConfigError, MissingFileError, RemoteError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as running:
        yield running


def put(tmp_path, name, data):
    (tmp_path / "served" / name).write_bytes(data)


@pytest.mark.parametrize(
    "url", ["s3://bucket/a/b.jsonl", "http://127.0.0.1:80/a b.mp4", "hf://datasets/u/r@x/f.parquet", "memory://a/b"]
)
def test_an_address_has_a_place_and_the_place_an_address(url, cache):
    place = mirror_place(url)
    assert place.is_relative_to(cache)
    assert not cache.exists()
    assert url_of(place) == shown(place) == url
    assert place.parent / "../up.mp4" != mirror_place(url)
    assert url_of(place.parent / "x" / ".." / place.name) == url


def test_what_is_no_address_stays_a_path(tmp_path):
    assert [text for text in ("s3://a/b", "a/b", "file:///a", "C:/a", "12:30 clip.mp4", 7) if is_url(text)] == [
        "s3://a/b"
    ]
    assert url_of(tmp_path / "a.mp4") is None
    assert shown(tmp_path / "a.mp4") == str(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "url", ["s3://", "s3://bucket/../../etc/passwd", "zip://a.txt::s3://b/c.zip", "http://h/a.mp4?token=1", "s3://../a"]
)
def test_addresses_without_a_place_are_refused(url):
    with pytest.raises(ConfigError, match="not the address of a file or folder of a store"):
        mirror_place(url)


def test_a_store_without_its_package_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"^s3://a/b: s3:// needs a package that is not installed: pip install s3fs"):
        filesystem("s3://a/b")
    with pytest.raises(ConfigError, match=r"^nope://a: not an address that fsspec opens"):
        filesystem("nope://a")


def test_folders_of_media(tmp_path, cache):
    assert media_folder("data_root", None) is None
    assert media_folder("data_root", tmp_path) == tmp_path
    place = media_folder("data_root", "s3://bucket/media/")
    assert place == mirror_place("s3://bucket/media")
    assert media_folder("data_root", place) == place
    with pytest.raises(MissingFileError, match=r"video_root .*gone: no such folder"):
        media_folder("video_root", tmp_path / "gone")


def test_a_file_is_copied_once_per_version(tmp_path, server):
    put(tmp_path, "a.bin", b"one")
    path = mirror_place(f"{server.url}/a.bin")
    for _ in range(2):
        ensure_local(path)
    assert (path.read_bytes(), server.count("GET", "a.bin")) == (b"one", 1)
    put(tmp_path, "a.bin", b"other")
    ensure_local(path)
    assert path.read_bytes() == b"one"
    for _ in range(2):
        ensure_local(path, 2)
    assert (path.read_bytes(), server.count("GET", "a.bin")) == (b"other", 2)
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def test_local_files_are_left_alone(tmp_path):
    ensure_local(tmp_path / "nothing.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [False, True])
def test_a_failure_that_passes_is_tried_again(tmp_path, server, cut):
    put(tmp_path, "a.bin", b"x" * 1000)
    server.failures, server.cut = 2, cut
    path = mirror_place(f"{server.url}/a.bin")
    ensure_local(path)
    assert path.read_bytes() == b"x" * 1000
    assert server.count("GET", "a.bin") == 3


def test_what_does_not_pass_names_the_address(tmp_path, server, monkeypatch):
    monkeypatch.setattr(remote, "_ATTEMPTS", 2)
    put(tmp_path, "a.bin", b"x" * 1000)
    server.failures = 9
    path = mirror_place(f"{server.url}/a.bin")
    with pytest.raises(RemoteError, match=rf"^{server.url}/a\.bin: cannot be read \(.*503"):
        ensure_local(path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(MissingFileError, match=rf"^{server.url}/gone\.bin: no such file or folder there"):
        ensure_local(mirror_place(f"{server.url}/gone.bin"))


def test_copies_that_were_not_used_for_longest_make_room(tmp_path, server, monkeypatch):
    monkeypatch.setenv("FUTUREL1_CACHE_GB", "2.5e-6")
    monkeypatch.setattr(remote, "IN_USE_SECONDS", 0)
    places = []
    for number, name in enumerate("abcd"):
        put(tmp_path, name, bytes(1000))
        if name == "c":  # of two copies the older one was used last
            os.utime(places[0], (50, 0))
        places.append(mirror_place(f"{server.url}/{name}"))
        ensure_local(places[-1])
        os.utime(places[-1], (10 + number, 0))
    # the third copy makes room by the second, the fourth by the third
    assert [place.exists() for place in places] == [True, False, False, True]


def test_copies_in_use_stay(tmp_path, server, monkeypatch):
    monkeypatch.setenv("FUTUREL1_CACHE_GB", "1e-6")
    for name in "ab":
        put(tmp_path, name, bytes(1000))
        ensure_local(mirror_place(f"{server.url}/{name}"))
    assert mirror_place(f"{server.url}/a").exists()


@pytest.mark.parametrize("size", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_none(size, monkeypatch):
    monkeypatch.setenv("FUTUREL1_CACHE_GB", size)
    with pytest.raises(ConfigError, match=f"FUTUREL1_CACHE_GB={size}: not a number of gigabytes above 0"):
        ensure_local(mirror_place("memory://a/b"))
