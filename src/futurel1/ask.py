"""One question about one video, answered with imagined frames."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError

LETTERS = "ABCD"
TINY_FRAMES = (1, 2, 3, 4)
"""Frames of the pool from which the tiny backbone learned to imagine the next ones; it never saw a whole video."""
INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."


@dataclass(frozen=True)
class Answer:
    """What :func:`ask` returns.

    Attributes:
        response: what the model wrote, spans as `[imagined frame 1: 4 latents]`.
        answer: the answer, or the letter of an option; "" for none.
        votes: answer to its share of the branches.
        spans: latents of each span of the response.
        tokens: tokens of the response, latents included.
        finish_reason: why decoding ended.
        seconds: from the loaded model to the answer.
    """

    response: str
    answer: str
    votes: dict[str, float]
    spans: tuple[int, ...]
    tokens: int
    finish_reason: str
    seconds: float


def ask(
    video: str | Path,
    question: str,
    options: Sequence[str] = (),
    *,
    model: str = "tiny",
    branches: int = 1,
    pool_frames: Sequence[int] | None = None,
    span_latents: int | None = None,
    max_frames: int = 16,
    max_new_tokens: int = 512,
    max_length: int = 16384,
    temperature: float = 0.9,
    seed: int = 0,
    system_prompt: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    waiting: AbstractContextManager[Any] | None = None,
) -> Answer:
    """Ask a question about what happens next in a video.

    Args:
        video: video file.
        question: what to ask.
        options: 2 to 4 answers to choose from, or none.
        model: run folder, checkpoint folder, hub name or ``tiny``.
        branches: responses to sample and vote over; 1 is greedy.
        pool_frames: show only these frames of the 8-frame pool, 1 to 8; None: the whole video.
        span_latents: latents of every imagined frame; None: the model decides.
        max_frames: most frames taken from the video.
        max_new_tokens: most tokens of a response.
        max_length: most tokens of the prompt.
        temperature: for `branches` above 1.
        seed: seed of the samples.
        system_prompt: text file with the system turn; None: the model's, or the paper's.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 on a GPU, float32 on a CPU.
        device: ``cpu``, ``cuda`` or ``auto``.
        waiting: entered while the model answers, such as a spinner.

    Raises:
        ConfigError: an empty question, a bad option or frame number, or a model without tokenizer.
        MissingFileError: no such video or model.
        MediaError: a video that cannot be read.
        RecordError: a prompt that is too long; says how long, and the limit.
    """
    if branches < 1 or len(options) > len(LETTERS) or len(options) == 1:
        raise ConfigError(f"branches is at least 1, and options are 2 to {len(LETTERS)}, or none")
    sample = _sample(Path(video).expanduser(), question.strip(), options, pool_frames)

    from futurel1.data.chat import ChatEncoder
    from futurel1.data.collate import Fetched
    from futurel1.data.prompts import PromptCollator
    from futurel1.metrics.functional import elect
    from futurel1.models import SpanBudget
    from futurel1.models.transcript import transcripts
    from futurel1.runs import load_reasoner

    reasoner = load_reasoner(model, dtype=dtype, device=device)
    began = time.perf_counter()
    encoder = ChatEncoder(
        reasoner.processor, system_prompt=system_prompt, max_length=max_length, video_max_frames=max_frames
    )
    encoded = encoder.encode_prompt(sample)
    prompt = PromptCollator(encoder.pad_token_id)([Fetched([encoded], [])]).to(reasoner.backbone.lm_head.weight.device)
    with waiting or nullcontext():
        rollout = reasoner.generate(
            prompt, num_branches=branches, max_new_tokens=max_new_tokens, do_sample=branches > 1,
            temperature=temperature, top_p=0.99, seed=seed,
            budget=None if span_latents is None else SpanBudget.fixed(span_latents),
        )  # fmt: skip
    texts = transcripts(rollout, reasoner.processor.tokenizer)
    place, votes = elect([text.text for text in texts], dict(zip(LETTERS, options, strict=False)) or None)
    told, seconds = texts[place], round(time.perf_counter() - began, 3)
    return Answer(told.readable, next(iter(votes)), votes, told.spans, told.tokens, told.finish_reason, seconds)


def _sample(video: Path, question: str, options: Sequence[str], pool_frames: Sequence[int] | None) -> Any:
    from futurel1.data.frames import POOL_SIZE, probe_video
    from futurel1.data.samples import Frame, Sample, Turn, Video

    if not question:
        raise ConfigError("the question is empty; ask something, e.g. 'What happens next?'")
    if not all(1 <= number <= POOL_SIZE for number in pool_frames or ()):
        raise ConfigError(f"pool_frames are numbers from 1 to {POOL_SIZE}, got {list(pool_frames or ())}")
    probe_video(video)  # a clear error before anything is loaded from it
    lines = [question]
    if options:
        lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, options, strict=False)]
        lines.append(INSTRUCTION)
    text = "\n".join(lines)
    if not pool_frames:
        return Sample("question", (Turn("user", (Video(video), text)),), None, {})
    parts: list[Any] = []
    for number in pool_frames:
        parts += [f"frame_{number}", Frame(video, number)]
    return Sample("question", (Turn("user", (*parts, text)),), None, {})
