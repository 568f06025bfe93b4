"""L_QC for any training loop, by both kinds of derivatives, against full Jacobians."""

import doctest
import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Once, score_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

import qcsbm
from qcsbm.conservativeness import regulariser
from qcsbm.conservativeness.asymmetry import ESTIMATORS, half_squared_rotation, qc_loss
from qcsbm.conservativeness.products import jacobian, rademacher
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.score.models import build

D = 5


class Net(nn.Module):
    """A small smooth vector field on R^D that is no gradient, with more layers to come."""

    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), *layers, nn.Linear(8, D))

    def forward(self, x, t):
        return self.net(x) / t[:, None]


class Attention(nn.Module):
    """A field on R^(4 × 8) by PyTorch's attention, which is fused on the CPU too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.layer(x)[:, None].chunk(3, -1)
        return scaled_dot_product_attention(q, k, v)[:, 0]


def points(n=4, dtype=torch.float64):
    x = torch.randn(n, D, dtype=dtype, generator=generator(0, "points"))
    return x, torch.linspace(0.5, 1.5, n, dtype=dtype)


def gradient(value, module):
    parameters = list(module.parameters())
    found = torch.autograd.grad(value, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in found]).double()


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


def loss(*arguments, seed=7, **options):
    return qcsbm.quasi_conservative_loss(*arguments, generator=generator(seed), **options)


def differences(step):
    return {"derivatives": "finite_differences", "step": step}


def exact(field, x, t):
    x = x.clone().requires_grad_()
    return half_squared_rotation(jacobian(field(x, t), x, create_graph=True))


@pytest.fixture
def every_probe(monkeypatch):
    """All sign vectors are drawn, whose mean of v vᵀ is the identity. The number of them."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)))
    monkeypatch.setattr(regulariser, "rademacher", lambda shape, *_: signs.expand(shape))
    return len(signs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("options", [{}, differences(1e-6)])
def test_loss_and_its_gradient_average_to_the_exact_ones_over_all_probes(
    options, estimator, every_probe
):
    net = Net().double()
    x, t = points()
    found = loss(net, x, t, estimator=estimator, probes=every_probe, **options)
    expected = exact(net, x, t)
    # The differences err by O(1e-6), and round at 1e-16 / 1e-6.
    tolerance = dict(rtol=1e-4, atol=1e-7) if options else {}
    torch.testing.assert_close(found, expected, **tolerance)
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    found, expected = (gradient((weights * value).sum(), net) for value in (found, expected))
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_finite_differences_err_in_proportion_to_the_step(estimator):
    net = Net().double()
    x, t = points(32)
    value = loss(net, x, t, estimator=estimator)
    expected = gradient(value.sum(), net)
    steps = [1e-2, 1e-3, 1e-4, 1e-5]
    found = [loss(net, x, t, estimator=estimator, **differences(step)) for step in steps]
    values = [error(f.detach(), value.detach()) for f in found]
    gradients = [error(gradient(f.sum(), net), expected) for f in found]
    for errors in (values, gradients):
        # What is left is of the order of the step, 1 % at the largest.
        ratios = [large / small for large, small in itertools.pairwise(errors)]
        assert ratios == pytest.approx([10, 10, 10], rel=0.05)
    # At a step of 1e-12 rounding has taken over.
    rounded = loss(net, x, t, estimator=estimator, **differences(1e-12))
    assert error(gradient(rounded.sum(), net), expected) > 10 * gradients[-1]


def test_finite_differences_of_a_network_in_float32_err_by_less_than_a_percent():
    network = dict(
        type="ncsnpp", nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], init_scale=1.0
    )
    sde = dict(sigma_min=0.01, sigma_max=5.0)
    model = build((1, 4, 4), score_model("score", False, network, sde), 0).eval()
    t = torch.linspace(0.1, 0.9, 8)
    sigma = model.sde.std(t)
    x = torch.rand(8, 1, 4, 4, generator=generator(0, "images"))
    x = x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator(0, "noise"))
    expected = loss(model.double(), x.double(), t.double(), probes=2).detach()
    expected_gradient = gradient(
        (sigma**2 * loss(model, x.double(), t.double(), probes=2)).sum(), model
    )
    model.float()
    for delta in (1e-3, 3e-3):
        found = loss(model, x, t, probes=2, **differences(delta * sigma))
        assert found.dtype == torch.float32
        assert error(found.detach(), expected) < 0.01
        assert error(gradient((sigma**2 * found).sum(), model), expected_gradient) < 0.01


