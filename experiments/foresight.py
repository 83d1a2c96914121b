"""How well a small transformer can predict the world of events: an upper bound for what a tiny backbone can imagine.

    python -m experiments.foresight --scenes 40000 --steps 800
    python -m experiments.foresight --scenes 40000 --steps 800 --faster 2

The transformer gets what a perfect vision tower would see in four frames, is trained only to predict the next frame,
and continues from its own frames, as a model does from its own latents. The script prints how far shapes are from the
truth after one, two and three steps.
"""

import argparse
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from futurel1.worlds import CODE_SIZE, event_scenes, make_event_scenes, read_code

OBSERVED, FRAMES = 4, 8
WIDTH, LAYERS, HEADS = 128, 4, 4  # as in the tiny backbone
BATCH, LEARNING_RATE = 256, 2e-3
NOISE = 0.3  # root mean square of a tower's error, relative to features with a root mean square of 1


def scene_codes(count: int, seed: int) -> Tensor:
    """(count, FRAMES, CODE_SIZE) codes of the frames of random scenes."""
    scenes = make_event_scenes(np.random.default_rng(seed), count)
    return torch.from_numpy(np.stack([scene.code(range(FRAMES)) for scene in scenes])).float()


class Foresight(nn.Module):
    """Causal transformer that predicts the next frame from each frame, (B, T, CODE_SIZE) to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 3 * WIDTH, dropout=0.0, activation=F.silu, batch_first=True, norm_first=True
        )
        self.read = nn.Linear(CODE_SIZE, WIDTH)
        self.place = nn.Parameter(torch.randn(FRAMES, WIDTH) * 0.1)
        self.layers = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.write = nn.Linear(WIDTH, CODE_SIZE)

    def forward(self, frames: Tensor) -> Tensor:
        """Predict the frame after each frame."""
        length = frames.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        embedded = self.read(frames) + self.place[:length]
        return self.write(self.layers(embedded, mask=mask, is_causal=True))  # type: ignore[no-any-return]


def train(model: Foresight, frames: Tensor, steps: int) -> None:
    """Minimize the mean squared error of the next frame, given noisy frames, with a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        batch = frames[torch.randint(len(frames), (BATCH,))]
        noisy = batch + NOISE * torch.randn_like(batch)
        loss = F.mse_loss(model(noisy[:, :-1]), batch[:, 1:])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 4) == 0:
            print(f"step {step + 1}: error of the next frame {float(loss.detach()):.3f}", flush=True)


@torch.no_grad()
def go_on(model: Foresight, frames: Tensor) -> Tensor:
    """(B, FRAMES, CODE_SIZE): the first OBSERVED frames, then the model's continuation."""
    seen = frames[:, :OBSERVED]
    while seen.shape[1] < FRAMES:
        seen = torch.cat((seen, model(seen)[:, -1:]), dim=1)
    return seen


def main() -> None:
    """Train, and print the errors on unseen scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40000, help="scenes to learn from (default: 40000)")
    parser.add_argument("--steps", type=int, default=800, help=f"updates of {BATCH} scenes (default: 800)")
    parser.add_argument("--faster", type=float, default=1.0, help="factor on the speed of the shapes (default: 1)")
    options = parser.parse_args()
    event_scenes.SLOWEST *= options.faster
    event_scenes.FASTEST *= options.faster
    torch.manual_seed(0)
    codes, unseen = scene_codes(options.scenes, seed=0), scene_codes(1024, seed=1)
    mean = codes.mean(dim=(0, 1))
    scale = 1 / (codes - mean).square().mean().sqrt()
    model = Foresight()
    train(model, (codes - mean) * scale, options.steps)
    told = go_on(model, (unseen - mean) * scale) / scale + mean
    for step in range(OBSERVED, OBSERVED + 3):
        true, own, last = (read_code(frames[:, at].numpy()) for frames, at in
                           ((unseen, step), (told, step), (unseen, OBSERVED - 1)))  # fmt: skip
        shown = true.visible
        off, moved = (np.linalg.norm(found.positions - true.positions, axis=-1)[shown].mean() for found in (own, last))
        colours = (own.classes == true.classes)[shown].mean()
        print(
            f"after {step - OBSERVED + 1}: {off:.3f} of the arena off (last frame: {moved:.3f}), colours {colours:.0%}"
        )


if __name__ == "__main__":
    main()
