"""Statistics that reinforcement learning logs: sums over an optimizer step or an evaluation, over all ranks."""

import math
import time
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from futurel1.losses import PolicyLossOutput
from futurel1.models.decoding import RolloutScores
from futurel1.rollout.experience import Experience


class Reduce(Protocol):
    """Sums float64 numbers over all ranks, or takes their maxima; see :meth:`ReasonerModule.reduced`."""

    def __call__(self, values: Tensor, *, maximum: bool = False) -> list[float]: ...  # noqa: D102 (documented above)


class StepStatistics:
    """Statistics of one optimizer step: means over all its tokens, across micro-batches and ranks."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, batch: Experience, scores: RolloutScores, output: PolicyLossOutput, mask: Tensor) -> None:
        """Add a micro-batch.

        Args:
            batch: the micro-batch.
            scores: scores of the micro-batch's rollouts under the current policy.
            output: the micro-batch's terms of the objective.
            mask: (N, R) bool, decisions that count.
        """
        rollout, text, latents = batch.rollout, output.text, output.latents
        slots = mask & rollout.slot_mask
        words = mask & ~rollout.slot_mask
        sums = {
            "loss": output.loss,
            "text_loss": text.loss / batch.total_tokens,
            "latent_loss": latents.loss / batch.total_tokens,
            "kl": output.kl,
            "decisions": text.count,
            "latents": latents.count,
            "ratios": text.ratio_sum,
            "latent_ratios": latents.ratio_sum,
            "clip_high": text.clipped_high,
            "clip_low": text.clipped_low,
            "dual_clip": text.dual_clipped,
            "latent_clip_high": latents.clipped_high,
            "latent_clip_low": latents.clipped_low,
            "latent_dual_clip": latents.dual_clipped,
            "entropy": scores.entropy[words].sum(),
            "words": words.sum(),
            "slot_entropy": scores.entropy[slots].sum(),
            "slots": slots.sum(),
            "trained": batch.prompt.attention_mask.sum() + rollout.response_mask.sum(),
        }
        sampled = scores.log_probs
        if batch.old_log_probs is not None:
            sampled = torch.where(batch.old_log_probs.isnan(), sampled, batch.old_log_probs)
        maxima = {
            "gap": torch.where(mask, (sampled - rollout.log_probs).abs(), 0.0).amax(),
            "ratio_max": text.ratio_max,
            "-ratio_min": -text.ratio_min,
            "latent_ratio_max": latents.ratio_max,
            "-latent_ratio_min": -latents.ratio_min,
        }
        for name, value in sums.items():
            value = value.detach().double()
            self._sums[name] = value if name not in self._sums else self._sums[name] + value
        for name, value in maxima.items():
            value = value.detach().double()
            self._maxima[name] = value if name not in self._maxima else torch.maximum(self._maxima[name], value)

    def logs(self, reduce: Reduce, *, latent_term: bool) -> dict[str, float]:
        """The step's log; all ranks have to call it.

        Args:
            reduce: reduction over ranks.
            latent_term: whether latents enter the loss.

        Returns:
            The same names at every step, NaN where nothing was counted: Lightning would log the last value of a missing
            name again.
        """
        sums = _reduced(self._sums, reduce)
        most = _reduced(self._maxima, reduce, maximum=True)
        seconds = time.perf_counter() - self._began
        decisions, latents = sums["decisions"], sums["latents"]
        logs = {
            "train/loss": sums["loss"],
            "train/policy_loss": sums["text_loss"],
            "train/kl": ratio(sums["kl"], decisions),
            "train/entropy": ratio(sums["entropy"], sums["words"]),
            "train/continue_entropy": ratio(sums["slot_entropy"], sums["slots"]),
            "train/ratio": ratio(sums["ratios"], decisions),
            "train/ratio_max": most["ratio_max"] if decisions else math.nan,
            "train/ratio_min": -most["-ratio_min"] if decisions else math.nan,
            "train/clip_high": ratio(sums["clip_high"], decisions),
            "train/clip_low": ratio(sums["clip_low"], decisions),
            "train/dual_clip": ratio(sums["dual_clip"], decisions),
            "train/decisions": decisions,
            "train/log_prob_gap": most["gap"],
            "train/update_seconds": seconds,
            "train/tokens_per_second": sums["trained"] / seconds,
        }
        if latent_term:
            logs |= {
                "train/latent_loss": sums["latent_loss"],
                "train/latents": latents,
                "train/latent_ratio": ratio(sums["latent_ratios"], latents),
                "train/latent_ratio_max": most["latent_ratio_max"] if latents else math.nan,
                "train/latent_ratio_min": -most["-latent_ratio_min"] if latents else math.nan,
                "train/latent_clip_high": ratio(sums["latent_clip_high"], latents),
                "train/latent_clip_low": ratio(sums["latent_clip_low"], latents),
                "train/latent_dual_clip": ratio(sums["latent_dual_clip"], latents),
            }
        return logs


class EvaluationStatistics:
    """Means of an evaluation over all ranks.

    Args:
        names: names of the columns to log.
    """

    def __init__(self, names: list[str]) -> None:
        self._sums = {name: torch.zeros(2, dtype=torch.float64) for name in sorted(names)}

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """Add (B,) columns; NaN is not counted, and ``accuracy`` becomes the share of correct answers.

        The accuracy reward also penalises repetition, by -1, so its mean is not that share.
        """
        for name, values in columns.items():
            if name == "accuracy":
                values = torch.where(values.isfinite(), (values >= 1).to(values.dtype), values)
            values = values.double()
            known = values.isfinite()
            self._sums[name] += torch.stack([values[known].sum(), known.sum().double()]).cpu()

    def means(self, reduce: Reduce) -> dict[str, float]:
        """Mean of each column that has a value on any rank; all ranks have to call it."""
        # Names do not depend on the samples, so ranks without samples have the same ones.
        values = reduce(torch.cat(list(self._sums.values())))
        pairs = zip(self._sums, values[::2], values[1::2], strict=True)
        return {name: total / known for name, total, known in pairs if known}


def _reduced(values: dict[str, Tensor], reduce: Reduce, *, maximum: bool = False) -> dict[str, float]:
    numbers = reduce(torch.stack(list(values.values())), maximum=maximum)
    return dict(zip(values, numbers, strict=True))


def ratio(total: float, count: float) -> float:
    """`total / count`, NaN if `count` is 0."""
    return total / count if count else math.nan
