"""Audits of fields whose asymmetry is known, by all products, kinds and schedules."""

import json
import math

import numpy as np
import pytest
import torch
from fields import Potential, closed_form, linear, matrix, points
from torch import nn

import qcsbm
from qcsbm.auditing.report import Report
from qcsbm.conservativeness.estimates import PRODUCTS
from qcsbm.runtime.errors import BadInput
from qcsbm.score.kinds import conversion


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_linear_field_has_its_closed_form(products):
    j = matrix(12)
    x = points(20, 3, 4).double()
    report = qcsbm.audit(linear(j), x, products=products)
    asym, nasym = closed_form(j)
    level = report.levels[0]
    assert report.protocol.products == products and report.protocol.estimator == "exact"
    assert level.asym.value == pytest.approx(asym, rel=1e-6)
    assert level.nasym.value == pytest.approx(nasym, rel=1e-6)
    assert level.lambda_.value == pytest.approx(math.sqrt(nasym), rel=1e-6)
    assert level.kappa_squared.value == pytest.approx(4 * nasym, rel=1e-6)
    assert level.zero_within is None
    assert report.mean.nasym.value == pytest.approx(level.nasym.value)

    # The corners of a triangle a → b → c enclose ½ (c − a)ᵀ A (b − a).
    a, b, c = x[:18].flatten(1).unflatten(0, (-1, 3)).unbind(1)
    around = ((c - a) @ (j - j.T) * (b - a)).sum(1) / 2
    assert level.circulation.values == pytest.approx(around.tolist(), rel=1e-6)
    assert level.circulation.rms.value == pytest.approx(float(around.square().mean().sqrt()))
    assert level.circulation.unit == "nats"

    if products == "forward":
        assert level.spectrum == () and "no spectrum" in report.warnings[0]
        return
    singular = torch.linalg.svdvals(j - j.T)[::2]
    eigenvalues = torch.linalg.eigvalsh((j + j.T) / 2)
    spectrum = level.spectrum[0]
    assert spectrum.rotation == pytest.approx(singular[:4].tolist(), rel=1e-4)
    share = 2 * float(singular[:4].square().sum()) / (2 * asym)
    assert spectrum.share == pytest.approx(share, rel=1e-4)
    assert spectrum.symmetric == pytest.approx(eigenvalues[[0, -1]].tolist(), rel=1e-3)
    assert spectrum.denoiser is None and len(level.spectrum) == 1


@pytest.mark.parametrize("products", PRODUCTS)
def test_probes_reach_the_relative_error_asked_for(products):
    j = matrix(100)
    asym, nasym = closed_form(j)
    x = points(24, 100).double()
    report = qcsbm.asymmetry(linear(j), x, products=products, relative_error=0.01)
    assert report.protocol.estimator == "probes"
    # The same Jacobian at all samples: only probes make a difference. Of 24 samples a standard
    # error is off by 15 %, of the pilot's eight their variance by 50 %.
    assert 0.4 * 0.01 * asym < report.mean.asym.stderr < 1.6 * 0.01 * asym
    for found, truth in ((report.mean.asym, asym), (report.mean.nasym, nasym)):
        assert abs(found.value - truth) < 4 * found.stderr
        assert found.low < found.value < found.high


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_is_zero_within_the_floor(products, dtype):
    d = 80
    report = qcsbm.audit(Potential(d), points(12, d), products=products, dtype=dtype, probes=8)
    zero = report.mean.zero_within
    assert zero is not None and report.levels[0].zero_within == zero
    level = report.levels[0]
    ratio = level.nasym.value / level.asym.value
    assert 0.5 * ratio < zero.nasym / zero.asym < 2 * ratio
    assert zero.lambda_ == pytest.approx(math.sqrt(zero.nasym))
    assert 0 < zero.lambda_ < (3e-2 if dtype == "float32" else 1e-4)
    assert "zero within" in str(report) and "is a gradient" in report.conclusion[0]
    assert report.levels[0].circulation.relative < 1e-4


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_planted_rotation_of_one_per_cent_is_found(products):
    d = 80
    potential, x = Potential(d).double(), points(32, d).double()
    norm = math.sqrt(
        sum(float(of_sample.square().sum()) for of_sample in _jacobians(potential, x)) / len(x)
    )
    turn = matrix(d)
    turn = turn - turn.T
    turn *= 0.01 * norm / float(turn.square().sum().sqrt())
    report = qcsbm.asymmetry(
        lambda x: potential(x) + linear(turn)(x), x, products=products, relative_error=0.05
    )
    # A = 2 turn, so that Asym is 2 ‖turn‖².
    planted = 2 * (0.01 * norm) ** 2
    assert report.mean.zero_within is None
    assert abs(report.mean.asym.value - planted) < 4 * report.mean.asym.stderr + 1e-3 * planted


