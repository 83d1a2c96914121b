"""Latent policies: how a latent is sampled around the vector that the model predicts, and how likely it is.

A policy maps a location `mu = head(h)` to a latent `z`. Only differences of log-densities enter a policy gradient, so
`log_prob` may leave out constants that do not depend on `mu`; its docstring says so.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.errors import ConfigError
from futurel1.models.noise import Noise, TorchNoise, normal


class LatentPolicy(ABC):
    """Distribution of a latent given the model's prediction."""

    samples: ClassVar[bool]
    """Whether `sample` is random.

    Latents that are not sampled give no learning signal: at its mode a log-density has no gradient.
    """

    @abstractmethod
    def draw(self, noise: Noise, width: int) -> Tensor:
        """Random numbers of one latent per row, which do not depend on the prediction.

        Decoding computes them ahead of time, outside of its compiled step. Rejection loops belong here, and a row's
        numbers must not depend on the other rows.

        Args:
            noise: source of random numbers with one row per latent.
            width: H.

        Returns:
            (N, D) float64, where D is up to the policy.
        """

    @abstractmethod
    def place(self, mu: Tensor, numbers: Tensor) -> Tensor:
        """The latents that a prediction and random numbers give.

        Args:
            mu: (N, H) predicted latents.
            numbers: (N, D) from :meth:`draw`; zeros for latents that nobody will use.

        Returns:
            (N, H) in the dtype of `mu`, without gradient.
        """

    def sample(self, mu: Tensor, noise: Noise | None = None) -> Tensor:
        """Sample latents.

        Args:
            mu: (N, H) predicted latents.
            noise: random numbers, one row per latent; None: PyTorch's global generator.

        Returns:
            (N, H), without gradient.
        """
        return self.place(mu, self.draw(noise or TorchNoise(len(mu), mu.device), mu.shape[-1]))

    @abstractmethod
    def log_prob(self, z: Tensor, mu: Tensor) -> Tensor:
        """Log-density of latents, with gradient to `mu`.

        Args:
            z: (..., H) latents.
            mu: (..., H) predicted latents.

        Returns:
            (...) float64, in nats, up to a constant where the policy says so.
        """


class _Predicted(LatentPolicy):
    """The prediction itself."""

    samples: ClassVar[bool] = False

    def draw(self, noise: Noise, width: int) -> Tensor:
        """Nothing: (N, 0)."""
        return noise.uniform(0)

    def place(self, mu: Tensor, numbers: Tensor) -> Tensor:
        """`mu`."""
        return mu.detach()


class DeterministicLatents(_Predicted):
    """The prediction itself; the policy gradient has no latent term."""

    def log_prob(self, z: Tensor, mu: Tensor) -> Tensor:
        """Zero, because nothing was sampled."""
        return torch.zeros(z.shape[:-1], dtype=torch.float64, device=z.device)


class VonMisesFisherLatents(LatentPolicy):
    """A random direction around that of `mu`, with the norm of `mu`.

    Args:
        cosine: expected cosine between latent and prediction, between 0 and 1. It determines the concentration and,
            unlike that, means the same at every width.

    Raises:
        ConfigError: a cosine outside 0 to 1.
    """

    samples: ClassVar[bool] = True

    def __init__(self, cosine: float = 0.95) -> None:
        if not 0 < cosine < 1:
            raise ConfigError(f"vmf needs an expected cosine between 0 and 1, got {cosine}")
        self.cosine = cosine
        self._concentrations: dict[int, float] = {}

    def concentration(self, width: int) -> float:
        """Kappa at which the mean cosine on the sphere in `width` dimensions is `cosine`."""
        if width not in self._concentrations:
            self._concentrations[width] = vmf_concentration(self.cosine, width)
        return self._concentrations[width]

    def draw(self, noise: Noise, width: int) -> Tensor:
        """A tangent and a cosine, exact by rejection (Wood 1994, Ulrich 1984): (N, H + 1)."""
        # The tangent first: the number of rejection rounds depends on all rows, and a row's sample must not.
        tangent = normal(noise, width)
        return torch.cat([tangent, _vmf_cosine(self.concentration(width), width, noise)[:, None]], dim=1)

    def place(self, mu: Tensor, numbers: Tensor) -> Tensor:
        """Turn from `mu` by the angle, in the direction of the tangent."""
        location = mu.detach().double()
        direction = F.normalize(location, dim=-1)
        tangent, cosine = numbers[:, :-1], numbers[:, -1:]
        tangent = F.normalize(tangent - (tangent * direction).sum(-1, keepdim=True) * direction, dim=-1)
        unit = cosine * direction + (1 - cosine.square()).sqrt() * tangent
        z: Tensor = unit * location.norm(dim=-1, keepdim=True)
        return z.to(mu.dtype)

    def log_prob(self, z: Tensor, mu: Tensor) -> Tensor:
        """`kappa * cos(z, mu)`; the normaliser depends on kappa only and is left out."""
        return self.concentration(mu.shape[-1]) * F.cosine_similarity(z.double(), mu.double(), dim=-1)


