"""Twenty steps of training, recomputed in float64 by the plainest code that does the same.

The package gives the network's layers, the addresses of random streams and the defaults of the
settings; everything else is written out once more.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import score_model

from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.runtime.seeding import derive, generator, permutation
from qcsbm.schema import networks
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.models import build
from qcsbm.training import loop, regulariser

SHAPE, IMAGES, BATCH, STEPS, WINDOW = (1, 4, 4), 20, 7, 20, 8
D = math.prod(SHAPE)
LEVELS = 17  # k / 16 has no rounding, not even in float32
NETWORK = dict(
    type="ncsnpp", nf=8, ch_mult=[1], num_res_blocks=1, attn_resolutions=[4], init_scale=1.0
)
VE, VP = dict(type="ve", sigma_min=0.05, sigma_max=4.0), dict(type="vp", beta_min=0.4, beta_max=5.0)
EPSILON = 1e-5


def case(
    seed, start=0, energy=False, residual=False, dropout=0.0, regulariser=None, sde=VE, **options
):
    """A training that goes on from step ``start`` of U, unless that is 0."""
    options = {"batch_size": BATCH, "lr": 2e-3, "eps": 1e-3, **options}
    return SimpleNamespace(
        seed=seed,
        start=start,
        energy=energy,
        residual=residual,
        network={**NETWORK, "dropout": dropout},
        sde=sde,
        training=Training(**options),
        regulariser=regulariser and Regulariser(**regulariser),
    )


TRACE = dict(estimator="trace", weight=0.3, probes=2)
ANTISYMMETRIC = dict(estimator="antisymmetric", weight=0.4, probes=3)
DIFFERENCES = {**ANTISYMMETRIC, "derivatives": "finite_differences"}
CASES = {
    "u": case(3, dropout=0.1, flip=True, dequantise=True, warmup=6, grad_clip=20.0, ema=0.6),
    "c": case(11, energy=True, residual=True, warmup=30, grad_clip=240.0, beta1=0.8),
    "qc": case(3, residual=True, regulariser=TRACE, flip=True, warmup=10, grad_clip=50.0, ema=0.5),
    "qc of a part": case(
        11,
        regulariser={**TRACE, "batch_size": 3, "time_sampling": "importance"},
        warmup=25,
        grad_clip=150.0,
    ),
    "qcplus from u": case(
        11, start=5, regulariser=ANTISYMMETRIC, dequantise=True, warmup=12, grad_clip=50.0
    ),
    "qcplus at every third step": case(
        3,
        start=7,
        regulariser={**ANTISYMMETRIC, "batch_size": 4, "every": 3, "time_sampling": "importance"},
        flip=True,
        warmup=12,
        grad_clip=60.0,
    ),
    "u in parts": case(
        3, micro_batch=2, flip=True, dequantise=True, warmup=6, grad_clip=20.0, ema=0.6
    ),
    "c in parts": case(11, micro_batch=3, energy=True, residual=True, warmup=30, grad_clip=240.0),
    "qc in parts": case(
        11,
        micro_batch=2,
        regulariser={**TRACE, "batch_size": 3, "time_sampling": "importance"},
        warmup=25,
        grad_clip=150.0,
    ),
    "qcplus at every third step in parts": case(
        3,
        start=7,
        micro_batch=2,
        regulariser={**ANTISYMMETRIC, "batch_size": 5, "every": 3, "time_sampling": "importance"},
        flip=True,
        warmup=12,
        grad_clip=60.0,
    ),
    "u of vp": case(11, sde=VP, dequantise=True, warmup=6, grad_clip=20.0, ema=0.6),
    "c of vp": case(3, sde=VP, energy=True, residual=True, warmup=30, grad_clip=150.0),
    "qc of vp from u": case(11, sde=VP, start=5, regulariser=TRACE, warmup=12, grad_clip=50.0),
    "qcplus of vp": case(
        3,
        sde=VP,
        regulariser={**ANTISYMMETRIC, "batch_size": 4, "time_sampling": "importance"},
        warmup=12,
        grad_clip=50.0,
    ),
    "qcplus by differences": case(
        3, start=5, regulariser=DIFFERENCES, dropout=0.1, warmup=12, grad_clip=50.0
    ),
    "qcplus by differences at every third step in parts": case(
        11,
        start=5,
        micro_batch=2,
        regulariser={
            **DIFFERENCES,
            "difference_step": 0.01,
            "batch_size": 5,
            "every": 3,
            "time_sampling": "importance",
        },
        warmup=12,
        grad_clip=60.0,
    ),
    "qcplus of vp by differences": case(
        3, sde=VP, regulariser={**DIFFERENCES, "batch_size": 4}, warmup=12, grad_clip=50.0
    ),
}


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    """Weights, draws and probes in float64, for both sides, and short windows of the curve."""
    default, probes = torch.get_default_dtype(), regulariser.rademacher
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(regulariser, "rademacher", lambda *arguments: probes(*arguments).double())
    monkeypatch.setattr(loop, "WINDOW", WINDOW)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def images():
    return np.random.default_rng(5).integers(0, LEVELS, (IMAGES, *SHAPE), dtype=np.uint8)


def trained(case, images, stop, regulariser, state=None):
    parameterisation = "energy" if case.energy else "score"
    model = build(
        SHAPE, score_model(parameterisation, case.residual, case.network, case.sde), seed=case.seed
    )
    # As a model is left by whoever measured it.
    model.eval()
    return loop.train(
        model, images, LEVELS, case.training, regulariser, case.seed, stop, copy.deepcopy(state)
    )


class Reference:
    """The training of ``case`` by hand: its weights and averages by name, its losses by step."""

    def __init__(self, case, images, state):
        self.case, self.images = case, images
        torch.manual_seed(derive(case.seed, "init"))
        self.network = NCSNpp(SHAPE[1], SHAPE[0], networks.NCSNpp(**case.network))
        self.weights = dict(self.network.named_parameters())
        if state:
            for name, w in self.weights.items():
                w.data.copy_(state.model[f"network.{name}"])
            parts = (state.ema, state.exp_avg, state.exp_avg_sq)
            self.ema, self.first, self.second = (
                {name: part[f"network.{name}"].clone() for name in self.weights} for part in parts
            )
        else:
            self.ema = {name: w.detach().clone() for name, w in self.weights.items()}
            self.first = {name: torch.zeros_like(w) for name, w in self.weights.items()}
            self.second = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.qc_gradients = [torch.zeros_like(w) for w in self.weights.values()]
        self.losses = {step: self.step(step) for step in range(case.start + 1, STEPS + 1)}

    def step(self, step):
        """DSM, std² L_QC and the norm of the gradient before clipping."""
        regulariser, seed = self.case.regulariser, self.case.seed
        x_0, t, z = self.data(step)
        weight = torch.ones(BATCH)
        regularised = regulariser and step % regulariser.every == 0
        if regularised and regulariser.time_sampling == "importance":
            order = torch.randperm(BATCH, generator=generator(seed, "times", step))
            u = (order + (t - EPSILON) / (1 - EPSILON)) / BATCH
            t, weight = EPSILON + (1 - EPSILON) * u**2, 2 * u
        mean, std = self.kernel(t)
        x = (mean[:, None, None, None] * x_0 + std[:, None, None, None] * z).requires_grad_()
        torch.manual_seed(derive(seed, "dropout", step))
        s = self.score(x, mean, std)
        weights = list(self.weights.values())
        # Eq. 2 and λ of Eq. 8, times std²: the score of N(m x_0, std² I) at x is −z / std.
        error = (s + z / std[:, None, None, None]).square().sum((1, 2, 3)) / 2
        dsm, qc = (weight * std**2 * error).mean(), torch.zeros(())
        gradients = torch.autograd.grad(dsm, weights, retain_graph=True)
        if regularised:
            b = regulariser.batch_size or BATCH
            shape = (regulariser.probes, b, *SHAPE)
            draws = generator(seed, "probes", step)
            probes = 2.0 * torch.randint(0, 2, shape, generator=draws) - 1
            if regulariser.derivatives == "autograd":
                l_qc = self.l_qc(x[:b], mean[:b], std[:b], probes)
            else:
                l_qc = self.l_qc_by_differences(step, x, s, mean, std, probes)
            qc = (weight * std**2)[:b] @ l_qc / b
            self.qc_gradients = torch.autograd.grad(qc, weights, materialize_grads=True)
        if regulariser:
            pairs = zip(gradients, self.qc_gradients, strict=True)
            gradients = [g + regulariser.weight * q for g, q in pairs]
        return dsm.item(), qc.item(), self.update(step, gradients)

    def data(self, step):
        """x_0, t and z."""
        seed, first = self.case.seed, (step - 1) * BATCH
        chosen = [
            permutation(IMAGES, seed, "epoch", i // IMAGES)[i % IMAGES]
            for i in range(first, first + BATCH)
        ]
        k, draws = torch.tensor(self.images[chosen]), generator(seed, "batch", step)
        x_0 = k / (LEVELS - 1)
        if self.case.training.dequantise:
            u = (torch.randint(0, 2**15, k.shape, generator=draws) + 0.5) / 2**15
            x_0 = (k + u) / LEVELS
        if self.case.training.flip:
            for i, draw in enumerate(torch.rand(BATCH, generator=draws)):
                if draw < 0.5:
                    x_0[i] = x_0[i, :, :, [3, 2, 1, 0]]
        t = EPSILON + (1 - EPSILON) * torch.rand(BATCH, generator=draws)
        return x_0, t, torch.randn(x_0.shape, generator=draws)

    def kernel(self, t):
        """Mean and standard deviation of x_t for x_0 = 1 (Song et al., 2021, Eq. 29)."""
        sde = self.case.sde
        if sde["type"] == "ve":
            return torch.ones(BATCH), sde["sigma_min"] * (sde["sigma_max"] / sde["sigma_min"]) ** t
        low, high = sde["beta_min"], sde["beta_max"]
        mean = torch.exp(-(t**2) * (high - low) / 4 - t * low / 2)
        return mean, (1 - mean**2).sqrt()

    def score(self, x, mean, std):
        """s_U = h / std, and s_C = −∇‖h‖² / 2 std = −Jᵀh / std with the Jacobian J of h."""
        output = self.network(x, std / mean)
        h = x - output if self.case.residual else output
        h_std = h / std[:, None, None, None]
        if self.case.energy:
            return -torch.autograd.grad(h, x, h_std, create_graph=True)[0]
        return h_std

    def l_qc(self, x, mean, std, probes):
        """Eq. 9, or ½‖(J − Jᵀ)v‖², of each sample from its full Jacobian J."""
        d = x[0].numel()
        copies = x.detach().repeat_interleave(d, 0).requires_grad_()
        one_hot = torch.eye(d).repeat(len(x), 1).view_as(copies)
        s = self.score(copies, mean.repeat_interleave(d), std.repeat_interleave(d))
        j = torch.autograd.grad(s, copies, one_hot, create_graph=True)[0].view(-1, d, d)
        v = probes.flatten(2)[..., None]
        if self.case.regulariser.estimator == "trace":
            values = v.mT @ j @ j.mT @ v - v.mT @ j @ j @ v
        else:
            values = ((j - j.mT) @ v).square().sum(2, keepdim=True) / 2
        return values.mean(0).flatten()

    def l_qc_by_differences(self, step, x, s, mean, std, probes):
        """½‖u‖² with u = (J − Jᵀ)v, and as its gradient that of uᵀJv + vᵀJ(−u) at constant u.

        Jv and J(−u) are quotients of differences of scores that have the same dropout.
        """
        b, values = probes.shape[1], []
        delta = self.case.regulariser.difference_step * std[:b, None, None, None]

        def along(w):
            torch.manual_seed(derive(self.case.seed, "dropout", step))
            step_w = delta * (D / w.square().sum((1, 2, 3), keepdim=True)).sqrt()
            return (self.score(x[:b] + step_w * w, mean[:b], std[:b]) - s[:b]) / step_w

        for v in probes:
            j_v = along(v)
            u = (j_v - torch.autograd.grad(s[:b], x, v, retain_graph=True)[0][:b]).detach()
            form = (u * j_v + v * along(-u)).sum((1, 2, 3))
            values.append(u.square().sum((1, 2, 3)) / 2 + form - form.detach())
        return torch.stack(values).mean(0)

    def update(self, step, gradients):
        """Clipping, Adam with warm-up, EMA; the norm before clipping."""
        options = self.case.training
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        lr = options.lr * min(step / options.warmup, 1)
        decay = min(options.ema, (1 + step) / (10 + step))
        for (name, w), g in zip(self.weights.items(), gradients, strict=True):
            g = g * min(options.grad_clip / (norm + 1e-6), 1)
            self.first[name] = options.beta1 * self.first[name] + (1 - options.beta1) * g
            self.second[name] = 0.999 * self.second[name] + 0.001 * g**2
            mean = self.first[name] / (1 - options.beta1**step)
            square = self.second[name] / (1 - 0.999**step)
            w.data -= lr * mean / (square.sqrt() + options.eps)
            self.ema[name] = decay * self.ema[name] + (1 - decay) * w.detach()
        return norm

    def curve(self):
        """Means over the steps of each window; of L_QC, over the regularised ones."""
        rows, every = [], self.case.regulariser.every if self.case.regulariser else STEPS + 1
        for end in (8, 16, 20):
            steps = [step for step in self.losses if (step - 1) // WINDOW == (end - 1) // WINDOW]
            dsm, qc, norm = np.array([self.losses[step] for step in steps]).T
            regularised = [step for step in steps if step % every == 0]
            mean = qc.sum() / max(1, len(regularised))
            rows.append([end, dsm.mean(), mean, norm.mean()])
        return rows


@pytest.mark.parametrize("name", CASES)
def test_training_is_what_plain_code_makes_of_it(name, images):
    case = CASES[name]
    start = trained(case, images, case.start, None) if case.start else None
    found = trained(case, images, STEPS, case.regulariser, start)
    expected = Reference(case, images, start)
    for part, tensors in {
        "model": expected.weights,
        "ema": expected.ema,
        "exp_avg": expected.first,
        "exp_avg_sq": expected.second,
    }.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(
                getattr(found, part)[f"network.{key}"],
                tensor.detach(),
                rtol=1e-8,
                atol=1e-11,
                msg=lambda text, key=key, part=part: f"{part} of {key}: {text}",
            )
    curve = [[value or 0.0 for value in row] for row in found.curve[bool(start) :]]
    for row, wanted in zip(curve, expected.curve(), strict=True):
        assert row == pytest.approx(wanted, rel=1e-9)

    norms = np.array([norm for _, _, norm in expected.losses.values()])
    # Clipping acts in some steps and not in others; raw and average weights have parted.
    assert 0 < (norms > case.training.grad_clip).sum() < len(norms)