def _jacobians(function, x):
    return [
        torch.autograd.functional.jacobian(lambda y: function(y[None])[0], of_sample)
        for of_sample in x
    ]


class Gaussian:
    """The score of data N(0, C) with noise, plus a rotation."""

    def __init__(self, schedule, d=6):
        self.schedule = schedule
        root = matrix(d)
        self.covariance = root @ root.T + torch.eye(d).double()
        self.turn = matrix(d, seed=1) - matrix(d, seed=1).T

    def jacobian(self, t):
        alpha, sigma = (float(of_time(t)) for of_time in (self.schedule.mean, self.schedule.std))
        eye = torch.eye(len(self.turn)).double()
        return -(alpha**2 * self.covariance + sigma**2 * eye).inverse() + self.turn / sigma**2

    def __call__(self, x, t):
        return linear(self.jacobian(t[:1].double()))(x)


def test_every_level_of_a_schedule_has_its_noise_and_its_other_kinds():
    schedule = qcsbm.VP()
    field, t = Gaussian(schedule), [0.1, 0.5]
    data = points(300, 6).double()
    report = qcsbm.audit(field, data, t, schedule=schedule, kinds=("epsilon", "x0", "score"))
    assert [level.t for level in report.levels] == t
    for level in report.levels:
        at = torch.tensor([level.t], dtype=torch.float64)
        j, std, mean = field.jacobian(at), float(schedule.std(at)), float(schedule.mean(at))
        assert level.sigma == pytest.approx(std / mean)
        assert level.asym.value == pytest.approx(closed_form(j)[0])
        for kind, found in level.nasym_by_kind.items():
            a, b = (float(c) for c in conversion("score", kind, schedule, at))
            expected = closed_form(a * torch.eye(6) + b * j)[1]
            assert found.value == pytest.approx(expected), kind
        # With corners of covariance α² + σ² = 1, as the data are standard normal too.
        circulation = level.circulation.rms
        expected = math.sqrt(3 / 4 * 2 * closed_form(j)[0])
        assert circulation.low < expected < circulation.high
        # D(y; σ) at y = x / α has the Jacobian I + σ² J.
        symmetric = torch.eye(6) + std**2 * (j + j.T) / 2
        ends = torch.linalg.eigvalsh(symmetric)[[0, -1]].tolist()
        assert level.spectrum[0].denoiser == pytest.approx(ends, rel=1e-3, abs=1e-5)
    asym = [level.asym.value for level in report.levels]
    assert report.mean.asym.value == pytest.approx(sum(asym) / 2)


def test_circulation_is_that_of_the_score_whatever_the_kind():
    schedule = qcsbm.VE()
    field, data = Gaussian(schedule), points(60, 6).double()

    def epsilon(x, t):
        return -schedule.std(t)[:, None] * field(x, t)

    options = {"t": 0.4, "schedule": schedule}
    score = qcsbm.audit(field, data, **options).levels[0]
    other = qcsbm.audit(epsilon, data, kind="epsilon", kinds=["score"], **options).levels[0]
    assert other.circulation.values == pytest.approx(score.circulation.values, rel=1e-6)
    assert other.circulation.unit == "nats"
    assert other.nasym_by_kind["score"].value == pytest.approx(score.nasym.value)
    assert other.spectrum[0].denoiser == pytest.approx(score.spectrum[0].denoiser, abs=1e-6)
    assert other.asym.value == pytest.approx(
        float(schedule.std(torch.tensor(0.4))) ** 2 * score.asym.value, rel=1e-5
    )


