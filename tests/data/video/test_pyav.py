"""Which frames a video shows, when, and their pixels, against a plain decode in order."""

import contextlib
import logging
import struct
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_checks import CARRIED, CLIPS, assert_same, bar_number, pixels_of, undamaged_decode
from codings import (
    CODINGS,
    GROUP,
    H264,
    NUM_FRAMES,
    encode,
    moving_frames,
    overwrite,
    packet_places,
    plain_decode,
    set_matrix,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from futurel1.data.frames import frame_pool, probe_video, read_frames
from futurel1.data.video import open_video
from futurel1.data.video.pyav import MAX_PIXELS, PyAVReader
from futurel1.errors import ConfigError, MediaError

ONE_START = ("one_key", "intra_refresh")
"""Codings in which only the first frame is decoded from nothing before it."""


@pytest.mark.parametrize(("coding", "form"), CLIPS)
def test_every_frame_is_that_of_a_plain_decode(coded, coding, form):
    path = coded(coding, form)
    plain = plain_decode(path)
    assert probe_video(path).num_frames == len(plain)
    assert_same(pixels_of(path), plain)


@pytest.mark.parametrize(("coding", "form"), CLIPS)
def test_a_frame_alone_is_the_same(coded, coding, form):
    path = coded(coding, form)
    plain = plain_decode(path)
    near_keys = [number for key in range(0, NUM_FRAMES, GROUP) for number in range(key - 2, key + 2)]
    with open_video(path) as video:
        for number in sorted({0, 6, 7, len(plain) - 1, *near_keys} & set(range(len(plain)))):
            np.testing.assert_array_equal(video.read([number], lambda _, pixels: pixels)[number], plain[number])


class CountingContainer:
    """A container that notes the packets it hands out."""

    def __init__(self, container: Any, packets: list[Any]) -> None:
        self._container, self._packets = container, packets

    def demux(self, stream: Any) -> Iterator[Any]:
        for packet in self._container.demux(stream):
            if packet.size:
                self._packets.append(packet)
            yield packet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)


@pytest.mark.parametrize(("coding", "form"), [clip for clip in CLIPS if clip[0] not in ONE_START])
def test_a_late_frame_is_decoded_from_its_own_key_frame(coded, coding, form, monkeypatch, caplog):
    path = coded(coding, form)
    packets: list[Any] = []
    original = PyAVReader._open

    def open_counted(reader):
        container, stream = original(reader)
        return CountingContainer(container, packets), stream

    monkeypatch.setattr(PyAVReader, "_open", open_counted)
    with caplog.at_level(logging.DEBUG, "futurel1"), open_video(path) as video:
        count = video.info.num_frames
        # The third of the last whole group, and one of the group before it.
        for number in (count - GROUP + 2, count - 2 * GROUP + 2):
            packets.clear()
            video.read([number], lambda _, pixels: pixels)
            # The third of a group comes out before a whole group went in, even from a decoder that holds frames back.
            assert 0 < len(packets) <= GROUP + 1
    assert [record.message for record in caplog.records if "seek" in record.message] == []


def test_frames_of_any_order_and_number_are_read_together(coded):
    path = coded("pyramid")
    plain = plain_decode(path)
    numbers = [40, 2, 2, 59, 23, 40, 0, 24]
    assert_same(pixels_of(path, numbers), [plain[number] for number in numbers])


@pytest.mark.parametrize("coding", ["closed", "open", "one_key", "mpeg4", "mpeg2", "ffv1"])
def test_avi_stores_no_times_and_is_counted_by_decoding(tmp_path, coding):
    codec, options = CODINGS[coding]
    path = encode(tmp_path / "clip.avi", moving_frames(), codec, options)
    plain = plain_decode(path)
    with open_video(path) as video:
        assert video.info.num_frames == len(plain) == NUM_FRAMES
        np.testing.assert_allclose(video.times, np.arange(NUM_FRAMES) / 10)
        for number in (0, 1, 11, 12, 13, 40, 59):
            np.testing.assert_array_equal(video.read([number], lambda _, pixels: pixels)[number], plain[number])


def test_interlaced_fields_are_counted_by_decoding(tmp_path):
    path = encode(
        tmp_path / "fields.mp4", moving_frames(), "libx264", {**H264, "x264-params": "interlaced=1:scenecut=0"}
    )
    plain = plain_decode(path)
    assert_same(pixels_of(path), plain)
    assert_same(pixels_of(path, [30, 50]), [plain[30], plain[50]])


