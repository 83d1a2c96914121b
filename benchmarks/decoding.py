"""Speed and memory of decoding G branches of a prompt, against `transformers` and an earlier version of this library.

    python benchmarks/decoding.py [--previous /tmp/before] [--prompts 1024 3072] [--device cuda --dtype bfloat16]

Tokens are sampled as LA-DAPO samples them (temperature 0.9, top-p 0.99) from peaked logits, or chosen greedily. Two
shapes: `proportioned` (4 layers of width 256, a vocabulary of 1,024, so that `lm_head` has 8% of the weights as in the
8B model) and `full` (the same layers with the 8B model's vocabulary of 151,936 words). Two kinds of lengths: all
responses of one prompt of the same length, and exponential ones, a quarter of the longest on average, of 64 prompts
that a loader gives in batches of 16: in one queue with 16 slots (`this`), and batch after batch (`batches`).

`--previous FOLDER` compares with the source tree of an earlier commit, made by

    git worktree add /tmp/before COMMIT

Every way runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from futurel1.data import PromptBatch
from futurel1.models import LatentReasoner, LatentSettings, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import tiny_model
from futurel1.models.decoding import PromptSource
from meters import add_device_options, forget_peak, machine, peak_mb, seconds_now

VOCABULARIES = {"proportioned": 1024, "full": 151_936, "8b": 151_936}
PEAKEDNESS = 20.0
"""Factor of the random embedding table; the most likely token then has about half of the probability."""
IMAGE_SIDE = 16  # patches; an image gives 64 visual tokens
VIEWS = {"view", "_unsafe_view", "transpose", "slice", "select", "expand", "unsqueeze", "squeeze", "permute", "t",
         "alias", "detach", "unbind", "split", "split_with_sizes", "as_strided", "unfold"}  # fmt: skip
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select"}


class Counting(TorchDispatchMode):
    """Counts operations that compute something, and those whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indexing = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        self.counts["operations"] += name not in VIEWS
        self.counts["synchronisations"] += name in SYNCHRONISING or indexing
        return func(*args, **(kwargs or {}))


class Ending(LatentReasoner):
    """Every response ends at each step with the same probability, if one is given: exponential lengths."""

    end_probability = 0.0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        if self.end_probability:
            odds = torch.tensor(self.end_probability / (1 - self.end_probability), device=logits.device).log()
            # at temperature 0.9, at which the benchmark samples
            total = (logits[:, 1:].float() / 0.9).logsumexp(dim=-1)
            logits[:, 0] = ((total + odds) * 0.9).to(logits.dtype)
        return logits


