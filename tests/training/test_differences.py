"""L_QC by first derivatives and differences in training, against second derivatives."""

import itertools

import numpy as np
import pytest
import torch
from conftest import Once, score_model
from torch import nn

from qcsbm.conservativeness.products import rademacher
from qcsbm.runtime.seeding import derive, generator
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.losses import training_loss
from qcsbm.score.models import ScoreModel, build
from qcsbm.score.sde import VE
from qcsbm.training.loop import train

SHAPE = (1, 4, 4)
NETWORK = dict(
    type="ncsnpp",
    nf=8,
    ch_mult=[1, 2],
    num_res_blocks=1,
    attn_resolutions=[4],
    dropout=0.1,
    init_scale=1.0,
)
SDES = {
    "ve": dict(sigma_min=0.01, sigma_max=5.0),
    "vp": dict(type="vp", beta_min=0.1, beta_max=20.0),
}


def model(sde="ve"):
    return build(SHAPE, score_model("score", False, NETWORK, SDES[sde]), seed=3)


def gradient_in_training(sde="ve", **options):
    """The gradient of L_QC that a training holds after its second step, the first with one."""
    images = np.random.default_rng(0).integers(0, 17, (30, *SHAPE), dtype=np.uint8)
    settings = {"weight": 1.0, "estimator": "antisymmetric", "every": 2, "probes": 2, **options}
    training = Training(batch_size=8, lr=1e-3, warmup=5)
    state = train(model(sde), images, 17, training, Regulariser(**settings), 3, 2)
    return torch.cat([gradient.flatten() for gradient in state.qc_grad.values()])


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def differences(step=None):
    return {"derivatives": "finite_differences"} | ({"difference_step": step} if step else {})


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sde", SDES)
def test_gradient_in_training_errs_in_proportion_to_the_step_until_rounding(sde, float64):
    expected = gradient_in_training(sde)
    steps = [1e-3, 1e-4, 1e-5]
    errors = [error(gradient_in_training(sde, **differences(step)), expected) for step in steps]
    assert errors[0] < 0.01
    ratios = [large / small for large, small in itertools.pairwise(errors)]
    assert ratios == pytest.approx([10, 10], rel=0.05)
    assert error(gradient_in_training(sde, **differences(1e-12)), expected) > 10 * errors[-1]


@pytest.mark.parametrize("options", [{}, {"batch_size": 5}])
def test_gradient_in_float32_errs_by_less_than_a_percent(options):
    expected = gradient_in_training(**options)
    found = gradient_in_training(**options, **differences())
    assert 0 < error(found, expected) < 0.01


def batch():
    draws = generator(0, "batch")
    x_0, z = torch.rand(6, *SHAPE, generator=draws), torch.randn(6, *SHAPE, generator=draws)
    return x_0, torch.linspace(0.1, 0.9, 6), z, rademacher((2, 4, *SHAPE), draws)


def test_one_pass_for_both_losses_and_two_for_each_probe_all_with_the_same_dropout():
    u, states, sizes = model().train(), [], []

    def note(_, arguments):
        states.append(torch.get_rng_state())
        sizes.append(len(arguments[0]))

    u.register_forward_pre_hook(note)
    *points, probes = batch()
    losses = []
    for step in (None, 0.003):
        torch.manual_seed(derive(3, "dropout"))
        losses.append(training_loss(u, *points, probes, "antisymmetric", step))
    assert sizes == [4, 2] + [4, 4, 4, 4, 4, 2]
    first, last, *passes, rest = states
    assert all(torch.equal(state, first) for state in passes)
    # The samples without L_QC have other masks, and those that they have with autograd.
    assert not torch.equal(first, last) and torch.equal(last, rest)
    assert torch.equal(losses[0].dsm, losses[1].dsm)
    assert error(losses[1].qc.detach(), losses[0].qc.detach()) < 0.01


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(2))

    def forward(self, x, sigma):
        return self.outer(Once.apply(self.inner(x)))


def test_no_second_derivative_is_needed():
    u = ScoreModel(Net(), VE(0.01, 5.0))
    *points, probes = batch()
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        training_loss(u, *points, probes, "antisymmetric").qc.sum().backward()
    training_loss(u, *points, probes, "antisymmetric", 0.003).qc.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in u.parameters())