@pytest.mark.parametrize("width", [*range(2, 82, 2)])
def test_narrow_clips_are_rgb(tmp_path, width):
    path = encode(tmp_path / "narrow.mp4", moving_frames(3, 48, width), options={"crf": "12"})
    pictures = read_frames(path, [0, 2])
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (width, 48))}
    plain = plain_decode(path)
    assert_same([np.asarray(picture) for picture in pictures], [plain[0], plain[2]])


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (3, 5), (35, 17), (47, 63), (2, 300)])
def test_odd_sizes_are_read(tmp_path, size):
    path = encode(tmp_path / "odd.mp4", moving_frames(3, *size), pix_fmt="yuv444p", options={"crf": "12"})
    info = probe_video(path)
    assert (info.height, info.width) == size
    assert_same(pixels_of(path), plain_decode(path))


def test_a_carried_narrow_clip_has_the_pixels_of_a_plain_decode():
    assert_same(pixels_of(CARRIED / "narrow.mp4"), plain_decode(CARRIED / "narrow.mp4"))


def edited(source: Path, target: Path, *, duration: int | None = None, media_time: int | None = None) -> Path:
    """Change the only entry of an MP4 file's edit list: its length in steps of the movie's clock, its start."""
    content = bytearray(source.read_bytes())
    place = content.index(b"elst") + 8
    count, old_duration, old_time = struct.unpack_from(">IIi", content, place)
    assert count == 1
    struct.pack_into(
        ">Ii", content, place + 4, old_duration if duration is None else duration,
        old_time if media_time is None else media_time,
    )  # fmt: skip
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("coding", ["closed", "open", "pyramid", "hevc", "mpeg4"])
def test_a_clip_trimmed_at_its_end_ends_there(coded, tmp_path, coding):
    source = coded(coding)
    path = edited(source, tmp_path / "trimmed.mp4", duration=2500)
    plain = plain_decode(source)
    shown = plain_decode(path)
    assert len(shown) in (25, 26)
    assert probe_video(path).num_frames == len(shown)
    assert_same(pixels_of(path), shown)
    assert_same(shown, plain[: len(shown)])


def test_a_carried_cut_shows_the_frames_of_the_source_from_the_cut_on():
    path = CARRIED / "edit_list.mp4"
    assert probe_video(path).num_frames == 75
    numbers = [bar_number(frame) for frame in pixels_of(path, frame_pool(75))]
    assert numbers[:6] == [46, 52, 63, 75, 87, 99]
    assert numbers == [45 + number for number in frame_pool(75)]


STEADY_THEN_FAST = [*range(0, 30_000, 1000), *(30_000 + round(number * 1000 / 30) for number in range(90))]
"""Milliseconds of thirty frames at 1 per second and ninety at 30."""


@pytest.mark.parametrize(("name", "codec"), [("v.webm", "libvpx-vp9"), ("v.mp4", "libx264"), ("v.mkv", "libx264")])
def test_frames_have_their_own_times(tmp_path, name, codec):
    frames = moving_frames(len(STEADY_THEN_FAST))
    path = encode(tmp_path / name, frames, codec, times=STEADY_THEN_FAST, clock=Fraction(1, 1000))
    with open_video(path) as video:
        np.testing.assert_allclose(video.times, np.array(STEADY_THEN_FAST) / 1000, atol=1.1e-3)
        assert video.info.duration == pytest.approx(33.0, abs=0.11)
        assert video.info.fps == pytest.approx(120 / video.info.duration)


