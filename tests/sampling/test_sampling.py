import math

import pytest
import torch
from torch import nn

from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator
from qcsbm.sampling.samplers import (
    langevin_dynamics,
    langevin_step,
    ode_sample,
    pc_sample,
    reverse_diffusion_step,
)
from qcsbm.sampling.solver import integrate
from qcsbm.score.models import EnergyScoreModel, ScoreModel
from qcsbm.score.sde import VE, bcast

SDE = VE()
WEIGHTS = torch.tensor([0.3, 0.7])
MEANS = torch.tensor([[0.2, 0.3], [0.8, 0.6]])
SPREAD = 0.05
# The samplers start from N(0, sigma_max^2 I) instead of the noised mixture. With
# KL <= E|x_0|^2 / (2 sigma_max^2) and Pinsker's inequality this shifts no probability by more.
PRIOR_BIAS = math.sqrt(float(WEIGHTS @ MEANS.square().sum(1) + 2 * SPREAD**2) / 4) / SDE.sigma_max


def mixture_score(x, t):
    """Score at x (B, 2) of the mixture of two isotropic Gaussians noised to t (B,)."""
    variance = SPREAD**2 + SDE.sigma(t)[:, None] ** 2
    to_means = MEANS - x[:, None]
    posterior = torch.softmax(WEIGHTS.log() - to_means.square().sum(2) / (2 * variance), 1)
    return (posterior[:, :, None] * to_means).sum(1) / variance


def gaussian_score(x, t):
    """Score at x (B, ...) of N(0.5, 0.04 I) noised to t (B,)."""
    return -(x - 0.5) / bcast(0.04 + SDE.sigma(t) ** 2, x)


class Counting:
    """``score``, counting at how many samples it is evaluated."""

    def __init__(self, score):
        self.score = score
        self.evaluations = 0

    def __call__(self, x, t):
        self.evaluations += len(x)
        return self.score(x, t)


# Single steps.


@pytest.mark.parametrize(
    ("i", "variance", "time"), [(0, 16 - 4, 1.0), (1, 4 - 1, 0.55), (2, 1 - 0, 0.1)]
)
def test_reverse_diffusion_step_by_hand(i, variance, time):
    sde = VE(sigma_min=1.0, sigma_max=4.0, epsilon=0.1)  # three scales: 1, 2, 4
    x = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    z = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    x_next, x_mean = reverse_diffusion_step(lambda x, t: x * t[:, None], sde, x, i, 3, z)
    expected = [2 + variance * 2 * time, -1 - variance * time]
    assert x_mean[0].tolist() == pytest.approx(expected, rel=1e-14)
    noise = [0.5 * math.sqrt(variance), 3 * math.sqrt(variance)]
    assert (x_next - x_mean)[0].tolist() == pytest.approx(noise, rel=1e-14)


