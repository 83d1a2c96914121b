"""Statistics for the log of a rollout batch: of all rollouts sampled for it, and of the groups that it trains on.

Shapes: G rollouts of a group.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from futurel1.rewards.contrastive import trajectory_similarity
from futurel1.rollout.experience import Group

__all__ = ["deviations", "means", "summary", "within_groups"]


def summary(group: Group) -> dict[str, float]:
    """Sums over one group's rollouts, the input of :func:`means`."""
    rollout, valid = group.rollout, group.valid
    lengths = rollout.response_mask.sum(dim=1)
    spans = torch.bincount(rollout.span_table[:, 0], minlength=len(rollout))
    sums = {
        "count": float(len(rollout)),
        "valid": float(valid.sum()),
        "tokens": float(lengths.sum()),
        "tokens_squared": float(lengths.double().square().sum()),
        "spans": float(spans.sum()),
        "with_spans": float((spans > 0).sum()),
        "latents": float(rollout.latent_mask.sum()),
        "right": float((group.parts["accuracy"][valid] >= 1).sum()) if "accuracy" in group.parts else math.nan,
        "cut": float(sum(reason == "length" for reason in rollout.finish_reasons)),
        "total": float(group.rewards[valid].sum()),
        "total_squared": float(group.rewards[valid].double().square().sum()),
    }
    for name, values in group.parts.items():
        known = values[valid & values.isfinite()].double()
        sums |= {f"part/{name}": float(known.sum()), f"known/{name}": float(len(known))}
    return sums


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Statistics to log of all rollouts that were sampled for a batch, whether or not they were kept."""
    if not rows:
        return {}  # the whole batch came from leftovers of the one before
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update(row)
    count, valid = sums["count"], max(1.0, sums["valid"])
    mean = sums["total"] / valid
    parts = [name.removeprefix("part/") for name in rows[0] if name.startswith("part/")]
    logs = {f"reward/{name}": sums[f"part/{name}"] / max(1.0, sums[f"known/{name}"]) for name in parts}
    length = sums["tokens"] / count
    if not math.isnan(sums["right"]):
        logs["reward/correct"] = sums["right"] / valid
    return logs | {
        "reward/total": mean,
        "reward/std": max(0.0, sums["total_squared"] / valid - mean**2) ** 0.5,
        "rollout/failed": count - sums["valid"],
        "rollout/tokens": sums["tokens"],
        "rollout/response_length": length,
        "rollout/response_length_std": max(0.0, sums["tokens_squared"] / count - length**2) ** 0.5,
        "rollout/cut_share": sums["cut"] / count,
        "rollout/spans": sums["spans"] / count,
        "rollout/span_share": sums["with_spans"] / count,
        "rollout/latents": sums["latents"] / count,
    }


def deviations(group: Group, weights: Mapping[str, float]) -> dict[str, float]:
    """Sums over what distinguishes one group's rollouts from each other, the input of :func:`within_groups`.

    Args:
        group: rollouts with advantages.
        weights: weight of each reward part in the total.
    """
    names = ["advantage", "total", *group.parts]
    values = torch.stack([group.advantages, group.rewards, *group.parts.values()]).double().cpu()
    known = group.valid.cpu() & values.isfinite()
    rows = dict(zip(names, zip(values, known, strict=True), strict=True))
    squares = {name: _product(rows[name], rows[name]) for name in names}
    sums = {**_latent_cosines(group), "advantage": squares["advantage"]}
    for name in ("total", *group.parts):
        others = int(rows[name][1].sum()) - 1
        sums |= {f"std/{name}": (squares[name] / max(1, others)) ** 0.5, f"groups/{name}": float(others > 0)}
    for name in (name for name in group.parts if weights[name]):
        part = weights[name] * _product(rows[name], rows["total"])
        sums[f"share/{name}"] = squares["advantage"] * part / squares["total"] if squares["total"] else 0.0
    if "accuracy" in group.parts:
        for name in (name for name in names if name not in ("total", "accuracy")):
            along = _product(rows[name], rows["accuracy"])
            sums[f"explained/{name}"] = along**2 / squares["accuracy"] if squares["accuracy"] else 0.0
            sums[f"squares/{name}"] = squares[name]
    return sums


def _product(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Sum of products of deviations from the mean, over the rollouts for which both are known."""
    both = first[1] & second[1]
    one, other = first[0][both], second[0][both]
    return float(((one - one.mean()) * (other - other.mean())).sum()) if len(one) else 0.0


def _latent_cosines(group: Group) -> dict[str, float]:
    """Sum over all pairs of rollouts of the mean cosine of their latents at the same place, and number of pairs."""
    mask = group.rollout.latent_mask
    rows = mask.any(dim=1).nonzero().T  # (1, those with latents)
    if rows.shape[1] < 2:
        return {"cosines": 0.0, "pairs": 0.0}
    (similarity,) = trajectory_similarity(group.rollout.latents, mask, rows)
    number = len(similarity)
    first, second = torch.triu_indices(number, number, offset=1, device=similarity.device)
    cosines = 2 * similarity[first, second].double() - 1
    return {"cosines": float(cosines.sum()), "pairs": float(len(cosines))}


def within_groups(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What distinguishes the rollouts of a group, over all groups that are trained on; NaN where nothing does.

    Args:
        rows: what :func:`deviations` returns for each group, in any order.

    Returns:
        `rollout/latent_cosine`: mean cosine of two rollouts' latents at the same place. `group_std/<part>`: mean over
        groups of the unbiased standard deviation. `advantage_share/<part>`: covariance of the weighted part with the
        total over the variance of the total, averaged over groups by the squares of their advantages; all shares
        together are 1. `accuracy_r2/<part>`, `accuracy_r2/advantage`: share of the variance that accuracy explains,
        with a slope for each group.
    """
    # fsum rounds once, so that the order of groups, and with it the number of ranks, does not matter.
    sums = {name: math.fsum(row[name] for row in rows) for name in rows[0]}

    def over(above: str, below: str) -> float:
        return sums[above] / sums[below] if sums[below] else math.nan

    def parts(kind: str) -> list[str]:
        return [name.removeprefix(kind) for name in sums if name.startswith(kind)]

    return {
        "rollout/latent_cosine": over("cosines", "pairs"),
        **{f"group_std/{name}": over(f"std/{name}", f"groups/{name}") for name in parts("std/")},
        **{f"advantage_share/{name}": over(f"share/{name}", "advantage") for name in parts("share/")},
        **{f"accuracy_r2/{name}": over(f"explained/{name}", f"squares/{name}") for name in parts("explained/")},
    }