def test_times_count_from_the_first_frame_shown(tmp_path):
    times = [5000 + 100 * number for number in range(20)]
    path = encode(tmp_path / "late.mkv", moving_frames(20), times=times, clock=Fraction(1, 1000))
    with open_video(path) as video:
        np.testing.assert_allclose(video.times, np.arange(20) / 10)
        assert video.info.duration == pytest.approx(2.0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("fps", [8, 24, 25, 30, 60])
def test_a_constant_rate_stays_what_it_is(tmp_path, suffix, fps):
    path = encode(tmp_path / f"constant.{suffix}", moving_frames(30, 32, 32), fps=fps)
    info = probe_video(path)
    assert info.num_frames == 30
    assert info.fps == pytest.approx(fps, rel=3e-3)
    assert info.duration == pytest.approx(30 / fps, abs=2e-3)


def test_a_recording_without_a_duration_is_read():
    path = CARRIED / "no_duration.webm"
    with av.open(str(path)) as container:
        assert container.duration is None
    info = probe_video(path)
    assert info.num_frames == 120
    assert info.duration == pytest.approx(info.num_frames / info.fps)
    assert [bar_number(frame) for frame in pixels_of(path, [0, 1, 59, 119])] == [0, 1, 59, 119]


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv", "one.avi", "one.webm"])
def test_a_video_of_one_frame_has_a_rate_and_a_duration(tmp_path, name):
    path = encode(tmp_path / name, moving_frames(1), "libvpx" if name.endswith("webm") else "libx264")
    info = probe_video(path)
    assert info.num_frames == 1
    assert info.fps == pytest.approx(10, rel=1e-3)
    assert info.duration == pytest.approx(0.1, rel=1e-3)
    assert_same(pixels_of(path, [0, 0]), plain_decode(path) * 2)


def flipped(source: Path, target: Path, flips: list[tuple[float, int]]) -> Path:
    """Copy a file with bits of its media turned, each by its share of the way through and its place in the byte."""
    places = packet_places(source)
    content = bytearray(source.read_bytes())
    start, end = places[0][0], places[-1][0] + places[-1][1]
    for share, bit in flips:
        content[start + int(share * (end - start))] ^= 1 << bit
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("coding", ["closed", "open", "one_key", "hevc", "mpeg4", "mpeg2", "av1"])
# The same examples in every run: about one flipped bit in 400 leaves a valid stream, the decoder reports nothing, and
# what a frame then shows depends on where decoding began (10 of 4,097 random flips of "open").
@settings(max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 7)), min_size=1, max_size=3))
def test_what_the_decoder_reports_is_refused_and_all_else_is_as_decoded(coded, tmp_path, coding, flips):
    path = flipped(coded(coding), tmp_path / "damaged.mp4", flips)
    plain = undamaged_decode(path)
    if plain is None:
        with pytest.raises(MediaError):
            pixels_of(path)
    elif len(plain) == NUM_FRAMES:
        assert_same(pixels_of(path), plain)
    else:
        # The decoder left frames out without a word: refused too, or, where it leaves out the first, not counted.
        try:
            frames = pixels_of(path)
        except MediaError:
            return
        assert_same(frames, plain)


@pytest.mark.parametrize("coding", ["vp8", "vp9"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 7)), min_size=1, max_size=3))
def test_damage_that_no_decoder_reports_is_at_least_no_other_error(coded, tmp_path, coding, flips):
    path = flipped(coded(coding), tmp_path / "damaged.webm", flips)
    frames = []
    with contextlib.suppress(MediaError):
        frames = pixels_of(path)
    assert {frame.shape for frame in frames} <= {(48, 64, 3)}


def test_carried_damage_is_refused_with_its_place():
    with pytest.raises(MediaError, match=r"damaged_h264\.mp4: the decoder finds the video damaged at \d+\.\d\d s"):
        pixels_of(CARRIED / "damaged_h264.mp4")


def test_no_decoder_reports_damage_of_vp9():
    """If this fails, damaged VP9 is noticed, and docs/data.md need no longer say that it is not."""
    frames = pixels_of(CARRIED / "damaged_vp9.webm")
    assert [bar_number(frame) for frame in frames] != list(range(len(frames)))


def damage_packet(source: Path, target: Path, order: int) -> Path:
    """Overwrite the inside of a packet with noise."""
    start, size, _ = packet_places(source)[order]
    noise = np.random.default_rng(0).integers(0, 256, size - 12, dtype=np.uint8).tobytes()
    return overwrite(source, target, start + 12, noise)


@pytest.mark.parametrize("coding", ["closed", "pyramid", "open", "mpeg4"])
def test_damage_refuses_the_frames_of_its_own_group_alone(coded, tmp_path, coding):
    source = coded(coding)
    plain, places = plain_decode(source), packet_places(source)
    # The largest packet of the second group's inside is no frame that nothing is decoded from.
    order = max(range(GROUP + 1, GROUP + 6), key=lambda order: places[order][1])
    path = damage_packet(source, tmp_path / "damaged.mp4", order)
    assert undamaged_decode(path) is None
    with pytest.raises(MediaError):
        pixels_of(path, range(GROUP, 2 * GROUP))
    far = [0, 5, 40, 41, 50, 59]
    assert_same(pixels_of(path, far), [plain[number] for number in far])


def test_damage_of_a_later_frame_that_is_decoded_first_is_refused(coded, tmp_path):
    """A B frame is decoded from one that is shown after it."""
    source = coded("pyramid")
    times = [time for _, _, time in packet_places(source)]
    # The packet after the first key frame is shown last of its small group.
    assert times[1] > times[2] > times[0]
    path = damage_packet(source, tmp_path / "damaged.mp4", 1)
    wanted = sorted(times).index(times[2])
    with pytest.raises(MediaError):
        pixels_of(path, [wanted])


def test_av1_is_read(coded):
    assert_same(pixels_of(coded("av1"), [59]), plain_decode(coded("av1"))[59:])


