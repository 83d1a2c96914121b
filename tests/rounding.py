"""Comparisons of what a model computes that hold on any machine.

PyTorch chooses its kernels by the CPU (`ATEN_CPU_CAPABILITY` sets which: default, avx2, avx512), by the linear-algebra
library and by the number of threads, and each adds the terms of a sum in another order. The difference grows with the
size of the terms, whatever the size of their sum, and layers magnify it. So an absolute bound that one machine keeps by
half, the next one breaks: the bounds here are relative to the size of what is compared.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

ROUNDINGS = 1000
"""Machine epsilons of the largest value that results may differ by: 1.2e-4 of it in float32.

The kernels of one machine differ by up to 100. A mistake in a mask, a position or a weight changes values by a
hundredth of their size or more, which is 80 times what is allowed.
"""

RECURRENT_ROUNDINGS = 20_000
"""The same for long runs of Qwen3.5, computed once in chunks and once step by step: 2.4e-3 in float32.

Its gated delta rule normalises what each head reads from the state. In one step out of hundreds the terms of a head's
values nearly cancel, and the norm magnifies their rounding by the ratio of the two: 5000 epsilons were seen.
"""


def assert_same_but_rounding(
    found: Tensor,
    expected: Tensor,
    size: float | None = None,
    roundings: int = ROUNDINGS,
    computed_in: torch.dtype = torch.float32,
    name: str = "values",
) -> None:
    """Fail where two results differ by more than `roundings` epsilons of the largest value.

    Args:
        found: floating point, any shape.
        expected: the same shape; its dtype may be another, as by-hand values in float64.
        size: the largest value on the way to the result, for results that are small differences of large values or
            parts of a larger whole; by default the largest of `expected`.
        roundings: how many epsilons.
        computed_in: dtype of the computation; the result's own says nothing about how many of its digits are good.
        name: what is compared, for the message.
    """
    epsilon = torch.finfo(computed_in).eps
    if size is None:
        size = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        found, expected, rtol=0, atol=roundings * epsilon * size, check_dtype=False,
        msg=lambda text: f"{name} of size {size:.3g}: {text}",
    )  # fmt: skip


def assert_same_gradients(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], roundings: int = ROUNDINGS
) -> None:
    """Compare gradients by parameter name, relative to the largest of all; no gradient counts as zero.

    Some gradients are zero but for rounding, so each tensor's own size would be no measure.
    """
    assert found.keys() == expected.keys()
    size = max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    assert size > 0
    for name, wanted in expected.items():
        gradient = found[name]
        if gradient is None and wanted is None:
            continue
        reference = gradient if wanted is None else wanted
        assert reference is not None
        one, other = (torch.zeros_like(reference) if value is None else value for value in (gradient, wanted))
        assert_same_but_rounding(one, other, size, roundings, name=name)


def assert_same_after_training(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], learning_rate: float
) -> None:
    """Compare weights after a few steps of AdamW: they differ by a tenth of a step at most.

    AdamW moves every weight by about the learning rate, whatever the size of its gradient. Where a gradient is nothing
    but rounding, so is the direction, and no bound relative to the weight holds. Another gradient moves weights apart
    by whole steps.
    """
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(
            found[name], wanted, rtol=0, atol=0.1 * learning_rate, msg=lambda text, name=name: f"{name}: {text}"
        )
