"""The one-layer autoencoder against autograd, the package's L_QC, and single-seed training."""

import pytest
import torch

from qcsbm.conservativeness import products as autodiff
from qcsbm.conservativeness.asymmetry import half_squared_rotation
from qcsbm.motivation import autoencoder
from qcsbm.motivation.autoencoder import Trend, Weights, unpack


@pytest.fixture(scope="module")
def weights():
    theta = autoencoder.initial(range(4))
    # A β other than 1 in every unit, so that its place in the slope matters.
    theta[:, -2:] += torch.tensor([0.3, -0.6])
    return unpack(theta)


def test_jacobian_matches_autograd(weights):
    x = autoencoder.grid()[::50].requires_grad_()
    s = autoencoder.score(weights, x)
    j = autoencoder.jacobian(weights, x)
    for ours, field in zip(j, s, strict=True):
        torch.testing.assert_close(ours, autodiff.jacobian(field, x))


def test_l_qc_is_the_mean_of_half_the_squared_rotation(weights):
    x = autoencoder.grid()
    j = autoencoder.jacobian(weights, x)
    expected = torch.stack([half_squared_rotation(field).mean() for field in j])
    torch.testing.assert_close(autoencoder.l_qc(weights, x), expected)


def test_the_rotation_splits_into_asymmetry_and_difference_of_slopes(weights):
    x = autoencoder.grid()[::50]
    j = autoencoder.jacobian(weights, x)
    kappa = weights.r[:, 0] * weights.w[:, 1] - weights.r[:, 1] * weights.w[:, 0]
    first, second = autoencoder.slopes(weights, x).unbind(2)
    together = (first + second) / 2 * kappa.sum(1, keepdim=True)
    apart = (first - second) / 2 * (kappa[:, :1] - kappa[:, 1:])
    torch.testing.assert_close(j[..., 0, 1] - j[..., 1, 0], together + apart)
    torch.testing.assert_close(autoencoder.asymmetry(weights), 2**0.5 * kappa.sum(1).abs())


def test_initial_weights_are_uniform_and_those_of_a_seed_do_not_depend_on_the_others():
    theta = autoencoder.initial(range(500))
    assert torch.equal(autoencoder.initial([7])[0], theta[7])
    drawn, beta = theta[:, :-2], theta[:, -2:]
    assert (beta == 1).all()
    # 6 000 draws: their extremes miss ±1 by more than 0.004 with probability 1e-5, and their mean
    # and variance have the standard errors 0.0075 and 0.0038.
    assert -1 <= drawn.min() < -0.996 and 0.996 < drawn.max() <= 1
    assert abs(drawn.mean()) < 0.03 and abs(drawn.var() - 1 / 3) < 0.016


def test_batched_training_is_the_training_of_each_seed_alone():
    together = autoencoder.train([3, 4, 8], steps=60, every=20)
    assert together.steps.tolist() == [0, 20, 40, 60]
    assert together.angle.shape == (4, 3, 2)
    for i, seed in enumerate([3, 4, 8]):
        alone = autoencoder.train([seed], steps=60, every=20)
        for name in ("l_qc", "asymmetry", "untying", "angle", "slope_gap"):
            # Sums over another batch layout round differently in the last bits.
            torch.testing.assert_close(
                getattr(together, name)[:, i], getattr(alone, name)[:, 0], rtol=1e-9, atol=1e-12
            )


def test_training_matches_a_plain_module_with_pytorch_clipping_and_adam():
    seed, steps = 4, 25
    start = unpack(autoencoder.initial([seed]))
    parameters = {k: v[0].clone().requires_grad_() for k, v in vars(start).items()}
    optimiser = torch.optim.Adam(parameters.values(), lr=1e-4)
    x = autoencoder.grid().requires_grad_()
    norms = []
    for _ in range(steps):
        z = x @ parameters["w"] + parameters["b"]
        s = (z * (parameters["beta"] * z).sigmoid()) @ parameters["r"].T + parameters["c"]
        j = autodiff.jacobian(s, x, create_graph=True)
        optimiser.zero_grad()
        half_squared_rotation(j).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0))
        optimiser.step()
    # This seed is one whose gradient is clipped.
    assert min(norms) > 1
    ours = autoencoder.train([seed], steps=steps, every=steps).weights
    for name, expected in parameters.items():
        # PyTorch divides by the norm + 1e-6, which Adam's scale invariance nearly cancels.
        torch.testing.assert_close(getattr(ours, name)[0], expected.detach(), rtol=0, atol=1e-8)


