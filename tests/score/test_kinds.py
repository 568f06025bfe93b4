"""Every kind of output under every schedule, for Gaussian data, where all of them are known."""

import math
from typing import get_args

import pytest
import torch

from qcsbm.adapters.field import Field
from qcsbm.conservativeness.products import jacobian
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import Kind, coefficients, conversion, denoised, to_score
from qcsbm.score.schedules import EDM, Discrete, RectifiedFlow
from qcsbm.score.sde import VE, VP, bcast

D = 4
KINDS = [kind for kind in get_args(Kind) if kind != "force"]
KEPT = (1 - torch.linspace(1e-3, 0.3, 20, dtype=torch.float64)).cumprod(0)
# With times of both ends, and of what is between them.
SCHEDULES = {
    VE(0.01, 50.0): [0.0, 0.4, 1.0],
    VP(0.1, 20.0): [1e-5, 0.4, 1.0],
    EDM(): [0.002, 0.7, 80.0],
    RectifiedFlow(): [1e-4, 0.4, 0.999],
    Discrete(KEPT.sqrt(), (1 - KEPT).sqrt()): [0.0, 7.0, 18.6],
}
# Between the steps of a discrete one there is no slope.
KINDS_OF = {
    schedule: [kind for kind in KINDS if (kind, type(schedule)) != ("velocity", Discrete)]
    for schedule in SCHEDULES
}
every_kind_and_schedule = pytest.mark.parametrize(
    ("kind", "schedule"),
    [(kind, schedule) for schedule, kinds in KINDS_OF.items() for kind in kinds],
    ids=str,
)


class Gaussian:
    """Data N(μ, Σ), whose posterior means follow from regression on x."""

    def __init__(self):
        draws = generator(0, "gaussian")
        self.mean = torch.randn(D, generator=draws).double()
        root = torch.randn(D, D, generator=draws).double()
        self.covariance = root @ root.mT / D + 0.1 * torch.eye(D)

    def precision(self, schedule, t):
        """Of x at times t (B,); shape (B, D, D)."""
        alpha, sigma = schedule.mean(t)[:, None, None], schedule.std(t)[:, None, None]
        return (alpha**2 * self.covariance + sigma**2 * torch.eye(D)).inverse()

    def score(self, schedule, x, t):
        centred = x - schedule.mean(t)[:, None] * self.mean
        return -(self.precision(schedule, t) @ centred[..., None])[..., 0]

    def x0(self, schedule, x, t):
        """E[x_0 | x] = μ + cov(x_0, x) cov(x)⁻¹ (x − E x)."""
        alpha = schedule.mean(t)[:, None]
        gain = alpha[..., None] * self.covariance @ self.precision(schedule, t)
        return self.mean + (gain @ (x - alpha * self.mean)[..., None])[..., 0]

    def output(self, kind, schedule, x, t):
        """What ``kind`` is by its definition, from the regressions of x_0 and of z on x."""
        alpha, sigma = schedule.mean(t)[:, None], schedule.std(t)[:, None]
        centred = x - alpha * self.mean
        x0 = self.x0(schedule, x, t)
        z = sigma * (self.precision(schedule, t) @ centred[..., None])[..., 0]
        alpha_slope, sigma_slope = slopes_by_hand(schedule, t)
        return {
            "score": lambda: self.score(schedule, x, t),
            "epsilon": lambda: z,
            "x0": lambda: x0,
            "denoiser": lambda: x0,
            "v": lambda: alpha * z - sigma * x0,
            "velocity": lambda: alpha_slope * x0 + sigma_slope * z,
        }[kind]()


def slopes_by_hand(schedule, t):
    """α′ and σ′ at t (B,), each (B, 1)."""
    alpha, sigma, one = (value[:, None] for value in (schedule.mean(t), schedule.std(t), t**0))
    if isinstance(schedule, VE):
        return 0 * one, sigma * math.log(schedule.sigma_max / schedule.sigma_min)
    if isinstance(schedule, VP):
        beta = schedule.beta(t)[:, None]
        return -beta * alpha / 2, beta * alpha**2 / (2 * sigma)
    if isinstance(schedule, EDM):
        return 0 * one, one
    return (-one, one) if isinstance(schedule, RectifiedFlow) else (None, None)


def points(schedule):
    t = torch.tensor(SCHEDULES[schedule], dtype=torch.float64)
    z = torch.randn(len(t), D, generator=generator(0, "points")).double()
    return bcast(schedule.std(t) + schedule.mean(t), z) * z, t


