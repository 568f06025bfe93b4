"""SDEs against their definitions, and the VP SDE's coefficients against its simulation."""

import dataclasses
import math
from typing import get_args

import pytest
import torch

from qcsbm.runtime.seeding import generator
from qcsbm.schema import sde as schema
from qcsbm.score.sde import MEMBERS, VE, VP

SDES = [VE(0.01, 50.0), VE(0.3, 2.0), VP(0.1, 20.0), VP(0.5, 3.0)]
every = pytest.mark.parametrize("sde", SDES, ids=str)


def times(sde, n=11):
    return torch.linspace(sde.epsilon, 1, n, dtype=torch.float64)


# Kernel and coefficients.


@every
def test_moments_solve_the_equations_of_the_sde(sde):
    # m' = c m and (std²)' = 2 c std² + g², from a data point at t = 0.
    t = times(sde).requires_grad_()
    mean, variance, c = sde.mean(t), sde.std(t).square(), sde.drift_coefficient(t)
    expected = {variance: 2 * c * variance + sde.diffusion(t).square(), mean: c * mean}
    for moment, rate in expected.items():
        if moment.requires_grad:
            (slope,) = torch.autograd.grad(moment.sum(), t, retain_graph=True)
            torch.testing.assert_close(slope, rate)
        else:  # the mean of VE
            assert not rate.any()
    start = torch.zeros(1, dtype=torch.float64)
    assert sde.mean(start) == 1
    assert sde.std(start) == (sde.sigma_min if isinstance(sde, VE) else 0)


@pytest.mark.parametrize("sde", [VE(0.2, 2.0), VP(0.1, 20.0)], ids=str)
def test_marginals_are_those_of_the_simulated_sde(sde):
    paths, steps = 20_000, 2000
    draws = generator(0, "sde")
    x_0 = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    start = torch.zeros(1, dtype=torch.float64)
    z = torch.randn(paths, 2, generator=draws, dtype=torch.float64)
    x = sde.mean(start) * x_0 + sde.std(start) * z
    for i in range(steps):
        t = torch.full((paths,), i / steps, dtype=torch.float64)
        z = torch.randn(paths, 2, generator=draws, dtype=torch.float64)
        noise = sde.diffusion(t)[:, None] * z / math.sqrt(steps)
        x = x + sde.drift(x, t) / steps + noise
        if i + 1 in (steps // 4, steps):
            at = torch.tensor([(i + 1) / steps], dtype=torch.float64)
            mean, std = sde.marginal_prob(x_0, at)
            # Euler's relative error is half of the change of a rate in a step, (log 100) / 2 steps
            # for VE and β / 2 steps for VP: below 1 % of the variance.
            bias = 0.01
            assert ((x.mean(0) - mean[0]).abs() < 4 * std / math.sqrt(paths) + bias * std).all()
            assert ((x.var(0) / std**2 - 1).abs() < 4 * math.sqrt(2 / paths) + bias).all()


def test_noise_scale_of_ve_is_geometric_in_time():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.01, math.sqrt(0.01 * 50), 50.0], dtype=torch.float64)
    for of_time in (VE(0.01, 50.0).std, VE(0.01, 50.0).sigma):
        torch.testing.assert_close(of_time(t), expected)


def test_kernel_of_vp_by_hand():
    # Eq. 33: the mean is exp(-t² (β_max - β_min) / 4 - t β_min / 2).
    t, half = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), -0.25 * 19.9 / 4 - 0.5 * 0.1 / 2
    expected = torch.tensor([1, math.exp(half), math.exp(-19.9 / 4 - 0.1 / 2)]).double()
    torch.testing.assert_close(VP(0.1, 20.0).mean(t), expected)
    torch.testing.assert_close(VP(0.1, 20.0).std(t), (1 - expected**2).sqrt())


@every
def test_sigma_is_the_noise_relative_to_the_data_and_time_its_inverse(sde):
    t = torch.cat([times(sde), torch.tensor([1e-4, 1e-3], dtype=torch.float64)])
    torch.testing.assert_close(sde.sigma(t), sde.std(t) / sde.mean(t))
    torch.testing.assert_close(sde.time(sde.sigma(t)), t, rtol=1e-9, atol=1e-12)


@every
def test_small_times_lose_no_digits_in_float32(sde):
    t = torch.tensor([sde.epsilon, 3e-5, 1e-3, 0.1, 1.0])
    for name in ("mean", "std", "sigma", "diffusion"):
        found = getattr(sde, name)(t)
        assert found.dtype == torch.float32 and found.shape == t.shape
        # Rounding of t is multiplied by log(σ_max / σ_min) < 9, or by B < 11.
        torch.testing.assert_close(
            found.double(), getattr(sde, name)(t.double()), rtol=3e-6, atol=0
        )
    torch.testing.assert_close(sde.time(sde.sigma(t)), t, rtol=1e-5, atol=1e-6)


# What is made of them.


