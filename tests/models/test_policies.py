"""Latent policies: exact samplers, densities with the right gradients, rows that keep to themselves."""

import math

import pytest
import torch
from torch.nn import functional as F

from futurel1.errors import ConfigError
from futurel1.models.noise import RowNoise, row_keys
from futurel1.models.policies import (
    DeterministicLatents,
    GaussianLatents,
    ReleasedLatents,
    VonMisesFisherLatents,
    vmf_concentration,
    vmf_mean_cosine,
)
from rounding import assert_same_but_rounding

POLICIES = [DeterministicLatents(), VonMisesFisherLatents(0.8), GaussianLatents(0.3), ReleasedLatents(0.7)]
SAMPLED = POLICIES[1:3]


def name(policy):
    return type(policy).__name__


def rows(count, seed=0):
    return RowNoise(row_keys(seed, ["row"] * count, 1), 0)


def locations(count, width, seed=0, scale=3.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * scale


# ---------------------------------------------------------------------- von Mises-Fisher


@pytest.mark.parametrize("cosine", [0.3, 0.95])
@pytest.mark.parametrize(("width", "count"), [(8, 20_000), (64, 4000), (4096, 150)])
def test_vmf_has_the_mean_cosine_that_was_asked_for_and_keeps_the_norm(width, count, cosine):
    mu = locations(count, width)
    z = VonMisesFisherLatents(cosine).sample(mu, rows(count))
    cosines = F.cosine_similarity(z.double(), mu.double(), dim=-1)
    kappa = vmf_concentration(cosine, width)
    # Var[cos] = A'(kappa) = 1 - A^2 - (p - 1) A / kappa
    variance = 1 - cosine**2 - (width - 1) * cosine / kappa
    assert float(cosines.mean()) == pytest.approx(cosine, abs=4.5 * (variance / count) ** 0.5)
    assert float(cosines.var()) == pytest.approx(variance, rel=6 * (2 / count) ** 0.5)
    assert_same_but_rounding(z.norm(dim=-1), mu.norm(dim=-1))
    assert not z.requires_grad


@pytest.mark.parametrize("cosine", [0.2, 0.9])
def test_vmf_cosines_have_the_exact_distribution_in_three_dimensions(cosine):
    count = 20_000
    mu = locations(count, 3)
    z = VonMisesFisherLatents(cosine).sample(mu, rows(count))
    drawn = F.cosine_similarity(z.double(), mu.double(), dim=-1).sort().values
    kappa = vmf_concentration(cosine, 3)
    exact = torch.expm1(kappa * (drawn + 1)) / math.expm1(2 * kappa)
    ranks = torch.arange(count + 1, dtype=torch.float64) / count
    distance = max(float((exact - ranks[:-1]).abs().max()), float((exact - ranks[1:]).abs().max()))
    assert distance < 1.95 / count**0.5  # Kolmogorov-Smirnov at 0.1%


def test_vmf_tangents_are_uniform():
    count = 20_000
    mu = torch.tensor([0.0, 0.0, 2.0]).expand(count, 3)
    z = VonMisesFisherLatents(0.7).sample(mu, rows(count)).double()
    angles = torch.atan2(z[:, 0], z[:, 1])
    for harmonic in (1, 2, 3):
        assert abs(float((harmonic * angles).cos().mean())) < 4.5 * (0.5 / count) ** 0.5
        assert abs(float((harmonic * angles).sin().mean())) < 4.5 * (0.5 / count) ** 0.5


@pytest.mark.parametrize("width", [2, 3, 8, 64, 4096])
@pytest.mark.parametrize("kappa", [1e-3, 0.5, 5.0, 300.0, 5e4, 1e7])
def test_mean_cosine_is_the_ratio_of_bessel_functions(width, kappa):
    if width == 3:
        reference = 1 / math.tanh(kappa) - 1 / kappa
        assert vmf_mean_cosine(kappa, width) == pytest.approx(reference, rel=1e-9 if kappa > 0.1 else 1e-6)
    special = pytest.importorskip("scipy.special")
    below = special.ive(width / 2 - 1, kappa)
    if below > 1e-250:
        assert vmf_mean_cosine(kappa, width) == pytest.approx(special.ive(width / 2, kappa) / below, rel=1e-9)


@pytest.mark.parametrize("cosine", [0.01, 0.5, 0.95, 0.99999])
@pytest.mark.parametrize("width", [2, 8, 4096])
def test_concentration_inverts_the_mean_cosine(cosine, width):
    assert vmf_mean_cosine(VonMisesFisherLatents(cosine).concentration(width), width) == pytest.approx(cosine, rel=1e-9)


def test_vmf_density_is_kappa_times_the_cosine_up_to_a_constant():
    policy = VonMisesFisherLatents(0.9)
    mu, z = locations(5, 8), locations(5, 8, seed=1)
    density = policy.log_prob(z, mu)
    expected = policy.concentration(8) * F.cosine_similarity(z.double(), mu.double(), dim=-1)
    torch.testing.assert_close(density - density[0], expected - expected[0])


def test_vmf_scored_at_its_own_mode_has_no_gradient():
    mu = locations(4, 8).double().requires_grad_()
    VonMisesFisherLatents(0.95).log_prob(1.7 * mu.detach(), mu).sum().backward()
    assert float(mu.grad.abs().max()) < 1e-12
    mu.grad = None
    VonMisesFisherLatents(0.95).log_prob(locations(4, 8, seed=2), mu).sum().backward()
    assert float(mu.grad.abs().max()) > 0.1


# ---------------------------------------------------------------------- the others


def test_deterministic_is_the_prediction_and_has_no_density():
    mu = locations(3, 8).requires_grad_()
    policy = DeterministicLatents()
    z = policy.sample(mu)
    assert torch.equal(z, mu)
    assert not z.requires_grad
    density = policy.log_prob(z, mu)
    assert torch.equal(density, torch.zeros(3, dtype=density.dtype))
    assert not density.requires_grad


def test_gaussian_std_is_relative_to_the_rms_and_its_density_that_of_a_normal():
    count, width = 4000, 32
    mu = locations(1, width).expand(count, width) * torch.logspace(-2, 2, count)[:, None]
    policy = GaussianLatents(0.3)
    z = policy.sample(mu, rows(count))
    rms = mu.double().square().mean(dim=-1, keepdim=True).sqrt()
    ratio = (z.double() - mu.double()) / rms
    assert float(ratio.std()) == pytest.approx(0.3, rel=4.5 / (2 * count * width) ** 0.5)
    assert abs(float(ratio.mean())) < 4.5 * 0.3 / (count * width) ** 0.5
    exact = torch.distributions.Normal(mu.double(), 0.3 * rms).log_prob(z.double()).sum(dim=-1)
    torch.testing.assert_close(policy.log_prob(z, mu).double() - 0.5 * width * math.log(2 * math.pi), exact)


def test_expected_score_of_a_sampled_gaussian_is_zero():
    count, width = 20_000, 8
    mu = locations(1, width).double().expand(count, width).contiguous().requires_grad_()
    policy = GaussianLatents(0.3)
    policy.log_prob(policy.sample(mu, rows(count)), mu).sum().backward()
    score = mu.grad
    assert ((score.mean(dim=0) / (score.std(dim=0) / count**0.5)).abs() < 4.5).all()


def test_released_is_the_inner_product():
    mu, z = locations(3, 8), locations(3, 8, seed=1)
    policy = ReleasedLatents(0.01)
    assert torch.equal(policy.sample(mu), mu)
    expected = 0.01 * (mu.double() * z.double()).sum(dim=-1)
    torch.testing.assert_close(policy.log_prob(z, mu).double(), expected)


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("policy", POLICIES[1:], ids=name)
def test_gradients_agree_with_finite_differences(policy):
    mu, z = locations(3, 5, scale=1.0).double().requires_grad_(), locations(3, 5, seed=1).double()
    assert torch.autograd.gradcheck(lambda location: policy.log_prob(z, location), (mu,))


@pytest.mark.parametrize("policy", POLICIES, ids=name)
def test_draws_keep_dtype_and_carry_no_gradient(policy):
    mu = locations(4, 8).bfloat16().requires_grad_()
    z = policy.sample(mu)
    assert z.dtype == torch.bfloat16
    assert z.shape == mu.shape
    assert not z.requires_grad
    assert policy.log_prob(z[:, None], mu[:, None]).shape == (4, 1)
    assert torch.equal(z, mu) != policy.samples


@pytest.mark.parametrize("policy", SAMPLED, ids=name)
@pytest.mark.parametrize("width", [2, 8])
def test_a_row_draws_the_same_whoever_is_beside_it(policy, width):
    # 300 rows need several rounds of rejection, a single one mostly needs one
    keys, mu = row_keys(0, ["row"] * 300, 1), locations(300, width)
    together = policy.sample(mu, RowNoise(keys, 4))
    for row in range(40):
        assert torch.equal(policy.sample(mu[row : row + 1], RowNoise(keys[row : row + 1], 4))[0], together[row])
    back = torch.arange(299, -1, -1)
    assert torch.equal(policy.sample(mu[back], RowNoise(keys[back], 4)), together[back])
    assert not torch.equal(policy.sample(mu, RowNoise(keys, 5)), together)


@pytest.mark.parametrize("policy", SAMPLED, ids=name)
def test_without_noise_the_global_generator_decides(policy):
    mu = locations(4, 8)
    torch.manual_seed(1)
    one = policy.sample(mu)
    torch.manual_seed(1)
    assert torch.equal(one, policy.sample(mu))
    assert not torch.equal(one, policy.sample(mu))


@pytest.mark.parametrize("policy", POLICIES, ids=name)
def test_a_prediction_of_zero_is_finite(policy):
    zero = torch.zeros(2, 8)
    z = policy.sample(zero)
    assert z.isfinite().all()
    assert policy.log_prob(z, zero).isfinite().all()


@pytest.mark.parametrize("cosine", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_cosine_outside_its_range_is_an_error(cosine):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        VonMisesFisherLatents(cosine)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_std_that_is_not_positive_is_an_error(std):
    with pytest.raises(ConfigError, match="above 0"):
        GaussianLatents(std)


def test_a_direction_needs_two_dimensions():
    with pytest.raises(ConfigError, match="2 dimensions"):
        VonMisesFisherLatents().sample(torch.ones(1, 1))
