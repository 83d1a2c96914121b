"""Speed and memory of decoding G branches of one prompt, against G copies of the prompt, and against `transformers`.

    python benchmarks/decoding.py [--prompts 1024 3072] [--branches 8] [--tokens 128] [--repeats 3]
                                  [--device cuda --dtype bfloat16]

Each way runs in a process of its own, so that its peak memory is its own; the model (4 layers, width 256), the prompt
(with images) and the seed are the same, and the tokens are compared.
"""

import argparse
import statistics

import torch

from futurel1.data import PromptBatch
from futurel1.models import LatentReasoner, LatentSettings, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import VOCAB_SIZE, tiny_model
from meters import add_device_options, in_fresh_process, machine, peak_mb, seconds_now

IMAGE_SIDE = 16  # patches; an image gives 64 visual tokens


def make_reasoner(length: int) -> LatentReasoner:
    """4 layers of width 256; START is never chosen, so that all ways decode the same number of text tokens."""
    model = tiny_model(
        hidden_size=256, intermediate_size=768, head_dim=64, max_position_embeddings=length + 1024,
        rope_scaling={"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    )  # fmt: skip
    tokens = LatentTokens(VOCAB_SIZE - 3, VOCAB_SIZE - 2, VOCAB_SIZE - 1)
    return LatentReasoner(Qwen3VLBackbone(model), tokens, LatentSettings()).eval()


def make_prompt(reasoner: LatentReasoner, length: int, copies: int) -> PromptBatch:
    """A prompt with four images and random words."""
    generator = torch.Generator().manual_seed(0)
    config = reasoner.backbone.config
    visual = (IMAGE_SIDE // 2) ** 2
    image = [config.vision_start_token_id, *[config.image_token_id] * visual, config.vision_end_token_id]
    words = torch.randint(0, 256, (length - 4 * len(image),), generator=generator)
    ids = torch.cat([torch.tensor(image * 4), words])[None].expand(copies, -1).contiguous()
    grid = torch.tensor([[1, IMAGE_SIDE, IMAGE_SIDE]]).expand(4 * copies, -1)
    pixels = torch.randn(4 * IMAGE_SIDE**2, 1536, generator=generator).repeat(copies, 1)
    return PromptBatch(ids, torch.ones_like(ids), pixels, grid)


def run(kind: str, options: argparse.Namespace, length: int) -> tuple[float, float, float, list[list[int]]]:
    """One way of decoding: seconds, their spread, peak memory and tokens."""
    reasoner = make_reasoner(length).to(options.device, getattr(torch, options.dtype))
    branches = 1 if kind in ("one row", "stock row") else options.branches
    copies = branches if kind in ("copies", "stock copies") else 1
    prompt = make_prompt(reasoner, length, copies).to(options.device)

    def decode() -> torch.Tensor:
        if kind.startswith("stock"):
            model = reasoner.backbone.model
            types = reasoner.backbone.visual_type_ids(prompt.input_ids)
            out = model.generate(
                input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, pixel_values=prompt.pixel_values,
                image_grid_thw=prompt.image_grid_thw, mm_token_type_ids=types, do_sample=branches > 1,
                max_new_tokens=options.tokens, min_new_tokens=options.tokens, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            return out[:, length:]
        rollout = reasoner.generate(
            prompt, num_branches=branches // copies, max_new_tokens=options.tokens, do_sample=branches > 1,
            eos_token_id=[-1], pad_token_id=0, share_prompt=True, seed=1,
        )  # fmt: skip
        return rollout.responses

    idle = peak_mb(options.device)
    tokens = decode()
    seconds = []
    for _ in range(options.repeats):
        begin = seconds_now(options.device)
        decode()
        seconds.append(seconds_now(options.device) - begin)
    peak = peak_mb(options.device) - idle
    return statistics.median(seconds), max(seconds) - min(seconds), peak, tokens.tolist()


KINDS = (
    ("stock copies", "stock copies"), ("copies", "stock copies"), ("shared", "stock copies"),
    ("stock row", "stock row"), ("one row", "stock row"),
)  # fmt: skip
"""Ways, and what each is compared with: eight copies by `transformers`' own generate, by ours, eight branches of one
prompt; one greedy row by `transformers`, and by ours."""


def main() -> None:
    """Print a table per prompt length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1024, 3072], help="prompt lengths in tokens")
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    add_device_options(parser)
    options = parser.parse_args()
    print(f"{vars(options)}, {machine(options.device)}")
    for length in options.prompts:
        rows = {kind: in_fresh_process(run, kind, options, length) for kind, _ in KINDS}
        print(f"prompt of {length} tokens")
        for kind, against in KINDS:
            median, spread, peak, tokens = rows[kind]
            base = rows[against]
            note = f", same tokens as copies: {tokens == rows['copies'][3]}" if kind == "shared" else ""
            note += f", same tokens as {against}: {tokens == base[3]}" if kind == "one row" else ""
            print(
                f"  {kind:<13}{median:>8.2f} s  spread {spread:.2f}  {base[0] / median:.2f} times as fast as {against}"
                f", peak {peak:.0f} MB ({peak / base[2]:.0%}){note}"
            )


if __name__ == "__main__":
    main()
