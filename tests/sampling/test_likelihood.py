import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.distributions import MultivariateNormal

from qcsbm.conservativeness.products import jacobian, rademacher
from qcsbm.data.quantisation import dequantise
from qcsbm.runtime.seeding import generator
from qcsbm.sampling.likelihood import (
    bits_per_dim,
    exact_divergence,
    hutchinson_divergence,
    log_likelihood,
    nll_bits_per_dim,
)
from qcsbm.score.models import EnergyScoreModel, ScoreModel
from qcsbm.score.sde import VE, VP, bcast

SDE = VE()
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
MU = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
FACTOR = torch.tensor([[0.2, 0.0, 0.0], [0.1, 0.15, 0.0], [-0.1, 0.05, 0.1]], dtype=torch.float64)
SIGMA = FACTOR @ FACTOR.T


def sigma(t):
    return SDE.sigma(torch.tensor(t, dtype=torch.float64))


def kernel(sde, t):
    """Mean and variance of the perturbation kernel at one time."""
    t = torch.tensor(t, dtype=torch.float64)
    return sde.mean(t), sde.std(t) ** 2


def gaussian(t, sde=SDE):
    """N(mu, Sigma) perturbed for one time."""
    mean, variance = kernel(sde, t)
    covariance = mean**2 * SIGMA + variance * torch.eye(3, dtype=torch.float64)
    return MultivariateNormal(mean * MU, covariance)


def data(n):
    """Points (n, 3) of the order of N(mu, Sigma) and its tails."""
    z = torch.randn(n, 3, generator=generator(0, "data"), dtype=torch.float64)
    return MU + 1.5 * z @ FACTOR.T


def whitened(x, t, sde=SDE, power=-0.5):
    """x - m mu by a ``power`` of the covariance m^2 Sigma + std^2 I, in the eigenbasis of Sigma."""
    mean, std = sde.mean(t)[:, None], sde.std(t)[:, None]
    variances, basis = torch.linalg.eigh(SIGMA.to(x))
    coefficients = (x - mean * MU.to(x)) @ basis * (mean**2 * variances + std**2) ** power
    return coefficients @ basis.T


def gaussian_score(x, t, sde=SDE):
    return -whitened(x, t, sde, power=-1)


def mixture_log_prob(x, t, sde=SDE):
    """Log density at x (B, 2) of two isotropic Gaussians noised to t (B,)."""
    mean, std = sde.mean(t)[:, None], sde.std(t)[:, None]
    weights = torch.tensor([0.3, 0.7], dtype=x.dtype)
    centres = mean[..., None] * torch.tensor([[0.2, 0.3], [0.8, 0.6]], dtype=x.dtype)
    variances = mean**2 * torch.tensor([0.1, 0.2], dtype=x.dtype) ** 2 + std**2
    squared_distances = (x[:, None] - centres).square().sum(2)
    log_components = -squared_distances / (2 * variances) - (2 * math.pi * variances).log()
    return (weights.log() + log_components).logsumexp(1)


def mixture_score(x, t, sde=SDE):
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(mixture_log_prob(x, t, sde).sum(), x, create_graph=True)[0]


class Exact(nn.Module):
    """The network whose model under ``sde`` has the exact score, of the noise level alone."""

    def __init__(self, sde, h):
        super().__init__()
        self.sde, self.h = sde, h

    def forward(self, x, sigma):
        t = self.sde.time(sigma)
        return self.h(x, t, self.sde.std(t)[:, None])


def exact_model(form, density, sde):
    """A model of ``form`` with the score of ``density``: U has h = std s, and C ‖h‖² = −2 std log p
    but for a constant, which is 3 where the density is too large for this to be positive."""
    gaussian_h = {
        ScoreModel: lambda x, t, std: std * gaussian_score(x, t, sde),
        EnergyScoreModel: lambda x, t, std: std.sqrt() * whitened(x, t, sde),
    }
    mixture_h = {
        ScoreModel: lambda x, t, std: std * mixture_score(x, t, sde),
        EnergyScoreModel: lambda x, t, std: (
            2 * std * (3 - mixture_log_prob(x, t, sde)[:, None])
        ).sqrt(),
    }
    return form(Exact(sde, {"gaussian": gaussian_h, "mixture": mixture_h}[density][form]), sde)


