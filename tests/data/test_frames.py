import json
import multiprocessing
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from futurel1.data.frames import VideoInfo, frame_pool, probe_video, read_frames, read_image
from futurel1.errors import MediaError, MissingFileError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["pool8"]
READABLE = [
    "closed", "index_first", "one_key", "pyramid", "open_gop", "scene_cuts", "mpeg4", "mkv", "avi", "vp9"
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- frame pool


@pytest.mark.parametrize("length", sorted(GOLDEN, key=int))
def test_pool_is_that_of_the_reference(length):
    assert frame_pool(int(length)) == GOLDEN[length]


def test_pool_of_a_single_frame_repeats_it():
    assert frame_pool(1) == [0] * 8


@given(st.integers(1, 20_000))
def test_pool_is_eight_ascending_frames_of_the_video(num_frames):
    pool = frame_pool(num_frames)
    assert len(pool) == 8
    assert pool == sorted(pool)
    assert pool[0] >= 0
    assert pool[-1] < num_frames


@pytest.mark.parametrize("num_frames", [0, -3])
def test_pool_of_no_frames_is_an_error(num_frames):
    with pytest.raises(MediaError, match=str(num_frames)) as caught:
        frame_pool(num_frames)
    assert isinstance(caught.value, ValueError)


# ------------------------------------------------------------------------------------------------- reading videos


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize(
    "indices",
    [list(range(48)), [47], [13], [3, 11, 12, 13, 14, 25, 36], [40, 2, 2, 23, 40, 0]],
    ids=["all", "last", "13", "around keys", "unordered"],
)
def test_frames_are_those_asked_for(clips, frame_number, kind, indices):
    pictures = read_frames(clips[kind], indices)
    assert [frame_number(picture) for picture in pictures] == indices
    assert {picture.mode for picture in pictures} == {"RGB"}


def test_hevc_frames_are_those_asked_for(tmp_path, write_clip, numbered_frames, frame_number):
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no HEVC encoder")
    clip = write_clip(
        tmp_path / "hevc.mp4", numbered_frames, codec="libx265", x265_params="keyint=12:open-gop=1:crf=8:log-level=0"
    )
    indices = [0, 9, 10, 11, 12, 13, 22, 23, 24, 35, 47]
    assert [frame_number(picture) for picture in read_frames(clip, indices)] == indices


@pytest.mark.parametrize("kind", ["closed", "index_first", "one_key", "pyramid", "scene_cuts"])
def test_decord_gives_the_same_pixels_of_closed_groups(clips, kind):
    decord = pytest.importorskip("decord")
    indices = [0, 5, 11, 12, 13, 24, 30, 46, 47]
    by_seeking = decord.VideoReader(str(clips[kind]), num_threads=1).get_batch(indices).asnumpy()
    in_order = np.stack([np.asarray(picture) for picture in read_frames(clips[kind], indices)])
    np.testing.assert_array_equal(in_order, by_seeking)


def test_random_access_into_open_groups_is_why_decord_reads_in_order(clips, frame_number):
    """If this fails, decord's seeking has been repaired and `DecordReader` may use it."""
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(clips["open_gop"]), num_threads=1)
    sought = [frame_number(Image.fromarray(array)) for array in reader.get_batch(list(range(48))[::-1]).asnumpy()]
    assert sought[::-1] != list(range(48))


def test_a_frame_does_not_depend_on_what_else_is_read(clips):
    everything = read_frames(clips["open_gop"], range(48))
    for index in (0, 1, 12, 23, 47):
        (alone,) = read_frames(clips["open_gop"], [index])
        np.testing.assert_array_equal(np.asarray(alone), np.asarray(everything[index]))


def test_a_repeated_index_is_decoded_once(clips):
    first, second, third = read_frames(clips["closed"], [7, 9, 7])
    assert first is third
    assert first is not second


def test_no_indices_need_no_decoding(clips):
    assert read_frames(clips["closed"], []) == []


def test_forked_workers_may_read_after_their_parent_has(clips, frame_number):
    read_frames(clips["closed"], [3])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(read_frames, (clips[kind], [4, 40])) for kind in ("closed", "mkv", "closed", "avi")]
        read = [result.get(timeout=300) for result in results]
    assert [[frame_number(picture) for picture in pictures] for pictures in read] == [[4, 40]] * 4


@pytest.mark.parametrize("index", [48, -1, 10_000])
def test_an_index_outside_the_video_is_an_error(clips, index):
    with pytest.raises(MediaError, match=rf"closed\.mp4: frame {index} .* frames 0 to 47"):
        read_frames(clips["closed"], [0, index])


@pytest.mark.parametrize("kind", READABLE)
def test_probe(clips, kind):
    assert probe_video(clips[kind]) == VideoInfo(num_frames=48, fps=8.0, height=48, width=64, duration=6.0)


# -------------------------------------------------------------------------------------------------- damaged videos


def _packet_starts(path):
    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size]