@pytest.mark.parametrize("options", [{}, differences(1e-3)])
def test_micro_batches_that_share_a_generator_add_up_to_the_batch(options):
    net = Net().double()
    x, t = points(7)
    whole = loss(net, x, t, probes=3, **options)
    draws = generator(7)
    parts = [
        qcsbm.quasi_conservative_loss(net, a, b, probes=3, generator=draws, **options)
        for a, b in zip(x.split(3), t.split(3), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    for part in parts:
        (part.sum() / 7).backward()
    accumulated = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    expected = gradient(whole.mean(), net)[: len(accumulated)]
    torch.testing.assert_close(accumulated, expected)


def test_probes_are_signs_drawn_anew_from_the_generator_or_else_from_pytorchs():
    net = Net()
    x, t = points(dtype=torch.float32)
    torch.testing.assert_close(loss(net, x, t), loss(net, x, t))
    assert not torch.equal(loss(net, x, t), loss(net, x, t, seed=8))
    torch.manual_seed(3)
    first, second = (qcsbm.quasi_conservative_loss(net, x, t) for _ in range(2))
    torch.manual_seed(3)
    torch.testing.assert_close(qcsbm.quasi_conservative_loss(net, x, t), first)
    assert not torch.equal(first, second)


def test_the_examples_in_its_documentation_run():
    failed, run = doctest.testmod(regulariser)
    assert run >= 8 and not failed


def test_it_is_the_loss_of_the_training_stage():
    net = Net()
    x, t = points(dtype=torch.float32)
    v = rademacher((4, 2, D), generator(7)).transpose(0, 1)
    y = x.clone().requires_grad_()
    for estimator in ESTIMATORS:
        expected = qc_loss(net(y, t), y, v, estimator)
        torch.testing.assert_close(loss(net, x, t, estimator=estimator, probes=2), expected)


def test_a_field_without_time_or_parameters_is_taken_too():
    m = torch.randn(D, D, dtype=torch.float64, generator=generator(0, "matrix"))
    expected = half_squared_rotation(m[None]).expand(4)
    x, _ = points()
    for options in ({}, differences(1e-3)):
        found = [loss(lambda y: y @ m.T, x, seed=s, **options) for s in range(400)]
        values = torch.stack(found).detach()
        # Four standard errors.
        bound = 4 * values.std(0) / 20
        assert ((values.mean(0) - expected).abs() < bound).all()
        assert (loss(lambda y: y @ (m + m.T), x, **options).abs() < 1e-20).all()


@pytest.mark.parametrize("options", [{}, differences(1e-3)])
def test_without_gradients_the_value_alone_is_computed(options):
    net = Net()
    x, t = points(dtype=torch.float32)
    expected = loss(net, x, t, **options)
    with torch.no_grad():
        found = loss(net, x, t, **options)
    assert expected.requires_grad and not found.requires_grad and not x.requires_grad
    torch.testing.assert_close(found, expected.detach())
    # x may be a part of another graph, which the loss leaves alone.
    y = x.clone().requires_grad_()
    loss(net, y * 1, t, **options).sum().backward()
    assert y.grad is None


def test_under_autocast_the_network_alone_computes_in_bfloat16():
    net, dtypes = Net(), []
    net.net[0].register_forward_hook(lambda *arguments: dtypes.append(arguments[-1].dtype))
    x, t = points(64, torch.float32)
    plain = loss(net, x, t)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(net, x, t)
        differing = loss(net, x, t, **differences(1e-3))
    assert dtypes == [torch.float32, torch.bfloat16] + 4 * [torch.float32]
    assert found.dtype == differing.dtype == torch.float32
    # bfloat16 rounds at 2⁻⁹ = 0.2 %, and A is a difference.
    assert 1e-5 < error(found.detach(), plain.detach()) < 0.05
    expected = gradient(plain.mean(), net)
    assert 1e-5 < error(gradient(found.mean(), net), expected) < 0.05
    torch.testing.assert_close(differing, loss(net, x, t, **differences(1e-3)))


def test_products_are_those_of_the_score_whatever_autocast_surrounds_them():
    net = Net()
    x, t = points(dtype=torch.float32)

    def inside(enabled):
        def score(x, t):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                return net(x, t)

        return score

    for enabled in (True, False):
        expected = loss(inside(enabled), x, t)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(inside(enabled), x, t), expected)


@pytest.mark.parametrize("options", [{}, differences(torch.full((4,), 1e-3).double())])
def test_the_loss_has_the_precision_of_x(options):
    net = Net()
    x, t = points(dtype=torch.float32)
    found = loss(net, x, t, **options)
    precise = loss(lambda x, t: net.double()(x.double(), t.double()), x, t, **options)
    assert found.dtype == precise.dtype == torch.float32
    assert 0 < error(found.detach(), precise.detach()) < 0.01


@pytest.mark.parametrize("options", [{}, differences(2.0**-10)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_field_that_is_exactly_a_gradient_has_no_loss_and_a_finite_gradient(options, estimator):
    net = nn.Linear(D, D)
    nn.init.eye_(net.weight)
    nn.init.zeros_(net.bias)
    found = loss(net, torch.zeros(4, D), estimator=estimator, **options)
    assert (found == 0).all() and gradient(found.sum(), net).isfinite().all()


def test_all_passes_have_the_same_dropout_masks():
    net = Net(nn.Dropout(0.5)).double().train()
    x, t = points()

    def seeded(**options):
        torch.manual_seed(5)
        value = loss(net, x, t, **options)
        return value.detach(), gradient(value.sum(), net), torch.get_rng_state()

    value, slope, state = seeded()
    found, found_slope, found_state = seeded(**differences(1e-6))
    # Masks that differed would change the score by its own size, over the step.
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found_slope, slope, rtol=1e-4, atol=1e-7)
    # The masks of one pass were used up, so that the next step has others.
    assert torch.equal(state, found_state)


def test_batch_normalisation_in_training_mode_is_refused_and_otherwise_taken():
    net = Net(nn.BatchNorm1d(8)).train()
    x, t = points(dtype=torch.float32)
    for options in ({}, differences(1e-3)):
        with pytest.raises(BadInput, match="batch normalisation in training mode in 'net.2'"):
            loss(net.train(), x, t, **options)
        assert loss(net.eval(), x, t, **options).isfinite().all()
    with pytest.raises(BadInput, match="batch normalisation"):
        loss(Net(nn.BatchNorm1d(8, track_running_stats=False)).eval(), x, t)


def test_fused_attention_is_taken_by_both_derivatives():
    net = Attention()
    x = torch.randn(3, 4, 8, generator=generator(0, "tokens"))
    y = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="derivative for aten::"):
        qc_loss(net(y), y, torch.ones(1, *y.shape), "antisymmetric").sum().backward()
    value = loss(net, x)
    found = loss(net, x, **differences(3e-3))
    assert error(found.detach(), value.detach()) < 0.01
    assert error(gradient(found.sum(), net), gradient(value.sum(), net)) < 0.01


class Sine(nn.Module):
    def forward(self, x):
        return Once.apply(x)


@pytest.mark.parametrize(
    "make", [lambda: torch.compile(Net(), backend="aot_eager"), lambda: Net(Sine())]
)
def test_a_network_that_is_compiled_or_differentiated_once_needs_finite_differences(make):
    x, t = points(dtype=torch.float32)
    net = make()
    with pytest.raises(BadInput, match="no second derivative .*'finite_differences'") as raised:
        loss(net, x, t)
    assert "\n" not in str(raised.value)
    value = loss(net, x, t, probes=2, **differences(1e-3))
    slope = gradient(value.sum(), net)
    reference = Net() if hasattr(net, "_orig_mod") else Net(Sine())
    expected = loss(reference, x, t, probes=2, **differences(1e-3))
    torch.testing.assert_close(value, expected)
    # Rounding at 6e-8 over a step of 1e-3.
    assert error(slope, gradient(expected.sum(), reference)) < 1e-3


@pytest.mark.slow
def test_a_network_that_inductor_compiled_has_the_gradients_of_one_that_it_did_not():
    net = torch.compile(Net(nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU()))
    # The second batch is smaller, as the last one of an epoch: the network is compiled again.
    for n in (16, 12):
        x, t = points(n, torch.float32)
        (net(x, t) + x).square().sum().backward()
        value = loss(net, x, t, probes=2, **differences(2e-3))
        expected = loss(net._orig_mod, x, t, probes=2, **differences(2e-3))
        # Rounding at 6e-8 over a step of 2e-3.
        assert error(gradient(value.sum(), net), gradient(expected.sum(), net._orig_mod)) < 1e-3


@pytest.mark.slow
def test_the_masks_that_compiled_code_draws_are_repeated_too():
    net = torch.compile(Net(nn.Dropout(0.5)))
    x, t = points(16, torch.float32)
    value = loss(net, x, t, **differences(2e-3)).mean()
    # Others would change the score by its own size, over the step, squared.
    assert 0 < value < 10 * loss(net._orig_mod, x, t).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "exact"}, "estimator: found 'exact', expected one of trace, antisymmetric"),
        ({"derivatives": "forward"}, "derivatives: found 'forward', expected one of autograd, "),
        ({"probes": 0}, "probes: found 0, expected at least 1"),
        ({"x": torch.ones(4)}, r"x: found torch.float32 of shape \(4,\), expected real numbers"),
        ({"x": torch.ones(4, D, dtype=torch.int64)}, "x: found torch.int64 of shape"),
        ({"step": 0.1}, "step: found one, expected none with derivatives='autograd'"),
        (differences(None), "step: found none, expected how far"),
        (differences(0.0), "step: found 0.0, expected a positive number"),
        (differences(torch.ones(3)), r"step: found shape \(3,\), expected a number or \(4,\)"),
        (
            {"x": torch.ones(4, D, dtype=torch.bfloat16), **differences(0.1)},
            "x: found values in torch.bfloat16, expected float32 or float64",
        ),
        (
            {"score": lambda x, t: x.bfloat16(), **differences(0.1)},
            "score: found values in torch.bfloat16, expected float32 or float64",
        ),
        ({"score": lambda x, t: x[:, 1:]}, r"score: found a value of shape \(4, 4\), expected"),
        ({"score": lambda x, t: x.detach()}, "score: found a value without a graph"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(changes, message):
    x, t = points(dtype=torch.float32)
    options = {"score": Net(), "x": x, "t": t} | changes
    with pytest.raises(BadInput, match="^" + message):
        qcsbm.quasi_conservative_loss(options.pop("score"), options.pop("x"), **options)


def test_inference_mode_is_refused():
    x, t = points(dtype=torch.float32)
    with torch.inference_mode(), pytest.raises(BadInput, match="found torch.inference_mode"):
        loss(Net(), x, t)


def _process(rank, folder):
    """One of two processes, which writes down every gradient that it finds."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for name, (wrap, options, score) in CASES.items():
        net = wrap(Net().double())
        x, t = points(6)
        x, t, v = x[rank::2], t[rank::2], rademacher((6, 1, D), generator(7))[rank::2]
        regulariser.rademacher = lambda *_, v=v: v
        for _ in range(2):
            net.zero_grad()
            dsm = (net(x, t) + x).square().sum(1)
            try:
                total = dsm + qcsbm.quasi_conservative_loss(score(net), x, t, **options)
            except BadInput as bad:
                found[name] = str(bad)
                break
            total.mean().backward()
        else:
            gradients = [p.grad for p in net.parameters()]
            whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
            found[name] = torch.cat([g.flatten() for g in whole])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _static(net):
    return DistributedDataParallel(net, static_graph=True)


def _shard(net):
    return fully_shard(net, mesh=init_device_mesh("cpu", (2,)))


def _fsdp1(net):
    return FullyShardedDataParallel(net, device_id=torch.device("cpu"))


CASES = {
    "wrapper": (DistributedDataParallel, {}, lambda net: net),
    "module": (DistributedDataParallel, {}, lambda net: net.module),
    "module, differences": (DistributedDataParallel, differences(1e-3), lambda net: net.module),
    "wrapper, differences": (DistributedDataParallel, differences(1e-3), lambda net: net),
    "static module": (_static, {}, lambda net: net.module),
    "static wrapper": (_static, {}, lambda net: net),
    "sharded": (_shard, {}, lambda net: net),
    "sharded, differences": (_shard, differences(1e-3), lambda net: net),
    "FSDP1": (_fsdp1, differences(1e-3), lambda net: net),
}


@pytest.mark.slow
def test_two_processes_find_the_gradient_of_the_whole_batch_or_say_what_to_do(tmp_path):
    mp.spawn(_process, args=(tmp_path,), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    net = Net().double()
    x, t = points(6)
    expected = {}
    for options in ({}, differences(1e-3)):
        total = (net(x, t) + x).square().sum(1) + loss(net, x, t, **options)
        expected[bool(options)] = gradient(total.mean(), net)
    assert error(expected[True], expected[False]) > 1e-6
    for gradients in found:
        refusals = {"static wrapper": "static_graph", "sharded": "FSDP", "FSDP1": "FSDP"}
        assert all(text in gradients.pop(name) for name, text in refusals.items())
        for name, value in gradients.items():
            torch.testing.assert_close(value, expected["differences" in name])
