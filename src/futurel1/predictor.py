"""From a video and a question to an answer: the library's front door in Python."""

from __future__ import annotations

import html
import io
import logging
import string
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from futurel1.data import PromptBatch, Sample, frame_pool
from futurel1.data.chat import ChatEncoder
from futurel1.data.frames import POOL_SIZE, probe_video
from futurel1.data.media import RecordMedia
from futurel1.data.prompts import prompt_batch
from futurel1.data.samples import Frame, Turn, Video
from futurel1.data.whole_videos import VideoSampling
from futurel1.errors import ConfigError
from futurel1.metrics.functional import elect_each, plain_answer
from futurel1.models import LatentReasoner
from futurel1.models.checkpoint_folders import TINY
from futurel1.models.decoding import PromptSource, Rollout
from futurel1.models.transcript import Transcript, transcripts
from futurel1.rollout import SamplingSettings
from futurel1.runs import Dtype, load_reasoner
from futurel1.worlds.belonging import is_event_clip

__all__ = ["Answer", "EventPredictor", "Span"]

LETTERS = string.ascii_uppercase
INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."
TINY_FRAMES = (1, 2, 3, 4)
"""Pool frames that the tiny backbone saw in training before it imagined the next ones; it never saw a whole video."""
DEFAULT_SAMPLING = SamplingSettings(max_new_tokens=512)

logger = logging.getLogger(__name__)

Frames = Sequence[Image.Image] | NDArray[np.uint8] | Tensor
VideoInput = str | Path | Frames
"""A video file; or frames in order: pictures, or a (T, height, width, 3) uint8 array or tensor."""
Asked = tuple[VideoInput, str] | tuple[VideoInput, str, Sequence[str]]
"""A video, a question and, for multiple choice, the options."""


@dataclass(frozen=True, eq=False)
class Span:
    """One imagined frame of a response.

    Attributes:
        latents: (L, H) float32 latents on the CPU, in order of emission.
        position: place of the span's START among the tokens of the response; -1 when it ended the prompt.
    """

    latents: Tensor = field(repr=False)
    position: int

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model answered to one question.

    Attributes:
        question: the question, without its options.
        options: the texts to choose from, A first; empty for an open question.
        answer: the letter of an option, or the answer's text; "" when the response gives none.
        text: the response, with each span as `[imagined frame 1: 4 latents]`.
        votes: answer to the share of branches that gave it, most frequent first.
        spans: the imagined frames of the response.
        tokens: tokens of the response, latents included.
        finish_reason: why decoding ended: `eos`, `stop` or `length`.
        seconds: time of encoding and decoding; of a list, the mean of its questions.
        frames: the frames that the model was shown, read anew when they are first asked for.
    """

    question: str
    options: tuple[str, ...]
    answer: str
    text: str
    votes: dict[str, float]
    spans: tuple[Span, ...]
    tokens: int
    finish_reason: str
    seconds: float
    _shown: Callable[[], tuple[Image.Image, ...]] = field(repr=False)

    @cached_property
    def frames(self) -> tuple[Image.Image, ...]:
        """The frames that the model was shown."""
        return self._shown()

    @property
    def choice(self) -> str | None:
        """The text of the chosen option; None for an open question, or without an answer."""
        return dict(zip(LETTERS, self.options, strict=False)).get(self.answer)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without frames; a span is its number of latents and its position."""
        values = {name: value for name, value in vars(self).items() if name not in ("_shown", "frames")}
        return {**values, "spans": [{"latents": len(span), "position": span.position} for span in self.spans]}

    def __str__(self) -> str:
        lines = [self.text, ""]
        if len(self.votes) > 1:
            lines += [f"{share:>6.0%}  {choice or '(no answer)'}" for choice, share in self.votes.items()]
        lines.append(f"answer: {self.answer or '(none)'}" + (f" ({self.choice})" if self.choice else ""))
        latents = sum(map(len, self.spans))
        lines.append(f"time: {self.seconds:.1f} s for {self.tokens} tokens, {latents} of them latents")
        return "\n".join(lines)

    def to_html(self) -> str:
        """A page about the answer that needs no network: frames, response with its spans, votes.

        Raises:
            MediaError: a video that can no longer be read.
            MissingFileError: a video that is no longer there.
        """
        from futurel1.report import card_page

        return card_page(self)

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html())
        return f'<iframe srcdoc="{page}" title="answer" style="width: 100%; height: 32em; border: 0"></iframe>'


