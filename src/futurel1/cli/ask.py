"""`futurel1 ask`: one question about one video."""

import json as json_format
import sys
from dataclasses import asdict
from typing import Literal

from futurel1.ask import LETTERS, TINY_FRAMES
from futurel1.ask import ask as ask_model

TINY_QUESTION = "Imagine the zones after 2 steps."


def ask(
    video: str,
    question: str,
    options: list[str] = [],  # noqa: B006 (never changed; a tuple cannot be given by appending)
    model: str = "tiny",
    branches: int = 1,
    pool_frames: list[int] | None = None,
    span_latents: int | None = None,
    max_frames: int = 16,
    max_new_tokens: int = 512,
    max_length: int = 16384,
    temperature: float = 0.9,
    seed: int = 0,
    system_prompt: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Ask a question about what happens next in a video.

    Example: futurel1 ask clip.mp4 "Which zone is the ball in next?" --options '[left, right]' --branches 8

    Args:
        video: Video file.
        question: What to ask.
        options: Answers to choose from, 2 to 4.
        model: Run folder, checkpoint folder, hub name or tiny.
        branches: Responses to sample and vote over; 1 is greedy.
        pool_frames: Show only these frames of the 8-frame pool, 1 to 8, as training records do, such as [1, 2, 3, 4];
            null for the whole video, and for tiny [1, 2, 3, 4], after which it learned to imagine.
        span_latents: Latents of every imagined frame; null leaves it to the model.
        max_frames: Most frames taken from the video.
        max_new_tokens: Most tokens of a response.
        max_length: Most tokens of the prompt.
        temperature: For branches above 1.
        seed: Seed of the samples.
        system_prompt: Text file with the system turn; null for the model's, or the paper's.
        dtype: Dtype of the weights; auto is bfloat16 on cuda and float32 on cpu.
        device: cpu, cuda or auto.
        json: One JSON object instead of text.
    """
    from rich.console import Console

    if model == "tiny" and pool_frames is None:
        pool_frames = list(TINY_FRAMES)
        print(f"the tiny backbone is shown --pool_frames {pool_frames}, after which it learned to imagine", file=sys.stderr)
    answer = ask_model(
        video, question, options, model=model, branches=branches, pool_frames=pool_frames, span_latents=span_latents,
        max_frames=max_frames, max_new_tokens=max_new_tokens, max_length=max_length, temperature=temperature, seed=seed,
        system_prompt=system_prompt, dtype=dtype, device=device,
        waiting=Console(stderr=True).status("imagining and answering ..."),
    )  # fmt: skip
    if model == "tiny" and not answer.answer:
        print(f"no answer; the tiny backbone knows requests such as {TINY_QUESTION!r}", file=sys.stderr)
    if json:
        print(json_format.dumps(asdict(answer), ensure_ascii=False))
        return
    print(f"{answer.response}\n")
    if len(answer.votes) > 1 or branches > 1:
        for choice, share in answer.votes.items():
            print(f"{share:>6.0%}  {choice or '(no answer)'}")
    print(f"answer: {answer.answer or '(none)'}{_spelled(answer.answer, options)}")
    print(f"time: {answer.seconds:.1f} s for {answer.tokens} tokens, {sum(answer.spans)} of them latents")


def _spelled(letter: str, options: list[str]) -> str:
    return f" ({options[LETTERS.index(letter)]})" if letter and letter in LETTERS[: len(options)] else ""
