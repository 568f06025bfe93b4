"""Any model in units of data in [0, 1], for Gaussian images, whose posterior mean is known."""

import pytest
import torch
from torch import nn

from qcsbm.adapters.denoiser import Denoiser
from qcsbm.adapters.field import Field
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.score.schedules import EDM, RectifiedFlow
from qcsbm.score.sde import VE, VP, bcast

SHAPE = (5, 1, 2, 2)
# Of every pixel of data in [0, 1].
MEAN = torch.tensor([[[0.2, 0.4], [0.5, 0.9]]], dtype=torch.float64)
VARIANCE = torch.tensor([[[0.01, 0.3], [0.1, 0.05]]], dtype=torch.float64)


class Velocity(nn.Module):
    """E[z − x_0 | x] of rectified flow, for those pixels scaled to [−1, 1]."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(2 * MEAN - 1)

    def forward(self, x, t):
        alpha, sigma = bcast(1 - t, x), bcast(t, x)
        weight = (x - alpha * self.mean) / (alpha**2 * 4 * VARIANCE + sigma**2)
        return sigma * weight - (self.mean + 4 * VARIANCE * alpha * weight)


def velocity_field(**settings):
    module = Velocity()
    known = {"schedule": RectifiedFlow(), "data_range": (-1.0, 1.0), "module": module}
    return Field(module, "velocity", **(known | settings))


@pytest.mark.parametrize("sde", [VE(0.01, 50.0), VP(0.1, 20.0)], ids=str)
def test_velocity_of_a_gaussian_in_another_range_gives_its_score_under_every_sde(sde):
    denoiser = Denoiser(velocity_field())
    draws = generator(0, "images")
    t = torch.tensor([1e-3, 0.1, 0.4, 0.8, 1.0], dtype=torch.float64)
    mean, std = (value[:, None, None, None] for value in (sde.mean(t), sde.std(t)))
    x = mean * MEAN + (mean**2 * VARIANCE + std**2).sqrt() * torch.randn(SHAPE, generator=draws)
    x0 = denoiser(x / mean, sde.sigma(t))
    score = -(x - mean * MEAN) / (mean**2 * VARIANCE + std**2)
    torch.testing.assert_close(std**2 * score, mean * x0 - x, rtol=1e-9, atol=1e-9)


def test_parameters_are_those_of_the_model_and_convert_with_the_denoiser():
    denoiser = Denoiser(velocity_field())
    assert [name for name, _ in denoiser.named_parameters()] == ["module.mean"]
    y, sigma = torch.rand(SHAPE, generator=generator(0, "y")).double(), torch.full((5,), 0.3)
    expected = denoiser(y, sigma.double())
    found = denoiser.float()(y.float(), sigma)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_model_in_the_same_units_is_asked_directly():
    told = []

    def function(y, sigma):
        told.append((y, sigma))
        return 0.5 * y

    y, sigma = torch.rand(SHAPE), torch.full((5,), 0.3)
    denoiser = Denoiser(Field(function, "denoiser", EDM(), data_range=(0.0, 1.0)))
    assert torch.equal(denoiser(y, sigma), 0.5 * y)
    assert torch.equal(told[0][0], y) and torch.equal(told[0][1], sigma)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"schedule": None}, "mine: found a field of kind 'velocity' with schedule None, expected"),
        ({"data_range": None}, "mine: found no data_range, expected the smallest"),
    ],
)
def test_a_field_that_says_too_little_is_refused(settings, sentence):
    with pytest.raises(BadInput) as refusal:
        Denoiser(velocity_field(name="mine", **settings))
    assert str(refusal.value).startswith(sentence)
    with pytest.raises(BadInput, match="found a field of kind 'force' with schedule EDM"):
        Denoiser(Field(lambda x, t: x, "force", EDM(), data_range=(0.0, 1.0)))