class EventPredictor:
    """Answers questions about what happens next in a video.

        predictor = EventPredictor.from_pretrained("tiny")
        print(predictor("clip.mp4", "Imagine the zones after 2 steps."))

    Args:
        reasoner: a model with its processor.
        pool_frames: show only these frames of each video's 8-frame pool, 1 to 8, as training records do; None: the
            whole video.
        max_frames: most frames taken from a whole video.
        max_length: most tokens of a prompt.
        system_prompt: text file with the system turn; None: the model's own, else the paper's.
        encoder: encodes prompts; None: one with the three settings above.

    Raises:
        ConfigError: a model without a tokenizer, or a setting that cannot work.
    """

    def __init__(
        self,
        reasoner: LatentReasoner,
        *,
        pool_frames: Sequence[int] | None = None,
        max_frames: int = 16,
        max_length: int = 16384,
        system_prompt: str | Path | None = None,
        encoder: ChatEncoder | None = None,
    ) -> None:
        if reasoner.processor is None:
            raise ConfigError("the model has no tokenizer; load it from a folder that has one")
        if not all(1 <= number <= POOL_SIZE for number in pool_frames or ()):
            raise ConfigError(f"pool_frames are numbers from 1 to {POOL_SIZE}, got {list(pool_frames or ())}")
        self.reasoner = reasoner
        self.pool_frames = tuple(pool_frames or ())
        self._knows_shapes_only = False
        self.encoder = encoder or ChatEncoder(
            reasoner.processor, system_prompt=system_prompt, max_length=max_length, video_max_frames=max_frames
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str = TINY,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        attn_implementation: str = "sdpa",
        pool_frames: Sequence[int] | None = None,
        **settings: Any,
    ) -> Self:
        """Load a model that answers.

        Args:
            model: run folder, a checkpoint of one, checkpoint folder, hub name or ``tiny``.
            dtype: dtype of the weights; ``auto``: bfloat16 on a GPU and float32 on a CPU.
            device: ``cpu``, ``cuda`` or ``auto``.
            attn_implementation: attention of `transformers`.
            pool_frames: as in the constructor; for ``tiny``, None means the frames that it was trained to continue.
            settings: further arguments of the constructor.

        Raises:
            ConfigError: an unknown dtype, or a device that does not work.
            CheckpointError: a run without an export, or a damaged checkpoint.
            MissingFileError: no such model.
        """
        if model == TINY and pool_frames is None:
            pool_frames = TINY_FRAMES
            logger.info("the tiny backbone is shown pool_frames=%s, after which it learned to imagine", [*TINY_FRAMES])
        reasoner = load_reasoner(model, dtype=dtype, device=device, attn_implementation=attn_implementation)
        predictor = cls(reasoner, pool_frames=pool_frames, **settings)
        predictor._knows_shapes_only = model == TINY
        return predictor

    @overload
    def __call__(
        self,
        video: VideoInput,
        question: str,
        *,
        options: Sequence[str] = (),
        branches: int = 1,
        sampling: SamplingSettings = DEFAULT_SAMPLING,
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        video: Sequence[Asked],
        *,
        branches: int = 1,
        sampling: SamplingSettings = DEFAULT_SAMPLING,
        batch_size: int = 4,
    ) -> list[Answer]: ...

    def __call__(
        self,
        video: VideoInput | Sequence[Asked],
        question: str | None = None,
        *,
        options: Sequence[str] = (),
        branches: int = 1,
        sampling: SamplingSettings = DEFAULT_SAMPLING,
        batch_size: int = 4,
    ) -> Answer | list[Answer]:
        """Answer one question, or a list of them.

        Args:
            video: a video file, or its frames in order: pictures, or a (T, height, width, 3) uint8 array. Without
                `question`, a list of (video, question) or (video, question, options).
            question: what to ask.
            options: 2 to 26 texts to choose from; none for an open question.
            branches: responses to sample and vote over; 1 decodes greedily.
            sampling: how responses are sampled; temperature and top_p matter with more than one branch.
            batch_size: questions that are decoded at once; the next one takes the place of one that is answered.

        Returns:
            One answer, or one for each question of the list, in its order.

        Raises:
            ConfigError: an empty question, options that cannot be told apart, or frames of another kind.
            MissingFileError: no such video.
            MediaError: a video that cannot be read.
            RecordError: a prompt that is too long.
        """
        if branches < 1 or batch_size < 1:
            raise ConfigError(f"branches and batch_size are at least 1, got {branches} and {batch_size}")
        if question is not None:
            samples = [prompt_of(video, question, options, self.pool_frames)]
        else:
            if options:
                raise ConfigError("in a list of questions each has its own options: (video, question, options)")
            samples = [prompt_of(*each, self.pool_frames) for each in _asked(video)]
        self._warn_of_foreign(video if question is None else [(video, question)])
        answers = self._answers(samples, branches, sampling, batch_size)
        return answers if question is None else answers[0]

    def _warn_of_foreign(self, asked: Any) -> None:
        """Say once that the shipped weights know nothing but their world, unless all clips are of that world."""
        clips = [item[0] for item in asked]
        if not self._knows_shapes_only or all(isinstance(c, str | Path) and is_event_clip(Path(c)) for c in clips):
            return
        self._knows_shapes_only = False
        logger.warning(
            "the tiny backbone knows only its own world, coloured shapes that move between the quarters of a square: "
            "whatever a video shows, it answers in words about shapes. For a real video give another model (--model), "
            "such as Qwen/Qwen3-VL-8B-Instruct or a run of yours; `futurel1 world` writes clips of its world"
        )

    def decode_each(
        self, batches: Iterable[PromptBatch], *, slots: int, seed: int = 0, **settings: Any
    ) -> Iterator[tuple[Rollout, list[Transcript]]]:
        """Decode responses to a stream of prompts; a batch is read when a slot is free for its first prompt.

        Args:
            batches: encoded prompts.
            slots: most prompts that are decoded at once.
            seed: seed of the samples.
            settings: of :meth:`LatentReasoner.generate_each`.

        Yields:
            The rollout and the transcripts of each batch, in their order.
        """
        sources = (PromptSource(batch.to(self.reasoner.device), seed) for batch in batches)
        for rollout in self.reasoner.generate_each(sources, slots=slots, **settings):
            yield rollout, transcripts(rollout, self.reasoner.tokenizer)

    def _answers(
        self, samples: Sequence[Sample], branches: int, sampling: SamplingSettings, batch_size: int
    ) -> list[Answer]:
        began = time.perf_counter()
        # Without names, what a question draws depends on what it asks and shows.
        prompts = (replace(prompt_batch(self.encoder, [sample]), sample_ids=()) for sample in samples)
        settings = {**sampling.arguments(), "slots": sampling.slots or batch_size}
        decoded = list(
            self.decode_each(prompts, seed=sampling.seed, num_branches=branches, do_sample=branches > 1, **settings)
        )
        seconds = round((time.perf_counter() - began) / len(samples), 3)
        answers = []
        for sample, (rollout, texts) in zip(samples, decoded, strict=True):
            ((row, votes),) = elect_each([text.text for text in texts], branches, [sample.info.options])
            answers.append(
                Answer(
                    question=str(sample.info.question),
                    options=tuple((sample.info.options or {}).values()),
                    answer=next(iter(votes)),
                    text=texts[row].readable,
                    votes=votes,
                    spans=_spans(rollout, row),
                    tokens=texts[row].tokens,
                    finish_reason=texts[row].finish_reason,
                    seconds=seconds,
                    _shown=partial(_shown, sample, self.encoder.videos.sampling),
                )
            )
        return answers


