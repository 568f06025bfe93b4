"""Findings of `docs/findings.md` that no other test shows."""

import pytest
import torch
from conftest import score_model

from qcsbm.conservativeness.asymmetry import antisymmetric_estimate, trace_estimate
from qcsbm.conservativeness.products import rademacher, vjp_jvp
from qcsbm.runtime.seeding import generator
from qcsbm.score.losses import training_loss
from qcsbm.score.models import build

NETWORK = dict(
    type="ncsnpp", nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0
)
SDE = dict(sigma_min=0.01, sigma_max=5.0)


def energy_model(init_scale):
    network = {**NETWORK, "init_scale": init_scale}
    return build((1, 8, 8), score_model("energy", False, network, SDE), seed=0)


def images(n=4):
    return torch.rand(n, 1, 8, 8, generator=generator(0, "images"))


def test_trace_estimate_of_an_energy_model_is_rounding_noise_in_float32():
    x = images().requires_grad_()
    s = energy_model(init_scale=1.0)(x, torch.zeros(len(x)))
    products = vjp_jvp(s, x, rademacher(x.shape, generator(0, "probe")))
    trace = trace_estimate(*products).abs()
    # The truth is 0. Rounding of Jᵀv enters the trace estimate times Jᵀv, the other one squared.
    assert trace.min() > 1e3 * antisymmetric_estimate(*products).max()


@pytest.mark.parametrize("exactly_zero", [True, False])
def test_energy_model_starts_at_a_stationary_point_only_in_exact_arithmetic(exactly_zero):
    model = energy_model(init_scale=0.0)
    # The last parameters of the network are its output layer; "zero" is a variance of 1e-10.
    output = list(model.parameters())[-2:]
    assert 0 < output[0].abs().max() < 1e-4
    if exactly_zero:
        with torch.no_grad():
            for parameter in output:
                parameter.zero_()
    x_0 = images()
    z = torch.randn(x_0.shape, generator=generator(0, "z"))
    training_loss(model, x_0, torch.full((len(x_0),), 0.3), z).dsm.mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = sum(g.square().sum() for g in gradients) ** 0.5
    assert total == 0 if exactly_zero else total > 0


def test_adam_leaves_the_stationary_point_in_a_hundred_steps():
    model = energy_model(init_scale=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x_0, t = images(16), torch.full((16,), 0.3)
    losses = []
    for step in range(120):
        z = torch.randn(x_0.shape, generator=generator(0, "z", step))
        loss = training_loss(model, x_0, t, z).dsm.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # s = 0 has a loss of D / 2 = 32, with a standard deviation of √(D / 2) / 4 = 1.4 per batch.
    assert losses[0] == pytest.approx(32, abs=6)
    assert sum(losses[-5:]) / 5 < 26
