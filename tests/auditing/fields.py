"""Fields whose asymmetry is known."""

import torch
from torch import nn

from qcsbm.runtime.seeding import generator


def linear(matrix):
    """x -> Jx at every sample of any shape."""
    return lambda x: (x.flatten(1) @ matrix.T.to(x)).view_as(x)


def matrix(d, seed=0):
    """A random Jacobian (D, D), float64, a fifth of it rotation."""
    m = torch.randn(d, d, generator=generator(seed, "matrix")).double() / d**0.5
    return (m + m.T) / 2 + 0.2 * (m - m.T) / 2


def closed_form(j):
    """Asym and NAsym of a Jacobian."""
    asym = float((j - j.T).square().sum()) / 2
    return asym, asym / (2 * float(j.square().sum()))


class Potential(nn.Module):
    """The gradient of an energy that a small network has."""

    def __init__(self, d):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.energy = nn.Sequential(nn.Linear(d, 64), nn.Softplus(), nn.Linear(64, 1))

    def forward(self, x):
        with torch.enable_grad():
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            energy = self.energy(x.flatten(1)).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def points(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=generator(seed, "points"))