def prompt_of(video: Any, question: str, options: Sequence[str], pool_frames: Sequence[int]) -> Sample:
    """A question as a prompt.

    Args:
        video: see :meth:`EventPredictor.__call__`.
        question: what to ask.
        options: 2 to 26 texts to choose from, or none.
        pool_frames: numbers of the 8-frame pool to show; none: the whole video.

    Raises:
        ConfigError: an empty question, options that cannot be told apart, or frames of another kind.
        MissingFileError: no such video.
        MediaError: a video that cannot be read.
    """
    question = question.strip()
    if not question:
        raise ConfigError("the question is empty; ask something, e.g. 'What happens next?'")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise ConfigError(f"options are 2 to {len(LETTERS)} texts, or none; got {len(options)}")
    if len({plain_answer(option) for option in options}) < len(options):
        raise ConfigError(f"options differ in nothing but case or punctuation: {list(options)}")
    choices = dict(zip(LETTERS, options, strict=False))
    asked = "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.items())])
    parts = (*_frames_in_order(video, pool_frames), f"{asked}\n{INSTRUCTION}" if options else asked)
    sample = Sample("question", (Turn("user", parts),), None, {})
    sample.info.question, sample.info.options = question, choices or None
    return sample


def _asked(items: Any) -> list[tuple[Any, str, Sequence[str]]]:
    found = []
    for item in items if isinstance(items, Sequence) and not isinstance(items, str) else [items]:
        if not isinstance(item, tuple) or len(item) not in (2, 3) or not isinstance(item[1], str):
            raise ConfigError(
                "give a question, or a list of (video, question) or (video, question, options); got "
                f"{type(item).__name__} without a question"
            )
        found.append((item[0], item[1], item[2] if len(item) == 3 else ()))
    if not found:
        raise ConfigError("the list of questions is empty")
    return found


