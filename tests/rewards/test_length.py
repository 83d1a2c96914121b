"""Penalties of length."""

import pytest
import torch

from futurel1.errors import ConfigError
from futurel1.rewards import LengthPenalty, OverlongPenalty
from rollouts import RIGHT, make_inputs


def test_length_penalties() -> None:
    lengths = torch.tensor([10, 50, 90, 100, 130])
    inputs = make_inputs([RIGHT] * 5, response_lengths=lengths, reference_lengths=torch.tensor([40, 40, 0, -1, 129]))
    assert LengthPenalty()(inputs).tolist() == [0, 10, 0, 0, 1]
    assert LengthPenalty()(make_inputs([RIGHT])).tolist() == [0]
    torch.testing.assert_close(OverlongPenalty(100, 80)(inputs), torch.tensor([0, 0.375, 0.875, 1, 1]))
    for buffer in (0, 101):
        with pytest.raises(ConfigError, match=rf"buffer must be from 1 to max_length \(100\), got {buffer}"):
            OverlongPenalty(100, buffer)
