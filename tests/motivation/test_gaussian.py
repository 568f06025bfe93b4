"""Figure 1 against the printed table, closed forms and an independent quadrature."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import quad

from qcsbm.motivation import gaussian

EPSILON = 2.25e-3


@pytest.fixture(scope="module")
def table():
    return gaussian.table()


@pytest.fixture(scope="module")
def random():
    return gaussian.random_starts()


def mixture(x):
    """μ and its gradient at points (N, 2), by NumPy."""
    angle = np.arange(10) * np.pi / 5
    offset = x[:, None] - 3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    parts = np.exp(-(offset**2).sum(-1) / 2) / (20 * np.pi)
    return parts.sum(1), -(parts[..., None] * offset).sum(1)


def closed_form(x, epsilon):
    """c and ∇c at points (N, 2), differentiated by hand: ∇log c = ½(∇log μ − ∇log p̃)."""
    stabilised = epsilon + 1e-6
    p = np.exp(-(x**2).sum(1) / (2 * 0.1**2)) / (2 * np.pi * 0.1**2)
    squared_norm = (x**2).sum(1)
    damped = p * (squared_norm + stabilised) + 1e-8
    grad_damped = (p * (2 - (squared_norm + stabilised) / 0.1**2))[:, None] * x
    mu, grad_mu = mixture(x)
    c = np.sqrt(2 * stabilised * mu / damped)
    return c, c[:, None] / 2 * (grad_mu / mu[:, None] - grad_damped / damped[:, None])


def test_all_fourteen_step_counts_are_those_printed(table):
    printed = gaussian.printed()
    assert list(table.field) == list(printed.field)
    assert list(table.epsilon) == list(printed.epsilon)
    assert list(table.steps) == list(printed.steps)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("asym_grid", "nasym_as_printed"), ("nasym_grid", "asym_as_printed")]
)
def test_grid_sums_have_the_printed_digits_in_the_exchanged_column(table, ours, theirs):
    printed = gaussian.printed()
    for field, value, expected in zip(table.field, table[ours], printed[theirs], strict=True):
        if field == "conservative":
            # Printed as 0; the ring's ten-fold symmetry leaves 1e-17 of rotation.
            assert value < 1e-12
            assert expected == 0
        else:
            assert f"{value:.2e}" == f"{expected:.2e}"


def test_the_score_matches_its_closed_form_and_is_exact_without_perturbation():
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (50, 2)))
    c, _ = closed_form(x.numpy(), EPSILON)
    radial = gaussian.score(x, "conservative", EPSILON) + x / 0.1**2
    rotational = gaussian.score(x, "non-conservative", EPSILON) + x / 0.1**2
    # Adding and removing −x/σ² of size 100 costs two digits of float64.
    np.testing.assert_allclose(radial, c[:, None] * x.numpy(), rtol=0, atol=1e-12)
    turned = np.stack([-x[:, 1], x[:, 0]], 1)
    np.testing.assert_allclose(rotational, c[:, None] * turned, rtol=0, atol=1e-12)
    assert torch.equal(gaussian.score(x, "non-conservative", 0), -x / 0.1**2)


def test_asymmetry_matches_the_curl_and_norm_differentiated_by_hand():
    x = np.random.RandomState(1).uniform(-0.6, 0.6, (200, 2))
    c, grad_c = closed_form(x, EPSILON)
    turned = np.stack([-x[:, 1], x[:, 0]], 1)
    j = turned[:, :, None] * grad_c[:, None] + c[:, None, None] * np.array([[0, -1], [1, 0]])
    j -= np.eye(2) / 0.1**2
    curl_squared = (2 * c + (x * grad_c).sum(1)) ** 2
    weights = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = gaussian.weighted_sums(torch.from_numpy(x), weights, "non-conservative", EPSILON)
    nasym = curl_squared / (2 * (j**2).sum((1, 2)))
    assert sums["asym"] == pytest.approx((weights.numpy() * curl_squared).sum(), rel=1e-10)
    assert sums["nasym"] == pytest.approx((weights.numpy() * nasym).sum(), rel=1e-10)


def test_expectations_do_not_change_with_spacing_or_width():
    reference = gaussian.expectations("non-conservative", EPSILON)
    finer = gaussian.expectations("non-conservative", EPSILON, n=961)
    wider = gaussian.expectations("non-conservative", EPSILON, half_width=1.6, n=641)
    for key, value in reference.items():
        # Sums of 2e5 terms in float64.
        assert finer[key] == pytest.approx(value, rel=1e-9)
        assert wider[key] == pytest.approx(value, rel=1e-9)


def test_esm_matches_an_adaptive_quadrature_in_polar_coordinates(table):
    angles = np.arange(40) * 2 * np.pi / 40

    def ring_average(r):
        x = r * np.stack([np.cos(angles), np.sin(angles)], 1)
        return mixture(x)[0].mean()

    def integrand(r):
        p = math.exp(-(r**2) / 0.02) / (0.02 * math.pi)
        stabilised = EPSILON + 1e-6
        mu_over_damped = ring_average(r) / (p * (r**2 + stabilised) + 1e-8)
        return 2 * math.pi * r * p * stabilised * mu_over_damped * r**2

    expected, error = quad(integrand, 0, 1.5, points=[0.3, 0.6, 0.7], epsabs=1e-16, epsrel=1e-10)
    assert error < 1e-9 * expected
    for value in table[table.epsilon == EPSILON].esm:
        assert value == pytest.approx(expected, rel=1e-8)


def test_the_score_matching_error_is_three_thousandths_of_epsilon(table):
    perturbed = table[table.epsilon > 0]
    ratio = perturbed.esm / perturbed.epsilon
    assert ratio.between(0.0030, 0.0031).all()
    assert (table[table.epsilon == 0][["asym", "nasym", "esm"]] == 0).all(axis=None)


def test_an_unperturbed_step_of_size_sigma_squared_lands_on_the_mode():
    path = gaussian.trajectories(gaussian.starts(3), "conservative", 0, 0.01)
    assert path[1].abs().max() < 1e-14
    assert gaussian.steps_to_mode(path) == 1


def test_steps_to_mode_is_the_length_of_paths_that_never_arrive():
    far = torch.ones(7, 2, 10, 2, dtype=torch.float64)
    far[4, 0] = 0
    assert gaussian.steps_to_mode(far).tolist() == [4, 7]


def test_random_starts_agree_with_the_paper_starts_one_set_at_a_time(table, random):
    batched = gaussian.random_starts([5, 0])
    assert list(batched[batched.seed == 0].steps) == list(table.steps)
    assert list(batched[batched.seed == 5].steps) == list(random[random.seed == 5].steps)


def test_random_starts_at_another_size_are_the_counts_at_that_size():
    random = gaussian.random_starts([0], 0.005)
    for row in random.itertuples():
        path = gaussian.trajectories(gaussian.starts(0), row.field, row.epsilon, 0.005)
        assert row.steps == gaussian.steps_to_mode(path)
    assert (random.h == 0.005).all()


def test_spread_summarises_the_hundred_sets_of_starts(random):
    spread = gaussian.spread(random).set_index(["field", "epsilon"])
    assert (spread.n == 100).all() and (spread.arrived == 100).all()
    chosen = random[(random.field == "conservative") & (random.epsilon == EPSILON)].steps
    row = spread.loc["conservative", EPSILON]
    assert (row["mean"], row["min"], row["max"]) == (chosen.mean(), chosen.min(), chosen.max())
    assert row["sd"] == pytest.approx(np.std(chosen, ddof=1))
    # The paper's own starts, with 16 steps, are luckier than any of the hundred others.
    assert row["min"] > 16


def test_a_step_changes_the_distance_to_the_mode_by_the_stated_factor():
    x, h = gaussian.starts(2), 0.0125
    c = torch.from_numpy(closed_form(x.numpy(), EPSILON)[0])
    factor = {
        "conservative": (1 - h / 0.1**2 + h * c).abs(),
        "non-conservative": torch.hypot(torch.tensor(1 - h / 0.1**2), h * c),
    }
    for field, expected in factor.items():
        path = gaussian.trajectories(x, field, EPSILON, h)
        torch.testing.assert_close(path[1].norm(dim=1), expected * x.norm(dim=1))
    assert (factor["non-conservative"] > 1).equal(h > 2 * 0.1**2 / (1 + 0.1**4 * c**2))


def test_rotation_costs_steps_only_where_a_step_overshoots():
    starts = pd.concat([gaussian.random_starts([0], h) for h in (0.005, 0.0125)])
    counts = starts[starts.epsilon > 0].pivot(
        index=["h", "epsilon"], columns="field", values="steps"
    )
    assert (counts.loc[0.005, "non-conservative"] < counts.loc[0.005, "conservative"]).all()
    assert (counts.loc[0.0125, "non-conservative"] > counts.loc[0.0125, "conservative"]).all()


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(ValueError, match="'curly'.*conservative, non-conservative"):
        gaussian.score(torch.zeros(1, 2), "curly", EPSILON)
