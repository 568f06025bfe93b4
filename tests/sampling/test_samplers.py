"""What holds of every sampler."""

import math
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from known_scores import MEANS, SDE, SPREAD, WEIGHTS, gaussian_score, mixture_score
from torch import nn

from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator
from qcsbm.sampling.base import Samples
from qcsbm.schema.samplers import ODE, PC, TYPES, Heun, Langevin
from qcsbm.score.models import EnergyScoreModel, ScoreModel
from qcsbm.score.sde import VE

SETTINGS = {
    "pc": PC(type="pc", steps=20, snr=0.16, batch_size=1),
    "ode": ODE(type="ode", rtol=1e-3, atol=1e-5, batch_size=1),
    "heun": Heun(type="heun", steps=7, batch_size=1),
    "langevin": Langevin(
        type="langevin", noise_levels=5, steps_per_level=4, step_size=0.1, batch_size=1
    ),
}
# The samplers start from N(0, sigma_max^2 I) instead of the noised mixture. With
# KL <= E|x_0|^2 / (2 sigma_max^2) and Pinsker's inequality this shifts no probability by more.
PRIOR_BIAS = math.sqrt(float(WEIGHTS @ MEANS.square().sum(1) + 2 * SPREAD**2) / 4) / SDE.sigma_max


def sample(settings, score, sde, shape, seed=0):
    module = import_module(f"qcsbm.sampling.{settings.type}")
    return module.sample(score, sde, shape, generator(seed), settings)


class Counting:
    """``score``, counting at how many samples it is evaluated."""

    def __init__(self, score):
        self.score = score
        self.evaluations = 0

    def __call__(self, x, t):
        self.evaluations += len(x)
        return self.score(x, t)


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


def test_every_type_is_tested():
    assert SETTINGS.keys() == TYPES.keys()


def test_shape_of_a_sample_does_not_matter(settings):
    images, vectors = (
        sample(settings, gaussian_score, SDE, shape) for shape in ((5, 3, 2, 2), (5, 12))
    )
    assert torch.equal(images.x.flatten(1), vectors.x)
    assert torch.equal(images.nfe, vectors.nfe) and images.nfe.shape == (5,)


def test_every_call_of_the_network_is_counted(settings):
    score = Counting(mixture_score)
    samples = sample(settings, score, SDE, (64, 2))
    assert samples.network_calls == score.evaluations / 64
    # Of the paper's samplers tables show what the paper counts.
    nfe = {"pc": 20, "ode": score.evaluations / 64 - 1, "heun": 2 * 7 - 1, "langevin": 5 * 4 + 1}
    assert samples.nfe.mean() == nfe[settings.type]


def test_same_seed_gives_the_same_bytes_whatever_the_global_generator(settings):
    torch.manual_seed(0)
    first = sample(settings, mixture_score, SDE, (8, 2), seed=5).x
    torch.manual_seed(1)
    assert torch.equal(first, sample(settings, mixture_score, SDE, (8, 2), seed=5).x)
    assert not torch.equal(first, sample(settings, mixture_score, SDE, (8, 2), seed=6).x)


