import math

import pytest
import torch
import torchode
from scipy.integrate import RK45, solve_ivp

from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator
from qcsbm.sampling.solver import ERROR_WEIGHTS, NODES, WEIGHTS, integrate


class Rows:
    """``f``, counting at how many samples it is evaluated and keeping the times."""

    def __init__(self, f):
        self.f = f
        self.evaluations = 0
        self.times = []

    def __call__(self, t, y, *constants):
        self.evaluations += len(y)
        self.times.append(t)
        return self.f(t, y, *constants)


def decay(t, y):
    """d(a, rate)/dt = (-rate a, 0): the state carries its own stiffness."""
    return torch.stack([-y[:, 1] * y[:, 0], torch.zeros_like(y[:, 0])], 1)


def swirl(t, y):
    """A nonlinear field of five components that depends on time."""
    weight = torch.randn(5, 5, generator=generator(0, "swirl"), dtype=torch.float64)
    return torch.sin(y @ weight.to(y)) * (1 + 5 * t[:, None])


def starts(n):
    return torch.randn(n, 5, generator=generator(0, "starts"), dtype=torch.float64)


def test_coefficients_are_those_of_scipy():
    assert list(NODES) == pytest.approx([*RK45.C[1:], 1], rel=1e-15)
    for i, row in enumerate([*RK45.A[1:], RK45.B]):
        assert WEIGHTS[i] == pytest.approx(row[: i + 1], rel=1e-15)
    # Shampine's estimate is two thirds of Dormand and Prince's; SciPy's has the other sign.
    assert list(ERROR_WEIGHTS) == pytest.approx(-2 / 3 * RK45.E, rel=1e-14)


def test_solves_in_both_directions_within_tolerance():
    y = torch.tensor([[1.0, 1.0], [2.0, 30.0]], dtype=torch.float64)
    expected = y[:, 0] * torch.exp(-y[:, 1])
    forward = integrate(decay, y, 0.0, 1.0, rtol=1e-8, atol=1e-30)
    # Relative local errors of rtol each, over fewer than 1000 steps.
    assert torch.allclose(forward.y[:, 0], expected, rtol=1e-5, atol=0)
    back = integrate(decay, forward.y, 1.0, 0.0, rtol=1e-8, atol=1e-30)
    assert torch.allclose(back.y, y, rtol=2e-5, atol=0)


@pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (1.0, 0.0), (0.2, 1.0), (1.3, -0.2)])
def test_takes_the_steps_of_torchode(t_start, t_end):
    y = starts(40)
    # torchode rounds tolerances to float32: powers of two are the same in both.
    rtol, atol = 2**-10, 2**-17
    term = torchode.ODETerm(swirl)
    solver = torchode.AutoDiffAdjoint(
        torchode.Dopri5(term), torchode.IntegralController(atol, rtol, term=term)
    )
    start, end = (torch.full((40,), t, dtype=torch.float64) for t in (t_start, t_end))
    # The start is the first of the times at which the solution is asked for.
    times = torch.stack([start, end], 1)
    peer = solver.solve(torchode.InitialValueProblem(y, start, end, times))
    found = integrate(swirl, y, t_start, t_end, rtol, atol)
    assert torch.equal(found.nfe, 2 + 6 * peer.stats["n_steps"])
    assert found.nfe.max() > found.nfe.min() + 12
    # Rounding of a hundred stages in a field of slope 20; the peer interpolates the end.
    assert (found.y - peer.ys[:, 1]).abs().max() < 1e-10


@pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("rtol", [1e-4, 1e-7])
def test_agrees_with_scipy_within_tolerance(t_start, t_end, rtol):
    y = starts(4)
    found = integrate(swirl, y, t_start, t_end, rtol, rtol / 10).y

    def f(t, y):
        return swirl(torch.tensor([t]), torch.tensor(y)[None])[0].numpy()

    for y_i, found_i in zip(y, found, strict=True):
        exact = solve_ivp(f, (t_start, t_end), y_i.numpy(), "DOP853", rtol=1e-12, atol=1e-13)
        # Local errors of rtol times a state of order 5, over up to 50 steps.
        error = (found_i - torch.tensor(exact.y[:, -1])).abs().max()
        assert rtol / 1e4 < error < 5 * 50 * rtol


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_sample_does_not_depend_on_a_stiff_partner(dtype, rtol):
    y = torch.tensor([[1.0, 500.0], [1.0, 1.0]], dtype=dtype)
    both = integrate(decay, y, 0.0, 1.0, rtol=1e-5, atol=1e-7)
    assert both.nfe[0] > 5 * both.nfe[1]
    for i in range(2):
        alone = integrate(decay, y[i : i + 1], 0.0, 1.0, rtol=1e-5, atol=1e-7)
        assert alone.nfe == both.nfe[i]
        # The fast sample has decayed to a residue of the order of atol.
        assert torch.allclose(alone.y[0], both.y[i], rtol=rtol, atol=1e-7 * rtol)


