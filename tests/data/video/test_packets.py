"""What the packets tell without decoding: frames that are only references, and frames that an edit list hides."""

import itertools

import av
import numpy as np
import pytest
from clip_checks import NOT_IN_MP4, assert_same, pixels_of, undamaged_decode
from codings import CODINGS, NUM_FRAMES, overwrite, packet_bytes, packet_places, plain_decode, remux

from futurel1.data.frames import frame_pool, probe_video
from futurel1.data.video import open_video
from futurel1.errors import MediaError


def test_vp8_frames_that_are_only_references_are_not_counted(coded, tmp_path):
    """The encoder stores them as packets of their own, marked by a bit that says whether the frame is shown."""
    source = coded("vp8")
    content = bytearray(source.read_bytes())
    places = packet_places(source)
    for order in (5, 20, 33):
        start = places[order][0]
        # A block of Matroska begins with its track, time and flags.
        start = content.index(packet_bytes(source)[order], start)
        assert content[start] & 0x10
        content[start] &= ~0x10
    path = tmp_path / "references.webm"
    path.write_bytes(content)
    plain = plain_decode(path)
    assert probe_video(path).num_frames == len(plain) == NUM_FRAMES - 3
    assert_same(pixels_of(path), plain)
    assert_same(pixels_of(path, [4, 5, 50]), [plain[number] for number in (4, 5, 50)])


@pytest.mark.parametrize("coding", [coding for coding in CODINGS if coding not in (*NOT_IN_MP4, "intra_refresh")])
@pytest.mark.parametrize("start", [0.3, 1.6, 2.5])
def test_frames_that_an_edit_list_hides_are_not_counted(coded, tmp_path, coding, start):
    source = coded(coding)
    path = remux(source, tmp_path / "cut.mp4", start=start)
    with av.open(str(path)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
    assert coding == "mjpeg" or hidden > 0
    first = round(10 * start)
    shown = plain_decode(source)[first:]
    assert probe_video(path).num_frames == len(shown) == NUM_FRAMES - first
    pool = frame_pool(len(shown))
    assert_same(pixels_of(path, pool), [shown[number] for number in pool])
    with open_video(path) as video:
        np.testing.assert_allclose(video.times, np.arange(len(shown)) / 10, atol=1e-6)


def test_damage_of_frames_that_an_edit_list_hides_is_refused_where_others_are_decoded_from_them(coded, tmp_path):
    source, cut = coded("one_key"), coded("one_key", "cut mp4")
    with av.open(str(cut)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    hidden = [order for order, packet in enumerate(packets) if packet.is_discard]
    assert len(hidden) == 16
    right = plain_decode(cut)
    unnoticed = 0
    for order, share in itertools.product(hidden[1:8], (3, 5, 8)):
        damaged = [
            overwrite(clip, tmp_path / f"{name}.mp4", start + size * share // 10, b"\x5a\xa5\xff")
            for name, clip in (("whole", source), ("cut", cut))
            for start, size, _ in [packet_places(clip)[order]]
        ]
        shown = undamaged_decode(damaged[1])
        # Where the frame is shown the decoder reports it; where it is hidden FFmpeg drops it, and the report with it.
        if undamaged_decode(damaged[0]) is None and shown is not None and not np.array_equal(shown[5], right[5]):
            unnoticed += 1
            for numbers in ([5], [5, 20], [*range(44)]):
                with pytest.raises(MediaError, match=r"cut\.mp4: "):
                    pixels_of(damaged[1], numbers)
    assert unnoticed > 0
