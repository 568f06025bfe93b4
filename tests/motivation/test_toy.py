"""The two-dimensional examples against closed forms, with the oracle itself as a model."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from qcsbm.conservativeness.asymmetry import half_squared_rotation
from qcsbm.conservativeness.products import jacobian
from qcsbm.motivation import toy
from qcsbm.motivation.toy import METHODS, Mixture
from qcsbm.nets.mlp import MLP
from qcsbm.runtime.seeding import generator

N = 20_000


def rotated(density, a=0.0):
    """The exact score of ``density`` plus the rotation a (−x_2, x_1), as a model of (x, t)."""

    def model(x, t):
        return density.score(x, toy.SDE.sigma(t)) + a * torch.stack([-x[:, 1], x[:, 0]], 1)

    return model


@pytest.fixture(scope="module")
def blob():
    return Mixture(torch.tensor([[1.0, -2.0]], dtype=torch.float64), variance=0.75)


@pytest.fixture(scope="module")
def mixture():
    centres = torch.randn(7, 2, generator=generator(0, "centres"), dtype=torch.float64)
    return Mixture(3 * centres, variance=0.2)


def points_and_sigma(n=60):
    rng = generator(0, "points")
    x = 3 * torch.randn(n, 2, generator=rng, dtype=torch.float64)
    return x, 0.1 + torch.rand(n, generator=rng, dtype=torch.float64)


def test_mixture_log_prob_matches_torch_distributions(mixture):
    x, sigma = points_and_sigma()
    expected = [
        MixtureSameFamily(
            Categorical(torch.ones(7, dtype=torch.float64)),
            Independent(Normal(mixture.centres, (0.2 + s**2).sqrt()), 1),
        ).log_prob(point)
        for point, s in zip(x, sigma, strict=True)
    ]
    torch.testing.assert_close(mixture.log_prob(x, sigma), torch.stack(expected))


def test_mixture_score_is_the_gradient_of_its_log_density(mixture):
    x, sigma = points_and_sigma()
    x.requires_grad_()
    expected = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)[0]
    torch.testing.assert_close(mixture.score(x, sigma), expected)


def test_mixture_of_many_points_does_not_depend_on_the_chunks():
    x, sigma = points_and_sigma()
    # 300 000 points make chunks of 27 rows, the last one shorter.
    many = Mixture(toy.spirals(300_000, generator(0, "spirals")))
    rows = [many.score(x[i : i + 1], sigma[i : i + 1]) for i in (0, 26, 27, 59)]
    torch.testing.assert_close(many.score(x, sigma)[[0, 26, 27, 59]], torch.cat(rows))


def test_mixture_samples_have_its_mean_and_variance(blob):
    sigma = torch.full((N,), 0.5, dtype=torch.float64)
    x = blob.sample(sigma, generator(0, "sample"))
    # Unit variance: standard errors of 0.007 for a mean and 0.01 for a variance.
    torch.testing.assert_close(x.mean(0), blob.centres[0], rtol=0, atol=0.035)
    torch.testing.assert_close(x.T.cov(), torch.eye(2).double(), rtol=0, atol=0.05)


def test_eight_gaussians_are_even_around_their_centres():
    x = toy.eight_gaussians(N, generator(0, "data"))
    centres = toy.eight_centres()
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 32**0.5).double())
    distance, nearest = torch.cdist(x, centres).min(1)
    # Neighbours lie 4.3 apart, six standard deviations between them: hardly any is misplaced.
    # Standard errors: 47 for a count of 2 500, 0.005 for the variance of 1/2 (two coordinates).
    assert (nearest.bincount() - N / 8).abs().max() < 5 * 47
    assert distance.square().mean() / 2 == pytest.approx(0.5, abs=0.025)


def test_checkerboard_fills_the_eight_dark_squares_evenly():
    x = toy.checkerboard(N, generator(0, "data"))
    assert (x.min() >= -6) and (x.max() < 6)
    column, row = (x / 3).floor().long().unbind(1)
    assert ((column + row) % 2 == 0).all()
    counts = torch.stack([(column == i) & (row == j) for i in range(-2, 2) for j in range(-2, 2)])
    filled = counts.sum(1)[counts.any(1)]
    assert len(filled) == 8
    assert (filled - N / 8).abs().max() < 5 * 47
    # Uniform within a square: mean ½ with standard error 0.002.
    torch.testing.assert_close(
        (x / 3 % 1).mean(0), torch.full((2,), 0.5).double(), rtol=0, atol=0.01
    )


def test_spirals_are_two_mirrored_arms_of_one_and_a_half_turns():
    x = toy.spirals(N, generator(0, "data")) * 3 / 2.3
    turn = torch.linspace(0, 3 * math.pi, 4000, dtype=torch.float64)
    arm = turn[:, None] * torch.stack([-turn.cos(), turn.sin()], 1)
    # The jitter's mean shifts an arm by (¼, ¼) and reaches √½ / 2 away from there.
    first = torch.cdist(x, arm + 0.25).min(1)
    second = torch.cdist(x, -arm - 0.25).min(1)
    assert torch.minimum(first.values, second.values).max() < 0.5**0.5 / 2 + 0.005
    on_first = first.values < second.values
    # Half of the points: standard error 71. Even in turn²: mean ½ with standard error 0.002.
    assert abs(on_first.sum() - N / 2) < 5 * 71
    turns = turn[torch.where(on_first, first.indices, second.indices)]
    assert (turns / (3 * math.pi)).square().mean() == pytest.approx(0.5, abs=0.012)


def test_oracle_is_the_true_density_or_that_of_the_points():
    points = torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "points"))
    assert toy.oracle("8-gaussian", points).variance == 0.5
    assert toy.oracle("spirals", points).centres is points


def test_network_treats_the_noise_scale_differently_at_different_points():
    torch.manual_seed(0)
    network = MLP().double()
    x = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    low, high = (network(x, torch.full((2,), s, dtype=torch.float64)) for s in (0.1, 3.0))
    change = high - low
    assert (change[0] - change[1]).abs().max() > 1e-3


def test_objective_is_dsm_plus_the_weighted_exact_rotation():
    model = toy.build(METHODS["u"], seed=0).double()
    rng = generator(0, "objective")
    x_0, z = (torch.randn(6, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    t = torch.rand(6, generator=rng, dtype=torch.float64)
    sigma = 0.1 * 30**t
    x_t = (x_0 + sigma[:, None] * z).requires_grad_()
    s = model(x_t, t)
    dsm = (sigma[:, None] * s + z).square().sum(1) / 2
    rotation = half_squared_rotation(jacobian(s, x_t, create_graph=True))
    torch.testing.assert_close(toy.objective(model, x_0, t, z, 0.0), dsm)
    expected = dsm + 0.1 * sigma**2 * rotation
    actual = toy.objective(model, x_0, t, z, 0.1)
    torch.testing.assert_close(actual, expected)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(actual.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_all_methods_start_from_the_same_weights():
    models = [toy.build(method, seed=3) for method in METHODS.values()]
    for other in models[1:]:
        for key, value in models[0].state_dict().items():
            assert torch.equal(other.state_dict()[key], value)
    assert not torch.equal(
        toy.build(METHODS["u"], seed=4).network.output.weight, models[0].network.output.weight
    )


def test_training_approaches_the_oracle_and_the_regulariser_lowers_asymmetry():
    data = toy.eight_gaussians(5_000, generator(0, "data"))
    test = toy.noised_points(toy.oracle("8-gaussian", data), n=300, seed=0, levels=4)
    untrained = toy.evaluate(toy.build(METHODS["u"], 0).double(), test).score_error.mean()
    trained = {
        name: toy.evaluate(toy.train(method, data, steps=300, batch=128, seed=0), test)
        for name, method in {**METHODS, "strong": toy.Method("score", weight=10.0)}.items()
    }
    for result in trained.values():
        assert result.score_error.mean() < untrained / 2
    assert trained["strong"].asym.mean() < trained["qc"].asym.mean() < trained["u"].asym.mean()
    # Rounding in float64 of Jacobian entries of the order of 10.
    assert trained["c"].asym.max() < 1e-24


def test_training_repeats_to_the_last_bit():
    data = toy.checkerboard(500, generator(0, "data"))
    first, second = (toy.train(METHODS["qc"], data, 5, 32, seed=1) for _ in range(2))
    for key, value in first.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, second.state_dict()[key])


def test_noised_points_carry_their_exact_scores(mixture):
    test = toy.noised_points(mixture, n=5, seed=0, levels=3)
    assert test.x.shape == test.score.shape == (3, 5, 2)
    for t, x, score in zip(test.t, test.x, test.score, strict=True):
        torch.testing.assert_close(rotated(mixture)(x, t.expand(5)), score)


def test_evaluation_of_a_rotated_oracle_is_known_in_closed_form(mixture):
    a, n = 0.7, 200
    test = toy.noised_points(mixture, n=n, seed=0, levels=3)
    result = toy.evaluate(rotated(mixture, a), test)
    squared = test.x.square().sum(2)
    expected = torch.tensor(result.score_error.to_numpy())
    torch.testing.assert_close(expected, a**2 * squared.mean(1) / 2)
    assert result.score_error_se.to_numpy() == pytest.approx(
        (a**2 * squared.std(1) / 2 / n**0.5).numpy()
    )
    # The curl of a (−x_2, x_1) is 2a.
    assert result.asym.to_numpy() == pytest.approx(4 * a**2)
    assert result.nasym.between(1e-6, 1).all()
    exact = toy.evaluate(rotated(mixture), test)
    assert exact.score_error.max() < 1e-20 and exact.asym.max() < 1e-20


def test_nll_with_the_exact_score_and_prior_is_that_of_the_noised_data(mixture):
    x, _ = points_and_sigma(20)
    sigma = toy.SDE.sigma(torch.full((20,), toy.SDE.epsilon, dtype=torch.float64))
    nll = toy.nll(rotated(mixture), mixture, x, rtol=1e-8, atol=1e-8)
    # The solver's tolerance, accumulated over its steps.
    torch.testing.assert_close(nll, -mixture.log_prob(x, sigma), rtol=1e-5, atol=1e-5)


def test_samples_of_a_gaussian_are_a_linear_image_of_the_starting_points(blob):
    n = 40
    sigma_max = torch.full((n,), 3.0, dtype=torch.float64)
    start = blob.sample(sigma_max, generator(5, "toy", "sample"))
    x = toy.sample(rotated(blob), blob, n, seed=5, rtol=1e-8, atol=1e-8)
    # The flow scales by √((v + σ_min²) / (v + σ_max²)), the denoising by v / (v + σ_min²).
    factor = ((0.75 + 0.01) / (0.75 + 9)) ** 0.5 * 0.75 / (0.75 + 0.01)
    # Time ends at epsilon, where σ exceeds σ_min by 3e-5 of itself.
    torch.testing.assert_close(
        x - blob.centres, factor * (start - blob.centres), rtol=1e-5, atol=1e-5
    )


def test_vector_field_has_its_curl_and_its_grid_in_matrix_order():
    class Swirl(nn.Module):
        def forward(self, x, t):
            return torch.stack([-(x[:, 1] ** 2), x[:, 0] ** 3], 1)

    field = toy.vector_field(Swirl(), 0.5, half_width=2.0, n=5)
    x_1, x_2 = field.x.unbind(2)
    assert x_1[:, 0].tolist() == x_2[0].tolist() == [-2, -1, 0, 1, 2]
    torch.testing.assert_close(field.curl, 3 * x_1**2 + 2 * x_2)
    torch.testing.assert_close(field.score, torch.stack([-(x_2**2), x_1**3], 2))
