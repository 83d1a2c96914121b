"""Which files are opened as videos: names of every kind, paths to something else, other containers."""

import os
from pathlib import Path

import pytest
from clip_checks import CARRIED, assert_same, pixels_of
from codings import encode, moving_frames, plain_decode, remux

from futurel1.data.frames import probe_video, read_image
from futurel1.errors import MediaError, MissingFileError

NAMES = [
    "12:30 clip.mp4", "C:clip.mp4", "file:abc.mp4", "file:file:abc.mp4", "2026-09-01T10:20:30.mp4", "http:clip.mp4",
    "pipe:0.mp4", "concat:a|b.mp4", "subfile,,start,0,:x.mp4", "crypto+file:x.mp4", "%03d.mp4", "a?b#c&d=1.mp4",
    "-i.mp4", "~clip.mp4", " spaced .mp4", "quo'te\".mp4", "back\\slash.mp4", "new\nline.mp4", "üöä 猫.mp4", "clip",
    "[1]*.mp4",
    "clip.mp4.part", "clip.ts", os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"\xff\xfe.mkv"),
]  # fmt: skip


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_opens(coded, tmp_path, monkeypatch, name, relative):
    source = coded("closed")
    try:
        (tmp_path / name).write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system does not take the name")
    monkeypatch.chdir(tmp_path)
    path = Path(name) if relative else tmp_path / name
    assert_same(pixels_of(path, [0, 30]), pixels_of(source, [0, 30]))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_that_is_not_there_is_missing_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="no such file"):
        probe_video(name)


def test_a_damaged_file_is_named_whatever_its_name(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        path.write_bytes((CARRIED / "damaged_h264.mp4").read_bytes())
    except OSError:
        pytest.skip("this file system does not take the name")
    with pytest.raises(MediaError) as caught:
        pixels_of(path)
    assert os.fsencode(path) in os.fsencode(str(caught.value))


@pytest.mark.parametrize("read", [probe_video, read_image])
@pytest.mark.parametrize("name", ["n" * 6000 + ".mp4", "d/" * 3000 + "n.mp4", "a\0b.mp4"], ids=["long", "deep", "nul"])
def test_what_cannot_name_a_file_is_an_error_of_the_library(tmp_path, read, name):
    with pytest.raises(MediaError, match=r"cannot be opened \(.*\); check the path") as caught:
        read(tmp_path / name)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("read", [probe_video, read_image])
def test_paths_to_something_else_are_errors(tmp_path, read):
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    with pytest.raises(MediaError, match=r"loop\.mp4: cannot be opened"):
        read(tmp_path / "loop.mp4")
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(MissingFileError, match=r"broken\.mp4: no such file"):
        read(tmp_path / "broken.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match=r"folder\.mp4: a folder"):
        read(tmp_path / "folder.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match=r"pipe\.mp4: a folder or device"):
        read(tmp_path / "pipe.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(MissingFileError, match=r"inside\.mp4: no such file"):
        read(tmp_path / "file" / "inside.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("read", [probe_video, read_image])
def test_a_file_that_may_not_be_read_says_so(tmp_path, read):
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"content")
    path.chmod(0)
    with pytest.raises(MediaError, match=r"secret\.mp4: .*[Pp]ermission"):
        read(path)


OTHER_KINDS = {
    "animated GIF": b"GIF89a",
    "Ogg": b"OggS\0\2",
    "WMV/ASF": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "RealMedia": b".RMF\0\0",
    "Y4M": b"YUV4MPEG2 W64 H48",
    "MXF": bytes.fromhex("060e2b34020501010d0102"),
    "MPEG programme stream": bytes.fromhex("000001ba4400"),
    "bare MPEG video": bytes.fromhex("000001b304003034"),
    "bare H.264 or HEVC": bytes.fromhex("0000000167640016"),
    "bare H.264 or HEVC stream": bytes.fromhex("00000167640016"),
    "PNG picture": b"\x89PNG\r\n\x1a\n",
    "JPEG picture": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "WebP picture": b"RIFF\x24\0\0\0WEBPVP8 ",
    "playlist": b"#EXTM3U\n#EXT-X-VERSION:3\n",
    "starts with b'just a text": b"just a text",
    "starts with b'\\x00\\x00\\x00": bytes(64),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_named_with_a_remedy_that_works(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    path.write_bytes(OTHER_KINDS[kind].ljust(600, b"."))
    with pytest.raises(MediaError) as caught:
        probe_video(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not an MP4/MOV, Matroska/WebM or AVI file ")
    assert kind in message
    assert "-c copy" not in message
    assert ("images, not videos" in message) == ("picture" in kind)
    assert ("name the file that it points to" in message) == (kind == "playlist")
    assert ("-c:v libx264" in message) == ("picture" not in kind and kind != "playlist")


@pytest.mark.parametrize(
    ("name", "codec", "says"),
    [
        ("clip.ts", "libx264", "an MPEG transport stream"),
        ("clip.m2ts", "libx264", "an MPEG transport stream (M2TS)"),
        ("clip.flv", "libx264", "a Flash video"),
        ("clip.ivf", "libvpx", "an IVF file"),
    ],
)
def test_where_copying_is_advised_it_works(tmp_path, name, codec, says):
    path = encode(tmp_path / name, moving_frames(25), codec, {"bf": "0"})
    with pytest.raises(MediaError) as caught:
        probe_video(path)
    assert f"but {says}; rewrap it: ffmpeg -i INPUT -map 0:v:0 -c copy OUTPUT.mkv" in str(caught.value)
    assert_same(pixels_of(remux(path, tmp_path / "rewrapped.mkv")), plain_decode(path))
