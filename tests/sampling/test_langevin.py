import math

import pytest
import torch
from known_scores import MEAN, SDE, VARIANCE, gaussian_score

from qcsbm.runtime.seeding import generator
from qcsbm.sampling.langevin import noise_levels, sample
from qcsbm.schema.samplers import Langevin
from qcsbm.score.sde import VE


def settings(noise_levels, steps_per_level, step_size):
    return Langevin(
        type="langevin",
        noise_levels=noise_levels,
        steps_per_level=steps_per_level,
        step_size=step_size,
        batch_size=1,
    )


def test_noise_levels_are_geometric_and_end_at_the_smallest():
    sde = VE(sigma_min=1.0, sigma_max=16.0, epsilon=0.25)  # from 16 to 2
    assert noise_levels(sde, 4) == pytest.approx([16, 8, 4, 2])
    assert noise_levels(sde, 1) == pytest.approx([2])


def test_steps_by_hand():
    sde = VE(sigma_min=1.0, sigma_max=16.0, epsilon=0.5)  # levels 16 and 4
    draws = generator(0)
    z = [torch.randn(2, 3, generator=draws).double() for _ in range(5)]

    def score(x, t):  # -x / 2 sigma^2
        return -x / (2 * sde.sigma(t)[:, None] ** 2)

    x = 16 * z[0]
    for step, sigma in enumerate((16, 16, 4, 4), 1):  # steps of size sigma^2 / 8
        x = x + sigma**2 / 8 * -x / (2 * sigma**2) + math.sqrt(2 * sigma**2 / 8) * z[step]
    expected = x - x / 2  # denoised: x + sigma^2 s
    found = sample(score, sde, (2, 3), generator(0), settings(2, 2, 0.125)).x
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=0)


def test_one_level_reaches_the_stationary_distribution_of_its_chain():
    n, d, step_size = 2000, 4, 1.0
    sde = VE(sigma_min=0.1, sigma_max=1.0)
    x = sample(
        lambda x, t: gaussian_score(x, t, sde), sde, (n, d), generator(0), settings(1, 100, 1.0)
    ).x.double()
    # At steps of size alpha N(0.5, V) is sampled with variance V / (1 - alpha / 2V); after 100
    # steps of contraction 1 - alpha / V = 0.8 the start is forgotten. Denoising contracts by
    # 1 - sigma^2 / V.
    sigma_squared = sde.sigma(torch.tensor(sde.epsilon)).item() ** 2
    v, alpha = VARIANCE + sigma_squared, step_size * sigma_squared
    stationary = v / (1 - alpha / (2 * v)) * (1 - sigma_squared / v) ** 2
    assert abs(x.mean() - MEAN) < 4 * math.sqrt(stationary / (n * d))
    assert abs(x.var() / stationary - 1) < 4 * math.sqrt(2 / (n * d))


def test_annealed_samples_of_a_gaussian_have_the_moments_of_the_discrete_chain():
    shape, chosen = (4000, 16), settings(12, 3, 0.4)
    x = sample(gaussian_score, SDE, shape, generator(0), chosen).x.double()
    m, v = -MEAN, SDE.sigma_max**2
    high, low = SDE.sigma(torch.tensor([1.0, SDE.epsilon], dtype=torch.float64)).tolist()
    for level in range(12):
        sigma = high * (low / high) ** (level / 11)
        alpha, assumed = 0.4 * sigma**2, VARIANCE + sigma**2
        for _ in range(3):
            m, v = m * (1 - alpha / assumed), v * (1 - alpha / assumed) ** 2 + 2 * alpha
    m, v = m * (1 - low**2 / assumed), v * (1 - low**2 / assumed) ** 2
    # The chain lags behind the noise by much more than the tolerance.
    assert abs(v / VARIANCE - 1) > 0.1
    n = x.numel()
    assert abs(x.mean() - MEAN - m) < 4 * math.sqrt(v / n)
    assert abs(x.var() / v - 1) < 4 * math.sqrt(2 / n)