def test_pays_for_the_evaluations_of_each_sample_and_no_more():
    y = torch.tensor([[1.0, 1.0], [1.0, 500.0], [1.0, 20.0], [3.0, 2.0]])
    f = Rows(decay)
    solution = integrate(f, y, 0.0, 1.0, rtol=1e-4, atol=1e-6)
    assert f.evaluations == solution.nfe.sum()
    assert len(set(solution.nfe.tolist())) > 2


def test_constants_stay_with_their_samples():
    # Rates out of order, so that samples leave from the middle, and then one by one.
    rates = torch.tensor([3.0, 300.0, 1.0, 30.0, 100.0], dtype=torch.float64)
    shift = torch.arange(10, dtype=torch.float64).view(5, 2)

    def f(t, y, rates, shift):
        return -rates[:, None] * (y - shift)

    y = torch.ones(5, 2, dtype=torch.float64)
    solution = integrate(f, y, 0.0, 1.0, 1e-9, 1e-11, constants=(rates, shift))
    assert len(set(solution.nfe.tolist())) == 5
    expected = shift + (y - shift) * torch.exp(-rates)[:, None]
    # Errors of rtol and atol each, over fewer than 1000 steps; a contraction forgets them.
    assert (solution.y - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("t_start", "t_end"), [(0.1, 0.7), (0.7, 0.1)])
def test_never_leaves_the_interval_and_reaches_its_end(t_start, t_end):
    f = Rows(swirl)
    integrate(f, starts(20), t_start, t_end, rtol=1e-6, atol=1e-8)
    times = torch.cat(f.times)
    # One rounding of t + (t_end - t).
    assert times.min() == pytest.approx(0.1, rel=1e-15)
    assert times.max() == pytest.approx(0.7, rel=1e-15)


def test_time_is_kept_in_float64():
    # In float32 both times are 1.
    y = torch.zeros(1, 1)
    end = integrate(lambda t, y: torch.full_like(y, 1e9), y, 1.0, 1 + 1e-9, rtol=1e-3, atol=1e-3)
    assert end.y.dtype == torch.float32
    assert end.y.item() == pytest.approx(1, rel=1e-6)


def test_records_no_graph():
    a = torch.ones(1, dtype=torch.float64, requires_grad=True)
    y = starts(2).requires_grad_()
    assert not integrate(lambda t, y: a * y, y, 0.0, 1.0, rtol=1e-3, atol=1e-3).y.requires_grad


def test_failing_sample_is_named_with_time_and_state():
    # dy/dt = y^2 blows up at t = 1 / y(0), which sample 2 reaches at t = 1/2; 0 and 1 have left.
    y = torch.tensor([[0.1], [0.2], [2.0]], dtype=torch.float64)
    with pytest.raises(Diverged, match=r"sample 2 .* at t = 0\.5, where") as error:
        integrate(lambda t, y: y**2, y, 0.0, 1.0, rtol=1e-6, atol=1e-6, max_steps=200)
    assert "after 200 steps (reached max steps)" in str(error.value)


def test_as_many_steps_as_allowed_are_enough():
    y = starts(1)
    nfe = integrate(swirl, y, 0.0, 1.0, 1e-5, 1e-7).nfe
    steps = int(nfe - 2) // 6
    assert integrate(swirl, y, 0.0, 1.0, 1e-5, 1e-7, max_steps=steps).nfe == nfe
    with pytest.raises(Diverged, match="sample 0 after"):
        integrate(swirl, y, 0.0, 1.0, 1e-5, 1e-7, max_steps=steps - 1)


def test_non_finite_drift_is_an_error():
    def f(t, y):
        fast = torch.where(t[:, None] > 0.9, math.nan, 30 * y)
        return torch.where(y > 1, fast, -y)

    # Samples 0 and 1 have left when sample 2 comes to t = 0.9.
    with pytest.raises(Diverged, match=r"sample 2 .* \(infinite norm\) .* 0\.8") as error:
        integrate(f, torch.tensor([[0.1], [0.2], [1.4]]), 0.0, 1.0, rtol=1e-4, atol=1e-4)
    assert "nan" not in str(error.value)


def test_constant_solution_takes_ever_longer_steps():
    y = torch.ones(1, 3)
    solution = integrate(lambda t, y: 0 * y, y, 0.0, 1.0, rtol=1e-3, atol=1e-3)
    # 1e-6 first, ten times as much every time: the seventh step passes 1.
    assert solution.nfe == 2 + 6 * 7
    assert torch.equal(solution.y, y)
