"""What the benchmarks compare is the same quantity."""

import importlib.util
from pathlib import Path

import torch

from qcsbm.autodiff import rademacher
from qcsbm.models import build
from qcsbm.seeding import generator

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_published_algorithm_has_the_gradient_of_our_trace_step():
    qc_step = load("qc_step")
    network = dict(nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], dropout=0.0)
    model = build((1, 4, 4), "score", False, dict(network, init_scale=1.0), qc_step.SDE, 0).double()
    g = generator(0, "published")
    x_0 = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=g)
    z = torch.randn(x_0.shape, dtype=torch.float64, generator=g)
    t = torch.rand(3, dtype=torch.float64, generator=g)
    v = rademacher(x_0.shape, g).double()
    gradients = []
    for step in (
        qc_step.published_step,
        lambda *batch: qc_step.our_step(*batch, estimator="trace", b=3),
    ):
        model.zero_grad()
        step(model, x_0, t, z, v)
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    torch.testing.assert_close(gradients[0], gradients[1])
