"""From a record to token ids, labels and pixels: the chat layout of the Qwen-VL family with latent spans.

Layout (`formats.md` 2): ``<|im_start|>role\\n{content}<|im_end|>\\n`` per turn. An assistant turn of a hinted record is
its thoughts as ``<reason>..</reason>``, each hint frame as one span of LATENT tokens, then ``<answer>..</answer>``;
that of an unlabelled video is its spans alone.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from futurel1.data.media import RecordMedia
from futurel1.data.pictures import Pictures, PixelScale, join_pixels
from futurel1.data.samples import Frame, RecordFileError, Sample, Turn, Video
from futurel1.data.video import Pixels, VideoBackend, VideoInfo, VideoReader, check_backend
from futurel1.errors import CheckpointError, ConfigError, MediaError, MissingFileError, RecordError
from futurel1.models import IGNORE, LATENT, LATENT_END, LATENT_START, LATENT_TOKENS, LatentTokens

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
ASSISTANT_HEADER = f"{IM_START}assistant\n"
IMAGE_PAD = "<|image_pad|>"
IMAGE = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
CONTROL_STRINGS = (
    IM_START, IM_END, "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>", *LATENT_TOKENS,
)  # fmt: skip
"""Strings that a record's text may not contain: they would be read as structure, not as text."""
SYSTEM_CONTROL_STRINGS = tuple(text for text in CONTROL_STRINGS if text not in (LATENT_START, LATENT_END))
"""The same for system turns, which may name the latent brackets, as the paper's does."""
RESPONSE_TAGS = ("<reason>", "</reason>", "<answer>", "</answer>")
"""Tags that a hinted record's thoughts and answer may not contain: they are put around them here."""
_RESAMPLING = Image.Resampling.BICUBIC
Patches = tuple[Tensor, Tensor]
"""Grey levels of a picture as (P, D) patches, and its (1, 3) grid."""
MIN_VIDEO_FRAME_TOKENS = 4
"""Fewest merged tokens per frame of a whole video (`formats.md` 3)."""
ENCODING = 2
"""Counts the rules by which records become tokens and pixels; cached features and lengths of other rules are void."""
MAX_ASPECT_RATIO = 200
"""Image processors of the Qwen family refuse longer, thinner pictures than this."""


@dataclass(frozen=True)
class EncodedSample:
    """One record, ready to be padded into a batch. T tokens, P patches of D values, I images.

    Attributes:
        sample_id: `file:record`.
        input_ids: (T,) int64 token ids.
        labels: (T,) int64 token ids to predict, -100 elsewhere.
        prompt_length: tokens before the first supervised one.
        images: observed images; None without any.
        pixel_values_videos: (P, D) patches of videos; None without videos.
        video_grid_thw: (I, 3) patch grids.
        video_seconds_per_grid: (I,) seconds between temporal patches.
        hints: hint frames; None without any.
        image_keys: names of the observed images in a feature cache: file, its time and size, frame, grid.
        hint_keys: the same for hints.
        sources: files and embedded images that a prompt's frames come from; empty in training.
        meta: what a metric or a writer needs to know of the record; in training its own `id` alone.
    """

    sample_id: str
    input_ids: Tensor
    labels: Tensor
    prompt_length: int
    images: Pictures | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    video_seconds_per_grid: Tensor | None = None
    hints: Pictures | None = None
    image_keys: tuple[str, ...] = ()
    hint_keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def pixel_values(self) -> Tensor | None:
        """(P, D) pixel values of the observed images, made anew at every call; None without images."""
        return join_pixels([self.images])

    @property
    def image_grid_thw(self) -> Tensor | None:
        """(I, 3) patch grids of the observed images; None without images."""
        return None if self.images is None else self.images.grid_thw

    @property
    def hint_pixel_values(self) -> Tensor | None:
        """(P, D) pixel values of the hint frames, made anew at every call; None without hints."""
        return join_pixels([self.hints])

    @property
    def hint_grid_thw(self) -> Tensor | None:
        """(I, 3) patch grids of the hint frames; None without hints."""
        return None if self.hints is None else self.hints.grid_thw


