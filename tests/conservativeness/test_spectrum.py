"""Rotation planes and extreme eigenvalues against dense eigendecompositions and planted planes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcsbm.conservativeness import spectrum as module
from qcsbm.conservativeness.products import jacobian
from qcsbm.conservativeness.spectrum import denoiser_eigenvalues, spectrum
from qcsbm.runtime.errors import BadInput, Diverged
from qcsbm.runtime.seeding import generator

D = 24


@pytest.fixture
def iterative(monkeypatch):
    """Products alone, however small the field is."""
    monkeypatch.setattr(module, "DENSE", 0)


def normal(*shape, name="normal"):
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


class Network(nn.Module):
    """A field on images (2, 3, 4) that is no gradient, with attention in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(4, 3 * 8).double(), nn.Linear(8, 4).double()

    def forward(self, x):
        tokens = x.flatten(1, 2)
        q, k, v = self.into(tokens).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return 5 * (self.out(mixed.tanh()) + tokens.sin()).view_as(x)


def full(function, x):
    """(A, S) of the full Jacobian at one sample."""
    x = x.detach().requires_grad_()
    j = jacobian(function(x), x)[0]
    return j - j.T, (j + j.T) / 2


def planted(d, sizes, eigenvalues, name="planes"):
    """The field x ↦ Jx with A = J − Jᵀ of singular values ``sizes``, a plane each, and S given."""
    q = torch.linalg.qr(normal(d, d, name=name))[0]
    a = torch.zeros(d, d, dtype=torch.float64)
    for i, size in enumerate(sizes):
        p, r = q[:, 2 * i], q[:, 2 * i + 1]
        a += size * (torch.outer(p, r) - torch.outer(r, p))
    basis = torch.linalg.qr(normal(d, d, name="symmetric"))[0]
    j = a / 2 + basis * eigenvalues @ basis.T
    return lambda x: x @ j.T


@pytest.mark.parametrize(
    ("products", "tolerance"), [("autograd", 1e-6), ("finite_differences", 1e-5)]
)
@pytest.mark.parametrize("dense", [0, 512])
def test_spectrum_of_a_network(products, tolerance, dense, monkeypatch):
    monkeypatch.setattr(module, "DENSE", dense)
    network, x = Network(), normal(1, 2, 3, 4)
    a, s = full(network, x)
    singular, ends = torch.linalg.svdvals(a)[::2], torch.linalg.eigvalsh(s)
    found = spectrum(network, x, 4, products, 1e-4)
    size = singular[0]
    torch.testing.assert_close(found.rotation, singular[:4], rtol=0, atol=tolerance * size)
    assert found.symmetric == pytest.approx(
        (ends[0].item(), ends[-1].item()), abs=tolerance * float(s.norm())
    )
    share = float(2 * singular[:4].square().sum() / a.square().sum())
    assert 0.5 < share < 0.99 and found.unconverged is None
    # Outside of the planes it is an estimate from few probes.
    assert abs(found.share - share) <= 4 * found.share_stderr + 1e-12
    assert found.share_stderr < (0.05 if dense == 0 else 1e-15)
    assert x.grad is None and not x.requires_grad


def test_as_many_planes_as_there_are_are_found_densely(iterative):
    network, x = Network(), normal(1, 2, 3, 4)
    a, _ = full(network, x)
    found = spectrum(network, x, D, "autograd", 0)
    torch.testing.assert_close(found.rotation, torch.linalg.svdvals(a)[::2])
    assert found.share == pytest.approx(1)
    one = spectrum(lambda x: x[..., :1] ** 2, normal(1, 1), 3, "autograd", 0)
    assert one.rotation.tolist() == [] and one.share is None
    assert one.symmetric[0] == one.symmetric[1] == 2 * normal(1, 1).item()


