"""Distance of predicted latents from the features of the frame that they imagine."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.errors import BatchError, ConfigError
from futurel1.models import LatentReasoner

Alignment = Literal["mse", "cosine"]


def alignment_sum(predicted: Tensor, target: Tensor, alignment: Alignment) -> Tensor:
    """Summed alignment error of latents (Future-L1, Eq. 3; `mse` averages over dimensions as the released code does).

    Args:
        predicted: (N, H) latents.
        target: (N, H) features; treated as constants.
        alignment: ``"mse"``: squared error, mean over dimensions; ``"cosine"``: one minus cosine.

    Returns:
        Scalar sum over the N latents, in float32.

    Raises:
        BatchError: shapes differ.
        ConfigError: an unknown alignment.
    """
    if predicted.shape != target.shape:
        raise BatchError(f"latents {tuple(predicted.shape)} and targets {tuple(target.shape)} differ in shape")
    predicted, target = predicted.float(), target.detach().float()
    if alignment == "mse":
        return (predicted - target).square().mean(dim=-1).sum()
    if alignment == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=-1)).sum()
    raise ConfigError(f"alignment must be 'mse' or 'cosine', got {alignment!r}")


def pool_to(features: Tensor, counts: Tensor, lengths: Tensor) -> Tensor:
    """Average-pool each image's features to a given number of vectors, in raster order.

    Bin `i` of `n` covers rows ``floor(i c / n)`` to ``ceil((i + 1) c / n)`` of an image with `c` rows, as in
    `torch.nn.functional.adaptive_avg_pool1d`.

    Args:
        features: (sum(counts), H) rows of all images.
        counts: (I,) int64 number of rows of each image.
        lengths: (I,) int64 number of vectors to pool each image to.

    Returns:
        (sum(lengths), H).
    """
    image = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), lengths)
    first = lengths.cumsum(0) - lengths
    index = torch.arange(len(image), device=counts.device) - first[image]
    offset = (counts.cumsum(0) - counts)[image]
    start = offset + index * counts[image] // lengths[image]
    stop = offset - (-(index + 1) * counts[image] // lengths[image])
    # Differences of prefix sums need float64 to be exact enough for float32 results.
    prefix = F.pad(features.double().cumsum(dim=0), (0, 0, 1, 0))
    return ((prefix[stop] - prefix[start]) / (stop - start)[:, None]).to(features.dtype)


def hint_features(reasoner: LatentReasoner, pixel_values: Tensor, grid_thw: Tensor) -> list[Tensor]:
    """Features of future frames as latents should be: pooled to L_max where the checkpoint's spans are fixed.

    Args:
        reasoner: the model.
        pixel_values: (P, D) patches of all frames, at the size of hints.
        grid_thw: (I, 3) int64 patch grid of each frame.

    Returns:
        For each of the I frames, (L, H) features.
    """
    seen = reasoner.encode_hints(pixel_values, grid_thw)
    counts = torch.tensor(seen.counts, device=seen.embeds.device)
    settings = reasoner.settings
    if not settings.fixed_latent_budget:
        return list(torch.split(seen.embeds, list(seen.counts)))
    pooled = pool_to(seen.embeds, counts, torch.full_like(counts, settings.max_latent_tokens))
    return list(torch.split(pooled, settings.max_latent_tokens))


def hint_retrieval(predicted: Tensor, target: Tensor, hint: Tensor) -> Tensor:
    """Whether the true hint nearest to each imagined hint, by cosine of span means, is its own.

    Args:
        predicted: (N, H) latents.
        target: (N, H) features of the true hints.
        hint: (N,) int64 number of the hint that each latent belongs to, 0-based and without gaps.

    Returns:
        (number of hints,) float, 1 where its own true hint is the nearest.
    """
    number = int(hint.max()) + 1 if len(hint) else 0
    if number == 0:
        return predicted.new_zeros(0)

    def mean_per_hint(rows: Tensor) -> Tensor:
        sums = rows.new_zeros(number, rows.shape[-1]).index_add(0, hint, rows)
        return F.normalize(sums, dim=-1)

    similarity = mean_per_hint(predicted.float()) @ mean_per_hint(target.float()).T
    return (similarity.argmax(dim=1) == torch.arange(number, device=hint.device)).float()