def _frames_in_order(video: Any, pool_frames: Sequence[int]) -> list[str | Frame | Video]:
    """What is shown of a video, frames labelled as in training records."""
    if isinstance(video, str | Path):
        path = Path(video).expanduser()
        probe_video(path)  # a clear error before anything is decoded
        if not pool_frames:
            return [Video(path)]
        return [part for number in pool_frames for part in (f"frame_{number}", Frame(path, number))]
    pictures = _pictures(video)
    numbers = list(range(1, len(pictures) + 1))
    if pool_frames and len(pictures) > max(POOL_SIZE, *pool_frames):
        pool = frame_pool(len(pictures))
        pictures, numbers = [pictures[pool[number - 1]] for number in pool_frames], list(pool_frames)
    parts: list[str | Frame | Video] = []
    for number, picture in zip(numbers, pictures, strict=True):
        stream = io.BytesIO()
        picture.save(stream, "PNG", compress_level=1)
        parts += [f"frame_{number}", Frame(Path(f"frame {number}"), None, stream.getvalue())]
    return parts


def _pictures(frames: Any) -> list[Image.Image]:
    if isinstance(frames, Tensor):
        frames = frames.numpy(force=True)
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ConfigError(
                "frames as an array are (T, height, width, 3) uint8, colours from 0 to 255 and last; got "
                f"{frames.shape} {frames.dtype}"
            )
        return [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    pictures = list(frames) if isinstance(frames, Sequence) else []
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        kinds = ", ".join(sorted({type(item).__name__ for item in pictures})) or type(frames).__name__
        raise ConfigError(f"a video is a path, a list of PIL images or an array of frames; got {kinds}")
    return pictures


def _spans(rollout: Rollout, row: int) -> tuple[Span, ...]:
    latents = rollout.latents[row][rollout.latent_mask[row]].to("cpu", torch.float32)
    numbers = rollout.span_ids[row][rollout.latent_mask[row]].cpu()
    table = rollout.span_table[rollout.span_table[:, 0] == row].tolist()
    return tuple(Span(latents[numbers == number], entry[1]) for number, entry in enumerate(table))


def _shown(sample: Sample, sampling: VideoSampling) -> tuple[Image.Image, ...]:
    """Frames of a prompt, as they are in its video."""
    with RecordMedia() as media:
        pictures = media.pictures(sample.observed, [Image.Image.copy] * len(sample.observed))
        for part in sample.turns[0].parts:
            if isinstance(part, Video):
                video = media.video(part.path)
                numbers = sampling.frame_numbers(video.info)
                frames = video.read(numbers, lambda _, pixels: Image.fromarray(pixels))
                pictures += [frames[number] for number in numbers]
    return tuple(pictures)
