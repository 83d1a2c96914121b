"""Accuracy on FutureBench."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from futurel1.errors import ConfigError
from futurel1.metrics.functional.futurebench import (
    FUTUREBENCH_SPLITS,
    ExtractionProtocol,
    _futurebench_compute,
    _futurebench_update,
)

__all__ = ["FutureBenchAccuracy"]


class FutureBenchAccuracy(Metric):
    """FutureBench accuracy per split and overall, by every extraction protocol, with Wilson intervals.

    A response without an answer is wrong, and also counted separately. `compute()` returns float32 scalars under keys
    that do not depend on the data, for every protocol ``p`` and split ``s``:

    * ``p/accuracy``: percentage of all samples that are correct (the micro average, as in the paper);
    * ``p/s``: percentage of the split's samples that are correct, NaN without samples;
    * ``p/accuracy_low``, ``p/accuracy_high``, ``p/s_low``, ``p/s_high``: Wilson 95% interval, in percent;
    * ``p/unanswered``: number of samples without an answer; ``samples``, ``samples/s``: numbers of samples.

    The states ``outcomes_s`` keep each sample's outcome, (n x protocols) flattened: 1 correct, 0 wrong, -1 unanswered.

    Args:
        protocols: how options are extracted, see :func:`~futurel1.metrics.functional.extract_option`.
        splits: names of the splits.
        **kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ConfigError: no protocols or no splits, a repeated one, or an unknown protocol.

    Source:
        Future-L1, arXiv 2606.05769, FutureBench. The paper gives no intervals.

    Example:
        >>> metric = FutureBenchAccuracy()
        >>> responses = ["<answer>B</answer>", "<answer>Answer: C</answer>", "no idea"]
        >>> metric.update(responses, answers=["B", "C", "D"], splits=["hop1", "hop1", "hop5"])
        >>> scores = metric.compute()
        >>> [round(scores[key].item(), 1) for key in ("paper/accuracy", "strict/accuracy", "strict/hop1")]
        [33.3, 66.7, 100.0]
        >>> int(scores["paper/unanswered"]), scores["paper/hop2"].item()
        (1, nan)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self,
        protocols: Sequence[ExtractionProtocol] = ("paper", "strict"),
        splits: Sequence[str] = FUTUREBENCH_SPLITS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, given in (("protocols", protocols), ("splits", splits)):
            if not given or len(set(given)) != len(given):
                raise ConfigError(f"{name} must be at least one name, each once, got {given!r}")
        unknown = sorted(set(protocols) - set(get_args(ExtractionProtocol)))
        if unknown:
            raise ConfigError(f"unknown protocols {unknown}; known are {get_args(ExtractionProtocol)}")
        self.protocols, self.splits = tuple(protocols), tuple(splits)
        for split in self.splits:
            # One-dimensional, because a rank without samples takes part in gathering with an empty vector.
            self.add_state(f"outcomes_{split}", default=[], dist_reduce_fx="cat")

    def update(
        self,
        responses: Sequence[str],
        answers: Sequence[str],
        splits: Sequence[str],
        options: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Score a batch.

        Args:
            responses: N decoded responses.
            answers: N ground truths: option letters, with or without ``<answer>`` tags.
            splits: N names of splits (`question_type`).
            options: N mappings from letter to text, which let the strict protocol accept an option's text.

        Raises:
            BatchError: lengths differ, a ground truth is not a letter A-D, or a split is unknown; then nothing is
                counted.
        """
        outcomes = _futurebench_update(responses, answers, splits, options, self.protocols, self.splits)
        for split, rows in outcomes.items():
            getattr(self, f"outcomes_{split}").append(rows.flatten().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """All scores, see the class.

        Raises:
            BatchError: there are no samples.
        """
        return _futurebench_compute(self._outcomes(), self.protocols)

    def _outcomes(self) -> dict[str, Tensor]:
        """(n, number of protocols) outcomes of every split."""
        states = {split: getattr(self, f"outcomes_{split}") for split in self.splits}
        flat = {
            split: dim_zero_cat(state) if len(state) else torch.zeros(0, device=self.device)
            for split, state in states.items()
        }
        return {split: rows.reshape(-1, len(self.protocols)) for split, rows in flat.items()}
