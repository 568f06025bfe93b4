"""Asym, NAsym and the L_QC estimators against full Jacobians."""

import itertools
import math

import pytest
import torch
from conftest import Once, score_model
from torch import nn

from qcsbm.conservativeness import asymmetry
from qcsbm.conservativeness.asymmetry import (
    ESTIMATORS,
    antisymmetric_estimate,
    estimate_asymmetry,
    exact_asymmetry,
    half_squared_rotation,
    one_probe_asymmetry,
    qc_loss,
    trace_estimate,
)
from qcsbm.conservativeness.products import jacobian, rademacher, vjp, vjp_jvp
from qcsbm.runtime.seeding import generator
from qcsbm.score.models import build

D = 6
NETWORK = dict(
    type="ncsnpp", nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0
)
SDE = dict(sigma_min=0.01, sigma_max=5.0)


class Field(nn.Module):
    """A small smooth vector field on R^D that is no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, D)).double()

    def forward(self, x, t):
        return self.net(x) / t[:, None]


def points(n=4):
    x = torch.randn(n, D, dtype=torch.float64, generator=generator(0, "points"))
    return x.requires_grad_(), torch.linspace(0.5, 1.5, n, dtype=torch.float64)


def gradient(value, field):
    return torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(value, list(field.parameters()), allow_unused=True)
            if g is not None
        ]
    )


def network(parameterisation, residual, init_scale=1.0):
    """A U-Net on 1 × 4 × 4 images whose field is far from zero and from symmetric."""
    model = build(
        (1, 4, 4),
        score_model(parameterisation, residual, dict(NETWORK, init_scale=init_scale), SDE),
        0,
    )
    return model.double().eval()


def test_products_equal_those_of_the_full_jacobian():
    field = Field()
    x, t = points()
    j = jacobian(field(x, t), x)
    v = torch.randn_like(x)
    expected = torch.autograd.functional.jacobian(lambda y: field(y[None], t[:1])[0], x[0].detach())
    torch.testing.assert_close(j[0], expected)
    s = field(x, t)
    jt_v, j_v = vjp_jvp(s, x, v)
    torch.testing.assert_close(jt_v, (j.mT @ v[..., None])[..., 0])
    torch.testing.assert_close(j_v, (j @ v[..., None])[..., 0])
    torch.testing.assert_close(vjp(s, x, v), jt_v)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator_and_its_gradient_average_to_the_exact_loss_over_all_rademacher_probes(estimator):
    field = Field()
    x, t = points()
    exact = half_squared_rotation(jacobian(field(x, t), x, create_graph=True)).mean()
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)), dtype=torch.float64)
    probes = every[:, None, :].expand(-1, len(x), -1)
    estimate = qc_loss(field(x, t), x, probes, estimator).mean()
    torch.testing.assert_close(estimate, exact)
    # The mean of v vᵀ over all sign vectors is the identity, so the gradients agree as well.
    torch.testing.assert_close(gradient(estimate, field), gradient(exact, field))


@pytest.mark.parametrize("copies", [1, 2, 4, 9])
def test_rows_of_the_jacobian_taken_together_are_those_taken_alone(copies):
    # 4 does not divide D = 6, and 9 is more than there are rows.
    field = Field()
    x, t = points(3)
    repeated = x.detach().repeat(copies, 1).requires_grad_()
    j = jacobian(field(repeated, t.repeat(copies)), repeated, copies=copies)
    for i in range(3):
        expected = torch.autograd.functional.jacobian(
            lambda y, i=i: field(y[None], t[i : i + 1])[0], x[i].detach()
        )
        torch.testing.assert_close(j[i], expected)


@pytest.mark.parametrize("n", [3, 200])
def test_exact_asymmetry_does_not_depend_on_the_size_of_the_batch(n):
    field = Field()
    x, t = points(n)
    j = jacobian(field(x, t), x)
    a = j - j.mT
    asym, nasym = exact_asymmetry(field, x, t)
    torch.testing.assert_close(asym, a.square().sum((1, 2)) / 2)
    torch.testing.assert_close(nasym, a.square().sum((1, 2)) / (4 * j.square().sum((1, 2))))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_one_probe_equals_that_through_the_full_jacobian_of_a_network(estimator):
    model = network("score", False)
    g = generator(0, "gradient")
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=g).requires_grad_()
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    v = rademacher(x.shape, g).double()
    loss = qc_loss(model(x, t), x, v[None], estimator)
    j = jacobian(model(x, t), x, create_graph=True)
    jt_v, j_v = ((m @ v.flatten(1)[..., None])[..., 0] for m in (j.mT, j))
    expected = {
        "trace": (jt_v * jt_v).sum(1) - (jt_v * j_v).sum(1),
        "antisymmetric": (j_v - jt_v).square().sum(1) / 2,
    }[estimator]
    torch.testing.assert_close(loss, expected)
    # The two graphs round differently: 1e-16 times what cancels between J and its transpose.
    torch.testing.assert_close(
        gradient(loss.sum(), model), gradient(expected.sum(), model), rtol=1e-7, atol=1e-9
    )


def test_gradient_of_the_antisymmetric_estimate_holds_its_residual_constant():
    field = Field()
    x, t = points()
    v = rademacher(x.shape, generator(2)).double()
    loss = qc_loss(field(x, t), x, v[None], "antisymmetric").sum()
    s = field(x, t)
    jt_v, j_v = vjp_jvp(s, x, v)
    u = j_v - jt_v
    bilinear = (vjp(s, x, u, create_graph=True) * v - vjp(s, x, v, create_graph=True) * u).sum()
    torch.testing.assert_close(gradient(loss, field), gradient(bilinear, field))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator_on_a_network_is_unbiased(estimator):
    model = network("score", False)
    g = generator(0, "unbiased")
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=g).requires_grad_()
    t = torch.tensor([0.5], dtype=torch.float64)
    exact = half_squared_rotation(jacobian(model(x, t), x))[0]
    n = 2000
    xs = x.detach().expand(n, -1, -1, -1).clone().requires_grad_()
    probes = rademacher((1, *xs.shape), g).double()
    values = qc_loss(model(xs, t.expand(n)), xs, probes, estimator).detach()
    assert exact > 0
    # Four standard errors: one correct estimator in 16 000 fails.
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(n)


def test_linear_field_has_the_asymmetry_of_its_matrix():
    m = torch.randn(D, D, dtype=torch.float64, generator=generator(0, "matrix"))
    x, t = points()
    asym, nasym = exact_asymmetry(lambda y, _: y @ m.T, x, t)
    a = m - m.T
    torch.testing.assert_close(asym, (a.square().sum() / 2).expand(4))
    torch.testing.assert_close(nasym, (a.square().sum() / (4 * m.square().sum())).expand(4))


def test_rotation_has_nasym_one_and_gradient_zero():
    x = torch.randn(3, 2, dtype=torch.float64)
    t = torch.ones(3, dtype=torch.float64)
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(exact_asymmetry(lambda y, _: y @ rotation.T, x, t)[1], t)
    assert exact_asymmetry(lambda y, _: -y, x, t)[1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_field_has_no_asymmetry(dtype):
    def constant(y, _):
        return 0 * y + 1

    x, t = torch.randn(3, 2, dtype=dtype), torch.ones(3, dtype=dtype)
    found = [
        exact_asymmetry(constant, x, t),
        estimate_asymmetry(constant, x, t, 3, generator(0)),
        estimate_asymmetry(constant, x, t, 3, generator(0), 1e-2),
        one_probe_asymmetry(constant, x, t, generator(0)),
    ]
    assert all((torch.stack(values) == 0).all() for values in found)


@pytest.mark.parametrize(("residual", "init_scale"), [(True, 0.0), (False, 1.0), (True, 1.0)])
def test_energy_model_is_conservative_to_rounding(residual, init_scale):
    model = network("energy", residual, init_scale)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=generator(0, "energy"))
    nasym = exact_asymmetry(model, x, torch.tensor([0.1, 0.9], dtype=torch.float64))[1]
    assert nasym.max() <= 1e-9
    # The same network without the energy is not: the bound above can fail.
    assert exact_asymmetry(network("score", False), x, torch.full((2,), 0.5))[1].min() > 1e-3


def test_energy_score_is_minus_the_gradient_of_its_energy():
    model = network("energy", True)
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.4], dtype=torch.float64)
    with torch.no_grad():
        s = model(x, t)
        i, step = (0, 0, 1, 2), 1e-5
        forward, backward = x.clone(), x.clone()
        forward[i] += step
        backward[i] -= step
        slope = (model.energy(forward, t) - model.energy(backward, t)) / (2 * step)
    # Central differences err by O(step²) ~ 1e-10 relative to the third derivative.
    assert s[i].item() == pytest.approx(-slope.item(), rel=1e-6)


def test_what_measures_a_score_leaves_its_argument_as_it_is():
    model, x, t = network("energy", True), torch.rand(2, 1, 4, 4).double(), torch.full((2,), 0.5)
    model(x, t)
    exact_asymmetry(model, x, t)
    estimate_asymmetry(model, x, t, 2, generator(0))
    estimate_asymmetry(model, x, t, 2, generator(0), 1e-3)
    one_probe_asymmetry(model, x, t, generator(0))
    assert not x.requires_grad
    # Products are no part of a graph that nobody asked for.
    y = x.clone().requires_grad_()
    s = model(y, t)
    v = torch.ones_like(y)
    for product in (vjp(s, y, v), *vjp_jvp(s, y, v), jacobian(s, y)):
        assert not product.requires_grad


def test_u_and_c_have_the_same_parameters():
    u, c = network("score", False), network("energy", True)
    torch.testing.assert_close(dict(u.named_parameters()), dict(c.named_parameters()))


def test_trace_estimate_is_the_antisymmetric_one_minus_a_term_of_mean_zero():
    j = torch.randn(1, D, D, dtype=torch.float64)
    v = rademacher((1, D), generator(1)).double()
    jt_v, j_v = (j.mT @ v[..., None])[..., 0], (j @ v[..., None])[..., 0]
    a, s = j[0] - j[0].T, (j[0] + j[0].T) / 2
    difference = antisymmetric_estimate(jt_v, j_v) - trace_estimate(jt_v, j_v)
    torch.testing.assert_close(difference[0], v[0] @ s @ a @ v[0])


@pytest.mark.parametrize("step", [None, 1e-3])
def test_estimated_asymmetry_agrees_with_the_exact_one(step):
    field = Field()
    n = 4000
    g = generator(0, "estimate")
    x = torch.randn(1, D, dtype=torch.float64, generator=g).expand(n, -1)
    t = torch.ones(n, dtype=torch.float64)
    exact = [value.item() for value in exact_asymmetry(field, x[:1], t[:1])]
    for value, truth in zip(estimate_asymmetry(field, x, t, 8, g, step), exact, strict=True):
        # Four standard errors, and for the ratio what is left of its bias, O(1/probes²).
        assert abs(value.mean() - truth) < 4 * value.std() / math.sqrt(n) + 0.02 * truth


def test_differences_bias_asym_by_the_square_of_the_step_and_a_probe_by_the_step(monkeypatch):
    field = Field()
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)), dtype=torch.float64)
    monkeypatch.setattr(asymmetry, "rademacher", lambda shape, generator: every)
    x = points(1)[0].detach().expand(len(every), -1)
    t = torch.ones(len(every), dtype=torch.float64)
    exact = exact_asymmetry(field, x[:1], t[:1])[0]
    expected = torch.stack(estimate_asymmetry(field, x, t, 1, generator(0)))
    biases, errors = [], []
    for step in (1e-2, 1e-3, 1e-4, 1e-13):
        found = torch.stack(estimate_asymmetry(field, x, t, 1, generator(0), step))
        biases.append(abs(found[0].mean() - exact).item())
        errors.append(((found - expected) / expected).square().mean(1).sqrt())
    assert biases[0] < 1e-3 * exact and errors[0].max() < 0.1
    assert biases[0] / biases[1] == pytest.approx(100, rel=0.05)
    for large, small in itertools.pairwise(errors[:3]):
        torch.testing.assert_close(large / small, torch.full_like(large, 10), rtol=0.05, atol=0)
    # Rounding grows at the step's inverse.
    assert biases[3] > biases[1] and (errors[3] > 10 * errors[2]).all()


def test_differences_of_a_network_in_float32_err_by_less_than_a_percent():
    model = network("score", False)
    draws = generator(0, "float32")
    for level in (0.0, 0.5, 0.9):
        t = torch.full((32,), level, dtype=torch.float64)
        std = model.sde.std(t[:1]).item()
        x = torch.rand(32, 1, 4, 4, generator=draws) + std * torch.randn(
            32, 1, 4, 4, generator=draws
        )
        exact = estimate_asymmetry(model.double(), x.double(), t, 4, generator(1))
        found = estimate_asymmetry(model.float(), x, t.float(), 4, generator(1), 3e-3 * std)
        for value, truth in zip(found, exact, strict=True):
            assert 0 < abs(value.mean() / truth.mean() - 1) < 0.01


def test_differences_of_a_gradient_leave_the_square_of_the_step():
    model, t = network("energy", True), torch.full((3,), 0.5, dtype=torch.float64)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=generator(0, "energy"))
    found = [estimate_asymmetry(model, x, t, 2, generator(0), step)[0] for step in (1e-4, 1e-5)]
    torch.testing.assert_close(found[0] / found[1], torch.full_like(t, 100), rtol=0.05, atol=0)


def test_all_differences_take_one_pass_each_and_no_second_derivative():
    passes = []

    def score(x, t):
        passes.append((torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return Once.apply(x)

    x, t = points()
    # The derivative is diagonal: a gradient, up to a truncation of step sin(x) / 2.
    asym, nasym = estimate_asymmetry(score, x, t, 3, generator(0), 1e-5)
    assert passes == [(True, False)] + 3 * [(False, False)]
    assert 0 < asym.max() < 1e-8 and 0 < nasym.max() < 1e-8
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        estimate_asymmetry(score, x, t, 3, generator(0))


def test_one_probe_gives_the_antisymmetric_estimate_and_its_plain_ratio():
    field = Field()
    x, t = points()
    asym, nasym = estimate_asymmetry(field, x, t, 1, generator(3))
    j = jacobian(field(x, t), x)
    v = rademacher(x.shape, generator(3)).double()[..., None]
    av, norms = (j - j.mT) @ v, [(m @ v).square().sum((1, 2)) for m in (j, j.mT)]
    torch.testing.assert_close(asym, av.square().sum((1, 2)) / 2)
    torch.testing.assert_close(nasym, asym / sum(norms))


def test_one_probe_values_are_those_of_equation_9():
    field = Field()
    x, t = points()
    asym, nasym = one_probe_asymmetry(field, x, t, generator(3))
    j = jacobian(field(x, t), x)
    v = rademacher(x.shape, generator(3)).double()[..., None]
    expected = (v.mT @ j @ j.mT @ v - v.mT @ j @ j @ v)[:, 0, 0]
    torch.testing.assert_close(asym, expected)
    torch.testing.assert_close(nasym, expected / (2 * (j.mT @ v).square().sum((1, 2))))


def test_one_probe_ratio_is_biased_where_the_jackknife_is_not():
    field = Field()
    n = 20000
    g = generator(0, "bias")
    x = torch.randn(1, D, dtype=torch.float64, generator=g).expand(n, -1)
    t = torch.ones(n, dtype=torch.float64)
    truth = exact_asymmetry(field, x[:1], t[:1])[1].item()
    published = one_probe_asymmetry(field, x, t, g)[1]
    assert abs(published.mean() - truth) > 6 * published.std() / math.sqrt(n)
    assert abs(published.mean() - truth) > 0.05 * truth
