"""Encode a record as token ids, labels and pixels: applies one processor to the text laid out by `chat_text`."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from futurel1.data.chat_text import ASSISTANT_HEADER, IM_END, IMAGE_PAD, ChatText, first_response, system_prompt_of
from futurel1.data.encoded import EncodedSample
from futurel1.data.media import RecordMedia, media_sources
from futurel1.data.picture_sizes import MIN_VIDEO_FRAME_TOKENS, RESAMPLING, check_aspect, hint_size
from futurel1.data.pictures import Pictures, PixelScale
from futurel1.data.remote import ensure_local, names_file
from futurel1.data.samples import Frame, PromptInfo, RecordFileError, RecordTooLongError, Sample, Turn, Video
from futurel1.data.video import VideoBackend, check_backend
from futurel1.data.whole_videos import VideoSampling, WholeVideos
from futurel1.errors import CheckpointError, ConfigError, MediaError
from futurel1.models import IGNORE, LATENT_TOKENS, LatentTokens

__all__ = ["ENCODING", "ChatEncoder"]

T = TypeVar("T")
Patches = tuple[Tensor, Tensor]
"""Unscaled pixel levels of a picture as (P, D) patches, and its (1, 3) grid."""
_IMAGE, _HEADER = re.escape(IMAGE_PAD), re.escape(ASSISTANT_HEADER)
_PIECES = re.compile(f"(?={_IMAGE})|(?<={_IMAGE})|(?<={_HEADER})")
"""Splits a conversation around images, and where a response begins: prompts end with the tokens of its header, so they
must not depend on what follows. The published tokenizer would merge the header's line break with blank lines after it.
"""
ENCODING = 2
"""Version of the rules that turn records into tokens and pixels; features and lengths cached under another are void."""


class ChatEncoder:
    """Encodes samples with one processor; picklable, so that it runs in loader workers.

    Args:
        processor: a Qwen-VL processor whose tokenizer knows the latent tokens.
        max_latent_tokens: L_max, most latents per hint frame.
        fixed_latents: give every hint exactly `max_latent_tokens` latents; features are pooled to that number.
        max_hint_tokens: most visual tokens of a hint frame before they are pooled to its latents, so that few latents
            need not mean a small picture; needs `fixed_latents`. None: `max_latent_tokens`.
        system_prompt: text file with the system turn for records that have none, used byte for byte; None: the
            checkpoint's own (`system_prompt.txt` in its folder), else the paper's wording.
        max_length: most tokens of a sample.
        video_fps: frames per second taken from whole videos.
        video_max_frames: most frames taken from a whole video.
        video_frame_tokens: most merged tokens per frame of a whole video.
        video_num_frames: take this many frames, evenly spaced over a whole video (all frames of a shorter one), and
            ignore `video_fps` and `video_max_frames`; None: use those two.
        video_backend: video decoder: `pyav` (the same as `auto`), or `decord` or `torchcodec` if installed.
        strip_text: strip the text parts of user and assistant turns, as in training; False: take them as they are.
        keys: also make feature-cache keys.

    Attributes:
        layout: writes the text of a conversation.
        videos: prepares whole videos.

    Raises:
        CheckpointError: the tokenizer does not know the latent tokens.
        ConfigError: an invalid setting.
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
        tokens = LatentTokens.from_tokenizer(processor.tokenizer)
        if tokens is None:
            raise CheckpointError(f"the tokenizer lacks {LATENT_TOKENS}; load it with futurel1.models.load_processor")
        sampling = VideoSampling(video_fps, video_max_frames, video_frame_tokens, video_num_frames)
        _check_settings(max_latent_tokens, fixed_latents, max_hint_tokens, max_length, sampling, video_backend)
        self.processor = processor
        self.tokens = tokens
        self.max_latent_tokens = max_latent_tokens
        self.fixed_latents = fixed_latents
        self.max_hint_tokens = max_latent_tokens if max_hint_tokens is None else max_hint_tokens
        self.max_length = max_length
        self.video_backend: VideoBackend = video_backend
        self.keys = keys
        image_processor = processor.image_processor
        self.merge = int(image_processor.merge_size)
        self.unit = int(image_processor.patch_size) * self.merge
        self.pad_token_id = int(processor.tokenizer.pad_token_id)
        self.videos = WholeVideos(processor, sampling, self.unit)
        self.system_prompt = system_prompt_of(system_prompt, processor)
        self.layout = ChatText(self.system_prompt, self.videos.placeholder, strip_text)
        self._header = torch.tensor(processor.tokenizer(ASSISTANT_HEADER)["input_ids"])
        self._newline = torch.tensor(processor.tokenizer("\n")["input_ids"])
        # Features depend on the image processor's settings as well as on the picture.
        settings = json.dumps([ENCODING, image_processor.to_dict()], sort_keys=True, default=str)
        self._scale = PixelScale.of(image_processor)
        self._image_settings = hashlib.sha256(settings.encode()).hexdigest()[:12]
        self._image_pad = int(processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD))
        self._im_end = int(processor.tokenizer.convert_tokens_to_ids(IM_END))

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
            makers = [*self._observers(sample, self._patches_of), *([self._hint_patches] * len(sample.hints))]
            made = media.pictures(frames, makers)
            hints = made[number:]
            counts = [self._latents_of(patches) for patches in hints]
            encoded = self._encode(sample, self.layout.text(sample, counts), made[:number], media)
        encoded = replace(encoded, hints=self._pictures(hints))
        labels = self._labels(encoded.input_ids, [turn.loss for turn in sample.turns if turn.role == "assistant"])
        supervised = (labels != IGNORE).nonzero()
        prompt_length = int(supervised[0]) if len(supervised) else len(encoded)
        info = PromptInfo(id=sample.meta.get("id"))
        encoded = replace(encoded, labels=labels, prompt_length=prompt_length, info=info)
        return self._with_keys(encoded, sample)

    def encode_prompt(self, sample: Sample, future: Sequence[Frame] = ()) -> EncodedSample:
        """Encode everything before the first response, plus its header: no labels, no weight in any loss.

        Text-only assistant turns that are not trained on are part of the prompt, not responses.

        Args:
            sample: the sample.
            future: frames that become `hints`; the prompt does not show them.

        Raises:
            RecordError: text with control strings, or more than `max_length` tokens.
            MediaError: an image or video that cannot be read.
            MissingFileError: an image or video that is not there.
        """
        prompt = _prompt_of(sample)
        text = self.layout.text(prompt, ()) + ASSISTANT_HEADER
        number = len(prompt.observed)
        with self._media(replace(prompt, turns=(*prompt.turns, Turn("assistant", tuple(future))))) as media:
            makers = [*self._observers(prompt, self._patches_of), *([self._hint_patches] * len(future))]
            made = media.pictures([*prompt.observed, *future], makers)
            encoded = self._encode(prompt, text, made[:number], media)
        encoded = replace(encoded, hints=self._pictures(made[number:]), sources=media_sources(prompt), info=prompt.info)
        return self._with_keys(encoded, prompt)

    def convert_pictures(
        self, sample: Sample, convert: Callable[[Frame, Image.Image], T]
    ) -> tuple[Sample, list[T], list[int]]:
        """Read the pictures of a prompt for a model that encodes them elsewhere.

        Args:
            sample: the record.
            convert: called with each observed frame and its upright RGB picture, at full size.

        Returns:
            The sample before its first response, the converted pictures, and the tokens of each.

        Raises:
            RecordError: the pictures alone have more than `max_length` tokens.
            MediaError: an image or video that cannot be read.
            MissingFileError: an image or video that is not there.
        """
        prompt, tokens = _prompt_of(sample), dict[int, int]()
        with self._media(prompt) as media:
            made = media.pictures(prompt.observed, self._observers(prompt, convert, tokens))
        return prompt, made, [tokens[place] for place in range(len(made))]

    def check_length(self, sample: Sample, tokens: int) -> None:
        """Refuse a sample of too many tokens.

        Raises:
            RecordTooLongError: more than `max_length`.
        """
        if tokens > self.max_length:
            raise self._too_long(sample, str(tokens))

    def _encode(self, sample: Sample, text: str, observed: Sequence[Patches], media: RecordMedia) -> EncodedSample:
        """Token ids and visual inputs of a conversation, without labels and hints."""
        videos = [part.path for turn in sample.turns for part in turn.parts if isinstance(part, Video)]
        # Pictures were turned into patches as they were decoded, so the processor sees only the text between them.
        pieces: list[Tensor] = []
        clips: list[Mapping[str, Tensor]] = []
        shown = 0
        images = iter(observed)
        for piece in _PIECES.split(text):
            if piece == IMAGE_PAD:
                pieces.append(torch.full((self._tokens_of(next(images)),), self._image_pad))
                continue
            until = shown + piece.count(self.videos.placeholder)
            if until > shown:
                inputs = self.processor(
                    text=[piece], return_tensors="pt", **self.videos.inputs(videos[shown:until], media)
                )
                pieces.append(inputs["input_ids"][0])
                clips.append(inputs)
                shown = until
            else:
                pieces.append(torch.tensor(self.processor.tokenizer(piece)["input_ids"], dtype=torch.int64))
        ids = torch.cat(pieces)
        self.check_length(sample, len(ids))
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
            video_seconds_per_grid=self.videos.seconds_per_grid(videos, media),
        )

    @contextmanager
    def _media(self, sample: Sample) -> Iterator[RecordMedia]:
        """Open the media of a sample; errors name the record and the field that names the file."""
        with _media_of(sample), RecordMedia(self.video_backend) as media:
            yield media

    def _too_long(self, sample: Sample, tokens: str) -> RecordTooLongError:
        fields = _fields_of(sample)
        return RecordTooLongError(
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
                check_aspect(frame.path, *sizes[frame])
            videos = [part.path for turn in sample.turns for part in turn.parts if isinstance(part, Video)]
            total = sum(self.videos.most_tokens(media.video(path)) for path in videos)
        counts = [self._hint_tokens(*sizes[frame]) for frame in sample.hints]
        pieces = _PIECES.split(self.layout.text(sample, counts))
        total += sum(len(ids) for ids in self.processor.tokenizer(pieces)["input_ids"])
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

    def _observers(
        self, sample: Sample, convert: Callable[[Frame, Image.Image], T], counted: dict[int, int] | None = None
    ) -> list[Callable[[Image.Image], T]]:
        """Return one function per observed frame that converts it; it raises once they exceed `max_length`.

        Their tokens are put into `counted` by the place of the frame.
        """
        tokens = {} if counted is None else counted

        def observe(place: int, picture: Image.Image) -> T:
            check_aspect(sample.observed[place].path, picture.height, picture.width)
            tokens[place] = self._image_tokens(picture.height, picture.width)
            total = sum(tokens.values())
            if total > self.max_length:
                raise self._too_long(sample, f"{total} and more")
            return convert(sample.observed[place], picture)

        return [partial(observe, place) for place in range(len(sample.observed))]

    def _patches_of(self, _: Frame, picture: Image.Image) -> Patches:
        return self._patches(picture)

    def _patches(self, picture: Image.Image, **options: bool) -> Patches:
        """(P, D) patches of one picture as 8-bit pixel levels, and its (1, 3) grid."""
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
        """Resize a frame to the size at which its features serve as targets of the latents."""
        height, width = hint_size(picture.height, picture.width, self.max_hint_tokens, self.unit)
        return picture.resize((width, height), RESAMPLING)

    def _labels(self, ids: Tensor, learned: Sequence[bool]) -> Tensor:
        """Token ids to predict: each learned turn after its header, through its end mark and newline, except LATENT.

        Args:
            ids: (T,) token ids.
            learned: for each assistant turn, whether its tokens are labelled.
        """
        labels = torch.full_like(ids, IGNORE)
        width = len(self._header)
        if len(ids) < width:
            return labels
        starts = (ids.unfold(0, width, 1) == self._header).all(dim=1).nonzero()[:, 0] + width
        ends = (ids == self._im_end).nonzero()[:, 0]
        # The loop is cheap: a conversation has few assistant turns.
        for start, wanted in zip(starts.tolist(), learned, strict=True):
            if not wanted:
                continue
            stop = int(ends[ends >= start][0]) + 1
            if torch.equal(ids[stop : stop + len(self._newline)], self._newline):
                stop += len(self._newline)
            labels[start:stop] = ids[start:stop]
        labels[ids == self.tokens.latent_id] = IGNORE
        return labels

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
                # Hints are resized differently from observed images: an equal grid does not mean equal pixels.
                hint_keys=tuple(f"{key}|hint" for key in keys(sample.hints, encoded.hint_grid_thw)),
            )


