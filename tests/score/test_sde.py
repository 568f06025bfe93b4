"""The VE SDE against its definition."""

import math

import torch

from qcsbm.score.sde import VE


def test_noise_scale_is_geometric_in_time():
    sde = VE(0.01, 50.0)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.01, math.sqrt(0.01 * 50), 50.0], dtype=torch.float64)
    torch.testing.assert_close(sde.sigma(t), expected)


def test_diffusion_squared_is_the_growth_of_the_variance():
    sde = VE(0.01, 50.0)
    t = torch.linspace(0, 1, 11, dtype=torch.float64).requires_grad_()
    (growth,) = torch.autograd.grad(sde.sigma(t).square().sum(), t)
    torch.testing.assert_close(sde.diffusion(t).square(), growth)


def test_discrete_sigmas_run_from_smallest_to_largest():
    sigmas = VE(0.01, 50.0).discrete_sigmas(10)
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([0.01, 50.0], dtype=torch.float64))
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(9))


def test_prior_log_prob_is_that_of_a_normal():
    sde = VE(0.01, 5.0)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 5.0).log_prob(x).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x), expected)


def test_defaults_are_the_published_ones():
    # Song et al. (2021), Appendix C: σ from 0.01 to 50, times from 1e-5.
    assert VE() == VE(sigma_min=0.01, sigma_max=50.0, epsilon=1e-5)