@pytest.mark.parametrize("sizes", [[3.0], [3, 2, 1], [2, 2, 2, 1, 1], [1] * 200])
def test_planted_planes_are_found_once_each(sizes, iterative):
    d = 600
    found = spectrum(planted(d, sizes, torch.linspace(-2, 1, d)), normal(1, d), 5, "autograd", 0)
    expected = torch.tensor(([*sizes] + [0] * 5)[:5], dtype=torch.float64)
    torch.testing.assert_close(found.rotation, expected, rtol=1e-5, atol=1e-5 * max(sizes))
    share = float(expected.square().sum()) / sum(size**2 for size in sizes)
    assert abs(found.share - share) <= 4 * found.share_stderr + 1e-9 and found.share <= 1
    # The ends of a crowded spectrum are approached from inside.
    low, high = found.symmetric
    assert -2 - 1e-9 < low < -1.99 and 0.99 < high < 1 + 1e-9
    # The full Jacobian takes as many passes as there are dimensions.
    assert found.evaluations < d and found.unconverged is None


def test_planes_with_the_same_rotation_are_told_apart(iterative):
    # Every σ but the first is there twice, and exactly so.
    d = 64
    found = spectrum(lambda x: x.roll(1, 1), torch.ones(1, d).double(), 4, "autograd", 0)
    k = torch.tensor([16, 15, 17, 14], dtype=torch.float64)
    expected = 2 * (2 * torch.pi * k / d).sin()
    torch.testing.assert_close(found.rotation, expected, rtol=1e-5, atol=0)
    assert abs(found.share - float(expected.square().sum()) / d) <= 4 * found.share_stderr


def test_eigenvalues_near_zero_converge_in_spite_of_rounding(iterative):
    d = 600
    function = planted(d, [3.0], torch.linspace(-1e4, 0, d))
    found = spectrum(
        lambda x: function(x.double()).float(), normal(1, d).float(), 3, "finite_differences", 1
    )
    assert found.unconverged is None and found.evaluations < 2 * d
    torch.testing.assert_close(
        found.rotation, torch.tensor([3.0, 0, 0]).double(), rtol=0, atol=2e-2
    )
    assert found.symmetric == pytest.approx((-1e4, 0), abs=20)


def test_standard_error_of_the_share():
    d, sizes = 40, [2.0, 1, 1, 1, 1, 1, 1, 1]
    function, x = planted(d, sizes, torch.linspace(-1, 1, d)), normal(1, d)
    truth = 4 / 11
    pair = module._Products(function, x, 2, "autograd", 0)
    _, basis = module._rotation(pair, 1, generator(0, "start"))
    scores = []
    for k in range(300):
        share, stderr = module._share(pair, np.array([2.0]), basis, generator(0, "share", k))
        scores.append((share - truth) / stderr)
    scores = torch.tensor(scores)
    # Student's t with 7 degrees of freedom has a variance of 1.4; 300 draws know it to a tenth.
    assert abs(scores.mean()) < 0.3 and 1 < scores.var() < 2


def test_gradient_and_zero_field(iterative):
    curl_free = spectrum(lambda x: -x.tanh() * 3, normal(1, D), 3, "autograd", 0)
    assert curl_free.rotation.tolist() == [0, 0, 0] and curl_free.share is None
    assert curl_free.unconverged is None
    zero = spectrum(lambda x: 0 * x, normal(1, D), 3, "finite_differences", 1e-3)
    assert zero.rotation.tolist() == [0, 0, 0] and zero.symmetric == (0, 0)
    # One eigenvalue, D times.
    scaled = spectrum(lambda x: -7 * x, normal(1, D), 3, "autograd", 0)
    assert scaled.symmetric == pytest.approx((-7, -7))