def _check_settings(
    max_latent_tokens: int,
    fixed_latents: bool,
    max_hint_tokens: int | None,
    max_length: int,
    sampling: VideoSampling,
    video_backend: str,
) -> None:
    """Refuse invalid encoder settings; messages use the names of the encoder's arguments."""
    if (
        min(max_latent_tokens, max_length) < 1
        or sampling.max_frames < 2
        or not sampling.fps > 0
        or sampling.frame_tokens < MIN_VIDEO_FRAME_TOKENS
    ):
        raise ConfigError(
            "max_latent_tokens and max_length must be at least 1, video_max_frames at least 2, video_frame_tokens "
            f"at least 4 and video_fps above 0; got {max_latent_tokens}, {max_length}, {sampling.max_frames}, "
            f"{sampling.frame_tokens} and {sampling.fps}"
        )
    if max_hint_tokens is not None and (max_hint_tokens < 1 or not fixed_latents):
        raise ConfigError(
            f"max_hint_tokens={max_hint_tokens}: a number from 1, with fixed_latents: true; otherwise a hint "
            "has as many latents as visual tokens, at most max_latent_tokens"
        )
    check_backend(video_backend)
    if sampling.num_frames is not None and sampling.num_frames < 2:
        raise ConfigError(f"video_num_frames must be at least 2, got {sampling.num_frames}")


