"""Check that a file is a video and complete, from its first bytes and the sizes that its container declares.

A file cut exactly between two frames opens and decodes without an error, only shorter: the declared sizes reveal it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

from futurel1.data.remote import ensure_local
from futurel1.errors import MediaError, MissingFileError

__all__ = ["Container", "check_container", "check_is_file"]

Container = Literal["mov", "matroska", "avi"]
"""The supported container families, by the names of FFmpeg's demuxers."""

_MP4_FIRST_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_EBML_HEADER_ID = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT_ID = b"\x18\x53\x80\x67"

_REWRAP = "rewrap it: ffmpeg -i INPUT -map 0:v:0 -c copy OUTPUT.mkv"
_RE_ENCODE = (
    "re-encode it: ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2' OUTPUT.mp4"
)
_PICTURE = "name it where the record names images, not videos"
# The remedy for these kinds depends on their content: MP4 and Matroska cannot carry every stream type in them, and
# bare streams have no times to copy.
_OTHER_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"GIF8", "an animated GIF", _RE_ENCODE),
    (0, b"OggS", "an Ogg file", _RE_ENCODE),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMV/ASF file", _RE_ENCODE),
    (0, b".RMF", "a RealMedia file", _RE_ENCODE),
    (0, b"DKIF", "an IVF file", _REWRAP),
    (0, b"YUV4MPEG2", "raw frames (Y4M)", _RE_ENCODE),
    (0, b"\x06\x0e\x2b\x34", "an MXF file", _RE_ENCODE),
    (0, b"FLV\x01", "a Flash video", _REWRAP),
    (0, b"\x00\x00\x01\xba", "an MPEG programme stream", _RE_ENCODE),
    (0, b"\x00\x00\x01\xb3", "a bare MPEG video stream", _RE_ENCODE),
    (0, b"\x00\x00\x00\x01", "a bare H.264 or HEVC stream", _RE_ENCODE),
    (0, b"\x00\x00\x01", "a bare H.264 or HEVC stream", _RE_ENCODE),
    (0, b"\x47", "an MPEG transport stream", _REWRAP),
    (4, b"\x47", "an MPEG transport stream (M2TS)", _REWRAP),
    (0, b"\x89PNG", "a PNG picture", _PICTURE),
    (0, b"\xff\xd8\xff", "a JPEG picture", _PICTURE),
    (8, b"WEBP", "a WebP picture", _PICTURE),
    (0, b"#EXTM3U", "a playlist", "name the file that it points to"),
)
_TRANSPORT_PACKET = {0: 188, 4: 192}


def check_is_file(path: Path) -> int:
    """Check that a path names a file that is not empty; a remote file is copied to its place first.

    Returns:
        Its size in bytes, at least 1.

    Raises:
        MissingFileError: there is no such file.
        RemoteError: its store does not give it.
        MediaError: the path cannot name a file, is a folder or device, or the file is empty.
    """
    ensure_local(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path}: no such file; check the path and the folder it is relative to") from None
    except (OSError, ValueError) as error:
        # Causes: a name longer than the system allows, a loop of links, a folder without permission, a zero byte.
        reason = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{_shortened(path)}: cannot be opened ({reason}); check the path") from error
    if not path.is_file():
        raise MediaError(f"{path}: a folder or device, not a media file; name a file")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return status.st_size


def _shortened(path: Path) -> str:
    text = os.fspath(path)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-50:]}"


def check_container(path: Path) -> Container:
    """Determine the family of a video file, and check that the file is as long as its container says.

    Args:
        path: a file.

    Returns:
        The family.

    Raises:
        MissingFileError: there is no such file.
        MediaError: the file is not a supported video, or is cut short.
    """
    size = check_is_file(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise MediaError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    with stream:
        head = stream.read(512)
        stream.seek(0)
        family: Container
        if head[4:8] in _MP4_FIRST_BOXES:
            family, declared = "mov", _mp4_end(path, stream, size)
        elif head[:4] == _EBML_HEADER_ID:
            family, declared = "matroska", _matroska_end(stream)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            family, declared = "avi", 8 + int.from_bytes(head[4:8], "little")
        else:
            raise MediaError(f"{path}: not an MP4/MOV, Matroska/WebM or AVI file {_what_else(head)}")
    if declared > size:
        raise MediaError(
            f"{path}: the file is cut short ({size} bytes of the {declared} it declares); copy or download it again"
        )
    return family


def _what_else(head: bytes) -> str:
    for offset, magic, name, remedy in _OTHER_KINDS:
        if head[offset : offset + len(magic)] != magic:
            continue
        length = _TRANSPORT_PACKET.get(offset)
        if magic == b"\x47" and (length is None or head[offset + length : offset + length + 1] != magic):
            continue
        return f"but {name}; {remedy}"
    return f"(it starts with {head[:12]!r}); if it is a video of another kind, {_RE_ENCODE}"


def _mp4_end(path: Path, stream: BinaryIO, size: int) -> int:
    """Return the declared end of the last media or index box of an MP4 file, in bytes."""
    position = end = 0
    has_index = False
    while position + 8 <= size:
        stream.seek(position)
        header = stream.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            break
        has_index |= kind == b"moov"
        position += length
        # trailing padding may be anything, so only these boxes count
        if kind in (b"moov", b"moof", b"mdat"):
            end = position
    if not has_index and end <= size:
        raise MediaError(f"{path}: the file has no index ('moov' box); it is incomplete, copy or record it again")
    return end


def _matroska_end(stream: BinaryIO) -> int:
    """Return the declared end of the segment of a Matroska file, in bytes; 0 if it declares none."""
    stream.seek(len(_EBML_HEADER_ID))
    header_length = _matroska_size(stream)
    stream.seek(header_length or 0, 1)
    if stream.read(4) != _MATROSKA_SEGMENT_ID:
        return 0
    length = _matroska_size(stream)
    return 0 if length is None else stream.tell() + length


def _matroska_size(stream: BinaryIO) -> int | None:
    """Read an element size; leading zero bits of the first byte give the number of further bytes; all ones: unknown."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    num_more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (7 - num_more)) - 1)]) + stream.read(num_more), "big")
    return None if value == (1 << (7 * (num_more + 1))) - 1 else value
