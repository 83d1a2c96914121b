"""Where decoding may start: what a key frame's packet says about the frames shown after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import av

__all__ = ["Recovery", "nal_length_size", "nal_units", "recovery_of", "recovery_point"]

Recovery = Literal["at once", "gradual"]

_FRAMES_RESET_BY_KEYS = {
    "av1", "dnxhd", "ffv1", "h263", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "png", "prores",
    "rawvideo", "vp8", "vp9",
}  # fmt: skip
"""Codecs in which every frame shown after a key frame can be decoded. (H.264 and HEVC state it per key frame.)"""


def nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length field before each unit of an H.264 or HEVC packet; 0: start codes instead (Annex B)."""
    place = {"h264": 4, "hevc": 21}.get(codec)
    if place is None or not extradata or len(extradata) <= place or extradata[0] != 1:
        return 0
    return (extradata[place] & 3) + 1


def recovery_of(codec: str, packet: av.Packet[Any], length_size: int) -> Recovery | None:
    """Whether decoding from this key frame is right at once or after some frames; None if the packet does not say.

    H.264: an instantaneous refresh (IDR), or an exact recovery point (ITU-T H.264, D.1.8): one of zero frames for the
    key frame of an open group, one of several for gradual refresh. HEVC: a random access point (H.265, 7.4.2.2: types
    16 to 21).
    """
    if codec in _FRAMES_RESET_BY_KEYS:
        return "at once"
    if codec not in ("h264", "hevc"):
        return None
    recovery: Recovery | None = None
    for unit in nal_units(bytes(packet), length_size):
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if codec == "hevc" and kind < 32:
            return "at once" if 16 <= kind <= 21 else None
        if codec == "h264" and kind in (1, 5):
            return "at once" if kind == 5 else recovery
        if codec == "h264" and kind == 6:
            recovery = recovery or recovery_point(unit[1:])
    return None


def nal_units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The units of a packet, without their lengths or start codes; see :func:`nal_length_size`."""
    if not length_size:
        yield from (unit for unit in data.split(b"\x00\x00\x01")[1:] if unit)
        return
    position = 0
    while position + length_size < len(data):
        length = int.from_bytes(data[position : position + length_size], "big")
        position += length_size
        if length:
            yield data[position : position + length]
        position += length


def recovery_point(messages: bytes) -> Recovery | None:
    """Read the recovery point from H.264 supplemental messages; None: there is none, or an inexact one of 0 frames."""
    position = 0
    while position + 2 < len(messages):
        fields = []
        for _ in ("type", "size"):
            value = 0
            while position < len(messages) and messages[position] == 255:
                value += 255
                position += 1
            if position >= len(messages):
                return None
            fields.append(value + messages[position])
            position += 1
        kind, size = fields
        # Exp-Golomb 0 is the bit 1; the next bit is exact_match_flag.
        if kind == 6:
            if position < len(messages) and not messages[position] >> 7:
                return "gradual"
            return "at once" if position < len(messages) and messages[position] >> 6 == 0b11 else None
        position += size
    return None