def make_8b(length: int, device: str, dtype: str) -> Ending:
    """The language model of Qwen3-VL-8B with random weights; its tower is small, because it takes no part in a step."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = tiny_model(
                hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, vocab_size=VOCABULARIES["8b"], tie_word_embeddings=False,
                max_position_embeddings=length + 4096, rope_theta=5e6,
                rope_scaling={"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        model.lm_head.weight[-3:].zero_()
    last = VOCABULARIES["8b"]
    return Ending(Qwen3VLBackbone(model), LatentTokens(last - 3, last - 2, last - 1), LatentSettings()).eval()


def make_reasoner(shape: str, length: int, device: str = "cpu", dtype: str = "float32") -> Ending:
    """4 layers of width 256, or the 8B model; START is never chosen, so that all ways decode text."""
    vocabulary = VOCABULARIES[shape]
    if shape == "8b":
        return make_8b(length, device, dtype)
    model = tiny_model(
        hidden_size=256, intermediate_size=768, head_dim=64, max_position_embeddings=length + 4096,
        vocab_size=vocabulary,
        rope_scaling={"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    )  # fmt: skip
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(PEAKEDNESS)
        model.get_input_embeddings().weight[-3:].zero_()
    tokens = LatentTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1)
    return Ending(Qwen3VLBackbone(model), tokens, LatentSettings()).eval()


def make_prompt(reasoner: LatentReasoner, length: int, prompts: int, copies: int) -> PromptBatch:
    """Prompts with four images and different random words."""
    generator = torch.Generator().manual_seed(0)
    config = reasoner.backbone.config
    visual = (IMAGE_SIDE // 2) ** 2
    image = [config.vision_start_token_id, *[config.image_token_id] * visual, config.vision_end_token_id]
    words = torch.randint(1, 256, (prompts, length - 4 * len(image)), generator=generator)
    ids = torch.cat([torch.tensor(image * 4).expand(prompts, -1), words], dim=1).repeat_interleave(copies, dim=0)
    grid = torch.tensor([[1, IMAGE_SIDE, IMAGE_SIDE]]).expand(4 * len(ids), -1)
    pixels = torch.randn(4 * IMAGE_SIDE**2, 1536, generator=generator).repeat(len(ids), 1)
    return PromptBatch(ids, torch.ones_like(ids), pixels, grid)


def run(way: str, case: dict[str, Any]) -> dict[str, float]:
    """Decode a case in one way: seconds, their spread, tokens, peak memory, and counts per step."""
    device, sampled, mixed = case["device"], case["sampled"], case["slots"] is not None
    reasoner = make_reasoner(case["shape"], case["prompt"], device, case["dtype"])
    reasoner = reasoner.to(device, getattr(torch, case["dtype"]))
    reasoner.end_probability = 4 / case["tokens"] if mixed else 0.0
    copies = case["branches"] if way == "transformers" else 1
    prompt = make_prompt(reasoner, case["prompt"], case["prompts"], copies).to(device)
    common: dict[str, Any] = {"max_new_tokens": case["tokens"], "do_sample": sampled, "pad_token_id": 0}
    if sampled:
        common |= {"temperature": 0.9, "top_p": 0.99}
    if way == "this" and not mixed:
        common["look_every"] = case["look_every"]
    if way in ("this", "batches"):
        common["compile"] = case["compile"]

    def stock() -> int:
        model = reasoner.backbone.model
        types = reasoner.backbone.visual_type_ids(prompt.input_ids)
        out = model.generate(
            input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw, mm_token_type_ids=types, min_new_tokens=common["max_new_tokens"],
            eos_token_id=None, top_k=0, **common,
        )  # fmt: skip
        return int(out[:, case["prompt"] :].numel())

    def ours() -> int:
        ends = {"eos_token_id": [0] if mixed else [-1], "num_branches": case["branches"], "share_prompt": True}
        size = case["slots"] or case["prompts"]
        parts = (part_of(prompt, slice(first, first + size)) for first in range(0, case["prompts"], size))
        if mixed and way == "this":
            sources = (PromptSource(part, seed=1) for part in parts)
            rollouts: Any = reasoner.generate_each(sources, slots=case["slots"], **ends, **common)
        else:
            rollouts = (reasoner.generate(part, seed=1, **ends, **common) for part in parts)
        return sum(int(rollout.response_mask.sum()) for rollout in rollouts)

    decode = stock if way == "transformers" else ours
    idle = forget_peak(device)
    if mixed and not case["compile"]:
        with counted_steps(reasoner) as steps:
            tokens = decode()
    else:
        steps, tokens = [], decode()
    peak = peak_mb(device) - idle
    seconds, processor = [], []
    for _ in range(case["repeats"]):
        begin, busy = seconds_now(device), time.process_time()
        decode()
        processor.append(time.process_time() - busy)
        seconds.append(seconds_now(device) - begin)
    spread = max(seconds) - min(seconds)
    found = {"seconds": statistics.median(seconds), "spread": spread, "tokens": tokens, "peak": peak,
             "processor": statistics.median(processor), "steps": len(steps), "rows": sum(steps)}  # fmt: skip
    if not mixed and not (way == "this" and case["compile"]):  # a compiled step hides its operations
        found |= {f"{name}": count / (case["tokens"] - 1) for name, count in counts_of(decode).items()}
    if case["profile"] and way == "this":
        found["profile"] = shares_of(decode)
    common["max_new_tokens"] = 1
    begin, busy = seconds_now(device), time.process_time()
    decode()
    found["prompts"] = time.process_time() - busy
    found["clock_prompts"] = seconds_now(device) - begin
    model = reasoner.backbone.language_model
    read = [*model.layers.parameters(), reasoner.backbone.lm_head.weight]
    found["weights"] = sum(weight.numel() * weight.element_size() for weight in read) / 2**20
    return found


@contextmanager
def counted_steps(reasoner: LatentReasoner) -> Iterator[list[int]]:
    """The number of rows of every decoding step."""
    backbone, rows = reasoner.backbone, list[int]()
    original = backbone.run

    def counted(embeds: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        if embeds.shape[1] == 1:
            rows.append(len(embeds))
        return original(embeds, *more, **options)

    with patch.object(backbone, "run", counted):
        yield rows


def part_of(prompt: PromptBatch, rows: slice) -> PromptBatch:
    """Some of the prompts, each of which has four images."""
    patches = 4 * IMAGE_SIDE**2
    return PromptBatch(
        prompt.input_ids[rows], prompt.attention_mask[rows],
        prompt.pixel_values[rows.start * patches : rows.stop * patches],
        prompt.image_grid_thw[rows.start * 4 : rows.stop * 4],
    )  # fmt: skip


def counts_of(decode: Any) -> dict[str, int]:
    """Operations and synchronisations of a whole call."""
    with Counting() as counting:
        decode()
    return dict(counting.counts)


def shares_of(decode: Any, most: int = 8) -> str:
    """Operations of a whole call with the largest shares of the processor's time, and how often they ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        decode()
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    events = sorted(events, key=lambda event: -event.self_cpu_time_total)
    shown = [f"{event.key} {event.self_cpu_time_total / total:.0%} ({event.count}x)" for event in events[:most]]
    rest = 1 - sum(event.self_cpu_time_total for event in events[:most]) / total
    return f"{', '.join(shown)}, {len(events) - most} others {rest:.0%}"