class GaussianLatents(LatentPolicy):
    """Isotropic noise around `mu`.

    Args:
        std: standard deviation relative to the root mean square of `mu`.

    Raises:
        ConfigError: a standard deviation that is not positive.
    """

    samples: ClassVar[bool] = True

    def __init__(self, std: float = 0.1) -> None:
        if not std > 0:
            raise ConfigError(f"gaussian latents need a standard deviation above 0, got {std}")
        self.std = std

    def _scale(self, mu: Tensor) -> Tensor:
        return self.std * mu.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)

    def draw(self, noise: Noise, width: int) -> Tensor:
        """Standard normal numbers: (N, H)."""
        return normal(noise, width)

    def place(self, mu: Tensor, numbers: Tensor) -> Tensor:
        """`mu` plus scaled noise."""
        location = mu.detach()
        return location + (self._scale(location.double()) * numbers).to(mu.dtype)

    def log_prob(self, z: Tensor, mu: Tensor) -> Tensor:
        """Log-density of a normal distribution, up to `-(H/2) log(2 pi)`; the scale depends on `mu` too."""
        scale = self._scale(mu.double())
        standardised = (z.double() - mu.double()) / scale
        return -0.5 * standardised.square().sum(dim=-1) - mu.shape[-1] * scale.squeeze(-1).log()


class ReleasedLatents(_Predicted):
    """The form of the released code's "von Mises-Fisher" policy: `kappa <mu, z>`, never sampled. For comparison only.

    It scores the rows and positions that the other policies score here; the released code scores others. An inner
    product also rewards longer vectors, so its gradient moves norms.

    Args:
        kappa: factor of the inner product.
    """

    def __init__(self, kappa: float = 0.01) -> None:
        self.kappa = kappa

    def log_prob(self, z: Tensor, mu: Tensor) -> Tensor:
        """`kappa <mu, z>`; not a log-density."""
        return self.kappa * (z.double() * mu.double()).sum(dim=-1)


def vmf_mean_cosine(kappa: float, width: int) -> float:
    """Mean cosine `I_{p/2}(kappa) / I_{p/2-1}(kappa)` of a von Mises-Fisher distribution in `p = width` dimensions.

    Evaluates Gauss's continued fraction from its tail, starting at the bound of Amos (1974); exact to double precision.
    """
    order = width / 2
    # Each term shrinks the error of the starting value, by exp(-terms^2 / kappa) in all for large kappa.
    terms = int(8 * math.sqrt(kappa)) + 100
    last = order + terms
    ratio = kappa / (last - 0.5 + math.hypot(last + 0.5, kappa))
    # The recurrence runs from the tail inwards; each term needs the one before.
    for k in range(terms, 0, -1):
        ratio = kappa / (2 * (order + k - 1) + kappa * ratio)
    return ratio


def vmf_concentration(cosine: float, width: int) -> float:
    """Concentration at which the mean cosine is `cosine` in `width` dimensions.

    Newton's method, starting at the estimate of Banerjee et al. (2005).

    Raises:
        ConfigError: fewer than 2 dimensions.
    """
    if width < 2:
        raise ConfigError(f"a direction needs at least 2 dimensions, got {width}")
    kappa = cosine * (width - cosine**2) / (1 - cosine**2)
    for _ in range(50):
        mean = vmf_mean_cosine(kappa, width)
        slope = 1 - mean**2 - (width - 1) / kappa * mean
        step = (mean - cosine) / slope
        kappa = max(kappa - step, kappa / 2)
        if abs(step) < 1e-10 * kappa:
            break
    return kappa


def _vmf_cosine(kappa: float, width: int, noise: Noise) -> Tensor:
    """(rows,) float64 exact samples of the cosine to the mean direction."""
    degrees = width - 1
    b = degrees / (2 * kappa + (4 * kappa**2 + degrees**2) ** 0.5)
    x = (1 - b) / (1 + b)
    # log(1 - x^2) without cancellation for x near 1
    limit = kappa * x + degrees * torch.tensor(4 * b / (1 + b) ** 2, dtype=torch.float64).log()
    cosine: Tensor | None = None
    accepted: Tensor | None = None
    # Every rejection round proposes for all rows, so a row's samples do not depend on how many rounds others need.
    while accepted is None or cosine is None or not bool(accepted.all()):
        # Beta((p-1)/2, (p-1)/2) as a ratio of two sums of p-1 squared normals
        first = normal(noise, degrees).square().sum(dim=-1)
        second = normal(noise, degrees).square().sum(dim=-1)
        beta = first / (first + second)
        proposal = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        score = kappa * proposal + degrees * (1 - x * proposal).log() - limit.to(proposal.device)
        fits = score >= noise.uniform(1)[:, 0].log()
        if cosine is None or accepted is None:
            cosine, accepted = proposal, fits
        else:
            cosine = torch.where(accepted, cosine, proposal)
            accepted = accepted | fits
    return cosine.clamp(-1.0, 1.0)