def test_levels_have_independent_noise():
    report = qcsbm.asymmetry(
        lambda x, t: x.square() * x.roll(1, -1), points(5, 4), [0.5, 0.5], schedule=qcsbm.VE()
    )
    first, second = (level.samples.asym for level in report.levels)
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_a_schedule_without_times_gets_five_levels():
    report = qcsbm.asymmetry(Gaussian(qcsbm.EDM()), points(4, 6).double(), schedule=qcsbm.EDM())
    assert len(report.levels) == 5
    sigma = np.log([level.sigma for level in report.levels])
    assert np.ptp(np.diff(sigma)) < 1e-6


def test_numpy_functions_are_audited_forward_only():
    j = matrix(8).numpy()
    report = qcsbm.audit(lambda x: np.matmul(x, j.T), points(10, 8).double().numpy())
    assert report.protocol.products == "forward"
    assert report.mean.nasym.value == pytest.approx(closed_form(matrix(8))[1], rel=1e-5)


class Fused(nn.Module):
    """Attention by the kernel that has no second derivative."""

    def forward(self, x):
        y = nn.functional.scaled_dot_product_attention(x, x.tanh(), x.sin())
        return y + x.roll(1, -1)


def test_fused_attention_is_differentiated_twice_all_the_same():
    report = qcsbm.asymmetry(Fused(), points(2, 2, 16, 8), probes=2)
    assert report.protocol.products == "autograd"


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def test_without_second_derivatives_differences_take_their_place():
    report = qcsbm.asymmetry(OnceOnly.apply, points(4, 5))
    assert report.protocol.products == "finite_differences"
    assert "no second derivative" in report.protocol.why
    with pytest.raises(BadInput, match="products: found 'autograd', expected 'finite_differences'"):
        qcsbm.asymmetry(OnceOnly.apply, points(4, 5), products="autograd")


def test_a_field_that_is_partly_detached_is_not_differentiated():
    j = matrix(6)
    report = qcsbm.asymmetry(
        lambda x: linear(j)(x.detach()) - 0.1 * x.roll(1, -1), points(4, 6).double()
    )
    assert report.protocol.products == "forward"
    assert "difference quotients" in report.protocol.why
    k = j - 0.1 * torch.eye(6).roll(1, 0)
    assert report.mean.asym.value == pytest.approx(closed_form(k)[0], rel=1e-5)


def test_modules_are_converted_and_put_back():
    model = nn.Linear(4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    report = qcsbm.asymmetry(model, points(4, 4), dtype="float64")
    asym, _ = closed_form(model.weight.detach().double())
    assert report.protocol.dtype == "float64"
    assert report.mean.asym.value == pytest.approx(asym, rel=1e-12)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == torch.float32


def test_one_seed_gives_the_same_bytes_and_leaves_the_callers_random_numbers(tmp_path):
    field, data = Gaussian(qcsbm.VE()), points(9, 6)
    documents = []
    state = torch.get_rng_state()
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.json"
        qcsbm.audit(field, data, 0.3, schedule=qcsbm.VE(), probes=4, seed=seed).to_json(path)
        document = json.loads(path.read_text())
        del document["cost"]
        documents.append(document)
    assert documents[0] == documents[1] != documents[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_change_nothing_but_rounding_for_whole_jacobians():
    report = [
        qcsbm.audit(Potential(10), points(9, 10), batch_size=size, dtype="float64")
        for size in (2, 64)
    ]
    norms = [r.levels[0].samples.asym for r in report]
    assert len(norms[0]) == 9
    assert report[0].levels[0].circulation.values == pytest.approx(
        report[1].levels[0].circulation.values, abs=1e-9
    )


def test_a_single_sample_has_numbers_without_intervals():
    report = qcsbm.audit(linear(matrix(4)), points(1, 4).double())
    level = report.levels[0]
    assert level.asym.stderr is None and level.nasym.low is None
    assert level.circulation is None and "no circulation" in report.warnings[0]
    assert Report.model_validate_json(report.model_dump_json()) == report
