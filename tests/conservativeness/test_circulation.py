"""Line integrals around triangles against closed forms, and the interval of their size."""

import math

import pytest
import torch
from scipy.stats import chi2

from qcsbm.conservativeness.circulation import (
    NODES,
    WEIGHTS,
    circulation,
    root_mean_square,
    triangles_of,
)
from qcsbm.runtime.errors import BadInput, Diverged
from qcsbm.runtime.seeding import generator


def normal(*shape, name="normal", dtype=torch.float64):
    return torch.randn(shape, generator=generator(0, name), dtype=dtype)


def mixture(sigma, d, modes=20, spread=2.0, dtype=torch.float64):
    """The score of equal Gaussians on R^d, which is a gradient, and points of theirs."""
    mean = spread * normal(modes, d, name="modes", dtype=dtype)

    def score(x):
        difference = mean - x[:, None]
        share = (-difference.square().sum(2) / (2 * sigma**2)).softmax(1)
        return (share[..., None] * difference).sum(1) / sigma**2

    def points(n):
        which = torch.randint(0, modes, (n,), generator=generator(0, "which"))
        return mean[which] + sigma * normal(n, d, name="noise", dtype=dtype)

    return score, points


def half_area(a, triangles):
    """½ wᵀAu of triangles (m, 3, D)."""
    u, w = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    return ((w @ a) * u).sum(1) / 2


def test_rule_is_exact_for_polynomials_of_degree_17():
    for degree in range(18):
        integral = 0 if degree % 2 else 2 / (degree + 1)
        assert float(WEIGHTS @ NODES**degree) == pytest.approx(integral, abs=1e-14)
    assert abs(float(WEIGHTS @ NODES**18) - 2 / 19) > 1e-8


def test_circulation_of_a_linear_field():
    d = 5
    j, k = normal(d, d, name="j"), normal(d, name="k")
    triangles = triangles_of(normal(31, d))
    found = circulation(lambda x: x @ j.T + k, triangles)
    torch.testing.assert_close(found.values, half_area(j - j.T, triangles))
    assert found.error.max() < 1e-12 and found.values.abs().min() > 1e-3
    # Against the clock, the other sign.
    back = circulation(lambda x: x @ j.T + k, triangles.flip(1))
    torch.testing.assert_close(back.values, -found.values)
    # In the plane, s = (-y, x) has twice the signed area.
    corners = torch.tensor([[[0.0, 0], [3, 0], [0, 2]]])
    turned = circulation(lambda x: torch.stack([-x[:, 1], x[:, 0]], 1), corners)
    assert float(turned.values) == pytest.approx(6)


def test_integral_of_the_size_of_a_constant_field():
    k = normal(4, name="k")
    triangles = triangles_of(normal(9, 4))
    found = circulation(lambda x: k.expand_as(x), triangles)
    torch.testing.assert_close(
        found.absolute, ((triangles.roll(-1, 1) - triangles) @ k).abs().sum(1)
    )
    # Rounding alone, and said to be so.
    assert (found.values.abs() <= found.error).all() and found.error.max() < 1e-13
    single = circulation(lambda x: k.float().expand_as(x), triangles.float())
    lengths = (triangles.roll(-1, 1) - triangles).norm(dim=2).sum(1)
    torch.testing.assert_close(single.error, 2.0**-23 * lengths * k.norm(), rtol=1e-4, atol=0)
    # Where s·dl changes its sign along every edge.
    corners = torch.tensor([[[-1.0, 0], [1, 0], [0, 1]]])
    assert float(circulation(lambda x: x, corners).absolute) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.1, 0.03, 0.01])
def test_circulation_of_a_gradient_is_zero_within_its_error(sigma, dtype):
    score, points = mixture(sigma, 8, dtype=dtype)
    found = circulation(score, triangles_of(points(90)))
    assert found.values.dtype == torch.float64
    assert (found.values.abs() <= found.error).all()
    if sigma == 1:
        assert (found.error < 1e-5 * found.absolute).all()
        # Below rounding there is nothing to find.
        assert dtype == torch.float64 or found.evaluations < 0.8 * 30 * 765
    if sigma == 0.01:  # jumps of 1e-5 of an edge: too narrow to be found, and that shows
        assert (found.error > 1e-3 * found.absolute).any()


