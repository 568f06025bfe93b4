"""Denoisers made with the library itself."""

import pytest
import torch
from azula import noise
from azula.denoise import GaussianDenoiser, KarrasDenoiser, SimpleDenoiser
from azula.linalg.covariance import DiagonalCovariance
from azula.plugins.edm import ElucidatedDenoiser
from torch import nn

from qcsbm.adapters.azula import from_azula
from qcsbm.adapters.denoiser import Denoiser
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import to_score
from qcsbm.score.schedules import levels

SCHEDULES = [
    noise.VESchedule(0.01, 50.0),
    noise.VPSchedule(),
    noise.CosineSchedule(),
    noise.RectifiedSchedule(),
    noise.DecaySchedule(),
]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
D = 3
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.1, 1.0, 0.3], dtype=torch.float64)


class Backbone(nn.Module):
    """A network of noisy data and log σ / α, of either shape."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x, time, shift=0.0):
        return torch.tanh(self.linear(x)) + time.reshape(-1, 1) + shift


@every
def test_score_of_a_gaussian_follows_from_its_posterior_mean(schedule):
    field = from_azula(GaussianDenoiser(MEAN, DiagonalCovariance(VARIANCE), schedule))
    for time in (0.01, 0.4, 0.99):
        t = torch.full((4,), time, dtype=torch.float64)
        alpha, sigma = (value[:, None] for value in schedule(t))
        x = alpha * MEAN + torch.randn(4, D, generator=generator(0, "x")).double()
        expected = -(x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
        found = to_score("x0", field.schedule, field(x, t), x, t)
        torch.testing.assert_close(sigma * found, sigma * expected, rtol=1e-8, atol=1e-8)


@every
def test_time_is_found_that_has_the_noise(schedule):
    ours = from_azula(KarrasDenoiser(Backbone(), schedule)).schedule
    t = torch.tensor([0.0, 1e-3, 0.3, 0.77, 1.0], dtype=torch.float64)
    torch.testing.assert_close(ours.time(ours.sigma(t)), t, rtol=1e-9, atol=1e-9)
    times = levels(ours, 5)
    assert times[0] >= 0 and times[-1] <= 1
    assert (ours.sigma(times).diff() > 0).all()
    torch.testing.assert_close(ours.sigma(times)[0], torch.tensor(0.01).double())
    with pytest.raises(
        BadInput, match=r"noise level: found 1e-09 to 1, expected .* those of \w+Sch"
    ):
        ours.time(torch.tensor([1e-9, 1.0]))


@pytest.mark.parametrize("cls", [KarrasDenoiser, SimpleDenoiser])
def test_values_are_those_of_the_library_and_arguments_reach_the_network(cls):
    denoiser = cls(Backbone(), noise.VPSchedule())
    field = from_azula(denoiser, shift=0.5)
    x = torch.randn(4, D, generator=generator(0, "x"))
    t = torch.tensor([0.1, 0.2, 0.2, 0.9])
    assert torch.equal(field(x, t), denoiser(x, t, shift=0.5).mean)
    assert not torch.equal(field(x, t), denoiser(x, t).mean)
    assert field.module is denoiser and field.name == cls.__name__
    field.module.double()
    assert field(x.double(), t.double()).dtype == torch.float64


def test_a_plugin_with_labels_is_a_denoiser_in_the_units_of_its_data():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.25))

        def forward(self, y, sigma, class_labels):
            return self.scale * y + class_labels.sum() + 0 * sigma[:, None]

    field = from_azula(
        ElucidatedDenoiser(Network()), data_range=(-1.0, 1.0), label=torch.tensor([0.0, 0.5])
    )
    y, sigma = torch.rand(2, D, generator=generator(0, "y")), torch.tensor([0.3, 4.0])
    expected = (0.25 * (2 * y - 1) + 0.5 + 1) / 2
    torch.testing.assert_close(Denoiser(field)(y, sigma), expected)


@pytest.mark.parametrize("found", [nn.Linear(2, 2), lambda x, t: x])
def test_what_is_no_denoiser_of_the_library_is_refused(found):
    with pytest.raises(BadInput, match=f"denoiser: found an object of type {type(found).__name__}"):
        from_azula(found)