# Rounding is multiplied by the ratio of noise and data or its inverse, which is 1e4 at most.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@every_kind_and_schedule
def test_output_of_a_gaussian_gives_its_score_and_its_posterior_mean(kind, schedule):
    gaussian = Gaussian()
    x, t = points(schedule)
    output = gaussian.output(kind, schedule, x, t)
    noise = schedule.std(t)[:, None]
    score = gaussian.score(schedule, x, t)
    found = to_score(kind, schedule, output, x, t)
    torch.testing.assert_close(noise * found, noise * score, **CLOSE)
    x0 = denoised(kind, schedule, output, x, t)
    torch.testing.assert_close(x0, gaussian.x0(schedule, x, t), **CLOSE)


@every_kind_and_schedule
def test_jacobian_of_every_kind_follows_from_that_of_the_score(kind, schedule):
    gaussian = Gaussian()
    x, t = points(schedule)
    x.requires_grad_()
    j = jacobian(gaussian.output(kind, schedule, x, t), x)
    j_score = jacobian(gaussian.score(schedule, x, t), x)
    a, b = (value[:, None, None] for value in coefficients(kind, schedule, t))
    expected = a * torch.eye(D) + b * j_score
    # Relative to the terms, which may nearly cancel.
    scale = a.abs() + b.abs() * j_score.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(j / scale, expected / scale, **CLOSE)


@every_kind_and_schedule
def test_kinds_are_converted_into_each_other(kind, schedule):
    gaussian = Gaussian()
    x, t = points(schedule)
    for target in KINDS_OF[schedule]:
        a, b = (value[:, None] for value in conversion(kind, target, schedule, t))
        output = gaussian.output(kind, schedule, x, t)
        expected = gaussian.output(target, schedule, x, t)
        scale = (a * x).abs() + (b * output).abs()
        assert ((a * x + b * output - expected).abs() <= 1e-11 * scale).all()


def test_coefficients_by_hand():
    # α = 0.6 and σ = 0.8.
    kept = torch.tensor([0.9, 0.36], dtype=torch.float64)
    schedule, t = Discrete(kept.sqrt(), (1 - kept).sqrt()), torch.ones(1)
    expected = {
        "score": (0, 1),
        "epsilon": (0, -0.8),
        "x0": (1 / 0.6, 0.64 / 0.6),
        "denoiser": (1 / 0.6, 0.64 / 0.6),
        "v": (-0.8 / 0.6, -0.8 / 0.6),
    }
    for kind, pair in expected.items():
        assert [float(c) for c in coefficients(kind, schedule, t)] == pytest.approx(pair)
    # E[z − x_0 | x] at t = 0.8, where x_0 = (x − 0.8 z) / 0.2 and z = −0.8 s.
    found = coefficients("velocity", RectifiedFlow(), torch.tensor([0.8]).double())
    assert [float(c) for c in found] == pytest.approx((-5, -4))


def test_conversion_of_float32_outputs_keeps_their_precision_where_little_is_left_of_the_data():
    schedule, t = VP(), torch.ones(2)
    x, v = (torch.randn(2, D, generator=generator(0, i)) for i in range(2))
    x0 = denoised("v", schedule, v, x, t)
    assert x0.dtype == torch.float32
    alpha, sigma = float(schedule.mean(t.double())[0]), float(schedule.std(t.double())[0])
    torch.testing.assert_close(x0, alpha * x - sigma * v, rtol=1e-6, atol=1e-6)


def test_a_denoiser_is_told_data_with_noise_whatever_the_schedule():
    t = torch.tensor([0.2, 0.7])
    x = torch.randn(2, 3, generator=generator(0, "x"))
    told = []

    def function(y, sigma):
        told.append((y, sigma))
        return y

    for schedule in (VP(), None):
        Field(function, "denoiser", schedule)(x, t)
    Field(function, "x0", VP())(x, t)
    torch.testing.assert_close(told[0], (x / VP().mean(t)[:, None], VP().sigma(t)))
    for found in told[1:]:
        assert found[0] is x and found[1] is t


@pytest.mark.parametrize(
    ("kind", "schedule", "t", "sentence"),
    [
        (
            "force",
            EDM(),
            1.0,
            "kind: found 'force' under EDM(sigma_min=0.002, sigma_max=80.0), expected one that a ",
        ),
        (
            "velocity",
            Discrete(KEPT.sqrt(), (1 - KEPT).sqrt()),
            1.0,
            "kind: found 'velocity' under D",
        ),
        ("score", EDM(), 0.0, "time: found 0, expected times at which EDM"),
        ("velocity", RectifiedFlow(), 1.0, "time: found 1, expected times at which Rectified"),
        ("epsilon", RectifiedFlow(), float("nan"), "time: found nan, expected times"),
    ],
)
def test_what_has_no_score_is_refused(kind, schedule, t, sentence):
    with pytest.raises(BadInput) as refusal:
        coefficients(kind, schedule, torch.tensor([t]))
    assert str(refusal.value).startswith(sentence)