def reference_end(score, x, sde):
    """The flow's end point from x (D,) by SciPy, an independent solver."""

    def flow(t, x):
        x, t = torch.tensor(x)[None], torch.tensor([t], dtype=torch.float64)
        velocity = sde.drift_coefficient(t) * x - sde.diffusion(t) ** 2 / 2 * score(x, t, sde)
        return velocity[0].detach().numpy()

    end = solve_ivp(flow, (sde.epsilon, 1), x.numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    return torch.tensor(end.y[:, -1])


SDES = [SDE, VP()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=["ve", "vp"])
every_form = pytest.mark.parametrize("form", [ScoreModel, EnergyScoreModel], ids=["u", "c"])


@every_sde
@every_form
def test_gaussian_likelihood_matches_the_closed_form(form, sde):
    x = data(8)
    model = exact_model(form, "gaussian", sde)
    likelihood = log_likelihood(model, sde, x, generator(0), "exact", **TIGHT)
    # The flow takes the density at epsilon to that at 1, not to the prior: the model's density
    # differs from the exact one by the ratio of these two at the end point, which is a linear
    # function of x here.
    variances, basis = torch.linalg.eigh(SIGMA)
    (m_0, v_0), (m_1, v_1) = kernel(sde, sde.epsilon), kernel(sde, 1.0)
    growth = ((m_1**2 * variances + v_1) / (m_0**2 * variances + v_0)).sqrt()
    x_1 = m_1 * MU + ((x - m_0 * MU) @ basis * growth) @ basis.T
    mismatch = sde.prior_log_prob(x_1) - gaussian(1.0, sde).log_prob(x_1)
    expected = gaussian(sde.epsilon, sde).log_prob(x) + mismatch
    # The solver's error: rtol times a log density of order 10, over some hundred steps.
    assert (likelihood.log_prob - expected).abs().max() < 1e-6
    assert mismatch.abs().max() > 1e-4


@every_sde
@every_form
def test_mixture_likelihood_matches_the_closed_form(form, sde):
    x = torch.tensor([[0.1, 0.35], [0.5, 0.45], [0.9, 0.2], [1.4, -0.3]], dtype=torch.float64)
    model = exact_model(form, "mixture", sde)
    likelihood = log_likelihood(model, sde, x, generator(0), "exact", **TIGHT)
    x_1 = torch.stack([reference_end(mixture_score, x_i, sde) for x_i in x])
    at = torch.ones(4, dtype=torch.float64)
    expected = (
        mixture_log_prob(x, sde.epsilon * at, sde)
        + sde.prior_log_prob(x_1)
        - mixture_log_prob(x_1, at, sde)
    )
    assert (likelihood.log_prob - expected).abs().max() < 1e-6


def test_error_follows_the_tolerance():
    x = data(8)
    exact = log_likelihood(gaussian_score, SDE, x, generator(0), "exact", **TIGHT).log_prob
    errors = []
    for rtol in (1e-3, 1e-5, 1e-7):
        coarse = log_likelihood(
            gaussian_score, SDE, x, generator(0), "exact", rtol=rtol, atol=rtol / 100
        )
        errors.append((coarse.log_prob - exact).abs().max())
        # Local errors of rtol |log p| each, |log p| < 30 and fewer than 100 steps.
        assert errors[-1] < 30 * 100 * rtol
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def field(x, t):
    weight = torch.randn(4, 4, generator=generator(0, "field"), dtype=x.dtype)
    return torch.tanh(x @ weight.T) * (1 + x.square())


def test_hutchinson_averaged_over_all_probes_is_the_trace():
    x = torch.tensor([[0.3, -0.5, 0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    s = field(x, None)
    probes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    estimates = torch.cat([hutchinson_divergence(s, x, v[None]) for v in probes])
    j = torch.autograd.functional.jacobian(lambda x: field(x, None), x.detach())[0, :, 0]
    trace = torch.trace(j)
    # Sixteen terms of order 10 in float64.
    assert abs(estimates.mean() - trace) < 1e-13
    assert abs(exact_divergence(s, x)[0] - trace) < 1e-13
    assert estimates.std() > 0.1
    symmetric = (j + j.T) / 2
    assert torch.allclose(estimates, torch.einsum("ki,ij,kj->k", probes, symmetric, probes))


def test_hutchinson_likelihood_is_unbiased():
    n = 4000
    x = torch.tensor([[0.5, 0.3, 0.6]], dtype=torch.float64)
    tolerance = {"rtol": 1e-5, "atol": 1e-7}
    exact = log_likelihood(gaussian_score, SDE, x, generator(0), "exact", **tolerance).log_prob
    estimates = log_likelihood(
        gaussian_score, SDE, x.expand(n, 3), generator(0), **tolerance
    ).log_prob
    standard_error = estimates.std() / math.sqrt(n)
    # The solver adds at most 1e-3 (see above), far below the standard error.
    assert standard_error > 0.005
    assert abs(estimates.mean() - exact) < 4 * standard_error


def test_probe_is_fixed_along_the_trajectory():
    # For a Gaussian the estimate is linear in the matrix v v^T with a kernel known in closed form.
    x = torch.tensor([[0.5, 0.3, 0.6]], dtype=torch.float64)
    v = torch.randint(0, 2, (1, 3), generator=generator(5)).double() * 2 - 1
    estimate = log_likelihood(gaussian_score, SDE, x, generator(5), **TIGHT).log_prob
    exact = log_likelihood(gaussian_score, SDE, x, generator(5), "exact", **TIGHT).log_prob
    # -int 1/2 g^2 J dt = int 1/2 (Sigma + sigma^2)^-1 d(sigma^2), in the eigenbasis of Sigma.
    variances, basis = torch.linalg.eigh(SIGMA)
    growth = ((variances + sigma(1.0) ** 2) / (variances + sigma(SDE.epsilon) ** 2)).log() / 2
    difference = ((v @ basis).square() * growth).sum() - growth.sum()
    assert abs(estimate - exact - difference) < 1e-6
    assert abs(difference) > 0.1


class Counted(torch.autograd.Function):
    """The identity, counting forward and backward passes."""

    forwards = backwards = 0

    @staticmethod
    def forward(ctx, x):
        Counted.forwards += 1
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Counted.backwards += 1
        return gradient


@pytest.mark.parametrize(("divergence", "backwards"), [("hutchinson", 1), ("exact", 3)])
def test_evaluation_costs_one_forward_and_the_stated_backward_passes(divergence, backwards):
    Counted.forwards = Counted.backwards = 0
    x = torch.tensor([[0.5, 0.3, 0.6]], dtype=torch.float64)
    likelihood = log_likelihood(
        lambda x, t: Counted.apply(gaussian_score(x, t)),
        SDE,
        x,
        generator(0),
        divergence,
        rtol=1e-3,
        atol=1e-5,
    )
    assert likelihood.nfe.tolist() == [Counted.forwards]
    assert Counted.backwards == backwards * Counted.forwards


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        for i, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=generator(0, i))

    def forward(self, x, sigma):
        return self.layers(torch.cat([x / (1 + sigma[:, None]), sigma.log()[:, None]], 1))


@pytest.mark.parametrize("model", [ScoreModel, EnergyScoreModel])
def test_model_likelihood_matches_an_independent_solver(model):
    # A narrow range of noise keeps the flow of an untrained network tame.
    sde = VE(sigma_min=0.1, sigma_max=2.0)
    score = model(Network(), sde, residual=True)
    x = torch.tensor([[0.2, 0.8], [0.6, 0.1]], dtype=torch.float64)

    def flow(t, y):
        t = torch.tensor([t], dtype=torch.float64)
        x = torch.tensor(y[None, :2], requires_grad=True)
        s = score(x, t)
        trace = torch.trace(jacobian(s, x)[0]).item()
        half_squared_g = (sde.diffusion(t) ** 2 / 2).item()
        return -half_squared_g * np.append(s.detach().numpy(), trace)

    with torch.no_grad():
        found = log_likelihood(score, sde, x, generator(0), "exact", **TIGHT).log_prob
    for x_i, log_prob in zip(x, found, strict=True):
        start = np.append(x_i.numpy(), 0.0)
        y = solve_ivp(flow, (sde.epsilon, 1), start, "DOP853", rtol=1e-9, atol=1e-11).y[:, -1]
        expected = sde.prior_log_prob(torch.tensor(y[None, :2])) + y[2]
        assert abs(log_prob - expected) < 1e-6
    assert all(p.grad is None for p in score.parameters())


def test_likelihood_does_not_depend_on_the_batch():
    x = torch.tensor([[0.1, 0.35], [40.0, -30.0], [0.5, 0.45]], dtype=torch.float64)
    together = log_likelihood(mixture_score, SDE, x, generator(0), "exact", rtol=1e-5, atol=1e-7)
    assert len(set(together.nfe.tolist())) == 3
    for i in range(3):
        alone = log_likelihood(
            mixture_score, SDE, x[i : i + 1], generator(0), "exact", rtol=1e-5, atol=1e-7
        )
        assert alone.nfe == together.nfe[i]
        # Rounding of float64 over some hundred steps.
        assert torch.allclose(alone.log_prob, together.log_prob[i], rtol=1e-12, atol=0)


def contraction(x, t):
    """s = (k M (x_1, x_2), 0) with M = (2 1; 1 2) and k = x_3 taken as a constant: the third
    component is how stiff a sample is."""
    m = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=x.dtype)
    return torch.cat([x[:, 2:].detach() * (x[:, :2] @ m), torch.zeros_like(x[:, 2:])], 1)


def test_probes_stay_with_their_samples():
    sde = VE(sigma_min=0.1, sigma_max=1.0)
    x = torch.tensor([[0.5, 0.3], [0.2, -0.7], [0.9, 0.8], [-0.4, 0.1]], dtype=torch.float64)
    # Samples leave from the front, from the middle and from the end of the batch.
    k = torch.tensor([[1.0], [40.0], [10.0], [4.0]], dtype=torch.float64)
    found, exact = (
        log_likelihood(contraction, sde, torch.cat([x, k], 1), generator(4), divergence, **TIGHT)
        for divergence in ("hutchinson", "exact")
    )
    assert len(set(found.nfe.tolist())) == 4
    # v^T J v - tr J = 2 k v_1 v_2, and the integral of g^2 / 2 is that of d(sigma^2) / 2.
    v = rademacher((4, 3), generator(4)).double()
    half_variance = (sde.sigma_max**2 - sde.sigma(torch.tensor(sde.epsilon).double()) ** 2) / 2
    difference = -2 * k[:, 0] * v[:, 0] * v[:, 1] * half_variance
    assert len(set((v[:, 0] * v[:, 1]).tolist())) == 2
    # rtol times a log density of up to 100, over some thousand steps.
    assert (found.log_prob - exact.log_prob - difference).abs().max() < 1e-4


def test_work_on_a_sample_does_not_grow_with_a_stiff_one():
    def work(x):
        rows = 0

        def score(x, t):
            nonlocal rows
            rows += len(x)
            return contraction(x, t)

        likelihood = log_likelihood(score, SDE, x, generator(0), rtol=1e-5, atol=1e-7)
        assert rows == likelihood.nfe.sum()
        return likelihood.nfe

    easy = torch.tensor([[0.5, 0.3, 1e-3], [0.2, -0.7, 2e-3]], dtype=torch.float64)
    stiff = torch.tensor([[0.5, 0.3, 1.0]], dtype=torch.float64)
    nfe = work(torch.cat([easy, stiff]))
    assert nfe[2] > 5 * nfe[:2].max()
    assert torch.equal(nfe[:2], work(easy))


def test_published_function_of_the_benchmark_computes_the_same_quantity():
    path = Path(__file__).parents[2] / "benchmarks/likelihood.py"
    spec = importlib.util.spec_from_file_location("likelihood_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model = ScoreModel(Network(), VE(sigma_min=0.1, sigma_max=2.0))
    x = torch.tensor([[0.2, 0.8], [0.6, 0.1], [0.4, 0.4]], dtype=torch.float64)
    published, ours = (
        f(model, x, probes_generator=generator(0), rtol=1e-8, atol=1e-10).log_prob
        for f in (benchmark.published, benchmark.ours)
    )
    # rtol times a log density of order 1, over fewer than 1000 steps.
    assert (published - ours).abs().max() < 1e-5


def test_float32_agrees_with_float64_up_to_rounding():
    x = data(8)
    double, single = (
        log_likelihood(gaussian_score, SDE, x.to(d), generator(0), rtol=1e-6, atol=1e-7).log_prob
        for d in (torch.float64, torch.float32)
    )
    assert single.dtype == torch.float32
    # |log p| < 100, 2^-24 relative rounding, 200 steps.
    assert (single - double).abs().max() < 100 * 2**-24 * 200


def test_same_seed_gives_the_same_bytes():
    x = torch.rand(4, 3, generator=generator(1))
    a, b, c = (
        log_likelihood(gaussian_score, SDE, x, generator(seed), rtol=1e-3, atol=1e-5).log_prob
        for seed in (7, 7, 8)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="divergence: found 'trace'"):
        log_likelihood(gaussian_score, SDE, data(1), generator(0), "trace", rtol=1e-3, atol=1e-5)


def test_bits_per_dim_by_hand():
    # Uniform density on [0, 1)^d: every level costs log2(levels) bits.
    assert bits_per_dim(torch.zeros(2), 5, 256).tolist() == [8, 8]
    # Density 2^d on half of the cube: one bit less per dimension.
    log_prob = torch.tensor([3 * math.log(2)], dtype=torch.float64)
    assert bits_per_dim(log_prob, 3, 17).item() == pytest.approx(math.log2(17) - 1, rel=1e-14)


@every_sde
def test_nll_of_images_is_the_likelihood_in_bits_per_dim(sde):
    def score(x, t):
        mean, variance = bcast(sde.mean(t), x), bcast(sde.std(t) ** 2, x)
        return -(x - 0.5 * mean) / (0.04 * mean**2 + variance)

    k = torch.randint(0, 17, (3, 1, 2, 2), generator=generator(0))
    x = dequantise(k, 17, generator(1)).double()
    bits, nfe = nll_bits_per_dim(score, sde, x, 17, generator(2), **TIGHT)
    # J is a multiple of the identity, so that any Rademacher probe gives its exact trace; the end
    # point and the growth r of the flow are those of a Gaussian.
    (m_0, v_0), (m_1, v_1) = kernel(sde, sde.epsilon), kernel(sde, 1.0)
    r = ((0.04 * m_1**2 + v_1) / (0.04 * m_0**2 + v_0)).sqrt()
    log_prob = sde.prior_log_prob(0.5 * m_1 + r * (x - 0.5 * m_0)) + 4 * r.log()
    expected = -log_prob / (4 * math.log(2)) + math.log2(17)
    assert bits.shape == nfe.shape == (3,)
    assert (bits - expected).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [16, 17])
def test_nll_refuses_data_that_were_not_dequantised(scale):
    x = torch.randint(0, 16, (3, 64), generator=generator(0)) / scale
    with pytest.raises(ValueError, match=f"k / {scale}"):
        nll_bits_per_dim(gaussian_score, SDE, x, 17, generator(0), rtol=1e-3, atol=1e-5)