TURNS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda frame: frame,
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),  # clockwise, as a phone held upright writes it
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),
    (0, -1, 1, 0): lambda frame: np.rot90(frame),
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (0, 1, 1, 0): lambda frame: frame.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda frame: frame.transpose(1, 0, 2)[::-1, ::-1],
}


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_turned_as_they_are_displayed(coded, tmp_path, matrix):
    path = set_matrix(coded("closed"), tmp_path / "turned.mp4", matrix)
    plain = [TURNS[matrix](frame) for frame in plain_decode(path)]
    info = probe_video(path)
    assert (info.height, info.width) == plain[0].shape[:2] == ((64, 48) if matrix[0] == 0 else (48, 64))
    assert_same(pixels_of(path, [0, 30]), [plain[0], plain[30]])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_by_quarters(tmp_path, suffix, degrees):
    path = encode(tmp_path / f"turned.{suffix}", moving_frames(4), rotation=degrees)
    with av.open(str(path)) as container:
        rotation = next(container.decode(video=0)).rotation
    assert rotation % 360 in (degrees, 360 - degrees)
    # PyAV counts counterclockwise.
    assert_same(pixels_of(path), [np.rot90(frame, rotation // 90) for frame in plain_decode(path)])


@pytest.mark.parametrize("degrees", [45, 30, 1])
def test_other_angles_are_refused(tmp_path, degrees):
    path = encode(tmp_path / "askew.mp4", moving_frames(2), rotation=degrees)
    with pytest.raises(MediaError, match=r"askew\.mp4: the video is displayed turned by .* no multiple of 90"):
        probe_video(path)


def with_sound(path: Path, cover: bool) -> Path:
    """An MP4 file of a second of silence, with or without a picture of its cover."""
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=16_000)
        picture = None
        if cover:
            picture = output.add_stream("mjpeg", rate=1)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
        if picture is not None:
            pixels = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            output.mux(picture.encode(pixels))
            output.mux(picture.encode(None))
    return path


@pytest.mark.parametrize("cover", [False, True], ids=["sound alone", "with a cover"])
def test_sound_is_no_video(tmp_path, cover):
    path = with_sound(tmp_path / "sound.mp4", cover)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == cover
    with pytest.raises(MediaError, match=r"sound\.mp4: the file has no video stream; name a video"):
        probe_video(path)


@pytest.mark.parametrize(("codec", "suffix"), [("mjpeg", "mkv"), ("libvpx", "webm"), ("libvpx-vp9", "webm")])
def test_a_size_that_changes_is_refused(tmp_path, codec, suffix):
    parts = [encode(tmp_path / f"{width}.{suffix}", moving_frames(5, 48, width), codec) for width in (64, 96)]
    path = tmp_path / f"changing.{suffix}"
    with av.open(str(path), "w") as output:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as given:
                if stream is None:
                    stream = output.add_stream_from_template(given.streams.video[0])
                for packet in given.demux(video=0):
                    if packet.size:
                        packet.pts += 500 * number
                        packet.dts = packet.pts
                        packet.stream = stream
                        output.mux_one(packet)
    assert_same(pixels_of(path, [0, 4]), [plain_decode(parts[0])[number] for number in (0, 4)])
    with pytest.raises(MediaError, match=r"the size changes from 64 x 48 to 96 x 48 pixels at 0\.50 s; re-encode"):
        pixels_of(path)


def test_a_video_larger_than_the_limit_is_refused_before_it_is_decoded(coded, tmp_path, monkeypatch):
    monkeypatch.setattr("futurel1.data.video.pyav.MAX_PIXELS", 48 * 64 - 1)
    decoded: list[Any] = []
    monkeypatch.setattr(PyAVReader, "_decoded", lambda *arguments: iter(decoded.append(arguments) or ()))
    with pytest.raises(MediaError, match="frames of 64 x 48 pixels, more than 3071 in all; scale the video down"):
        probe_video(coded("closed"))
    assert decoded == []


def test_a_file_that_claims_a_giant_picture_is_refused(tmp_path):
    """MJPEG says its size in every frame."""
    path = encode(tmp_path / "giant.avi", moving_frames(3), "mjpeg")
    content = bytearray(path.read_bytes())
    place = 0
    while (place := content.find(b"\xff\xc0", place)) >= 0:
        struct.pack_into(">HH", content, place + 5, 32_000, 32_000)
        place += 2
    path.write_bytes(content)
    assert MAX_PIXELS < 32_000**2
    with pytest.raises(MediaError, match=r"giant\.avi"):
        pixels_of(path)


def test_without_pyav_the_error_says_how_to_install_it(coded, monkeypatch):
    clip = coded("closed")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"PyAV, .*pip install av"), open_video(clip):
        pass


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_texts_of_other_encodings_are_no_damage(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "a cafe at noon"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(10):
            picture = np.full((48, 64, 3), 20 * shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    before = pixels_of(path)
    assert b"cafe" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))  # Latin-1
    assert_same(pixels_of(path), before)