def live_mb(case: dict[str, Any], weights: int) -> float:
    """MB of the keys and values that have to be held at the end: of prompts once, of all responses."""
    columns = case["prompts"] * (case["prompt"] + case["branches"] * case["tokens"])
    layers, heads, channels = (36, 8, 128) if case["shape"] == "8b" else (4, 2, 64)
    return columns * 2 * layers * heads * channels * weights / 2**20


def in_process(way: str, case: dict[str, Any], source: str) -> dict[str, float]:
    """Run one way in a process of its own, with the library from a source folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(Path(__file__).parent)])}
    command = [sys.executable, __file__, "--one", json.dumps([way, case])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def copy_bandwidth(device: str) -> float:
    """GB/s that a large copy reads and writes."""
    source = torch.zeros(2**28 // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    begin = seconds_now(device)
    for _ in range(5):
        target.copy_(source)
    return 5 * 2 * source.numel() * 4 / (seconds_now(device) - begin) / 1e9


def main() -> None:
    """Print a table per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["proportioned", "full"], choices=list(VOCABULARIES))
    parser.add_argument("--prompts", type=int, nargs="+", default=[1024, 3072], help="prompt lengths in tokens")
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="branches of all prompts, if all have the same length")
    parser.add_argument("--alone", action="store_true", help="measure this version only")
    parser.add_argument("--tokens", type=int, default=128, help="of a response; of the longest, for mixed lengths")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--previous", default="", help="folder of an earlier version of this repository")
    parser.add_argument("--greedy", action="store_true", help="choose the most likely tokens instead of sampling")
    parser.add_argument("--mixed", action="store_true", help="only 64 prompts of mixed lengths in 16 slots")
    parser.add_argument("--look-every", type=int, default=8, help="steps between two looks of the host")
    parser.add_argument("--profile", action="store_true", help="also name the operations that take most time")
    parser.add_argument("--compile", action="store_true", help="compile this version's step")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    add_device_options(parser)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(*json.loads(options.one))))
        return
    bandwidth = copy_bandwidth(options.device)
    print(f"{vars(options)}, {machine(options.device)}, copies at {bandwidth:.1f} GB/s")
    here = str(Path(__file__).parents[1] / "src")
    for shape in options.shapes:
        for length in options.prompts:
            case = {"shape": shape, "prompt": length, "tokens": options.tokens,
                    "prompts": 64 if options.mixed else options.rows // options.branches,
                    "branches": options.branches, "slots": 16 if options.mixed else None, "repeats": options.repeats,
                    "sampled": not options.greedy, "look_every": options.look_every, "compile": options.compile,
                    "profile": options.profile, "device": options.device, "dtype": options.dtype}  # fmt: skip
            ways = [] if options.alone else [("batches" if options.mixed else "transformers", here)]
            ways += [("previous", f"{options.previous}/src")] if options.previous else []
            results = {way: in_process(way, case, source) for way, source in [*ways, ("this", here)]}
            print(f"{shape}, prompt of {length} tokens, {'mixed lengths' if options.mixed else 'fixed lengths'}")
            width = 2 if options.dtype == "bfloat16" else 4
            for way, found in results.items():
                rate = found["tokens"] / found["seconds"]
                line = f"  {way:<13}{found['seconds']:>8.2f} s  spread {found['spread']:.2f}  {rate:>7.0f} tokens/s"
                line += f"  processor {found['processor']:.2f} s, {found['prompts']:.2f} for the prompts"
                line += f"  peak {found['peak']:.0f} MB"
                if found["steps"]:
                    line += f"  {found['steps']} steps of {found['rows'] / found['steps']:.0f} rows on average"
                if "operations" in found:
                    line += f"  {found['operations']:.0f} operations and {found['synchronisations']:.1f} waits a step"
                print(line)
            mine = results["this"]
            if "profile" in mine:
                print(f"  time of this, prompts included: {mine['profile']}")
            for way, found in results.items():
                if way != "this":
                    rates = [mine["tokens"] / mine[unit] for unit in ("seconds", "processor")]
                    others = [found["tokens"] / found[unit] for unit in ("seconds", "processor")]
                    clock, busy = (rate / other for rate, other in zip(rates, others, strict=True))
                    steps = [result["processor"] - result["prompts"] for result in (found, mine)]
                    memory = mine["peak"] / found["peak"]
                    print(
                        f"  this is {clock:.2f} times as fast as {way} by the clock, {busy:.2f} by the processor "
                        f"({steps[0] / steps[1]:.2f} in the steps alone), with {memory:.0%} of its memory"
                    )
            live, steps = live_mb(case, width), case["tokens"] - 1
            if not options.mixed:
                print(f"  keys and values at the end: {live:.0f} MB")
                step = (mine["seconds"] - mine["clock_prompts"]) / steps * 1e3
                limit = (mine["weights"] + live) * 2**20 / (bandwidth * 1e9) * 1e3
                print(f"  a step takes {step:.1f} ms, {step / limit:.1f} times what reading weights and keys takes")


if __name__ == "__main__":
    main()
