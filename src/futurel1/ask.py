"""One question about one video, answered with imagined frames."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from futurel1.data import Sample
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched
from futurel1.data.frames import POOL_SIZE, probe_video
from futurel1.data.prompts import PromptCollator
from futurel1.data.samples import Frame, Turn, Video
from futurel1.errors import ConfigError
from futurel1.metrics.functional import elect
from futurel1.models import LatentReasoner
from futurel1.models.checkpoints import TINY
from futurel1.models.transcript import transcripts
from futurel1.rollout import SamplingSettings
from futurel1.runs import Dtype, load_reasoner

__all__ = ["Answer", "ask"]

LETTERS = "ABCD"
TINY_FRAMES = (1, 2, 3, 4)
"""Pool frames that the tiny backbone saw in training before it imagined the next ones; it never saw a whole video."""
TINY_QUESTION = "Imagine the zones after 2 steps."
INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        response: the model's text, with spans as `[imagined frame 1: 4 latents]`.
        answer: the answer, or the letter of an option; "" if there is none.
        options: the options to choose from.
        votes: share of the branches for each answer.
        spans: number of latents of each span of the response.
        tokens: tokens of the response, latents included.
        finish_reason: why decoding ended.
        seconds: time from the loaded model to the answer.
    """

    response: str
    answer: str
    options: tuple[str, ...]
    votes: dict[str, float]
    spans: tuple[int, ...]
    tokens: int
    finish_reason: str
    seconds: float

    def __str__(self) -> str:
        lines = [self.response, ""]
        if len(self.votes) > 1:
            lines += [f"{share:>6.0%}  {choice or '(no answer)'}" for choice, share in self.votes.items()]
        chosen = dict(zip(LETTERS, self.options, strict=False)).get(self.answer)
        lines.append(f"answer: {self.answer or '(none)'}" + (f" ({chosen})" if chosen else ""))
        lines.append(f"time: {self.seconds:.1f} s for {self.tokens} tokens, {sum(self.spans)} of them latents")
        return "\n".join(lines)


def ask(
    video: str | Path,
    question: str,
    options: Sequence[str] = (),
    *,
    model: str = TINY,
    branches: int = 1,
    pool_frames: Sequence[int] | None = None,
    max_frames: int = 16,
    max_length: int = 16384,
    sampling: SamplingSettings = SamplingSettings(max_new_tokens=512),  # noqa: B008 (frozen)
    system_prompt: str | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Answer:
    """Ask what happens next in a video.

    Args:
        video: Video file.
        question: What to ask.
        options: 2 to 4 answers to choose from, or none.
        model: Run folder, checkpoint folder, hub name or ``tiny``.
        branches: Responses to sample and vote over; 1 decodes greedily.
        pool_frames: Show only these frames of the 8-frame pool, 1 to 8, as training records do; null for the whole
            video, or for ``tiny`` the four frames that it was trained to continue.
        max_frames: Most frames taken from the video.
        max_length: Most tokens of the prompt.
        sampling: How the response is sampled; temperature and top_p matter with more than one branch.
        system_prompt: Text file with the system turn; null for the model's own, or the paper's.
        dtype: Dtype of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ConfigError: An empty question, an invalid option or frame number, or a model without a tokenizer.
        MissingFileError: No such video or model.
        MediaError: A video that cannot be read.
        RecordError: A prompt that is too long.
    """
    if branches < 1 or len(options) > len(LETTERS) or len(options) == 1:
        raise ConfigError(f"branches is at least 1, and options are 2 to {len(LETTERS)}, or none")
    if model == TINY and pool_frames is None:
        pool_frames = TINY_FRAMES
        logger.info("the tiny backbone is shown pool_frames=%s, after which it learned to imagine", list(pool_frames))
    sample = _sample(Path(video).expanduser(), question.strip(), options, pool_frames)
    reasoner = load_reasoner(model, dtype=dtype, device=device)
    encoder = ChatEncoder(
        reasoner.processor, system_prompt=system_prompt, max_length=max_length, video_max_frames=max_frames
    )
    answer = _answer(reasoner, encoder, sample, tuple(options), branches, sampling)
    if model == TINY and not answer.answer:
        logger.info("no answer; the tiny backbone knows requests such as %r", TINY_QUESTION)
    return answer


def _answer(
    reasoner: LatentReasoner,
    encoder: ChatEncoder,
    sample: Sample,
    options: tuple[str, ...],
    branches: int,
    sampling: SamplingSettings,
) -> Answer:
    began = time.perf_counter()
    prompt = PromptCollator(encoder.pad_token_id)([Fetched([encoder.encode_prompt(sample)], [])])
    rollout = reasoner.generate(
        prompt.to(reasoner.backbone.lm_head.weight.device),
        num_branches=branches,
        do_sample=branches > 1,
        seed=sampling.seed,
        **sampling.arguments(),
    )
    texts = transcripts(rollout, reasoner.processor.tokenizer)
    place, votes = elect([text.text for text in texts], dict(zip(LETTERS, options, strict=False)) or None)
    told, seconds = texts[place], round(time.perf_counter() - began, 3)
    return Answer(
        told.readable, next(iter(votes)), options, votes, told.spans, told.tokens, told.finish_reason, seconds
    )


def _sample(video: Path, question: str, options: Sequence[str], pool_frames: Sequence[int] | None) -> Sample:
    if not question:
        raise ConfigError("the question is empty; ask something, e.g. 'What happens next?'")
    if not all(1 <= number <= POOL_SIZE for number in pool_frames or ()):
        raise ConfigError(f"pool_frames are numbers from 1 to {POOL_SIZE}, got {list(pool_frames or ())}")
    probe_video(video)  # report an unreadable video before the model is loaded
    lines = [question]
    if options:
        lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, options, strict=False)]
        lines.append(INSTRUCTION)
    text = "\n".join(lines)
    if not pool_frames:
        return Sample("question", (Turn("user", (Video(video), text)),), None, {})
    parts: list[str | Frame] = []
    for number in pool_frames:
        parts += [f"frame_{number}", Frame(video, number)]
    return Sample("question", (Turn("user", (*parts, text)),), None, {})
