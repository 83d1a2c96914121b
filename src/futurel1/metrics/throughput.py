"""Cost of a response: tokens and seconds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from futurel1.metrics.functional.throughput import _throughput_compute, _throughput_update

__all__ = ["Throughput"]


class Throughput(Metric):
    """Mean generated tokens and mean seconds per sample.

    `compute()` returns float32 scalars: ``tokens_per_sample``, ``seconds_per_sample``, ``samples``. Seconds are summed
    over ranks, so several ranks give device seconds per sample, which are comparable with those of one device.

    Args:
        **kwargs: arguments of `torchmetrics.Metric`.

    Source:
        Future-L1, arXiv 2606.05769, inference cost on FutureBench.

    Example:
        >>> metric = Throughput()
        >>> metric.update([200, 100], seconds=3.0)
        >>> metric.update([300], seconds=[1.5])
        >>> {key: value.item() for key, value in metric.compute().items()}
        {'tokens_per_sample': 200.0, 'seconds_per_sample': 1.5, 'samples': 3.0}
    """

    is_differentiable = False
    full_state_update = False

    tokens: Tensor
    seconds: Tensor
    samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("tokens", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("seconds", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, tokens: Tensor | Sequence[int], seconds: Tensor | Sequence[float] | float) -> None:
        """Add a batch.

        Args:
            tokens: (N,) number of generated tokens of each sample, with latents but without padding.
            seconds: wall-clock seconds of the whole batch, or (N,) of each sample.

        Raises:
            BatchError: a wrong shape, or a value that is negative or not finite; then nothing is counted.
        """
        counts = tokens if isinstance(tokens, Tensor) else torch.tensor(list(tokens))
        spent = (
            seconds if isinstance(seconds, Tensor | float | int) else torch.tensor(list(seconds), dtype=torch.float64)
        )
        sums = _throughput_update(counts, spent)
        self.tokens = self.tokens + sums[0].to(self.device)
        self.seconds = self.seconds + sums[1].to(self.device)
        self.samples = self.samples + sums[2].to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Means per sample, see the class.

        Raises:
            BatchError: there are no samples.
        """
        return _throughput_compute(self.tokens, self.seconds, self.samples)
