"""Judged scores on TwiFF-Bench."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from futurel1.metrics.functional.twiffbench import _twiffbench_compute, _twiffbench_update

__all__ = ["TwiFFBenchScore"]


class TwiFFBenchScore(Metric):
    """Mean scores of a judge for reasoning (CoT) and answer, 0-5, and the number of failures.

    `compute()` returns float32 scalars: ``cot``, ``answer``, ``average`` = (cot + answer) / 2, ``samples`` (scored) and
    ``failures``. A score outside 0-5, before rounding, is a failure and never clamped. The means exclude failures, and
    are NaN if nothing was scored.

    Args:
        **kwargs: arguments of `torchmetrics.Metric`.

    Source:
        Future-L1, arXiv 2606.05769, TwiFF-Bench.

    Example:
        >>> metric = TwiFFBenchScore()
        >>> metric.update([[3, 4], ["2", 3.0], [9, 1], None])
        >>> {key: value.item() for key, value in metric.compute().items()}
        {'cot': 2.5, 'answer': 3.5, 'average': 3.0, 'samples': 2.0, 'failures': 2.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    cot: Tensor
    answer: Tensor
    scored: Tensor
    failures: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("cot", "answer", "scored", "failures"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Sequence[object]) -> None:
        """Add the scores of a batch.

        Args:
            scores: N parsed ``score`` entries of judge replies, ``[cot, answer]``, read by
                :func:`~futurel1.metrics.functional.judged_scores`; None for a failed call.
        """
        cot, answer, scored, failures = _twiffbench_update(scores)
        self.cot = self.cot + cot.to(self.device)
        self.answer = self.answer + answer.to(self.device)
        self.scored = self.scored + scored.to(self.device)
        self.failures = self.failures + failures.to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Means and counts, see the class.

        Raises:
            BatchError: there are no samples.
        """
        return _twiffbench_compute(self.cot, self.answer, self.scored, self.failures)