def _cut(source, target, length):
    target.write_bytes(source.read_bytes()[:length])
    return target


@pytest.fixture
def damaged(tmp_path, clips):
    """Make a broken file by name."""

    def text():
        (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
        return tmp_path / "text.mp4"

    def empty():
        (tmp_path / "empty.mp4").touch()
        return tmp_path / "empty.mp4"

    def no_frames():
        with av.open(str(tmp_path / "no_frames.mp4"), "w") as output:
            stream = output.add_stream("libx264", rate=8)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            output.start_encoding()
        return tmp_path / "no_frames.mp4"

    def overwritten():
        data = bytearray(clips["index_first"].read_bytes())
        start, end = _packet_starts(clips["index_first"])[12:18:5]
        data[start:end] = bytes(end - start)
        (tmp_path / "overwritten.mp4").write_bytes(data)
        return tmp_path / "overwritten.mp4"

    def half(kind):
        source = clips[kind]
        return _cut(source, tmp_path / f"half_{source.name}", source.stat().st_size * 6 // 10)

    def folder():
        (tmp_path / "folder.mp4").mkdir()
        return tmp_path / "folder.mp4"

    index_first = clips["index_first"]
    return {
        "text": text,
        "empty": empty,
        "no frames": no_frames,
        "overwritten": overwritten,
        "folder": folder,
        "index lost": lambda: half("closed"),
        "within a frame": lambda: _cut(index_first, tmp_path / "within.mp4", _packet_starts(index_first)[30] + 3),
        "between frames": lambda: _cut(index_first, tmp_path / "between.mp4", _packet_starts(index_first)[30]),
        "last frame lost": lambda: _cut(index_first, tmp_path / "last.mp4", _packet_starts(index_first)[47]),
        "half mkv": lambda: half("mkv"),
        "half avi": lambda: half("avi"),
        "half webm": lambda: half("vp9"),
        "transport stream": lambda: clips["transport"],
    }


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("text", "not an MP4/MOV, Matroska/WebM or AVI file"),
        ("empty", r"empty \(0 bytes\)"),
        ("no frames", "has no video stream"),
        ("overwritten", "cannot be decoded .*damaged"),
        ("folder", "a folder"),
        ("index lost", "cut short|no index"),
        ("within a frame", "cut short"),
        ("between frames", "cut short"),
        ("last frame lost", "cut short"),
        ("half mkv", "cut short"),
        ("half avi", "cut short"),
        ("half webm", "cut short"),
        ("transport stream", "rewrap it: ffmpeg"),
    ],
)
def test_a_damaged_video_is_an_error_that_names_it(damaged, damage, says):
    path = damaged[damage]()
    with pytest.raises(MediaError, match=says) as caught:
        read_frames(path, [*range(20)])
    assert str(path) in str(caught.value)


def test_an_mp4_cut_between_boxes_has_no_index(tmp_path, clips):
    data = clips["closed"].read_bytes()
    path = tmp_path / "no_index.mp4"
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    with pytest.raises(MediaError, match=r"no_index\.mp4: the file has no index \('moov' box\)"):
        probe_video(path)


def test_padding_after_the_media_is_no_damage(tmp_path, clips, frame_number):
    path = tmp_path / "padded.mp4"
    path.write_bytes(clips["closed"].read_bytes() + struct.pack(">I4s", 4096, b"free") + b"\0" * 7)
    assert [frame_number(picture) for picture in read_frames(path, [5, 40])] == [5, 40]


def test_a_missing_video_is_an_error(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.mp4: no such file") as caught:
        probe_video(tmp_path / "nowhere.mp4")
    assert isinstance(caught.value, FileNotFoundError)


# ---------------------------------------------------------------------------------------------------------- images


def test_image_is_rgb(tmp_path):
    Image.new("L", (6, 4), 77).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (77, 77, 77))


def test_image_is_turned_upright(tmp_path):
    stored = Image.new("RGB", (4, 2), "black")
    stored.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored left edge is the top
    stored.save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.size == (2, 4)
    assert image.getpixel((1, 0)) == (255, 0, 0)


def test_transparent_parts_are_white(tmp_path):
    stored = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    stored.putpixel((1, 0), (10, 20, 30, 255))
    stored.save(tmp_path / "clear.png")
    image = read_image(tmp_path / "clear.png")
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (10, 20, 30)]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_image_is_an_error(tmp_path, suffix, share):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MediaError, match=rf"cut\.{suffix}: not a readable image"):
        read_image(path)


def test_unreadable_images_are_errors(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(MediaError, match=r"text\.jpg: not a readable image"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(MediaError, match=r"empty\.jpg: the file is empty"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(MissingFileError, match=r"nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(MediaError, match="a folder"):
        read_image(tmp_path)


def test_a_deep_image_is_an_error_rather_than_white(tmp_path):
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(MediaError, match=r"deep\.png: pixels of mode 'I;16'"):
        read_image(tmp_path / "deep.png")
