"""Speed of the rewards of one rollout batch on CPU, against a plain loop over rollouts in the same run.

    python benchmarks/rewards.py [--groups 64] [--rollouts 8] [--latents 12] [--hidden 4096] [--repeats 5]

Two things are timed: the two rewards of latents, and the whole composite with its four rewards of text (responses of
about 200 words, no judge). The baseline computes the same numbers a rollout at a time, as the formulas read.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.rewards import CompositeReward, OutcomeContrastiveReward, RewardInputs, TemporalDiversityReward
from futurel1.rewards.repetition import repetition_score


def make_inputs(options: argparse.Namespace) -> RewardInputs:
    """Groups in random order, half of the rollouts right, spans of four latents, no rollout of full length for sure."""
    generator = torch.Generator().manual_seed(0)
    number = options.groups * options.rollouts
    lengths = torch.randint(options.latents // 2, options.latents + 1, (number,), generator=generator)
    steps = torch.arange(options.latents)
    mask = steps < lengths[:, None]
    words = torch.randint(0, 5000, (number, 200), generator=generator).tolist()
    span = "<|latent_start|>" + "<|latent|>" * 4 + "<|latent_end|>"
    responses = [
        f"{span}<reason>{' '.join(map(str, row))}</reason><answer>{'BC'[row[0] % 2]}</answer><|im_end|>"
        for row in words
    ]
    return RewardInputs(
        responses=responses,
        answers=["B"] * number,
        problems=["What happens next?"] * number,
        group_ids=torch.arange(options.groups).repeat(options.rollouts)[torch.randperm(number, generator=generator)],
        response_lengths=torch.full((number,), 200),
        latents=torch.randn(number, options.latents, options.hidden, generator=generator),
        latent_mask=mask,
        span_ids=torch.where(mask, steps // 4, -1),
        correct=torch.tensor([1.0 - row[0] % 2 for row in words]),
    )


@torch.no_grad()
def loop_over_rollouts(inputs: RewardInputs) -> tuple[Tensor, Tensor]:
    """R_ctr (paper, tau 0.5) and R_div, one rollout after the other."""
    assert inputs.latents is not None
    assert inputs.latent_mask is not None
    assert inputs.span_ids is not None
    assert inputs.correct is not None
    latents = [rows[mask] for rows, mask in zip(inputs.latents, inputs.latent_mask, strict=True)]
    span_ids = [ids[mask] for ids, mask in zip(inputs.span_ids, inputs.latent_mask, strict=True)]
    groups, correct = inputs.group_ids.tolist(), inputs.correct.tolist()
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    contrastive, diversity = [], []
    for row, own in enumerate(latents):
        positives, negatives = [], []
        for other in members[groups[row]]:
            if other != row:
                steps = min(len(own), len(latents[other]))
                cosine = F.cosine_similarity(own[:steps], latents[other][:steps], dim=-1).mean()
                (positives if correct[other] == 1 else negatives).append((1 + cosine) / 2 / 0.5)
        nearest = torch.stack(positives).max().exp() if positives else torch.tensor(0.0)
        against = torch.stack(negatives).exp().sum() if negatives else torch.tensor(0.0)
        contrastive.append(nearest / (nearest + against) if positives else torch.tensor(0.0))
        means = torch.stack([own[span_ids[row] == span].mean(dim=0) for span in span_ids[row].unique()])
        square = F.cosine_similarity(means[:-1], means[1:], dim=-1).square()
        diversity.append(-square.mean() if len(square) else torch.tensor(0.0))
    return torch.stack(contrastive), torch.stack(diversity)


def measure(name: str, compute: Callable[[], object], repeats: int) -> float:
    """Median of seconds after one run to warm up; prints it."""
    compute()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    print(f"  {name:<46}{median:>8.3f} s  spread {max(seconds) - min(seconds):.3f}")
    return median


def main() -> None:
    """Print a line per way of computing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts of a group")
    parser.add_argument("--latents", type=int, default=12, help="most latents of a rollout")
    parser.add_argument("--hidden", type=int, default=4096, help="size of a latent")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    inputs = make_inputs(options)
    contrastive, diversity = OutcomeContrastiveReward(), TemporalDiversityReward()
    composite = CompositeReward.preset("paper")
    print(f"{vars(options)}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.testing.assert_close((contrastive(inputs), diversity(inputs)), loop_over_rollouts(inputs), atol=1e-5, rtol=0)
    print("  same numbers as the loop: True")
    base = measure("baseline: loop, contrastive and diversity", lambda: loop_over_rollouts(inputs), options.repeats)
    ours = measure("contrastive and diversity", lambda: (contrastive(inputs), diversity(inputs)), options.repeats)
    inputs.correct = None

    def score_all() -> None:
        repetition_score.cache_clear()  # every rollout batch is new
        composite(inputs)

    whole = measure("whole composite, six rewards", score_all, options.repeats)
    print(f"  {base / ours:.1f} times as fast as the loop; the whole composite takes {whole / base:.0%} of its time")


if __name__ == "__main__":
    main()