@pytest.mark.parametrize("sigma", [0.5, 0.1])
def test_rotation_planted_in_a_gradient_is_found_within_its_error(sigma):
    score, points = mixture(sigma, 8)
    a = torch.zeros(8, 8, dtype=torch.float64)
    a[0, 1], a[1, 0] = 3 / sigma**2, -3 / sigma**2
    triangles = triangles_of(points(90))
    found = circulation(lambda x: score(x) + x @ a.T / 2, triangles)
    truth = half_area(a, triangles)
    assert ((found.values - truth).abs() <= found.error).all()
    assert ((found.error < 0.011 * truth.abs()) | (found.evaluations > 45 * 30)).all()
    assert truth.abs().median() > 10 * found.error.median()


def test_more_intervals_make_the_error_smaller_and_are_not_taken_without_need():
    score, points = mixture(0.3, 8)
    triangles = triangles_of(points(30))
    few, many = (circulation(score, triangles, max_intervals=n) for n in (3, 40))
    assert few.evaluations == 10 * 3 * 17
    assert many.error.sum() < 0.01 * few.error.sum()
    # A large value ends it at a hundredth of itself.
    turned = circulation(lambda x: score(x) + 1e3 * x.roll(1, 1), triangles, max_intervals=40)
    assert turned.evaluations < many.evaluations / 4
    assert (turned.error <= 0.01 * turned.values.abs()).all()


def test_what_a_triangle_gets_depends_on_no_other_and_on_no_batch():
    score, points = mixture(0.3, 8)
    triangles = triangles_of(points(30).view(30, 2, 4))
    sizes = []

    def function(x):
        assert x.shape[1:] == (2, 4) and not torch.is_grad_enabled()
        sizes.append(len(x))
        return score(x.flatten(1)).view_as(x)

    whole = circulation(function, triangles)
    assert sum(sizes) == whole.evaluations and max(sizes) == 256
    sizes.clear()
    small = circulation(function, triangles, batch_size=7)
    assert sum(sizes) == whole.evaluations and max(sizes) == 7
    alone = circulation(function, triangles[3:4])
    for a, b, c in zip(whole[:3], small[:3], alone[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a[3:4], c, rtol=1e-9, atol=1e-9)


def test_triangles_share_no_point():
    x = torch.arange(11 * 2).view(11, 2)
    triangles = triangles_of(x)
    assert triangles.shape == (3, 3, 2)
    torch.testing.assert_close(triangles.flatten(0, 1), x[:9])
    with pytest.raises(BadInput, match="points for triangles: found 2, expected at least 3"):
        triangles_of(x[:2])


def test_field_that_is_not_finite_on_an_edge():
    corners = torch.tensor([[[1.0, 1], [2, 1], [2, 2]], [[-1, 0], [1, 0], [0, 1]]])
    with pytest.raises(Diverged, match="not finite on an edge of triangle 1"):
        circulation(lambda x: x / x.square().sum(1, keepdim=True), corners)


# The size over triangles


def test_size_of_few_and_of_no_circulations():
    assert root_mean_square(torch.tensor([-3.0])) == (3.0, None, None, None, 1)
    assert root_mean_square(torch.zeros(4)) == (0.0, 0.0, 0.0, 0.0, 4)
    found = root_mean_square(torch.tensor([3.0, -4.0]))
    assert found.value == pytest.approx(math.sqrt(12.5)) and found.n == 2
    assert 0 < found.low < found.value < found.high


def test_interval_of_light_tails_is_that_of_a_variance():
    values = torch.tensor([1.0, -1, 2, -2]).repeat(100)
    found = root_mean_square(values)
    # κ is 1.36, and the degrees of freedom are at their upper bound: quantiles of χ² with 480.
    low, high = (math.sqrt(2.5 * 480 / q) for q in (542.60, 421.19))
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))


