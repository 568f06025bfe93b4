"""The samplers under the VP SDE, on a Gaussian whose score and flow are known."""

import math

import pytest
import torch

from qcsbm.runtime.seeding import generator
from qcsbm.sampling import ode, pc
from qcsbm.schema.samplers import ODE, PC
from qcsbm.score.sde import VP, bcast

SDE = VP()
CENTRE, VARIANCE = 0.5, 0.04


def moments(t, sde=SDE):
    """Mean and variance of the noised N(0.5, 0.04)."""
    return CENTRE * sde.mean(t), VARIANCE * sde.mean(t) ** 2 + sde.std(t) ** 2


def score(x, t, sde=SDE):
    mean, variance = (bcast(value, x) for value in moments(t, sde))
    return -(x - mean) / variance


def test_ode_samples_follow_the_exact_flow_and_are_denoised():
    shape = (8, 3, 2, 2)
    settings = ODE(type="ode", rtol=1e-6, atol=1e-7, batch_size=8)
    samples = ode.sample(score, SDE, shape, generator(0), settings)
    ends = torch.tensor([1.0, SDE.epsilon], dtype=torch.float64)
    (mean_1, mean_0), (variance_1, variance_0) = moments(ends)
    x_1 = torch.randn(shape, generator=generator(0)).double()
    expected = mean_0 + (x_1 - mean_1) * (variance_0 / variance_1).sqrt()
    # The posterior mean of the data.
    expected = CENTRE + VARIANCE * SDE.mean(ends[1]) / variance_0 * (expected - mean_0)
    # Local errors of rtol each, over fewer than 100 steps.
    assert torch.allclose(samples.x.double(), expected, rtol=0, atol=1e-4)


# The second SDE ends far from its prior, where the corrector has something to do from the start.
@pytest.mark.parametrize("sde, steps", [(SDE, 10), (SDE, 200), (VP(0.5, 3.0), 3)], ids=str)
def test_pc_samples_have_the_moments_of_the_discrete_chain(sde, steps):
    snr, corrector_steps = 0.35, 2
    settings = PC(type="pc", steps=steps, snr=snr, corrector_steps=corrector_steps, batch_size=4000)
    samples = pc.sample(lambda x, t: score(x, t, sde), sde, (4000, 16), generator(0), settings)
    x = samples.x.double()
    # For a linear score every step maps mean m and variance v linearly. Of a chain of unit data,
    # a² is the share of the signal's power that a step leaves. The corrector's step size is
    # 2 a² snr² ‖z‖² / ‖s‖², and ‖s‖² / ‖z‖² = (v + (m - M)²) / V² under the score of N(M, V).
    grid = torch.linspace(sde.epsilon, 1, steps, dtype=torch.float64)
    left = torch.cat([torch.ones(1), sde.mean(grid).square()]).tolist()
    m, v = 0.0, 1.0
    for k in reversed(range(steps)):
        centre, variance = (value.item() for value in moments(grid[k], sde))
        power = left[k + 1] / left[k]
        for _ in range(corrector_steps):
            alpha = 2 * power * snr**2 * variance**2 / (v + (m - centre) ** 2)
            pull = alpha / variance
            m, v = m - pull * (m - centre), v * (1 - pull) ** 2 + 2 * alpha
        noise, pull = 1 - power, (1 - power) / variance
        factor = 2 - math.sqrt(power) - pull
        m, v = factor * m + pull * centre, v * factor**2 + (noise if k else 0)
    n = x.numel()
    assert abs(x.mean() - m) < 4 * math.sqrt(v / n)
    # The norms that the steps are made from are means over 4000 samples of 16 entries, whose
    # relative spread is below 1 / √(2 · 16).
    assert abs(x.var() / v - 1) < 4 * math.sqrt(2 / n) + 4 / math.sqrt(32 * 4000)
    # With many steps the target is not far, with few it is: the bound above means something.
    assert abs(v / VARIANCE - 1) < 0.2 if steps == 200 else abs(v / VARIANCE - 1) > 0.2


def test_corrector_steps_are_scaled_by_the_signal_that_is_left():
    x, z = (torch.randn(2, 3, generator=generator(0, i)).double() for i in range(2))
    steps = [pc.corrector_step(lambda x, t: -x, SDE, x, i, 5, 0.2, z)[1] - x for i in (4, 0)]
    # The score is the same at both ends of the chain of five steps: a² is almost 1 at the data.
    left = SDE.mean(torch.linspace(SDE.epsilon, 1, 5, dtype=torch.float64)).square()
    torch.testing.assert_close(steps[1], steps[0] * left[4] / left[3], rtol=1e-5, atol=0)
