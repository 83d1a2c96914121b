"""From which key frames decoding may start, as their packets say."""

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.data.video.pyav import PyAVReader
from futurel1.data.video.recovery import nal_units, recovery_point


def test_gradual_refresh_is_decoded_from_the_start(coded):
    """Its frames with a recovery point are marked as key frames, but from them the picture comes right only later."""
    path = coded("intra_refresh")
    with av.open(str(path)) as container:
        keys = [packet.pts for packet in container.demux(video=0) if packet.is_keyframe]
    assert len(keys) > 2, "the clip has no gradual refresh"
    reader = PyAVReader(path)
    assert len(reader._keys) == 1
    reader.close()


@pytest.mark.parametrize(
    ("messages", "recovery"),
    [
        ("06 01 c4 80", "at once"),  # zero frames, exact
        ("06 01 84 80", None),  # zero frames, inexact
        ("06 01 58 80", "gradual"),  # one frame
        ("05 03 aabbcc 06 01 c4 80", "at once"),  # after a message of another kind
        (f"05 ff01 {'00' * 256} 06 01 c4 80", "at once"),  # and a long one
        ("05 03 aabbcc 80", None),
        ("06", None),
        ("ffff", None),
        ("", None),
    ],
)
def test_recovery_points_of_h264(messages, recovery):
    assert recovery_point(bytes.fromhex(messages)) == recovery


@given(st.binary(max_size=60), st.integers(0, 4))
def test_no_bytes_break_the_search_for_a_recovery_point(data, length_size):
    for unit in nal_units(data, length_size):
        assert unit
        assert recovery_point(unit[1:]) in (None, "at once", "gradual")
