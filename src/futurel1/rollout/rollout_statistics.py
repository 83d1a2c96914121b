"""Statistics for the log of the rollouts sampled for a rollout batch."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from futurel1.rollout.experience import Group

__all__ = ["means", "summary"]


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
