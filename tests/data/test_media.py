"""The media of one record: opened once, decoded once, closed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codings import plain_decode
from PIL import Image

from futurel1.data import Sample, Turn, frame_pool, media
from futurel1.data.media import RecordMedia, media_sources
from futurel1.data.samples import Frame
from futurel1.data.video.pyav import PyAVReader
from futurel1.errors import MediaError


def frames_of(path: Path, *places: int) -> list[Frame]:
    return [Frame(path=path, pool_index=place) for place in places]


def test_pictures_come_in_the_order_asked_for_whatever_the_order_of_decoding(coded, tmp_path):
    video, cut = coded("pyramid"), coded("closed", "cut mp4")
    Image.new("RGB", (5, 4), "red").save(tmp_path / "still.png")
    frames = [
        *frames_of(video, 8, 1), Frame(path=tmp_path / "still.png", pool_index=None), *frames_of(cut, 3, 3),
        *frames_of(video, 4),
    ]  # fmt: skip
    with RecordMedia() as opened:
        pictures = opened.pictures(frames, [np.asarray] * len(frames))
    long, short = plain_decode(video), plain_decode(cut)
    pool, short_pool = frame_pool(60), frame_pool(44)
    right = [
        long[pool[7]], long[pool[0]], np.full((4, 5, 3), (255, 0, 0)), short[short_pool[2]], short[short_pool[2]],
        long[pool[3]],
    ]  # fmt: skip
    for picture, expected in zip(pictures, right, strict=True):
        np.testing.assert_array_equal(picture, expected)


def test_each_video_is_opened_and_decoded_once(coded, monkeypatch):
    opened: list[Any] = []
    original = media.open_video
    monkeypatch.setattr(media, "open_video", lambda path, backend: opened.append(path) or original(path, backend))
    reads: list[list[int]] = []
    read = PyAVReader.read
    monkeypatch.setattr(
        PyAVReader, "read", lambda reader, numbers, convert: reads.append(numbers) or read(reader, numbers, convert)
    )
    video = coded("closed")
    with RecordMedia() as record:
        assert record.size(frames_of(video, 1)[0]) == (48, 64)
        record.pictures(frames_of(video, 2, 5, 5), [np.asarray] * 3)
        assert record.video(video).info.num_frames == 60
    assert opened == [video]
    assert [len(numbers) for numbers in reads] == [2]


def test_videos_are_closed_with_the_record_even_after_an_error(coded, monkeypatch):
    closed: list[Any] = []
    close = PyAVReader.close
    monkeypatch.setattr(PyAVReader, "close", lambda reader: closed.append(reader) or close(reader))
    readers: list[Any] = []

    def refuse(_: Image.Image) -> None:
        raise MediaError("too much")

    def use() -> None:
        with RecordMedia() as record:
            readers.extend(record.video(coded(coding)) for coding in ("closed", "open"))
            record.pictures(frames_of(coded("closed"), 1), [refuse])

    with pytest.raises(MediaError, match="too much"):
        use()
    assert sorted(map(id, closed)) == sorted(map(id, readers))


def test_no_two_pictures_are_held_at_full_size(coded):
    held: list[int] = []
    alive: set[int] = set()

    def convert(picture: Image.Image) -> int:
        import gc
        import weakref

        gc.collect()
        held.append(len(alive))
        number = len(held)
        alive.add(number)
        weakref.finalize(picture, alive.discard, number)
        return number

    with RecordMedia() as record:
        made = record.pictures(frames_of(coded("closed"), *range(1, 9)), [convert] * 8)
    assert made == [*range(1, 9)]
    # The one before may still be on its way out.
    assert max(held) <= 1


def test_embedded_images_are_named_by_their_bytes(encoder):
    def sources(*images):
        frames = tuple(Frame(Path(f"record {place}"), None, image) for place, image in enumerate(images))
        return media_sources(Sample("a:1", (Turn("user", (*frames, "What?")),), None, {}))

    assert sources(b"one", b"two", b"one") == (*sources(b"one"), *sources(b"two"))
    assert not set(sources(b"one")) & set(sources(b"two"))
