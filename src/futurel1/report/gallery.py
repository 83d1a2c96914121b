"""One pass over the data: thumbnails of everything that is shown, and features of the frames that spans may be near to.

Shapes: F frames of the gallery, H hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from futurel1.data.chat import ChatEncoder
from futurel1.data.frames import frame_pool
from futurel1.data.media import RecordMedia
from futurel1.data.samples import Frame
from futurel1.data.whole_videos import VideoSampling
from futurel1.models import LatentReasoner
from futurel1.report.pictures import Thumbnails
from futurel1.report.records import RecordView

__all__ = ["Gallery", "RecordFrames", "ShownFrame"]

MOST_SHOWN = 16
"""Frames of a whole video that a page shows, evenly over those that the model saw."""
FRAME_TOKENS = 64
"""Most visual tokens of a frame whose features are taken."""


@dataclass(frozen=True)
class ShownFrame:
    """A picture of a page: its place among the thumbnails, and what it is called."""

    frame: int
    label: str


@dataclass(frozen=True)
class RecordFrames:
    """Pictures of one record.

    Attributes:
        shown: what the model was shown.
        note: what is left out of `shown`; "" if nothing.
        future: places in the gallery of what each span should show, in order.
        own: places in the gallery of later frames of the record's own video, `future` among them.
        observed: whether `own` are frames that the model was shown, because there are no later ones.
        sources: names of the record's media.
    """

    shown: tuple[ShownFrame, ...]
    note: str
    future: tuple[int, ...]
    own: tuple[int, ...]
    observed: bool
    sources: frozenset[str]


@dataclass
class GalleryFrame:
    """A frame that a span may be near to.

    Attributes:
        picture: what the page shows.
        video: name of its file.
        sources: names of the media of every record that has it.
    """

    picture: ShownFrame
    video: str
    sources: set[str] = field(default_factory=set)


class Gallery:
    """Thumbnails and features of the frames of records.

    Args:
        thumbnails: where pictures go.
        sampling: how frames of whole videos are taken.
        reasoner: model whose vision tower encodes the frames; None: no features.

    Attributes:
        frames: F frames.
    """

    def __init__(self, thumbnails: Thumbnails, sampling: VideoSampling, reasoner: LatentReasoner | None) -> None:
        self.thumbnails = thumbnails
        self.frames: list[GalleryFrame] = []
        self._sampling = sampling
        self._reasoner = reasoner
        self._encoder: ChatEncoder | None = None
        if reasoner is not None:
            self._encoder = ChatEncoder(reasoner.processor, max_latent_tokens=FRAME_TOKENS)
        self._features: list[Tensor] = []
        self._places: dict[str, int] = {}

    @property
    def features(self) -> Tensor | None:
        """(F, H) float32 mean features of the frames; None without a model or a frame."""
        if len(self._features) > 1:
            self._features = [torch.cat(self._features)]
        return self._features[0] if self._features else None

    def add(self, view: RecordView) -> RecordFrames:
        """Read the pictures of a record, each video opened once.

        Raises:
            MissingFileError: a file is not there.
            MediaError: a file cannot be read.
        """
        with RecordMedia() as media:
            shown = self._shown(media, view.shown)
            whole, note = self._whole_videos(media, view)
            candidates = [*view.future, *view.later] or list(view.shown)
            places = self._collect(media, candidates, view.sources, whole)
        number = len(view.future)
        own = tuple(dict.fromkeys(places))
        return RecordFrames(
            shown=(*shown, *(ShownFrame(place, label) for place, label, _ in whole)),
            note=note,
            future=tuple(places[:number]),
            own=own,
            observed=not (view.future or view.later),
            sources=view.sources,
        )

    # ------------------------------------------------------------------ what was shown

    def _shown(self, media: RecordMedia, frames: Sequence[Frame]) -> list[ShownFrame]:
        keys = [_key(media, frame) for frame in frames]
        fresh = {key: frame for key, frame in zip(keys, frames, strict=True) if self.thumbnails.place(key) is None}
        pictures = media.pictures(list(fresh.values()), [lambda picture: picture] * len(fresh))
        for key, picture in zip(fresh, pictures, strict=True):
            self.thumbnails.add(key, picture)
        found = [(self.thumbnails.place(key) or 0, frame) for key, frame in zip(keys, frames, strict=True)]
        return [ShownFrame(place, _label(frame, number)) for number, (place, frame) in enumerate(found, 1)]

    def _whole_videos(self, media: RecordMedia, view: RecordView) -> tuple[list[tuple[int, str, Image.Image]], str]:
        """Place among thumbnails, label and picture of frames of whole videos; and how many were left out."""
        found: list[tuple[int, str, Image.Image]] = []
        left_out = 0
        for video in view.videos:
            reader = media.video(video.path)
            numbers = list(dict.fromkeys(self._sampling.frame_numbers(reader.info)))
            chosen = [numbers[place * len(numbers) // MOST_SHOWN] for place in range(MOST_SHOWN)]
            chosen = chosen if len(numbers) > MOST_SHOWN else numbers
            left_out += len(numbers) - len(chosen)
            pictures = reader.read(chosen, lambda _, pixels: Image.fromarray(pixels))
            for number in chosen:
                key = f"{os.path.realpath(video.path)}#{number}"
                place = self.thumbnails.add(key, pictures[number])
                found.append((place, f"{float(reader.times[number]):.1f} s", pictures[number]))
        return found, f"{len(found)} of the {len(found) + left_out} frames that were shown" if left_out else ""

    # ------------------------------------------------------------------ what spans may be near to

    def _collect(
        self,
        media: RecordMedia,
        frames: Sequence[Frame],
        sources: frozenset[str],
        whole: Sequence[tuple[int, str, Image.Image]],
    ) -> list[int]:
        """Places in the gallery of frames, in their order; those that are not in it are read and encoded."""
        keys = [_key(media, frame) for frame in frames]
        fresh = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._places}
        pictures = media.pictures(list(fresh.values()), [lambda picture: picture] * len(fresh))
        new: list[Image.Image] = []
        for (key, frame), picture in zip(fresh.items(), pictures, strict=True):
            place = self.thumbnails.add(key, picture)
            self._put(key, ShownFrame(place, _label(frame, keys.index(key) + 1)), frame.path)
            new.append(picture)
        if not frames:
            for place, label, picture in whole:
                key = f"thumbnail {place}"
                keys.append(key)
                if key not in self._places:
                    self._put(key, ShownFrame(place, label), Path(next(iter(sources))))
                    new.append(picture)
        self._encode(new)
        places = [self._places[key] for key in keys]
        for place in places:
            self.frames[place].sources |= sources
        return places

    def _put(self, key: str, picture: ShownFrame, path: Path) -> None:
        self._places[key] = len(self.frames)
        self.frames.append(GalleryFrame(picture, path.name))

    def _encode(self, pictures: Sequence[Image.Image]) -> None:
        """Mean features of pictures, in the size in which a frame's features are the targets of latents."""
        if self._encoder is None or self._reasoner is None or not pictures:
            return
        inputs: Mapping[str, Tensor] = self._encoder.processor.image_processor(
            images=[self._encoder.as_hint(picture) for picture in pictures], do_resize=False, return_tensors="pt"
        )
        weight = self._reasoner.backbone.lm_head.weight
        seen = self._reasoner.encode_hints(
            inputs["pixel_values"].to(weight.device), inputs["image_grid_thw"].to(weight.device)
        )
        self._features += [
            part.float().mean(dim=0, keepdim=True).cpu() for part in torch.split(seen.embeds, list(seen.counts))
        ]


def _key(media: RecordMedia, frame: Frame) -> str:
    """One name for one picture, whichever record shows it."""
    if frame.data is not None:
        return f"sha256:{sha256(frame.data).hexdigest()}"
    path = os.path.realpath(frame.path)
    if frame.pool_index is None:
        return path
    return f"{path}#{frame_pool(media.video(frame.path).info.num_frames)[frame.pool_index - 1]}"


def _label(frame: Frame, number: int) -> str:
    return f"image {number}" if frame.pool_index is None else f"frame {frame.pool_index}"
