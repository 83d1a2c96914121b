from __future__ import annotations

import pytest
import torch
from report_runs import plain_picture, unit

from futurel1.data.whole_videos import VideoSampling
from futurel1.errors import RecordError
from futurel1.report.gallery import Gallery, GalleryFrame, RecordFrames, ShownFrame
from futurel1.report.neighbours import neighbours_of, retrieval_of, spans_of
from futurel1.report.pictures import Thumbnails


def gallery_of(features: list[list[float]], videos: str) -> Gallery:
    """A gallery of one frame per feature; `videos` has the letter of each one's video."""
    gallery = Gallery(Thumbnails(32), VideoSampling(2.0, 16, 64, None), None)
    for number, (feature, video) in enumerate(zip(features, videos, strict=True)):
        place = gallery.thumbnails.add(str(number), plain_picture("red"))
        gallery.frames.append(GalleryFrame(ShownFrame(place, f"frame {number}"), f"{video}.mp4", {video}))
        gallery._features.append(unit(*feature))
    return gallery


def record_of(future: tuple[int, ...], own: tuple[int, ...]) -> RecordFrames:
    return RecordFrames((), "", future, own, False, frozenset({"a"}))


def test_ranks_and_nearest_frames() -> None:
    # Cosines to (1, 0): own 0.6, 1.0; others 0.8, 0, -1.
    gallery = gallery_of([[3, 4], [2, 0], [4, 3], [0, 1], [-1, 0]], "aabbc")
    latents = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # mean (1, 0)
    found = neighbours_of(latents, 0, record_of((0,), (0, 1)), gallery, 2)
    assert found is not None
    assert found.true is not None
    assert (found.true.rank, found.true.of, found.true.own_rank, found.true.own_of) == (3, 5, 2, 2)
    assert found.true.near.cosine == pytest.approx(0.6)
    assert found.true.latents == pytest.approx((1.4 / 2**0.5, -0.2 / 2**0.5), abs=1e-4)
    assert [(near.label, near.cosine) for near in found.own] == [("frame 1", 1.0), ("frame 0", 0.6)]
    assert [(near.video, near.cosine) for near in found.others] == [("b.mp4", 0.8), ("b.mp4", 0.0)]
    assert found.other_mean == pytest.approx((0.8 + 0 - 1) / 3, abs=1e-4)


def test_ties_count_against_the_true_frame() -> None:
    gallery = gallery_of([[1, 0], [1, 0], [1, 0]], "aab")
    found = neighbours_of(unit(1.0, 0.0), 0, record_of((0,), (0, 1)), gallery, 1)
    assert found is not None
    assert found.true is not None
    assert (found.true.rank, found.true.own_rank) == (3, 2)


def test_what_cannot_be_compared() -> None:
    gallery = gallery_of([[1, 0], [0, 1]], "ab")
    beyond = neighbours_of(unit(1.0, 0.0), 1, record_of((0,), (0,)), gallery, 1)
    assert beyond is not None
    assert beyond.true is None
    assert neighbours_of(torch.zeros(0, 2), 0, record_of((0,), (0,)), gallery, 1) is None
    assert neighbours_of(unit(1.0, 0.0), 0, record_of((0,), (0,)), gallery_of([], ""), 1) is None
    assert retrieval_of([beyond]) is None


def test_frames_of_the_own_video_that_were_shown_are_no_candidates() -> None:
    gallery = gallery_of([[1, 0], [0, 1], [1, 0.1]], "aab")
    found = neighbours_of(unit(0.0, 1.0), 0, record_of((1,), (1,)), gallery, 3)
    assert found is not None
    assert found.true is not None
    assert found.true.of == 2
    assert [near.label for near in found.own] == ["frame 1"]


def test_the_sum_over_spans() -> None:
    gallery = gallery_of([[3, 4], [2, 0], [4, 3], [0, 1]], "aabb")
    record = record_of((0, 1), (0, 1))
    spans = [neighbours_of(unit(1.0, 0.0), number, record, gallery, 1) for number in (0, 1)]
    found = retrieval_of([span for span in spans if span is not None])
    assert found is not None
    assert (found.spans, found.first, found.first_chance) == (2, 0.5, 0.25)
    assert (found.median_rank, found.median_candidates) == (2.0, 4)
    assert (found.own_first, found.own_chance) == (0.5, 0.5)
    assert found.cosine == pytest.approx(0.8)
    assert found.cosine_others == pytest.approx(0.4)


def test_latents_are_cut_into_spans() -> None:
    latents = torch.arange(6.0).view(3, 2)
    first, second, third = spans_of("a:1", latents, [2, 0, 1])
    assert torch.equal(first, latents[:2])
    assert (len(second), torch.equal(third, latents[2:])) == (0, True)
    with pytest.raises(RecordError, match=r"a:1 has spans of \[2\] latents, but 3 latents"):
        spans_of("a:1", latents, [2])
