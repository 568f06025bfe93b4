import itertools
import math

import pytest
import torch
from known_scores import MEAN, SDE, VARIANCE, gaussian_score

from qcsbm.runtime.seeding import generator
from qcsbm.sampling.heun import noise_levels, sample, solve
from qcsbm.schema.samplers import Heun
from qcsbm.score.sde import VE


def test_noise_levels_by_hand():
    sde = VE(sigma_min=1.0, sigma_max=9.0, epsilon=0.5)  # from 9 to 3
    assert noise_levels(sde, 4, rho=1.0) == pytest.approx([9, 7, 5, 3, 0])
    middle = ((3 + math.sqrt(3)) / 2) ** 2
    assert noise_levels(sde, 3, rho=2.0) == pytest.approx([9, middle, 3, 0])


def test_a_step_and_the_last_one_by_hand():
    sde = VE(sigma_min=1.0, sigma_max=8.0)
    y = torch.tensor([[3.0, -1.0]], dtype=torch.float64)

    def score(x, t):  # x / sigma, so that dy/dsigma = -y
        return x / sde.sigma(t)[:, None]

    # From 4 to 2: Euler gives y + 2 y, the slopes are -y and -3 y, so that y grows to y + 2 (2 y).
    assert torch.allclose(solve(score, sde, y, [4.0, 2.0]), 5 * y, rtol=1e-14)
    # From 2 to 0: y + 2 y, by the first slope alone.
    assert torch.allclose(solve(score, sde, y, [2.0, 0.0]), 3 * y, rtol=1e-14)


def gaussian_flow(y, sigma, sigma_next):
    """Where the flow of N(0.5, 0.04 I) takes ``y`` from one noise level to another."""
    return MEAN + (y - MEAN) * math.sqrt((VARIANCE + sigma_next**2) / (VARIANCE + sigma**2))


def test_error_is_of_second_order():
    y = 50 * torch.randn(16, 3, generator=generator(0), dtype=torch.float64)
    errors = []
    for steps in (80, 160, 320, 640):
        levels = noise_levels(SDE, steps, rho=7.0)[:-1]
        expected = gaussian_flow(y, levels[0], levels[-1])
        errors.append((solve(gaussian_score, SDE, y, levels) - expected).norm())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    # The next term of the error, of third order, halves from one to the next.
    assert orders == pytest.approx([2, 2, 2], abs=0.15)
    assert abs(orders[2] - 2) < abs(orders[1] - 2) < abs(orders[0] - 2)


def test_samples_of_a_gaussian_follow_the_flow_and_are_denoised():
    shape, settings = (8, 3, 2, 2), Heun(type="heun", steps=400, batch_size=8)
    samples = sample(gaussian_score, SDE, shape, generator(0), settings)
    y = SDE.sigma_max * torch.randn(shape, generator=generator(0))
    sigma = SDE.sigma(torch.tensor(SDE.epsilon)).item()
    expected = gaussian_flow(y, SDE.sigma_max, sigma)
    expected = expected + (MEAN - expected) * sigma**2 / (VARIANCE + sigma**2)
    # A relative error of the deviation from the mean, which is of order 0.2.
    assert torch.allclose(samples.x, expected, rtol=0, atol=1e-3)


def test_18_steps_are_35_calls():
    calls = []

    def score(x, t):
        calls.append(t[0].item())
        return gaussian_score(x, t)

    settings = Heun(type="heun", steps=18, batch_size=4)
    samples = sample(score, SDE, (4, 2), generator(0), settings)
    assert len(calls) == samples.network_calls == 35 and samples.nfe.tolist() == [35] * 4
    # Both ends of every step, down to epsilon and no further.
    expected = [sigma for sigma in noise_levels(SDE, 18, 7.0)[:-1] for _ in range(2)][1:]
    assert SDE.sigma(torch.tensor(calls)).tolist() == pytest.approx(expected, rel=1e-3)
    assert min(calls) == pytest.approx(SDE.epsilon, abs=1e-7)


@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_rho_spaces_the_levels(rho):
    settings = Heun(type="heun", steps=6, rho=rho, batch_size=4)
    y = SDE.sigma_max * torch.randn((4, 2), generator=generator(1))
    expected = solve(gaussian_score, SDE, y, noise_levels(SDE, 6, rho))
    assert torch.equal(sample(gaussian_score, SDE, (4, 2), generator(1), settings).x, expected)
