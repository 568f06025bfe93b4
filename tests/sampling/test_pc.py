import math

import pytest
import torch
from known_scores import MEAN, SDE, VARIANCE, gaussian_score

from qcsbm.runtime.seeding import generator
from qcsbm.sampling.pc import corrector_step, predictor_step, sample
from qcsbm.schema.samplers import PC
from qcsbm.score.sde import VE


@pytest.mark.parametrize(
    ("i", "variance", "time"), [(0, 16 - 4, 1.0), (1, 4 - 1, 0.55), (2, 1 - 0, 0.1)]
)
def test_predictor_step_by_hand(i, variance, time):
    sde = VE(sigma_min=1.0, sigma_max=4.0, epsilon=0.1)  # three scales: 1, 2, 4
    x = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    z = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    x_next, x_mean = predictor_step(lambda x, t: x * t[:, None], sde, x, i, 3, z)
    expected = [2 + variance * 2 * time, -1 - variance * time]
    assert x_mean[0].tolist() == pytest.approx(expected, rel=1e-14)
    noise = [0.5 * math.sqrt(variance), 3 * math.sqrt(variance)]
    assert (x_next - x_mean)[0].tolist() == pytest.approx(noise, rel=1e-14)


class Chain(VE):
    """The steps of its chain shrink the data, as those of other SDEs do."""

    def discretise(self, k, n):
        return {2: 0.5, 1: 0.75, 0: 0.875}[k], {2: 0.25, 1: 4.0, 0: 0.0625}[k]


def test_predictor_step_of_a_chain_that_shrinks_the_data_by_hand():
    x = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    z = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    x_next, x_mean = predictor_step(lambda x, t: 1 + 0 * x, Chain(), x, 1, 3, z)
    # a = 3/4 and v = 4: (2 - a) x + v s, and 2 z.
    assert x_mean.tolist() == [[2.5 + 4, -1.25 + 4]]
    assert (x_next - x_mean).tolist() == [[1.0, 6.0]]


@pytest.mark.parametrize(("sde", "factor"), [(VE(epsilon=0.5), 1.0), (Chain(epsilon=0.5), 0.25)])
def test_corrector_step_by_hand(sde, factor):
    x = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    s = torch.tensor([[0.0, 2.0], [4.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[3.0, 4.0], [0.0, 7.0]], dtype=torch.float64)
    # Mean norms 6 and 3, snr 1/4: alpha = 2 a^2 (1/4 * 6 / 3)^2 = 1/2 a^2, sqrt(2 alpha) = a.
    # The first of the three times is 1, which the score sees.
    x_next, x_mean = corrector_step(lambda x, t: s * t[:, None], sde, x, 0, 3, 0.25, z)
    assert (x_mean - x).tolist() == (factor * s / 2).tolist()
    assert (x_next - x_mean).tolist() == (math.sqrt(factor) * z).tolist()
    # The second is 3/4: alpha = 1/2 a^2 (4/3)^2.
    _, x_mean = corrector_step(lambda x, t: s * t[:, None], sde, x, 1, 3, 0.25, z)
    factor = 1.0 if factor == 1 else 0.75**2
    torch.testing.assert_close(x_mean - x, factor * s / 2 * 4 / 3)


def test_samples_of_a_gaussian_have_the_moments_of_the_discrete_chain():
    shape, steps, snr, corrector_steps = (4000, 16), 40, 0.35, 2
    settings = PC(type="pc", steps=steps, snr=snr, corrector_steps=corrector_steps, batch_size=4000)
    x = sample(gaussian_score, SDE, shape, generator(0), settings).x.double()
    # For a linear score every step maps the mean m (around 0.5) and the variance v linearly. The
    # corrector's step size is 2 snr^2 V^2 / v, V the variance that the score assumes.
    times = torch.linspace(1, SDE.epsilon, steps, dtype=torch.float64)
    squares = torch.cat([torch.zeros(1), SDE.discrete_sigmas(steps) ** 2]).flip(0)
    m, v = -MEAN, SDE.sigma_max**2
    for i in range(steps):
        assumed = VARIANCE + SDE.sigma(times[i]).item() ** 2
        for _ in range(corrector_steps):
            alpha = 2 * snr**2 * assumed**2 / v
            m, v = m * (1 - alpha / assumed), v * (1 - alpha / assumed) ** 2 + 2 * alpha
        delta = (squares[i] - squares[i + 1]).item()
        noise = 0 if i == steps - 1 else delta
        m, v = m * (1 - delta / assumed), v * (1 - delta / assumed) ** 2 + noise
    # The chain's discretisation error is real and much larger than the tolerance.
    assert abs(v / VARIANCE - 1) > 0.1
    n = x.numel()
    assert abs(x.mean() - MEAN - m) < 4 * math.sqrt(v / n)
    assert abs(x.var() / v - 1) < 4 * math.sqrt(2 / n)


def test_samples_lack_exactly_the_last_noise():
    shape, steps = (4, 3), 5
    settings = PC(type="pc", steps=steps, snr=0.16, batch_size=4)
    draws = generator(0)

    def noise():
        return torch.randn(shape, generator=draws)

    x = SDE.sigma_max * noise()
    for i in range(steps):
        x, _ = corrector_step(gaussian_score, SDE, x, i, steps, 0.16, noise())
        x, x_mean = predictor_step(gaussian_score, SDE, x, i, steps, noise())
    assert torch.equal(sample(gaussian_score, SDE, shape, generator(0), settings).x, x_mean)
    assert not torch.equal(x, x_mean)


def test_sampler_counts_predictor_steps_and_network_calls():
    settings = PC(type="pc", steps=7, snr=0.16, corrector_steps=2, batch_size=3)
    samples = sample(gaussian_score, SDE, (3, 2), generator(0), settings)
    assert samples.nfe.tolist() == [7, 7, 7]
    assert samples.network_calls == 21


def test_a_score_of_zero_has_no_step_size():
    settings = PC(type="pc", steps=2, snr=0.16, batch_size=3)
    with pytest.raises(ArithmeticError, match="3 of 3 samples are not finite"):
        sample(lambda x, t: 0 * x, SDE, (3, 2), generator(0), settings)