def test_interval_of_heavy_tails_is_wider():
    values = torch.tensor([1.0] * 29 + [-4])
    found = root_mean_square(values)
    kurtosis = 30 * (29 + 4**4) / (29 + 4**2) ** 2 * 32 / 30
    freedom = 60 / (5 / 3 + (kurtosis - 8 / 3) * (1 + 6 / math.sqrt(30)))
    ends = [found.value * math.sqrt(freedom / chi2.ppf(p, freedom)) for p in (0.975, 0.025)]
    assert (found.low, found.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    # One value that is all there is: three degrees of freedom, and no fewer.
    single = root_mean_square(torch.tensor([0.0] * 15 + [4]))
    assert single.high == pytest.approx(math.sqrt(3 / 0.215795), rel=1e-5)


def covering(repeated, truth):
    """The share of the rows of ``repeated`` (R, m) whose interval holds ``truth``."""
    intervals = [root_mean_square(row) for row in repeated]
    return sum(i.low <= truth <= i.high for i in intervals) / len(intervals)


@pytest.mark.parametrize("planes", [1, 3])
def test_interval_covers_where_the_rotation_is_in_few_planes(planes):
    # The area of a triangle of normal points has Laplace's distribution, of variance 2.
    uniform = torch.rand((2000, 64, planes), generator=generator(0, "laplace")).double() - 0.5
    values = (-uniform.sign() * (1 - 2 * uniform.abs()).log()).sum(2)
    assert 0.93 <= covering(values, math.sqrt(2 * planes)) <= 0.97
    values = values[:500]
    errors = torch.tensor([root_mean_square(row).stderr for row in values])
    true = values.square().mean(1).sqrt().std()
    # The spread of 500 repetitions is known to 1 / √1000, and tails make the error a little small.
    assert float(errors.mean()) == pytest.approx(float(true), rel=0.15)


def linear(d, draws):
    """A random linear field on R^d, and ‖A‖_F²."""
    if d <= 300:
        j = torch.randn((d, d), generator=draws)
        return lambda x: x @ j.T, float((j - j.T).square().sum())
    # (Jx)_i = a_i x_i + b_i x_{i+1}: A has b above the diagonal and −b below it.
    a, b = torch.randn((2, d), generator=draws)
    return lambda x: a * x + b * x.roll(-1, 1), 2 * float(b.square().sum())


@pytest.mark.parametrize("d", [16, *(pytest.param(d, marks=pytest.mark.slow) for d in (300, 3072))])
def test_intervals_cover_the_closed_form_for_random_linear_fields(d):
    draws = generator(0, "coverage", d)
    fields, repetitions, m = 20, 40, 8 if d > 300 else 16
    shares = []
    for _ in range(fields):
        function, squared_norm = linear(d, draws)
        sigma = 0.5 + float(torch.rand((), generator=draws))
        x = sigma * torch.randn((repetitions * m * 3, d), generator=draws)
        found = circulation(function, triangles_of(x))
        truth = math.sqrt(0.75 * squared_norm) * sigma**2
        shares.append(covering(found.values.view(repetitions, m), truth))
    assert 0.93 <= sum(shares) / fields <= 0.97


def test_expected_square_for_points_of_any_covariance():
    draws = generator(0, "covariance")
    j, root = torch.randn((2, 6, 6), generator=draws, dtype=torch.float64)
    x = torch.randn((30000, 6), generator=draws, dtype=torch.float64) @ root.T + 7
    found = root_mean_square(half_area(j - j.T, triangles_of(x)))
    a, s = j - j.T, root @ root.T
    truth = math.sqrt(0.75 * float((a @ s @ a.T @ s).trace()))
    assert abs(found.value - truth) < 4 * found.stderr < 0.05 * truth