def test_langevin_step_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    s = torch.tensor([[0.0, 2.0], [4.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[3.0, 4.0], [0.0, 7.0]], dtype=torch.float64)
    # Mean norms 6 and 3, snr 1/4: alpha = 2 (1/4 * 6 / 3)^2 = 1/2, sqrt(2 alpha) = 1.
    x_next, x_mean = langevin_step(lambda x, t: s, x, torch.ones(2), 0.25, z)
    assert x_mean.tolist() == [[1.0, 1.0], [2.0, -1.0]]
    assert x_next.tolist() == [[4.0, 5.0], [2.0, 6.0]]


def test_langevin_dynamics_by_hand():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    t = torch.tensor([0.25], dtype=torch.float64)
    z = generator(0)
    z_1, z_2 = (torch.randn(1, 2, generator=z).double() for _ in range(2))
    # Score -4 t x = -x: x <- (1 - alpha) x + sqrt(2 alpha) z with alpha = 1/8.
    expected = 0.875 * (0.875 * x + 0.5 * z_1) + 0.5 * z_2
    found = langevin_dynamics(lambda x, t: -4 * t[:, None] * x, x, t, 0.125, 2, generator(0))
    assert torch.allclose(found, expected, rtol=1e-14, atol=0)


def test_langevin_dynamics_reaches_its_stationary_distribution():
    n, d, alpha, variance = 2000, 4, 0.01, 0.04
    x = torch.zeros(n, d)
    # At steps of size alpha N(0.5, V) is sampled with variance V / (1 - alpha / 2V); after 60 steps
    # of contraction 1 - alpha / V = 0.75 the start is forgotten.
    x = langevin_dynamics(lambda x, t: -(x - 0.5) / variance, x, None, alpha, 60, generator(0))
    stationary = variance / (1 - alpha / (2 * variance))
    assert abs(x.mean() - 0.5) < 4 * math.sqrt(stationary / (n * d))
    assert abs(x.var() / stationary - 1) < 4 * math.sqrt(2 / (n * d))


# Whole samplers.


@pytest.mark.parametrize("denoise", [False, True])
def test_ode_samples_of_a_gaussian_follow_the_exact_flow(denoise):
    shape = (8, 3, 2, 2)
    samples = ode_sample(gaussian_score, SDE, shape, generator(0), 1e-6, 1e-7, denoise)
    x_1 = SDE.sigma_max * torch.randn(shape, generator=generator(0))
    variances = 0.04 + SDE.sigma(torch.tensor([1.0, SDE.epsilon])) ** 2
    expected = 0.5 + (x_1 - 0.5) * (variances[1] / variances[0]).sqrt()
    if denoise:  # towards the posterior mean of the data
        expected = expected + (0.5 - expected) * SDE.sigma_min**2 / variances[1]
    # Local errors of rtol each, over fewer than 100 steps.
    assert torch.allclose(samples.x, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("denoise", [False, True])
def test_pc_samples_of_a_gaussian_have_the_moments_of_the_discrete_chain(denoise):
    shape, steps, snr, corrector_steps = (4000, 16), 40, 0.35, 2
    x = pc_sample(
        gaussian_score, SDE, shape, generator(0), steps, snr, corrector_steps, denoise
    ).x.double()
    # For a linear score every step maps the mean m (around 0.5) and the variance v linearly. The
    # corrector's step size is 2 snr^2 V^2 / v, V the variance that the score assumes.
    times = torch.linspace(1, SDE.epsilon, steps, dtype=torch.float64)
    squares = torch.cat([torch.zeros(1), SDE.discrete_sigmas(steps) ** 2]).flip(0)
    m, v = -0.5, SDE.sigma_max**2
    for i in range(steps):
        assumed = 0.04 + SDE.sigma(times[i]).item() ** 2
        for _ in range(corrector_steps):
            alpha = 2 * snr**2 * assumed**2 / v
            m, v = m * (1 - alpha / assumed), v * (1 - alpha / assumed) ** 2 + 2 * alpha
        delta = (squares[i] - squares[i + 1]).item()
        noise = 0 if denoise and i == steps - 1 else delta
        m, v = m * (1 - delta / assumed), v * (1 - delta / assumed) ** 2 + noise
    # The chain's discretisation error is real and much larger than the tolerance.
    assert abs(v / 0.04 - 1) > 0.1
    n = x.numel()
    assert abs(x.mean() - 0.5 - m) < 4 * math.sqrt(v / n)
    assert abs(x.var() / v - 1) < 4 * math.sqrt(2 / n)


def test_denoised_pc_sample_lacks_exactly_the_last_noise():
    shape, steps = (4, 3), 5
    denoised, noisy = (
        pc_sample(gaussian_score, SDE, shape, generator(0), steps, 0.16, denoise=denoise).x
        for denoise in (True, False)
    )
    g = generator(0)
    for _ in range(1 + 2 * steps):  # the prior, and one draw each for corrector and predictor
        z = torch.randn(shape, generator=g)
    # Float32 rounding of samples of order 1.
    assert torch.allclose(noisy - denoised, SDE.sigma_min * z, rtol=0, atol=1e-6)


def check_mixture(x, variance, variance_bias):
    """Mode weights, means and covariances of samples (n, 2) within four standard errors.

    ``variance`` is what a sample of one mode should have, up to the relative ``variance_bias``.
    """
    x, n = x.double(), len(x)
    nearest = (x[:, None] - MEANS).square().sum(2).argmin(1)
    weight = (nearest == 0).double().mean()
    assert abs(weight - WEIGHTS[0]) < 4 * math.sqrt(0.3 * 0.7 / n) + PRIOR_BIAS
    for mode in range(2):
        of_mode = x[nearest == mode]
        m = len(of_mode)
        assert ((of_mode.mean(0) - MEANS[mode]).abs() < 4 * math.sqrt(variance / m)).all()
        covariance = of_mode.T.cov() / variance
        assert ((covariance.diagonal() - 1).abs() < 4 * math.sqrt(2 / m) + variance_bias).all()
        assert covariance[0, 1].abs() < 4 / math.sqrt(m)
    # The whole: its mean moves with the weight w as between, its covariance as w (1 - w)
    # times the outer product of between, with slope 0.4 at w = 0.3.
    between = MEANS[1] - MEANS[0]
    mean_error = x.mean(0) - WEIGHTS @ MEANS
    assert (mean_error.abs() < 4 * x.std(0) / math.sqrt(n) + PRIOR_BIAS * between).all()
    outer = torch.outer(between, between)
    centred = x - x.mean(0)
    standard_error = (centred[:, :, None] * centred[:, None]).std(0) / math.sqrt(n)
    bias = 0.4 * PRIOR_BIAS * outer + variance * variance_bias
    covariance_error = x.T.cov() - 0.21 * outer - variance * torch.eye(2)
    assert (covariance_error.abs() < 4 * standard_error + bias).all()


def test_ode_samples_recover_a_mixture():
    shape = (4000, 2)
    samples = ode_sample(mixture_score, SDE, shape, generator(0), 1e-5, 1e-6, denoise=False)
    # The solver's error is of the order of 100 steps of rtol.
    check_mixture(samples.x, SPREAD**2 + SDE.sigma_min**2, variance_bias=1e-3)


def test_pc_samples_recover_a_mixture():
    samples = pc_sample(mixture_score, SDE, (4000, 2), generator(0), steps=1000, snr=0.16)
    # Denoising maps a mode's variance V = spread^2 + sigma_min^2 to spread^4 / V. Each corrector
    # inflates the variance by alpha / 2V = snr^2 = 2.6 %, each predictor by less than its
    # (sigma_k^2 - sigma_(k-1)^2) / V = 1.7 %, in equilibrium.
    variance = SPREAD**4 / (SPREAD**2 + SDE.sigma_min**2)
    check_mixture(samples.x, variance, variance_bias=0.16**2 + 0.017)


def test_shape_of_a_sample_does_not_matter():
    for sample in (
        lambda shape: pc_sample(gaussian_score, SDE, shape, generator(0), steps=20, snr=0.16),
        lambda shape: ode_sample(gaussian_score, SDE, shape, generator(0), 1e-3, 1e-5),
    ):
        images, vectors = sample((5, 3, 2, 2)), sample((5, 12))
        assert torch.equal(images.x.flatten(1), vectors.x)
        assert torch.equal(images.nfe, vectors.nfe) and images.nfe.shape == (5,)


def test_pc_sampler_counts_predictor_steps_and_network_calls():
    score = Counting(gaussian_score)
    samples = pc_sample(score, SDE, (3, 2), generator(0), steps=7, snr=0.16, corrector_steps=2)
    assert samples.nfe.tolist() == [7, 7, 7]
    assert samples.network_calls == score.evaluations / 3 == 21


@pytest.mark.parametrize("denoise", [False, True])
def test_ode_sampler_counts_evaluations_per_sample(denoise):
    def drift(t, x):
        return -0.5 * SDE.diffusion(t)[:, None] ** 2 * mixture_score(x, t)

    score = Counting(mixture_score)
    samples = ode_sample(score, SDE, (64, 2), generator(0), 1e-4, 1e-6, denoise)
    # Denoising is one call more.
    assert samples.network_calls == score.evaluations / 64 == samples.nfe.mean() + denoise
    x = SDE.sigma_max * torch.randn(64, 2, generator=generator(0))
    alone = [integrate(drift, x_i[None], 1.0, SDE.epsilon, 1e-4, 1e-6).nfe for x_i in x]
    assert len(set(alone)) > 3
    # Float32 rounding differs between batch sizes and may turn a step of six evaluations that is on
    # the verge from accepted to rejected, in a few of the samples.
    assert abs(samples.nfe - torch.cat(alone)).mean() < 6 * 5 / 64


def test_same_seed_gives_the_same_bytes_whatever_the_global_generator():
    for sample in (
        lambda seed: pc_sample(mixture_score, SDE, (8, 2), generator(seed), steps=10, snr=0.16),
        lambda seed: ode_sample(mixture_score, SDE, (8, 2), generator(seed), 1e-3, 1e-5),
    ):
        torch.manual_seed(0)
        first = sample(5).x
        torch.manual_seed(1)
        assert torch.equal(first, sample(5).x)
        assert not torch.equal(first, sample(6).x)


class Halved(nn.Module):
    """h = a x with a = 1/2, so that s_U = x / 2 sigma and s_C = -x / 4 sigma."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma):
        return self.a * x


@pytest.mark.parametrize(("model", "factor"), [(ScoreModel, 0.5), (EnergyScoreModel, -0.25)])
def test_samplers_take_models_and_record_no_graph(model, factor):
    sde = VE(sigma_min=0.1, sigma_max=1.0)

    def closed_form(x, t):
        return factor * x / sde.sigma(t)[:, None]

    for sample in (
        lambda score: pc_sample(score, sde, (4, 3), generator(0), steps=10, snr=0.16),
        lambda score: ode_sample(score, sde, (4, 3), generator(0), 1e-4, 1e-6),
    ):
        found, expected = sample(model(Halved(), sde)), sample(closed_form)
        assert not found.x.requires_grad
        # Tensors made under inference mode could never be used where gradients are recorded.
        assert not found.x.is_inference()
        # Float32 rounding over some hundred steps.
        assert torch.allclose(found.x, expected.x, rtol=1e-4, atol=1e-5)


def test_diverging_sampler_is_an_error():
    with pytest.raises(Diverged, match="3 of 3 samples are not finite"):
        # The corrector divides by the mean norm of the score.
        pc_sample(lambda x, t: 0 * x, SDE, (3, 2), generator(0), steps=2, snr=0.16)


def test_single_step_is_refused():
    with pytest.raises(ValueError, match="steps: found 1, expected at least 2"):
        pc_sample(gaussian_score, SDE, (3, 2), generator(0), steps=1, snr=0.16)