def media_sources(sample: Sample) -> tuple[str, ...]:
    """Where the frames of a sample come from, each once: real paths of files, and digests of embedded images."""
    media = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
    embedded = [part.data for part in media if isinstance(part, Frame) and part.data is not None]
    paths = dict.fromkeys(part.path for part in media if isinstance(part, Video) or part.data is None)
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in embedded]
    return tuple(dict.fromkeys([*map(os.path.realpath, paths), *digests]))


def hint_size(height: int, width: int, max_tokens: int, unit: int = 32) -> tuple[int, int]:
    """Size to which a hint frame is resized so that it gives at most `max_tokens` visual tokens.

    Args:
        height: pixels of the frame.
        width: pixels of the frame.
        max_tokens: L_max, most merged tokens.
        unit: pixels per side of a merged token.

    Returns:
        (height, width) in pixels, multiples of `unit`; sides are floored and never enlarged beyond the first unit.

    Raises:
        ConfigError: `max_tokens` below 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_latent_tokens must be at least 1, got {max_tokens}")
    scale = min(1.0, math.sqrt(max_tokens * unit * unit / (height * width)))
    # The small constant keeps exact multiples exact: floor(2.9999999) is 3.
    rows = max(1, math.floor(height * scale / unit + 1e-6))
    columns = max(1, math.floor(width * scale / unit + 1e-6))
    # A side that was raised to one unit can push long, thin frames over the budget.
    rows, columns = min(rows, max_tokens), min(columns, max_tokens)
    if rows * columns > max_tokens:
        rows, columns = (1, columns) if rows == 1 else (rows, max_tokens // rows)
    return rows * unit, columns * unit


def video_frame_size(height: int, width: int, max_tokens: int, unit: int = 32) -> tuple[int, int]:
    """Size of a frame of a whole video: sides rounded to units, at most `max_tokens` and, if it can be, at least 4.

    This is the rule of the Qwen processors applied to one frame. They apply it to all clips of a call with one limit,
    which gives a short clip beside a long one many times the tokens per frame that were asked for.

    Args:
        height: pixels of the frame.
        width: pixels of the frame.
        max_tokens: most merged tokens per frame.
        unit: pixels per side of a merged token.

    Returns:
        (height, width) in pixels, multiples of `unit`.
    """
    rows, columns = max(1, round(height / unit)), max(1, round(width / unit))
    if rows * columns < MIN_VIDEO_FRAME_TOKENS:
        scale = math.sqrt(MIN_VIDEO_FRAME_TOKENS / (height * width))
        rows, columns = math.ceil(height * scale), math.ceil(width * scale)
    if rows * columns > max_tokens:
        return hint_size(height, width, max_tokens, unit)
    return rows * unit, columns * unit


def default_system_prompt() -> str:
    """The interleaved-reasoning instruction of the paper (Fig. 10), which a user can replace by a file."""
    return (files("futurel1.data") / "templates" / "interleaved.txt").read_text(encoding="utf-8").strip()


class ChatEncoder:
    """Encodes samples with one processor; picklable, so that it runs in loader workers.

    Args:
        processor: a Qwen-VL processor whose tokenizer knows the latent tokens.
        max_latent_tokens: L_max, most latents per hint frame.
        fixed_latents: give every hint exactly `max_latent_tokens` latents; features are pooled to that number.
        max_hint_tokens: most visual tokens of a hint frame before they are pooled to its latents, so that few latents
            need not mean a small picture; needs `fixed_latents`. None: `max_latent_tokens`.
        system_prompt: text file with the system turn for records that have none, used to the byte; None: the
            checkpoint's own (`system_prompt.txt` in its folder), else the paper's wording.
        max_length: most tokens of a sample.
        video_fps: frames per second taken from whole videos.
        video_max_frames: most frames taken from a whole video.
        video_frame_tokens: most merged tokens per frame of a whole video.
        video_num_frames: take this many frames, evenly over a whole video, or all of a shorter one, whatever
            `video_fps` and `video_max_frames` say; None: by those.
        video_backend: what decodes videos: `pyav` (`auto` is the same), `decord`, or `torchcodec`, if it is installed.
        strip_text: strip the text parts of user and assistant turns, as in training; False: take them as they are.
        keys: also make feature-cache keys.

    Raises:
        CheckpointError: the tokenizer does not know the latent tokens.
        ConfigError: a value that cannot work.
        MissingFileError: no such system prompt file.
    """

    def __init__(
        self,
        processor: Any,
        *,
        max_latent_tokens: int = 4,
        fixed_latents: bool = False,
        max_hint_tokens: int | None = None,
        system_prompt: str | Path | None = None,
        max_length: int = 16384,
        video_fps: float = 2.0,
        video_max_frames: int = 16,
        video_frame_tokens: int = 64,
        video_num_frames: int | None = None,
        video_backend: VideoBackend = "auto",
        strip_text: bool = True,
        keys: bool = False,
    ) -> None:
        from transformers import Qwen3VLProcessor

        tokens = LatentTokens.from_tokenizer(processor.tokenizer)
        if tokens is None:
            raise CheckpointError(f"the tokenizer lacks {LATENT_TOKENS}; load it with futurel1.models.load_processor")
        if (
            min(max_latent_tokens, max_length) < 1
            or video_max_frames < 2
            or not video_fps > 0
            or video_frame_tokens < MIN_VIDEO_FRAME_TOKENS
        ):
            raise ConfigError(
                "max_latent_tokens and max_length must be at least 1, video_max_frames at least 2, video_frame_tokens "
                f"at least 4 and video_fps above 0; got {max_latent_tokens}, {max_length}, {video_max_frames}, "
                f"{video_frame_tokens} and {video_fps}"
            )
        if max_hint_tokens is not None and (max_hint_tokens < 1 or not fixed_latents):
            raise ConfigError(
                f"max_hint_tokens={max_hint_tokens}: a number from 1, with fixed_latents: true; otherwise a hint "
                "has as many latents as visual tokens, at most max_latent_tokens"
            )
        check_backend(video_backend)
        if video_num_frames is not None and video_num_frames < 2:
            raise ConfigError(f"video_num_frames must be at least 2, got {video_num_frames}")
        self.processor = processor
        self.tokens = tokens
        self.max_latent_tokens = max_latent_tokens
        self.fixed_latents = fixed_latents
        self.max_hint_tokens = max_latent_tokens if max_hint_tokens is None else max_hint_tokens
        self.max_length = max_length
        self.video_fps = video_fps
        self.video_max_frames = video_max_frames
        self.video_frame_tokens = video_frame_tokens
        self.video_num_frames = video_num_frames
        self.video_backend: VideoBackend = video_backend
        self.strip_text = strip_text
        self.keys = keys
        self.system_prompt = _system_prompt(system_prompt, processor)
        image_processor = processor.image_processor
        self.merge = int(image_processor.merge_size)
        self.unit = int(image_processor.patch_size) * self.merge
        self.pad_token_id = int(processor.tokenizer.pad_token_id)
        # Families with timestamps write the vision brackets of a video themselves, one pair per temporal patch.
        self._timestamps = isinstance(processor, Qwen3VLProcessor)
        self._video = "<|video_pad|>" if self._timestamps else "<|vision_start|><|video_pad|><|vision_end|>"
        self._header = torch.tensor(processor.tokenizer(ASSISTANT_HEADER)["input_ids"])
        self._newline = torch.tensor(processor.tokenizer("\n")["input_ids"])
        # Features depend on how pixels are made, not only on which.
        settings = json.dumps([ENCODING, image_processor.to_dict()], sort_keys=True, default=str)
        self._scale = PixelScale.of(image_processor)
        self._image_settings = hashlib.sha256(settings.encode()).hexdigest()[:12]
        self._image_pad = int(processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD))
        self._im_end = int(processor.tokenizer.convert_tokens_to_ids(IM_END))

    # ------------------------------------------------------------------ text

    def text(self, sample: Sample, latents_per_hint: Sequence[int]) -> str:
        """The whole conversation as one string, images and videos as unexpanded placeholders.

        Args:
            sample: the record.
            latents_per_hint: LATENT tokens of each hint, in order.

        Raises:
            RecordError: a text contains control strings of the chat format.
        """
        latents = iter(latents_per_hint)
        turns = list(sample.turns)
        if not any(turn.role == "system" for turn in turns) and self.system_prompt:
            system = f"{IM_START}system\n{self.system_prompt}{IM_END}\n"
        else:
            system = ""
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        pieces = [system]
        for number, turn in enumerate(turns):
            _check_text(sample, turn)
            if _is_hinted(sample, turn):
                content = self._response(turn, latents)
                if number == last and sample.answer is not None:
                    _check_control(sample, "answer", "answer", sample.answer, (*CONTROL_STRINGS, *RESPONSE_TAGS))
                    content += f"<answer>{sample.answer}</answer>"
            else:
                strip = self.strip_text and turn.role != "system"
                content = "".join(self._part(part, strip) for part in turn.parts)
            pieces.append(f"{IM_START}{turn.role}\n{content}{IM_END}\n")
        return "".join(pieces)

    def _response(self, turn: Turn, latents: Any) -> str:
        return "".join(
            f"<reason>{part}</reason>\n" if isinstance(part, str)
            else f"{LATENT_START}{LATENT * next(latents)}{LATENT_END}\n"
            for part in turn.parts
        )  # fmt: skip

    def _part(self, part: str | Frame | Video, strip: bool) -> str:
        if isinstance(part, str):
            return part.strip() if strip else part
        return IMAGE if isinstance(part, Frame) else self._video

    # ------------------------------------------------------------------ encoding

    def encode(self, sample: Sample) -> EncodedSample:
        """Encode a record for supervised training.

        Raises:
            RecordError: text with control strings, or more than `max_length` tokens.
            MediaError: an image or video that cannot be read.
            MissingFileError: an image or video that is not there.
        """
        with self._media(sample) as media:
            number = len(sample.observed)
            frames = [*sample.observed, *sample.hints]
            makers = [*self._observers(sample), *([self._hint_patches] * len(sample.hints))]
            made = media.pictures(frames, makers)
            hints = made[number:]
            counts = [self._latents_of(patches) for patches in hints]
            encoded = self._encode(sample, self.text(sample, counts), made[:number], media)
        encoded = replace(encoded, hints=self._pictures(hints))
        labels = self._labels(encoded.input_ids, [turn.loss for turn in sample.turns if turn.role == "assistant"])
        supervised = (labels != IGNORE).nonzero()
        prompt_length = int(supervised[0]) if len(supervised) else len(encoded)
        meta = {"id": sample.meta.get("id")}
        encoded = replace(encoded, labels=labels, prompt_length=prompt_length, meta=meta)
        return self._with_keys(encoded, sample)

    def encode_prompt(self, sample: Sample) -> EncodedSample:
        """Encode what stands before the first response, with its header: no labels, no hints, no weight in any loss.

        Turns of the assistant that are not to be learned are no responses but part of the prompt, if they are text.

        Raises:
            RecordError: text with control strings, or more than `max_length` tokens.
            MediaError: an image or video that cannot be read.
            MissingFileError: an image or video that is not there.
        """
        prompt = replace(sample, turns=sample.turns[: first_response(sample)], answer=None)
        text = self.text(prompt, ()) + ASSISTANT_HEADER
        with self._media(prompt) as media:
            observed = media.pictures(prompt.observed, self._observers(prompt))
            encoded = self._encode(prompt, text, observed, media)
        encoded = replace(encoded, sources=media_sources(prompt))
        return self._with_keys(encoded, prompt)

    def _encode(self, sample: Sample, text: str, observed: Sequence[Patches], media: RecordMedia) -> EncodedSample:
        """Token ids and visual inputs of a conversation, without labels and hints."""
        videos = [part.path for turn in sample.turns for part in turn.parts if isinstance(part, Video)]
        # Pictures are patches by now, one by one as they were decoded, so the processor sees the text between them.
        pieces: list[Tensor] = []
        clips: list[Mapping[str, Tensor]] = []
        shown = 0
        for place, piece in enumerate(text.split(IMAGE_PAD)):
            if place:
                pieces.append(torch.full((self._tokens_of(observed[place - 1]),), self._image_pad))
            until = shown + piece.count(self._video)
            if until > shown:
                inputs = self.processor(
                    text=[piece], return_tensors="pt", **self._video_inputs(videos[shown:until], media)
                )
                pieces.append(inputs["input_ids"][0])
                clips.append(inputs)
                shown = until
            else:
                pieces.append(torch.tensor(self.processor.tokenizer(piece)["input_ids"], dtype=torch.int64))
        ids = torch.cat(pieces)
        if len(ids) > self.max_length:
            raise self._too_long(sample, str(len(ids)))
        video_pixels, video_grid = (
            torch.cat([clip[name] for clip in clips]) if clips else None
            for name in ("pixel_values_videos", "video_grid_thw")
        )
        return EncodedSample(
            sample_id=sample.id,
            input_ids=ids,
            labels=torch.full_like(ids, IGNORE),
            prompt_length=len(ids),
            images=self._pictures(observed),
            pixel_values_videos=video_pixels,
            video_grid_thw=video_grid,
            video_seconds_per_grid=self._seconds_per_grid(videos, media),
        )

    @contextmanager
    def _media(self, sample: Sample) -> Iterator[RecordMedia]:
        """The media of a sample, open; errors name the record and the field that names the file."""
        with _media_of(sample), RecordMedia(self.video_backend) as media:
            yield media

    def _too_long(self, sample: Sample, tokens: str) -> RecordError:
        fields = _fields_of(sample)
        return RecordError(
            f"{sample.id}: {tokens} tokens, more than max_length={self.max_length}; raise max_length, "
            f"shorten the text, or show fewer or smaller frames {f'({fields})' if fields else ''}".rstrip()
        )

    def length(self, sample: Sample) -> int:
        """Number of tokens of a record without decoding its frames; an upper bound when it has whole videos.

        Raises:
            RecordError: text with control strings.
            MediaError: a video or image whose size cannot be read.
        """
        with self._media(sample) as media:
            sizes = {frame: media.size(frame) for frame in dict.fromkeys([*sample.observed, *sample.hints])}
            for frame in sample.observed:
                _check_aspect(frame.path, *sizes[frame])
            videos = [part.path for turn in sample.turns for part in turn.parts if isinstance(part, Video)]
            total = sum(self._video_tokens(media.video(path)) for path in videos)
        counts = [self._hint_tokens(*sizes[frame]) for frame in sample.hints]
        total += len(self.processor.tokenizer(self.text(sample, counts))["input_ids"])
        return total + sum(self._image_tokens(*sizes[frame]) - 1 for frame in sample.observed)

    def _image_tokens(self, height: int, width: int) -> int:
        patches: int = self.processor.image_processor.get_number_of_image_patches(height, width)
        return patches // self.merge**2

    def _hint_tokens(self, height: int, width: int) -> int:
        if self.fixed_latents:
            return self.max_latent_tokens
        rows, columns = hint_size(height, width, self.max_hint_tokens, self.unit)
        return rows * columns // self.unit**2

    # ------------------------------------------------------------------ pictures

    def _observers(self, sample: Sample) -> list[Callable[[Image.Image], Patches]]:
        """What makes patches of each observed frame, as it is decoded; it stops where they exceed `max_length`."""
        tokens: dict[int, int] = {}

        def observe(place: int, picture: Image.Image) -> Patches:
            _check_aspect(sample.observed[place].path, picture.height, picture.width)
            tokens[place] = self._image_tokens(picture.height, picture.width)
            total = sum(tokens.values())
            if total > self.max_length:
                raise self._too_long(sample, f"{total} and more")
            return self._patches(picture)

        return [partial(observe, place) for place in range(len(sample.observed))]

    def _patches(self, picture: Image.Image, **options: bool) -> Patches:
        """(P, D) patches of one picture in grey levels, a byte each, and its (1, 3) grid."""
        inputs = self.processor.image_processor(
            images=[picture], do_rescale=False, do_normalize=False, return_tensors="pt", **options
        )
        return inputs["pixel_values"], inputs["image_grid_thw"]

    def _pictures(self, parts: Sequence[Patches]) -> Pictures | None:
        if not parts:
            return None
        levels, grids = zip(*parts, strict=True)
        return Pictures(levels, torch.cat(grids), self._scale)

    def _hint_patches(self, picture: Image.Image) -> Patches:
        return self._patches(self.as_hint(picture), do_resize=False)

    def _tokens_of(self, patches: Patches) -> int:
        return int(patches[1].prod()) // self.merge**2

    def _latents_of(self, patches: Patches) -> int:
        return self.max_latent_tokens if self.fixed_latents else self._tokens_of(patches)

    def as_hint(self, picture: Image.Image) -> Image.Image:
        """A frame in the size in which its features are the targets of latents."""
        height, width = hint_size(picture.height, picture.width, self.max_hint_tokens, self.unit)
        return picture.resize((width, height), _RESAMPLING)

    def _labels(self, ids: Tensor, learned: Sequence[bool]) -> Tensor:
        """Token ids to predict: every assistant turn after its header up to its end mark, LATENT left out.

        Args:
            ids: (T,) token ids.
            learned: of each assistant turn, whether its tokens are labelled.
        """
        labels = torch.full_like(ids, IGNORE)
        width = len(self._header)
        if len(ids) < width:
            return labels
        starts = (ids.unfold(0, width, 1) == self._header).all(dim=1).nonzero()[:, 0] + width
        ends = (ids == self._im_end).nonzero()[:, 0]
        # One slice per assistant turn, of which there are few.
        for start, wanted in zip(starts.tolist(), learned, strict=True):
            if not wanted:
                continue
            stop = int(ends[ends >= start][0]) + 1
            if torch.equal(ids[stop : stop + len(self._newline)], self._newline):
                stop += len(self._newline)
            labels[start:stop] = ids[start:stop]
        labels[ids == self.tokens.latent_id] = IGNORE
        return labels

    # ------------------------------------------------------------------ whole videos

    def _frame_numbers(self, info: VideoInfo) -> list[int]:
        wanted = self.video_num_frames
        if wanted is None:
            # Containers round times, Matroska to milliseconds: without the hundredth, 10 s at 2 fps may be 19 frames.
            wanted = min(int(info.duration * self.video_fps + 0.01), self.video_max_frames)
        wanted = min(wanted, info.num_frames)
        # At least two, the first and the last, which a video of one frame shows twice: one temporal patch.
        return [int(index) for index in np.linspace(0, info.num_frames - 1, max(wanted, 2)).round()]

    def _video_inputs(self, paths: Sequence[Path], media: RecordMedia) -> dict[str, Any]:
        from transformers.video_utils import VideoMetadata

        clips: list[np.ndarray[Any, Any]] = []
        metadata = []
        for path in paths:
            video = media.video(path)
            info = video.info
            numbers = self._frame_numbers(info)
            height, width = video_frame_size(info.height, info.width, self.video_frame_tokens, self.unit)
            frames = video.read(numbers, partial(_resized, height=height, width=width))
            clips.append(np.stack([frames[number] for number in numbers]))
            metadata.append(
                # Processors divide frame numbers by a rate. Seconds over a rate of one are each frame's own time, which
                # numbers over an average rate are not where the rate varies.
                VideoMetadata(
                    total_num_frames=info.num_frames,
                    fps=1.0,
                    width=info.width,
                    height=info.height,
                    duration=info.duration,
                    frames_indices=video.times[numbers].tolist(),
                )
            )
        return {
            "videos": clips,
            "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False, "do_resize": False},
        }

    def _seconds_per_grid(self, paths: Sequence[Path], media: RecordMedia) -> Tensor | None:
        if not paths or self._timestamps:
            return None
        patch: int = self.processor.video_processor.temporal_patch_size
        seconds = []
        for path in paths:
            video = media.video(path)
            numbers = self._frame_numbers(video.info)
            seconds.append(patch * float(video.times[numbers[-1]] - video.times[numbers[0]]) / (len(numbers) - 1))
        return torch.tensor(seconds)

    def _video_tokens(self, video: VideoReader) -> int:
        """Most tokens that a video adds to its placeholder."""
        info = video.info
        blocks = -(-len(self._frame_numbers(info)) // int(self.processor.video_processor.temporal_patch_size))
        height, width = video_frame_size(info.height, info.width, self.video_frame_tokens, self.unit)
        block = height * width // self.unit**2
        if self._timestamps:
            # No timestamp has more digits than the clip's duration.
            stamp = f"<{info.duration:.1f} seconds><|vision_start|><|vision_end|>"
            block += len(self.processor.tokenizer(stamp)["input_ids"])
        return blocks * block

    # ------------------------------------------------------------------ cache keys

    def _with_keys(self, encoded: EncodedSample, sample: Sample) -> EncodedSample:
        if not self.keys:
            return encoded

        def keys(frames: Sequence[Frame], grid: Tensor | None) -> tuple[str, ...]:
            rows = [] if grid is None else grid.tolist()
            return tuple(
                f"{_frame_key(frame, row)}|{self._image_settings}" for frame, row in zip(frames, rows, strict=True)
            )

        with _media_of(sample):
            return replace(
                encoded,
                image_keys=keys(sample.observed, encoded.image_grid_thw),
                # Hints are resized by other means than observed images: the same grid is not the same pixels.
                hint_keys=tuple(f"{key}|hint" for key in keys(sample.hints, encoded.hint_grid_thw)),
            )


def _system_prompt(path: str | Path | None, processor: Any) -> str:
    """The system turn of a file; without one, the checkpoint's own, and the paper's for a checkpoint without."""
    if path is None:
        prompt, place = getattr(processor, "system_prompt", None), "the checkpoint's system_prompt.txt"
        if prompt is None:
            return default_system_prompt()
    else:
        file = Path(path).expanduser()
        if not file.is_file():
            raise MissingFileError(f"no system prompt file {file}; leave system_prompt out for the usual wording")
        place = f"system prompt file {file}"
        try:
            prompt = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    found = [control for control in SYSTEM_CONTROL_STRINGS if control in prompt]
    if found:
        raise ConfigError(f"{place} contains {found[0]}, which the chat format reads as structure")
    return str(prompt)


def _is_hinted(sample: Sample, turn: Turn) -> bool:
    """Whether a turn is a response of thoughts and latents: it leads to an answer, or holds frames to imagine."""
    if turn.role != "assistant":
        return False
    return sample.answer is not None or any(isinstance(part, Frame) for part in turn.parts)


def first_response(sample: Sample) -> int:
    """Number of turns before the first response: turns that are only context are none, unless they hold hints."""
    places = (
        place
        for place, turn in enumerate(sample.turns)
        if turn.role == "assistant" and (turn.loss or _is_hinted(sample, turn))
    )
    return next(places, len(sample.turns))


def _check_text(sample: Sample, turn: Turn) -> None:
    for part in turn.parts:
        if isinstance(part, str):
            controls = SYSTEM_CONTROL_STRINGS if turn.role == "system" else CONTROL_STRINGS
            if _is_hinted(sample, turn):
                controls = (*CONTROL_STRINGS, *RESPONSE_TAGS)
            _check_control(sample, turn.field, f"{turn.role} turn", part, controls)


def _check_control(sample: Sample, field: str, where: str, text: str, controls: Sequence[str]) -> None:
    found = [control for control in controls if control in text]
    if found:
        named = f" from field '{field}'" if field else ""
        raise RecordError(
            f"{sample.id}: the {where} contains {found[0]}, which the chat format reads as structure; remove it{named} "
            "(spans and images are made from hints and markers)"
        )


def _fields_of(sample: Sample) -> str:
    """The fields of the record that a sample was made of, for messages; "" where no record is behind it."""
    parts = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
    names = dict.fromkeys(f"'{what.field}'" for what in (*sample.turns, *parts) if what.field)
    return f"{'fields' if len(names) > 1 else 'field'} {', '.join(names)}" if names else ""


@contextmanager
def _media_of(sample: Sample) -> Iterator[None]:
    """Have errors of a sample's media name the record and the field that names the file."""
    try:
        yield
    except (MediaError, OSError) as error:
        said = str(error)
        media = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
        # the longest path in the message, because one may begin with another
        named = sorted((part for part in media if str(part.path) in said), key=lambda part: len(str(part.path)))
        fields = f"field '{named[-1].field}'" if named and named[-1].field else _fields_of(sample)
        if not fields:  # not of a record: nothing to add
            raise
        # embedded images have the record for their path
        message = f"{said} ({fields})" if said.startswith(sample.place) else f"{sample.place}, {fields}: {said}"
        if isinstance(error, FileNotFoundError):
            raise RecordFileError(message) from error
        raise MediaError(message) from error


def _resized(_: int, pixels: Pixels, *, height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), _RESAMPLING))


def _check_aspect(path: Path, height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"{path}: a picture of {width} x {height} pixels is longer than {MAX_ASPECT_RATIO} times its width, which "
            "the image processor refuses; crop it or drop the record"
        )


def _frame_key(frame: Frame, grid: Sequence[int]) -> str:
    if frame.data is not None:
        return f"{hashlib.sha256(frame.data).hexdigest()}|{'x'.join(map(str, grid))}"
    path = frame.path.resolve()
    stat = path.stat()
    return f"{path}|{stat.st_mtime_ns}|{stat.st_size}|{frame.pool_index}|{'x'.join(map(str, grid))}"
