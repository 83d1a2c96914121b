"""`futurel1 ask`: one question about one video, answered with imagined frames."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError, RecordError

LETTERS = "ABCD"
TINY_FRAMES = (1, 2, 3, 4)
"""Frames of the pool from which the tiny backbone learned to imagine the next ones; it never saw a whole video."""
TINY_QUESTION = "Imagine the zones after 2 steps."
INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    made = argparse.ArgumentParser(
        prog="futurel1 ask", description="Ask a question about what happens next in a video."
    )
    made.add_argument("video", help="video file")
    made.add_argument("question", help="what to ask")
    made.add_argument("--option", action="append", default=[], help="an answer to choose from; give it once per option")
    made.add_argument("--model", default="tiny", help="run folder, checkpoint folder, hub name or tiny (default)")
    made.add_argument("--branches", type=int, default=1, help="responses to draw and vote over (default 1, greedy)")
    made.add_argument("--pool-frames", type=int, nargs="+", metavar="N",
                      help="show only these frames of the 8-frame pool, 1 to 8, as training records do (default: the "
                      "whole video; for tiny 1 2 3 4, after which it learned to imagine)")  # fmt: skip
    made.add_argument("--latents", type=int, help="latents of every imagined frame (default: the model decides)")
    made.add_argument("--max-frames", type=int, default=16, help="most frames taken from the video (default 16)")
    made.add_argument("--max-new-tokens", type=int, default=512, help="most tokens of a response (default 512)")
    made.add_argument("--max-length", type=int, default=16384, help="most tokens of the prompt (default 16384)")
    made.add_argument("--temperature", type=float, default=0.9, help="for --branches above 1 (default 0.9)")
    made.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    made.add_argument("--system-prompt", help="text file with the system turn (default: the model's, or the paper's)")
    made.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                      help="dtype of the weights (default: bfloat16 on cuda, float32 on cpu)")  # fmt: skip
    made.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    made.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return made


def ask(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: command line after ``futurel1 ask``.

    Raises:
        ConfigError: an empty question, a bad option or frame number, or a model without tokenizer.
        MissingFileError: no such video or model.
        MediaError: a video that cannot be read.
        RecordError: a prompt that is too long; says how long, and the limit.
    """
    options = parser().parse_args(list(args))
    if options.model == "tiny" and options.pool_frames is None:
        options.pool_frames = list(TINY_FRAMES)
        shown = " ".join(map(str, TINY_FRAMES))
        print(f"the tiny backbone is shown --pool-frames {shown}, after which it learned to imagine", file=sys.stderr)
    result = answer(options)
    if options.model == "tiny" and not result["answer"]:
        print(f"no answer; the tiny backbone knows requests such as {TINY_QUESTION!r}", file=sys.stderr)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return
    print(result["response"])
    print()
    if len(result["votes"]) > 1 or options.branches > 1:
        for choice, share in result["votes"].items():
            print(f"{share:>6.0%}  {choice or '(no answer)'}")
    print(f"answer: {result['answer'] or '(none)'}{_spelled(result['answer'], options.option)}")
    print(f"time: {result['seconds']:.1f} s for {result['tokens']} tokens, {sum(result['spans'])} of them latents")


def _spelled(letter: str, choices: Sequence[str]) -> str:
    return f" ({choices[LETTERS.index(letter)]})" if choices and letter in LETTERS[: len(choices)] and letter else ""


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """Answer the question: `response`, `answer`, `votes`, `spans`, `tokens`, `finish_reason` and `seconds`."""
    if not options.question.strip():
        raise ConfigError("the question is empty; ask something, e.g. 'What happens next?'")
    if options.branches < 1 or len(options.option) > len(LETTERS) or len(options.option) == 1:
        raise ConfigError(f"--branches is at least 1 and --option given 2 to {len(LETTERS)} times, or not at all")
    from rich.console import Console

    from futurel1.data.chat import ChatEncoder
    from futurel1.data.collate import Fetched
    from futurel1.data.prompts import PromptCollator
    from futurel1.metrics.functional import elect
    from futurel1.models import LatentReasoner, SpanBudget
    from futurel1.models.transcript import transcripts
    from futurel1.modules.start import DTYPES, exported_folder, usable_device

    device = usable_device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if device.startswith("cuda") else "float32")]
    folder = exported_folder("tiny", options.model if options.model != "tiny" else None)
    reasoner = LatentReasoner.from_pretrained(folder, dtype=dtype)
    if reasoner.processor is None:
        raise ConfigError(f"{options.model} has no tokenizer; give a folder that has one")
    reasoner.to(device)
    encoder = ChatEncoder(
        reasoner.processor, system_prompt=options.system_prompt, max_length=options.max_length,
        video_max_frames=options.max_frames,
    )  # fmt: skip
    began = time.perf_counter()
    try:
        encoded = encoder.encode_prompt(_sample(options))
    except RecordError as error:
        raise RecordError(
            str(error).replace("max_length=", "--max-length ").replace("raise max_length", "raise it")
        ) from error
    prompt = PromptCollator(encoder.pad_token_id)([Fetched([encoded], [])]).to(device)
    with Console(stderr=True).status("imagining and answering ..."):
        rollout = reasoner.generate(
            prompt, num_branches=options.branches, max_new_tokens=options.max_new_tokens,
            do_sample=options.branches > 1, temperature=options.temperature, top_p=0.99, seed=options.seed,
            budget=None if options.latents is None else SpanBudget.fixed(options.latents),
        )  # fmt: skip
    texts = transcripts(rollout, reasoner.processor.tokenizer)
    choices = dict(zip(LETTERS, options.option, strict=False)) or None
    place, votes = elect([text.text for text in texts], choices)
    told = texts[place]
    return {
        "response": told.readable,
        "answer": next(iter(votes)),
        "votes": votes,
        "spans": list(told.spans),
        "tokens": told.tokens,
        "finish_reason": told.finish_reason,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _sample(options: argparse.Namespace) -> Any:
    from futurel1.data.frames import POOL_SIZE, probe_video
    from futurel1.data.samples import Frame, Sample, Turn, Video

    video = Path(options.video).expanduser()
    probe_video(video)  # a clear error before anything is loaded from it
    lines = [options.question.strip()]
    if options.option:
        lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, options.option, strict=False)]
        lines.append(INSTRUCTION)
    question = "\n".join(lines)
    if not options.pool_frames:
        return Sample("question", (Turn("user", (Video(video), question)),), None, {})
    if not all(1 <= number <= POOL_SIZE for number in options.pool_frames):
        raise ConfigError(f"--pool-frames are numbers from 1 to {POOL_SIZE}, got {options.pool_frames}")
    parts: list[Any] = []
    for number in options.pool_frames:
        parts += [f"frame_{number}", Frame(video, number)]
    return Sample("question", (Turn("user", (*parts, question)),), None, {})