def test_result_is_reproducible_and_its_start_is_the_generator_s(iterative):
    network, x = Network(), normal(1, 2, 3, 4)
    state = torch.get_rng_state()
    runs = [spectrum(network, x, 3, "autograd", 0) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(runs[0].rotation, runs[1].rotation)
    assert (runs[0].share, runs[0].symmetric) == (runs[1].share, runs[1].symmetric)
    # Also beyond the rank of A, where an iteration has to start anew.
    linear = planted(D, [3.0], torch.linspace(-2, 1, D))
    for function in (linear, lambda x: -7 * x):
        first, *more = (spectrum(function, normal(1, D), 3, "autograd", 0) for _ in range(6))
        assert all(torch.equal(again.rotation, first.rotation) for again in more)
        assert {again.symmetric for again in more} == {first.symmetric}
    other = spectrum(network, x, 3, "autograd", 0, generator(1, "start"))
    assert other.share != runs[0].share
    torch.testing.assert_close(other.rotation, runs[0].rotation, rtol=1e-4, atol=0)


def test_passes_are_counted_and_one_forward_pass_serves_all_products(iterative):
    class Counted(torch.autograd.Function):
        passes = 0

        @staticmethod
        def forward(x):
            Counted.passes += len(x)
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, v):
            Counted.passes += len(v)
            return v.clone()

    linear = planted(D, [3, 2, 1], torch.linspace(-2, 1, D))
    found = spectrum(
        lambda x: Counted.apply(linear(x)), normal(1, D), 3, "finite_differences", 1e-3
    )
    assert found.evaluations == Counted.passes

    forward = []

    def function(x):
        forward.append(len(x))
        return linear(x)

    found = spectrum(function, normal(1, D), 3, "autograd", 0)
    assert forward == [2, 1] and found.evaluations > 100


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_step_is_that_of_a_probe_whatever_the_length_of_a_vector(iterative, scale):
    steps = []

    def function(x):
        if len(x) == 1 and not torch.is_grad_enabled():
            steps.append(float((x - centre).square().mean().sqrt()))
        return scale * x.roll(1, 1) * (1 + x.square())

    centre = normal(1, D)
    spectrum(function, centre, 2, "finite_differences", 1e-3)
    assert steps == pytest.approx([1e-3] * len(steps), rel=1e-6) and len(steps) > 20


def test_what_does_not_converge_is_said(iterative, monkeypatch):
    monkeypatch.setattr(module, "RESTARTS", 1)
    d = 400
    sizes = torch.linspace(0, 1, 200).tolist()
    found = spectrum(planted(d, sizes, torch.linspace(-1, 1, d)), normal(1, d), 5, "autograd", 0)
    missing = 5 - len(found.rotation)
    assert missing > 0 and found.symmetric == (None, None)
    assert found.unconverged == (
        f"not converged after 1 restarts: {missing} of 5 rotation planes, the lowest eigenvalue of "
        "the symmetric part, the highest eigenvalue of the symmetric part"
    )
    assert denoiser_eigenvalues(found.symmetric, 0.5, 0.8) == (None, None)


def test_denoiser_of_a_mixture_is_a_posterior_mean_and_that_of_a_steep_field_is_not(iterative):
    # x_t = α x_0 + σ z, and x_0 on one of 30 points: a rank of at most 29.
    alpha, sigma = 0.8, 0.5
    means = normal(30, D, name="means")

    def denoised(x):
        distance = (x[:, None] - alpha * means).square().sum(2)
        return (-distance / (2 * sigma**2)).softmax(1) @ means

    def score(x):
        return (alpha * denoised(x) - x) / sigma**2

    x = 0.5 * alpha * (means[:1] + means[1:2])
    found = spectrum(score, x, 2, "autograd", 0)
    low, high = denoiser_eigenvalues(found.symmetric, sigma, alpha)
    share = (-(x - alpha * means).square().sum(1) / (2 * sigma**2)).softmax(0)
    covariance = (means.T * share) @ means - torch.outer(share @ means, share @ means)
    posterior = torch.linalg.eigvalsh(covariance) * alpha / sigma**2
    assert (low, high) == pytest.approx((posterior[0].item(), posterior[-1].item()), abs=1e-3)
    assert low > -1e-3 and high > 1
    # A field steeper than that of any prior.
    steep = spectrum(lambda x: score(x) - 4.4 * x, x, 2, "autograd", 0)
    found = denoiser_eigenvalues(steep.symmetric, sigma, alpha)[0]
    assert found == pytest.approx(-4.4 * sigma**2 / alpha, abs=1e-3)


@pytest.mark.parametrize("dense", [0, 512])
def test_bad_input(monkeypatch, dense):
    monkeypatch.setattr(module, "DENSE", dense)
    with pytest.raises(BadInput, match="products: found forward, expected autograd or finite_diff"):
        spectrum(lambda x: x, normal(1, D), 2, "forward", 1e-3)
    with pytest.raises(BadInput, match="planes: found 0, expected at least 1"):
        spectrum(lambda x: x, normal(1, D), 0, "autograd", 1e-3)
    with pytest.raises(Diverged, match="is not finite"):
        spectrum(lambda x: (x - x.detach()).sqrt(), normal(1, D), 2, "autograd", 1e-3)
