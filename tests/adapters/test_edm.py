"""D(x; σ) as a field, for Gaussian data and for a module with labels."""

import torch
from torch import nn

from qcsbm.adapters.edm import from_edm
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import to_score
from qcsbm.score.schedules import EDM


def test_score_of_a_gaussian_follows():
    mean, variance = 0.4, 0.3

    def denoiser(x, sigma):
        weight = variance / (variance + sigma[:, None] ** 2)
        return mean + weight * (x - mean)

    field = from_edm(denoiser)
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    x = mean + torch.randn(3, 4, generator=generator(0, "x")).double() * (1 + sigma[:, None])
    expected = -(x - mean) / (variance + sigma[:, None] ** 2)
    found = to_score(field.kind, field.schedule, field(x, sigma), x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (field.kind, field.schedule, field.data_range) == ("denoiser", EDM(), (-1, 1))
    assert field.module is None


def test_every_sample_gets_the_label_of_the_class():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.classes = nn.Linear(3, 4)

        def forward(self, x, sigma, class_labels):
            assert class_labels.shape == (len(x), 3)
            return x + self.classes(class_labels)

    network = Network()
    label = torch.tensor([0, 1, 0])
    field = from_edm(network, label, schedule=EDM(0.01, 10.0), data_range=(0.0, 1.0), name="mine")
    x = torch.zeros(2, 4)
    expected = network.classes(label.float()).expand(2, -1)
    torch.testing.assert_close(field(x, torch.ones(2)), expected)
    assert field.module is network and field.schedule == EDM(0.01, 10.0)
    assert (field.name, field.data_range) == ("mine", (0, 1))
