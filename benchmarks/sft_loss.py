"""Time and memory of the SFT objective against the usual way of computing it, in one run.

Baseline: `lm_head` over every position and cross entropy over the full logits, as a stock
`...ForConditionalGeneration(labels=...)` computes it. Ours: hidden states are selected at labelled positions before
`lm_head`, and the cross entropy is fused. Model, batch and gradients are the same.

    python benchmarks/sft_loss.py [--vocab 32768] [--prompt 1024] [--response 128] [--rows 2] [--repeats 5]
                                  [--device cuda --dtype bfloat16]

On CUDA there are two more ways: Liger's loss, and that with Liger's norms and MLPs in the language model.
"""

import argparse
import statistics

import torch
from torch.nn import functional as F

from futurel1.losses import linear_cross_entropy
from futurel1.models import LatentReasoner, LatentSettings, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import VOCAB_SIZE, tiny_model
from futurel1.modules.adapters import apply_liger
from meters import add_device_options, in_fresh_process, machine, peak_mb, seconds_now


def measure(kind: str, options: argparse.Namespace) -> tuple[float, float, float, float, float]:
    """One way: seconds, their spread, peak memory, loss and norm of a gradient."""
    torch.manual_seed(0)
    model = tiny_model(
        hidden_size=256, intermediate_size=768, head_dim=64, vocab_size=options.vocab,
        rope_scaling={"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    )  # fmt: skip
    model.to(options.device, getattr(torch, options.dtype)).train()
    if kind == "kernels":
        tokens = LatentTokens(VOCAB_SIZE - 3, VOCAB_SIZE - 2, VOCAB_SIZE - 1)
        apply_liger(LatentReasoner(Qwen3VLBackbone(model), tokens, LatentSettings()), torch.device(options.device))
    path = "liger" if kind == "kernels" else kind
    length = options.prompt + options.response
    ids = torch.randint(0, 256, (options.rows, length)).to(options.device)
    labels = ids.clone()
    labels[:, : options.prompt] = -100
    targets = labels[:, 1:]
    scored = targets != -100

    def step() -> torch.Tensor:
        hidden = model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        if kind == "baseline":
            logits = model.lm_head(hidden).float()
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        else:
            loss = linear_cross_entropy(hidden[scored], model.lm_head.weight, targets[scored], path) / scored.sum()
        loss.backward()
        return loss.detach()

    idle = peak_mb(options.device)
    loss = step()
    gradient = model.lm_head.weight.grad.norm().item()
    seconds = []
    for _ in range(options.repeats):
        model.zero_grad()
        begin = seconds_now(options.device)
        step()
        seconds.append(seconds_now(options.device) - begin)
    peak = peak_mb(options.device) - idle
    return statistics.median(seconds), max(seconds) - min(seconds), peak, loss.item(), gradient


WIDTHS = (10, 10, 9, 10, 9, 11, 11)


def main() -> None:
    """Print one line per way, and ratios to the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vocab", 32768), ("prompt", 1024), ("response", 128), ("rows", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_device_options(parser)
    options = parser.parse_args()
    kinds = ["baseline", *(["torch"] if hasattr(F, "linear_cross_entropy") else []), "chunked"]
    if options.device != "cpu":
        kinds += ["liger", "kernels"]
    rows = {kind: in_fresh_process(measure, kind, options) for kind in kinds}
    base = rows["baseline"]
    print(f"{vars(options)}, {machine(options.device)}")
    titles = ("median s", "spread s", "faster", "peak MB", "of base", "loss", "|grad|")
    print(f"{'way':<10}" + "".join(f"{title:>{width}}" for title, width in zip(titles, WIDTHS, strict=True)))
    for kind, (median, spread, peak, loss, gradient) in rows.items():
        print(
            f"{kind:<10}{median:>10.3f}{spread:>10.3f}{base[0] / median:>8.2f}x{peak:>10.0f}{peak / base[2]:>8.0%}"
            f"{loss:>11.6f}{gradient:>11.6f}"
        )


if __name__ == "__main__":
    main()
