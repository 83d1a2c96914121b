"""Speed and memory of one group update: G branches packed on their shared prompt, against G separate rows.

    python benchmarks/update.py [--settings 1024:128 3072:192] [--branches 8] [--repeats 7] [--threads 2]
                                [--device cuda --dtype bfloat16]

The loss is minus the mean of advantage times log-probability over all response tokens; forward and backward of one
group are timed, with the model of 4 layers and width 256 that `benchmarks/decoding.py` uses. Three ways: ``packed`` is
`score(share_prompt=True)`, ``rows`` is `score(share_prompt=False)`, and ``plain`` is what one writes without this
library: the stock model on eight sequences and `lm_head` at response positions. The baseline is the faster of the last
two. Speed comes from one process in which the ways take turns, so that a noisy machine slows all of them; memory from
a fresh process for each way, above that process before its first step. On a machine that other work keeps busy, threads
wait for each other without end: `--threads 1` and the seconds of the processor tell more there than those of the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from futurel1.data import PromptBatch
from futurel1.models import LatentReasoner, LatentSettings, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import VOCAB_SIZE, tiny_model
from futurel1.models.decoding import Rollout
from futurel1.models.policies import DeterministicLatents
from meters import add_device_options, in_fresh_process, machine, peak_mb, seconds_now

WAYS = ("packed", "rows", "plain")
Setting = tuple[int, int]
"""Tokens of the prompt, and of every response."""
Times = dict[str, list[float]]
Values = dict[str, tuple[float, float]]


def make_reasoner(length: int) -> LatentReasoner:
    """4 layers of width 256, language model and `lm_head` trained, vision frozen."""
    model = tiny_model(
        hidden_size=256, intermediate_size=768, head_dim=64, max_position_embeddings=length,
        rope_scaling={"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    )  # fmt: skip
    tokens = LatentTokens(VOCAB_SIZE - 3, VOCAB_SIZE - 2, VOCAB_SIZE - 1)
    reasoner = LatentReasoner(Qwen3VLBackbone(model), tokens, LatentSettings()).train()
    reasoner.backbone.vision_tower.requires_grad_(False)
    return reasoner


def make_group(setting: Setting, branches: int) -> tuple[PromptBatch, Rollout, Tensor]:
    """A prompt of random words, random responses and their advantages."""
    prompt_tokens, response_tokens = setting
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (1, prompt_tokens), generator=generator)
    responses = torch.randint(0, 256, (branches, response_tokens), generator=generator)
    real = torch.ones_like(responses, dtype=torch.bool)
    rollout = Rollout(
        responses=responses,
        response_mask=real,
        log_probs=torch.zeros(responses.shape),
        chosen_mask=real,
        slot_mask=~real,
        latents=torch.zeros(branches, 0, 256),
        latent_mask=torch.zeros(branches, 0, dtype=torch.bool),
        span_ids=torch.zeros(branches, 0, dtype=torch.int64),
        latent_log_probs=torch.zeros(branches, 0, dtype=torch.float64),
        span_table=torch.zeros(0, 5, dtype=torch.int64),
        finish_reasons=["length"] * branches,
        num_branches=branches,
        temperature=1.0,
        policy=DeterministicLatents(),
    )
    advantages = torch.randn(branches, generator=generator)
    return PromptBatch(ids, torch.ones_like(ids)), rollout, advantages


def _to(rollout: Rollout, device: str) -> Rollout:
    """The same rollout on another device."""
    values = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    return replace(rollout, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})


def plain_log_probs(reasoner: LatentReasoner, prompt: PromptBatch, rollout: Rollout) -> Tensor:
    """(G, R) by the stock model on G sequences; SDPA takes its causal path because there is no mask."""
    ids = torch.cat([prompt.input_ids.expand(len(rollout), -1), rollout.responses[:, :-1]], dim=1)
    model = reasoner.backbone.model
    out = model(input_ids=ids, logits_to_keep=rollout.responses.shape[1], use_cache=False)
    log_probs: Tensor = out.logits.log_softmax(dim=-1)
    return log_probs.gather(-1, rollout.responses[..., None])[..., 0]


def make_step(way: str, setting: Setting, options: argparse.Namespace) -> Callable[[], tuple[float, float]]:
    """A function that runs forward and backward of the group and returns loss and gradient norm."""
    device, branches = options.device, options.branches
    reasoner = make_reasoner(sum(setting)).to(device, getattr(torch, options.dtype))
    prompt, rollout, advantages = make_group(setting, branches)
    prompt, rollout, advantages = prompt.to(device), _to(rollout, device), advantages.to(device)
    weights = [weight for weight in reasoner.parameters() if weight.requires_grad]

    def step() -> tuple[float, float]:
        reasoner.zero_grad()
        if way == "plain":
            log_probs = plain_log_probs(reasoner, prompt, rollout)
        else:
            log_probs = reasoner.score(prompt, rollout, share_prompt=way == "packed")
        loss = -(advantages[:, None] * log_probs).mean()
        torch.autograd.backward(loss)
        norm = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
        return loss.item(), norm.item()

    return step


def measure_speed(setting: Setting, options: argparse.Namespace) -> tuple[Times, Times, Values]:
    """All ways in turns: seconds of the clock and of the processor in every repeat, and loss and gradient norm."""
    torch.set_num_threads(options.threads)
    steps = {way: make_step(way, setting, options) for way in WAYS}
    values = {way: step() for way, step in steps.items()}
    seconds: Times = {way: [] for way in WAYS}
    busy: Times = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, step in steps.items():
            begin, begin_busy = seconds_now(options.device), time.process_time()
            step()
            seconds[way].append(seconds_now(options.device) - begin)
            busy[way].append(time.process_time() - begin_busy)
    return seconds, busy, values


def measure_memory(way: str, setting: Setting, options: argparse.Namespace) -> float:
    """Peak MB of two steps of one way above the process that is ready to run them."""
    torch.set_num_threads(options.threads)
    step = make_step(way, setting, options)
    idle = peak_mb(options.device)
    step()
    step()
    return peak_mb(options.device) - idle


def parse_setting(text: str) -> Setting:
    """``"1024:128"`` to (1024, 128)."""
    prompt, response = text.split(":")
    return int(prompt), int(response)


def main() -> None:
    """Print a table per setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--settings", type=parse_setting, nargs="+", default=[(1024, 128), (3072, 192)], metavar="PROMPT:RESPONSE"
    )
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{vars(options)}, {machine(options.device)}")
    for setting in options.settings:
        seconds, busy, values = in_fresh_process(measure_speed, setting, options)
        memory = {way: in_fresh_process(measure_memory, way, setting, options) for way in WAYS}
        medians = {way: statistics.median(times) for way, times in seconds.items()}
        print(f"prompt of {setting[0]} tokens, {options.branches} responses of {setting[1]}")
        for way in WAYS:
            spread = max(seconds[way]) - min(seconds[way])
            loss, norm = values[way]
            print(
                f"  {way:<8}{medians[way]:>8.3f} s  spread {spread:.3f}  processor {statistics.median(busy[way]):.3f} s"
                f"  peak {memory[way]:>6.0f} MB  loss {loss:.6f}  gradient norm {norm:.6f}"
            )
        best = min(("rows", "plain"), key=lambda way: medians[way])
        prompt, response = setting
        # The last token of a response is never an input.
        floor = options.branches * (prompt + response - 1) / (prompt + options.branches * (response - 1))
        for clock, times in (("by the clock", seconds), ("by the processor", busy)):
            ratios = [row / packed for row, packed in zip(times[best], times["packed"], strict=True)]
            ratio = statistics.median(ratios)
            print(
                f"  packed is {ratio:.2f} times as fast as {best} {clock} (turn by turn {min(ratios):.2f} to "
                f"{max(ratios):.2f}), {ratio / floor:.0%} of the {floor:.2f} times fewer tokens"
            )
        print(
            f"  packed peaks at {memory['packed'] / memory[best]:.0%} of {best}; loss differs by "
            f"{abs(values['packed'][0] - values[best][0]):.1e}, gradient norm by "
            f"{abs(values['packed'][1] / values[best][1] - 1):.1e} of it"
        )


if __name__ == "__main__":
    main()