def _prompt_of(sample: Sample) -> Sample:
    return replace(sample, turns=sample.turns[: first_response(sample)], answer=None)


def _fields_of(sample: Sample) -> str:
    """Names of the record fields that a sample was made from, for messages; "" if it was not made from a record."""
    parts = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
    names = dict.fromkeys(f"'{what.field}'" for what in (*sample.turns, *parts) if what.field)
    return f"{'fields' if len(names) > 1 else 'field'} {', '.join(names)}" if names else ""


@contextmanager
def _media_of(sample: Sample) -> Iterator[None]:
    """Make errors of a sample's media name the record and the field that names the file."""
    try:
        yield
    except (MediaError, OSError) as error:
        said = str(error)
        media = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
        # the longest path in the message, because one path may be a prefix of another
        named = sorted((part for part in media if names_file(said, part.path)), key=lambda part: len(str(part.path)))
        fields = f"field '{named[-1].field}'" if named and named[-1].field else _fields_of(sample)
        if not fields:  # not made from a record: nothing to add
            raise
        # the path of an embedded image is its record
        message = f"{said} ({fields})" if said.startswith(sample.place) else f"{sample.place}, {fields}: {said}"
        if isinstance(error, FileNotFoundError):
            raise RecordFileError(message) from error
        raise MediaError(message) from error


def _frame_key(frame: Frame, grid: Sequence[int]) -> str:
    if frame.data is not None:
        return f"{hashlib.sha256(frame.data).hexdigest()}|{'x'.join(map(str, grid))}"
    path = frame.path.resolve()
    ensure_local(path)
    stat = path.stat()
    return f"{path}|{stat.st_mtime_ns}|{stat.st_size}|{frame.pool_index}|{'x'.join(map(str, grid))}"
