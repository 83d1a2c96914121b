"""Information about a video from one pass over its packets, before any picture is decoded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from futurel1.data.video.recovery import nal_length_size, recovery_of
from futurel1.errors import MediaError

if TYPE_CHECKING:
    import av

__all__ = ["Packets", "hide_untimed", "scan_packets", "visible"]


@dataclass(frozen=True)
class Packets:
    """Result of one pass over the packets; arrays are in file order and include hidden frames."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    """Byte offsets of the packets in the file."""
    durations: list[int] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    """Packets that the file calls key frames."""
    clean: list[int] = field(default_factory=list)
    """Key frames from which decoding is correct at once, as far as the packet tells."""
    gradual: list[int] = field(default_factory=list)
    """Key frames from which decoding is correct only some frames later."""


def scan_packets(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> Packets:
    """Read all packets of a video once, from the container's current position.

    Args:
        container: the open file.
        stream: its video stream.
        path: the file, for messages.

    Raises:
        MediaError: a packet is incomplete.
    """
    codec = stream.codec_context.name
    length_size = nal_length_size(codec, stream.codec_context.extradata)
    packets = Packets()
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise MediaError(
                f"{path}: packet {len(packets.pts)} is incomplete; the file is damaged or cut short: copy it again"
            )
        order = len(packets.pts)
        packets.pts.append(packet.pts)
        packets.dts.append(packet.dts)
        packets.positions.append(packet.pos)
        packets.durations.append(packet.duration or 0)
        # VP8 stores reference-only frames as separate packets, marked by a bit of the first byte.
        shown = not packet.is_discard and not (codec == "vp8" and not memoryview(packet)[0] & 0x10)
        packets.shown.append(shown)
        if packet.is_keyframe:
            packets.keys.append(order)
            recovery = recovery_of(codec, packet, length_size)
            if recovery is not None:
                {"at once": packets.clean, "gradual": packets.gradual}[recovery].append(order)
    return packets


def hide_untimed(packets: Packets) -> int:
    """Treat packets without a time that follow the first packet as hidden frames before it; return their number.

    Matroska cannot store times before 0. A clip that was cut from open groups without decoding has such frames: they
    lead the first key frame, and the frames that they are decoded from are missing.
    """
    number = sum(1 for _ in itertools.takewhile(lambda time: time is None, packets.pts[1:]))
    if number and packets.pts[0] is not None and packets.keys[:1] == [0]:
        packets.pts[1 : number + 1] = [packets.pts[0] - 1] * number
        packets.shown[1 : number + 1] = [False] * number
        return number
    return 0


def visible(packet: av.Packet[Any]) -> av.Packet[Any]:
    """Unmark a packet hidden by an edit list: FFmpeg would drop its frame, and with it the sign of damage."""
    import av

    # A packet made by size ends with the zero padding that decoders read past its end.
    copy = av.Packet(packet.size)
    copy.update(bytes(packet))
    copy.pts, copy.dts, copy.time_base, copy.is_keyframe = packet.pts, packet.dts, packet.time_base, packet.is_keyframe
    return copy
