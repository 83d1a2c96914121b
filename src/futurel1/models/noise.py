"""Counter-based random numbers that depend on a row's key, not on its place in the batch or on the device."""

from typing import Protocol

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number: the golden-ratio increment of SplitMix64
_MULTIPLY_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLY_2 = -7723592293110705685  # 0x94D049BB133111EB


def mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014): int64 to well-mixed int64, elementwise."""
    # Arithmetic shifts of int64 copy the sign; the masks make them logical.
    values = (values ^ ((values >> 30) & (2**34 - 1))) * _MULTIPLY_1
    values = (values ^ ((values >> 27) & (2**37 - 1))) * _MULTIPLY_2
    return values ^ ((values >> 31) & (2**33 - 1))


class Noise(Protocol):
    """Source of a latent policy's random numbers."""

    def uniform(self, size: int) -> Tensor:
        """(rows, size) float64 in the open interval from 0 to 1."""
        ...


class TorchNoise:
    """Random numbers of PyTorch's global generator.

    Args:
        rows: number of rows.
        device: where the numbers are made.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        self.rows = rows
        self.device = device

    def uniform(self, size: int) -> Tensor:
        """(rows, size) float64 in the open interval from 0 to 1."""
        draws = torch.rand(self.rows, size, dtype=torch.float64, device=self.device)
        return draws.clamp_(min=2.0**-54, max=1 - 2.0**-53)


class RowNoise:
    """Random numbers by row key and step: a row gets the same numbers whatever else is in the batch.

    Args:
        keys: (rows,) int64 keys.
        step: number of the decoding step, or (rows,) int64 one per row; each step has its own stream.
    """

    def __init__(self, keys: Tensor, step: int | Tensor) -> None:
        self._stream = mix(keys + torch.full_like(keys, _GAMMA) * (step + 1))
        self._drawn = 0

    def uniform(self, size: int) -> Tensor:
        """(rows, size) float64 in the open interval from 0 to 1."""
        lanes = torch.arange(self._drawn, self._drawn + size, device=self._stream.device)
        self._drawn += size
        bits = mix(self._stream[:, None] + torch.full_like(lanes, _GAMMA) * (lanes + 1))
        # 52 bits plus half a unit: with 53 bits the largest number would round to 1.
        return ((bits >> 12) & (2**52 - 1)).double() * 2.0**-52 + 2.0**-53


def normal(noise: Noise, size: int) -> Tensor:
    """(rows, size) standard normal numbers in float64, by the Box-Muller transform."""
    draws = noise.uniform(2 * size)
    radius = (-2 * draws[:, :size].log()).sqrt()
    return radius * (2 * torch.pi * draws[:, size:]).cos()


def row_keys(seed: int | Tensor, contents: list[str], branches: int) -> Tensor:
    """Keys of all rows of a batch of prompts with branches.

    A row's key depends on the seed, the prompt and the branch number. Equal prompts with the same seed continue the
    branch numbers, so G copies of a prompt get the same keys as G branches of it.

    Args:
        seed: one seed for all prompts, or (B,) int64 one per prompt.
        contents: B strings that name the prompts; equal strings are equal prompts.
        branches: G, rows per prompt.

    Returns:
        (B * G,) int64 keys; branches of a prompt are adjacent.
    """
    import hashlib

    seen: dict[tuple[int, str], int] = {}
    keys = []
    seeds = [seed] * len(contents) if isinstance(seed, int) else [int(value) for value in seed]
    for content, row_seed in zip(contents, seeds, strict=True):
        first = seen.get((row_seed, content), 0)
        seen[row_seed, content] = first + branches
        for branch in range(first, first + branches):
            digest = hashlib.sha256(f"{row_seed}:{content}:{branch}".encode()).digest()
            keys.append(int.from_bytes(digest[:8], "little", signed=True))
    return torch.tensor(keys, dtype=torch.int64)