@every
def test_flow_carries_a_gaussian_along(sde):
    # Of data N(μ, v) a point stays as many standard deviations from the mean as it was.
    t = times(sde).requires_grad_()
    mu, v, z = 0.4, 0.3, 1.7
    mean, std = sde.mean(t), sde.std(t)
    variance = mean**2 * v + std**2
    x = mean * mu + variance.sqrt() * z
    (velocity,) = torch.autograd.grad(x.sum(), t)
    score = -(x - mean * mu) / variance
    flow = sde.probability_flow(score[:, None], x[:, None], t)[:, 0]
    torch.testing.assert_close(flow, velocity)


@every
def test_flow_and_drift_of_images_by_hand(sde):
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x, s = (torch.randn(2, 1, 2, 3, generator=generator(0, i)).double() for i in range(2))
    for i in range(2):
        c, g = sde.drift_coefficient(t)[i], sde.diffusion(t)[i]
        torch.testing.assert_close(sde.drift(x, t)[i], c * x[i])
        torch.testing.assert_close(
            sde.probability_flow(s, x, t)[i], c * x[i] - g**2 * s[i] / 2, rtol=1e-12, atol=0
        )


@every
def test_denoising_gives_the_posterior_mean_of_a_gaussian(sde):
    mu, v = 0.4, 0.3
    start = torch.tensor(sde.t_min, dtype=torch.float64)
    mean, std = sde.mean(start), sde.std(start)
    assert std > 0
    x = torch.tensor([[0.1, -2.0], [0.5, 3.0]], dtype=torch.float64)
    variance = mean**2 * v + std**2
    posterior = mu + v * mean / variance * (x - mean * mu)
    torch.testing.assert_close(sde.denoise(-(x - mean * mu) / variance, x), posterior)


def test_denoising_begins_where_there_is_noise():
    x, s = (torch.randn(2, 3, generator=generator(0, i)).double() for i in range(2))
    # As in the published protocol of VE, to the last digit.
    assert torch.equal(VE(0.01, 50.0).denoise(s, x), x + 0.01**2 * s)
    variance = -math.expm1(-0.1 * 1e-5 - 19.9 * 1e-5**2 / 2)
    expected = (x + variance * s) / math.sqrt(1 - variance)
    torch.testing.assert_close(VP(0.1, 20.0).denoise(s, x), expected, rtol=1e-12, atol=0)


@every
def test_prior_log_prob_is_that_of_a_normal_close_to_the_end(sde):
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, sde.prior_std).log_prob(x).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x), expected)
    torch.testing.assert_close(sde.prior_log_prob(x[:1]), expected[:1])
    end = torch.ones(1, dtype=torch.float64)
    # What is left of data of order 1 in VP(0.5, 3): exp(-1.75 / 2).
    assert abs(float(sde.std(end)) / sde.prior_std - 1) < math.exp(-1.75) / 2 + 0.02
    if sde == VP():
        assert abs(float(sde.std(end)) - 1) < 3e-5 and float(sde.mean(end)) < 0.01


# The chain.


@pytest.mark.parametrize("n", [2, 5, 1000])
@every
def test_steps_of_the_chain_compose_to_the_kernel(sde, n):
    mean, variance = 1.0, 0.0
    grid = torch.linspace(0 if isinstance(sde, VE) else sde.epsilon, 1, n, dtype=torch.float64)
    for k, t in enumerate(grid):
        a, v = sde.discretise(k, n)
        mean, variance = a * mean, a**2 * variance + v
        assert mean == pytest.approx(float(sde.mean(t)), rel=1e-10)
        assert variance == pytest.approx(float(sde.std(t)) ** 2, rel=1e-10)


def test_steps_of_the_vp_chain_are_the_published_ones_where_these_are_small():
    n = 1000
    for k in range(n // 10, n):
        beta = (0.1 + (20 - 0.1) * k / (n - 1)) / n
        # The published step takes β at its end, and to first order: it is off by β/2 < 1 %, and
        # by half a step's growth of β, less than 1/2 % at these k.
        assert VP(0.1, 20.0).discretise(k, n)[1] == pytest.approx(beta, rel=0.015)


def test_discrete_sigmas_run_from_smallest_to_largest():
    sigmas = VE(0.01, 50.0).discrete_sigmas(10)
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([0.01, 50.0], dtype=torch.float64))
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(9))


# Members.


def test_defaults_are_the_published_ones():
    # Song et al. (2021), Appendix C: σ from 0.01 to 50, β from 0.1 to 20, times from 1e-5.
    assert VE() == VE(sigma_min=0.01, sigma_max=50.0, epsilon=1e-5)
    assert VP() == VP(beta_min=0.1, beta_max=20.0, epsilon=1e-5)


def test_members_are_those_of_the_schema_with_the_same_keys():
    settings = {
        get_args(model.model_fields["type"].annotation)[0]: model
        for model in get_args(get_args(schema.SDE)[0])
    }
    assert settings.keys() == MEMBERS.keys()
    for name, model in settings.items():
        keys = {field.name for field in dataclasses.fields(MEMBERS[name])} - {"epsilon"}
        assert keys == model.model_fields.keys() - {"type"} == set(model.ends)
