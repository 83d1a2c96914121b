from __future__ import annotations

from pathlib import Path

import torch
from report_runs import plain_picture

from futurel1.data import read_frames
from futurel1.data.chat import ChatEncoder
from futurel1.data.samples import Frame, PromptInfo, Video
from futurel1.data.whole_videos import VideoSampling
from futurel1.models import LatentReasoner
from futurel1.report.gallery import MOST_SHOWN, Gallery
from futurel1.report.pictures import Thumbnails, data_uri
from futurel1.report.records import RecordView, RunRecords
from futurel1.report.runs import RunContents

SAMPLING = VideoSampling(fps=2.0, max_frames=16, frame_tokens=64, num_frames=None)


def test_each_frame_is_kept_once_and_later_ones_are_candidates(run: RunContents) -> None:
    gallery = Gallery(Thumbnails(64), SAMPLING, None)
    records = RunRecords(run)
    first = gallery.add(records.view("test.jsonl:1"))
    again = gallery.add(records.view("test.jsonl:1"))
    assert first == again
    assert [shown.label for shown in first.shown] == ["frame 1", "frame 2", "frame 3", "frame 4"]
    assert len(gallery.thumbnails.uris) == 8  # four observed, four later
    assert sorted(gallery.frames[place].picture.label for place in first.own) == [f"frame {n}" for n in (5, 6, 7, 8)]
    assert set(first.future) <= set(first.own)
    other = gallery.add(records.view("test.jsonl:2"))
    assert not set(other.own) & set(first.own)
    assert gallery.features is None  # no model
    video = next(iter(records.view("test.jsonl:1").sources))
    picture = read_frames(video, [1])[0]  # pool frame 1 of a clip of 10
    assert gallery.thumbnails.uris[first.shown[0].frame] == data_uri(picture, 64)


def test_features_are_means_of_what_latents_are_trained_on(run: RunContents, tiny: LatentReasoner) -> None:
    gallery = Gallery(Thumbnails(64), SAMPLING, tiny)
    records = RunRecords(run)
    frames = gallery.add(records.view("test.jsonl:1"))
    encoder = ChatEncoder(tiny.processor, max_latent_tokens=64)
    from futurel1.data import open_records

    encoded = encoder.encode(open_records(records.source.files[0].path)[0])
    seen = tiny.encode_hints(encoded.hint_pixel_values, encoded.hint_grid_thw)
    expected = torch.split(seen.embeds, list(seen.counts))[0].mean(dim=0)
    features = gallery.features
    assert features is not None
    assert features.shape == (len(gallery.frames), tiny.hidden_size)
    assert torch.allclose(features[frames.future[0]], expected, atol=1e-4)


def test_a_whole_video_shows_what_was_seen_and_is_its_own_bank(run: RunContents, tiny: LatentReasoner) -> None:
    video = Path(next(iter(RunRecords(run).view("test.jsonl:1").sources)))
    view = RecordView(PromptInfo(), (), (Video(video),), (), (), frozenset({str(video)}))
    every = VideoSampling(fps=2.0, max_frames=16, frame_tokens=64, num_frames=10)
    gallery = Gallery(Thumbnails(64), every, tiny)
    frames = gallery.add(view)
    assert len(frames.shown) == 10 < MOST_SHOWN
    assert frames.shown[0].label == "0.0 s"
    assert (frames.note, frames.observed, len(frames.own)) == ("", True, 10)
    assert gallery.add(view) == frames
    assert gallery.features is not None
    assert len(gallery.features) == 10


def test_embedded_and_stored_images(tmp_path: Path) -> None:
    plain_picture("red").save(tmp_path / "seen.png")
    embedded = Frame(Path("record 1"), None, (tmp_path / "seen.png").read_bytes())
    view = RecordView(PromptInfo(), (Frame(tmp_path / "seen.png", None), embedded), (), (), (), frozenset({"seen"}))
    frames = Gallery(Thumbnails(64), SAMPLING, None).add(view)
    assert [shown.label for shown in frames.shown] == ["image 1", "image 2"]
    assert frames.observed