class Halved(nn.Module):
    """h = a x with a = 1/2, so that s_U = x / 2 sigma and s_C = -x / 4 sigma."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma):
        return self.a * x


@pytest.mark.parametrize(("model", "factor"), [(ScoreModel, 0.5), (EnergyScoreModel, -0.25)])
def test_models_are_taken_and_no_graph_is_recorded(settings, model, factor):
    sde = VE(sigma_min=0.1, sigma_max=1.0)

    def closed_form(x, t):
        return factor * x / sde.sigma(t)[:, None]

    found = sample(settings, model(Halved(), sde), sde, (4, 3))
    assert not found.x.requires_grad
    # Tensors made under inference mode could never be used where gradients are recorded.
    assert not found.x.is_inference()
    expected = sample(settings, closed_form, sde, (4, 3))
    # Float32 rounding over some hundred steps.
    assert torch.allclose(found.x, expected.x, rtol=1e-4, atol=1e-5)


def test_diverging_is_a_failure_as_a_result(settings):
    with pytest.raises(Diverged):
        sample(settings, lambda x, t: x * torch.inf, SDE, (3, 2))


def test_samples_are_finite():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 1, 1] = torch.nan
    x[2, 0, 0, 0] = -torch.inf
    with pytest.raises(Diverged, match="2 of 3 samples are not finite"):
        Samples(x, torch.ones(3), 1)


@dataclass(frozen=True)
class Shrunk(VE):
    """The VE SDE in other units at every time: noise levels relative to the data are the same."""

    def mean(self, t):
        return (-3 * t).exp()

    def std(self, t):
        return self.mean(t) * super().std(t)

    def sigma(self, t):
        return super().std(t)

    @property
    def prior_std(self):
        return math.exp(-3) * self.sigma_max


@pytest.mark.parametrize("kind", ["heun", "langevin"])
def test_samplers_by_noise_level_do_not_depend_on_the_units_of_the_sde(kind):
    sde = Shrunk()

    def shrunk_score(x, t):
        mean = sde.mean(t)[:, None]
        return mixture_score(x / mean, t) / mean

    found = sample(SETTINGS[kind], shrunk_score, sde, (8, 2))
    expected = sample(SETTINGS[kind], mixture_score, SDE, (8, 2))
    # Float32 rounding of a state that begins at 50.
    assert torch.allclose(found.x, expected.x, rtol=0, atol=1e-3)


# Whether samples follow the distribution that the score belongs to.


def heun_variance(levels, variance):
    """Of samples of N(m, ``variance``), every step on y - m being a factor."""

    def slope(sigma):
        return sigma / (variance + sigma**2)

    factor = levels[0]
    for sigma, sigma_next in zip(levels, levels[1:], strict=False):
        h = sigma_next - sigma
        euler = 1 + h * slope(sigma)
        factor *= 1 + h / 2 * (slope(sigma) + slope(sigma_next) * euler) if sigma_next else euler
    return factor**2


def karras_levels(steps, rho):
    high, low = (SDE.sigma(torch.tensor(t).double()).item() ** (1 / rho) for t in (1, SDE.epsilon))
    return [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)] + [0]


# Denoising maps a mode's variance V = spread^2 + sigma_min^2 to spread^4 / V.
DENOISED = SPREAD**4 / (SPREAD**2 + SDE.sigma_min**2)
# Settings, the SDE, the variance of a mode, and by how much (relative) it may be biased.
RECOVERED = {
    # The solver's error is of the order of 100 steps of rtol.
    "ode": (ODE(type="ode", rtol=1e-5, atol=1e-6, batch_size=1), SDE, DENOISED, 1e-3),
    # Each corrector inflates the variance by alpha / 2V = snr^2 = 2.6 %, each predictor by less
    # than its (sigma_k^2 - sigma_(k-1)^2) / V = 1.7 %, in equilibrium.
    "pc": (PC(type="pc", steps=1000, snr=0.16, batch_size=1), SDE, DENOISED, 0.16**2 + 0.017),
    # The discretised flow of a mode that stands alone.
    "heun": (
        Heun(type="heun", steps=36, batch_size=1),
        SDE,
        heun_variance(karras_levels(36, 7), SPREAD**2),
        0.01,
    ),
    # sigma^2 falls by a factor r^2 = 1.207 from level to level, and 20 steps of size 0.3 sigma^2
    # let the variance V lag by V (1 - r^-2) / (2 * 20 * 0.3) or less; the last steps inflate it
    # by alpha / 2V = 0.15 sigma_min^2 / V.
    "langevin": (
        Langevin(type="langevin", noise_levels=50, steps_per_level=20, step_size=0.3, batch_size=1),
        VE(sigma_min=0.02, sigma_max=2.0),
        SPREAD**4 / (SPREAD**2 + 0.02**2),
        (1 - 1 / 1.207) / 12 + 0.15 * 0.02**2 / (SPREAD**2 + 0.02**2),
    ),
}


@pytest.mark.parametrize("kind", RECOVERED)
def test_samples_recover_a_mixture(kind):
    """Mode weights, means and covariances within four standard errors."""
    settings, sde, variance, variance_bias = RECOVERED[kind]
    n = 4000
    x = sample(settings, lambda x, t: mixture_score(x, t, sde), sde, (n, 2)).x.double()
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