def test_clipping_shortens_each_row_on_its_own():
    clipped = autoencoder.clip(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
    torch.testing.assert_close(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_tied_weights_are_exactly_conservative_and_stay_so():
    trend = autoencoder.train(range(3), tied=True, steps=20, every=10)
    for values in (trend.l_qc, trend.asymmetry, trend.untying, trend.angle):
        assert torch.equal(values, torch.zeros_like(values))
    assert torch.equal(trend.weights.r, unpack(autoencoder.initial(range(3))).w)


def test_training_lowers_l_qc_of_every_seed_and_leaves_weights_untied():
    trend = autoencoder.train(range(4), steps=300, every=300)
    assert (trend.l_qc[-1] < trend.l_qc[0]).all()
    assert (trend.untying[-1] > 0.5).all()


def test_a_symmetric_product_is_not_sufficient():
    weights, x = autoencoder.counterexample(), autoencoder.grid()
    assert autoencoder.asymmetry(weights) == 0
    # J − Jᵀ = 2(h'_2 − h'_1) [[0, 1], [−1, 0]].
    expected = 4 * autoencoder.slope_gap(weights, x) ** 2
    torch.testing.assert_close(autoencoder.l_qc(weights, x), expected)
    assert expected > 1


def test_merged_units_are_conservative_without_parallel_weights():
    counterexample = autoencoder.counterexample()
    merged = Weights(
        r=torch.tensor([[[1.0, 2.0], [2.0, -1.0]]], dtype=torch.float64),
        w=torch.tensor([[[1.0, 2.0], [3.0, 6.0]]], dtype=torch.float64),
        b=torch.tensor([[0.5, 1.0]], dtype=torch.float64),
        c=counterexample.c,
        beta=torch.tensor([[1.0, 0.5]], dtype=torch.float64),
    )
    x = autoencoder.grid()
    kappa = merged.r[0, 0] * merged.w[0, 1] - merged.r[0, 1] * merged.w[0, 0]
    assert kappa.tolist() == [1, 14]
    # Scaling r_2 by −1/14 makes κ_1 + κ_2 zero; the slopes agree for every x already.
    merged.r[0, :, 1] *= -1 / 14
    assert autoencoder.l_qc(merged, x) < 1e-25
    assert autoencoder.slope_gap(merged, x) < 1e-12
    assert (autoencoder.angle(merged) > 5).all()


def test_outcomes_tell_the_two_routes_from_training_that_did_not_converge():
    def row(*values):
        return torch.tensor([values], dtype=torch.float64)

    one = torch.ones(1, 4, dtype=torch.float64)
    trend = Trend(
        steps=torch.tensor([0, 10]),
        l_qc=torch.cat([one, row(1e-9, 1e-9, 1e-9, 1e-3)]),
        asymmetry=one,
        untying=one,
        angle=torch.tensor([[[0.1, 0.2], [0.0, 30.0], [30.0, 2.0], [0.0, 0.0]]]),
        slope_gap=row(0.5, 1e-5, 0.5, 1e-5),
        weights=autoencoder.counterexample(),
    )
    outcomes = autoencoder.outcomes([5, 6, 7, 8], trend)
    assert list(outcomes.route) == ["parallel", "merged", "none", "none"]
    assert list(outcomes.seed) == [5, 6, 7, 8]
    assert outcomes.angle.to_numpy() == pytest.approx([0.2, 30, 30, 0])


def test_angle_is_that_between_lines():
    r = torch.tensor([[[1.0, 0.0], [1.0, 2.0]]], dtype=torch.float64)
    w = torch.tensor([[[-2.0, 3.0], [-2.0, 0.0]]], dtype=torch.float64)
    empty = torch.zeros(1, 2, dtype=torch.float64)
    assert autoencoder.angle(Weights(r, w, empty, empty, empty)).tolist() == [[0, 90]]
