"""What docs/conservative.md proves of the two estimators, exactly."""

import itertools

import numpy as np
import pytest
import torch

from qcsbm.conservativeness.asymmetry import ESTIMATORS

D = 6
SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)), dtype=torch.float64)


def every_probe(kind):
    """Vectors (n, D) and weights (n,) whose weighted sums are means of polynomials.

    For signs of all polynomials, for normal entries of those of degree five in each.
    """
    if kind == "signs":
        return SIGNS, torch.full((len(SIGNS),), 1 / len(SIGNS), dtype=torch.float64)
    points, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = torch.cartesian_prod(*[torch.from_numpy(points)] * D)
    products = torch.cartesian_prod(*[torch.from_numpy(weights / weights.sum())] * D).prod(1)
    return grid, products


def moments(j, kind):
    """Mean and variance of each estimate, by name."""
    v, weights = every_probe(kind)
    found = {}
    for name, estimate in ESTIMATORS.items():
        values = estimate(v @ j, v @ j.T)
        mean = weights @ values
        found[name] = mean, weights @ (values - mean) ** 2
    return found


def jacobians():
    """Fields of all kinds: any, nearly symmetric, and rotating in a single plane."""
    draws = torch.Generator().manual_seed(3)
    anything = torch.randn(D, D, dtype=torch.float64, generator=draws)
    steep = torch.diag(torch.arange(D).double() ** 2)
    u, w = torch.randn(2, D, dtype=torch.float64, generator=draws)
    in_one_plane = torch.outer(u, w) - torch.outer(w, u)
    return {"any": anything, "steep": anything + 10 * steep, "one plane": steep + in_one_plane}


@pytest.mark.parametrize("kind", ["signs", "normal"])
@pytest.mark.parametrize("name", jacobians())
def test_variance_is_what_the_theorem_says(name, kind):
    j = jacobians()[name]
    a, s = j - j.T, (j + j.T) / 2
    m = a.T @ a
    value = a.square().sum() / 2
    (mean_trace, of_trace), (mean, variance) = moments(j, kind).values()
    torch.testing.assert_close(torch.stack([mean_trace, mean]), value.expand(2))
    r = m.trace() ** 2 / m.square().sum()
    assert r > 2 - 1e-9 and (name != "one plane" or r < 2 + 1e-9)
    relative = variance / value**2
    if kind == "normal":
        torch.testing.assert_close(relative, 2 / r)
        commutator = (s @ a - a @ s).square().sum() / 2
        torch.testing.assert_close(of_trace, variance + commutator)
    else:
        diagonal = m.diagonal().square().sum()
        torch.testing.assert_close(relative, 2 * (m.square().sum() - diagonal) / m.trace() ** 2)
        assert relative <= 2 / r - 2 / D + 1e-12


def test_in_the_plane_every_vector_of_signs_is_exact():
    j = torch.tensor([[0.3, -1.0], [0.5, 2.0]], dtype=torch.float64)
    v = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    values = ESTIMATORS["antisymmetric"](v @ j, v @ j.T)
    torch.testing.assert_close(values, torch.full((4,), 1.5**2, dtype=torch.float64))
