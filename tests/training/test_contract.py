"""What a network has to do, tried on networks that do it and on some that do everything else."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, score_model
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.runtime.errors import BadInput
from qcsbm.score.models import ScoreModel, build
from qcsbm.score.sde import VE
from qcsbm.training.contract import require_contract

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


class Net(nn.Module):
    """Two convolutions and the noise level; it begins with an output of zero, as many do."""

    activation = staticmethod(torch.tanh)

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(2, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 1, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x, sigma):
        level = sigma.log()[:, None, None, None].expand_as(x)
        return self.outer(self.middle(self.activation(self.inner(torch.cat([x, level], 1)))))

    def middle(self, h):
        return h


class WithRectifiers(Net):
    activation = staticmethod(torch.relu)


class WithDropout(Net):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def middle(self, h):
        return self.dropout(h)


class WithAttention(Net):
    def middle(self, h):
        q = h.flatten(2).mT
        return h + (torch.softmax(q @ q.mT, -1) @ q).mT.view_as(h)


class WithUnfusedAttention(Net):
    def middle(self, h):
        q = h.flatten(2).mT[:, None].contiguous()
        with sdpa_kernel(SDPBackend.MATH):
            return h + F.scaled_dot_product_attention(q, q, q)[:, 0].mT.reshape(h.shape)


class WithMeasuredInput(Net):
    """Of unit size at every noise level."""

    def forward(self, x, sigma):
        scale = (1 + sigma**2).sqrt()[:, None, None, None]
        return super().forward(x / scale, sigma) * scale


def built(cls):
    """A function that builds the same model of ``cls`` whenever it is called."""

    def model():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ScoreModel(cls(), VE(0.01, 50.0))

    return model


def documented():
    """The example of docs/networks.md."""
    text = (ROOT / "docs/networks.md").read_text()
    names = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    return partial(names["Net"], image_size=8, channels=1, width=8)


NCSNPP = {"type": "ncsnpp", "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1}
NCSNPP |= {"attn_resolutions": [4], "dropout": 0.1}
GOOD = {
    cls.__name__: built(cls)
    for cls in (
        Net,
        WithRectifiers,
        WithDropout,
        WithAttention,
        WithUnfusedAttention,
        WithMeasuredInput,
    )
}
GOOD["the documentation's"] = built(documented())
for sde in (
    {"sigma_min": 0.01, "sigma_max": 50.0},
    {"type": "vp", "beta_min": 0.1, "beta_max": 20},
):
    settings = score_model("score", False, NCSNPP, sde)
    GOOD[f"NCSN++ under {settings.sde.type}"] = partial(build, SHAPE, settings, seed=0)


@pytest.mark.parametrize("network", GOOD)
def test_a_network_that_keeps_the_contract_is_let_through(network):
    before = torch.random.get_rng_state()
    require_contract(network, GOOD[network], SHAPE, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


class Untrained(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Stateful(Net):
    def get_extra_state(self):
        return {"calls": 0}


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.LazyConv2d(6, 1)

    def middle(self, h):
        return self.more(h)


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.again = self.inner


class DrawnElsewhere(Net):
    def __init__(self):
        super().__init__()
        draws = np.random.default_rng().normal(size=6)
        self.register_buffer("frequencies", torch.from_numpy(draws).float())

    def middle(self, h):
        return h * self.frequencies[:, None, None]


class Pair(Net):
    def forward(self, x, sigma):
        return super().forward(x, sigma), sigma


class Flat(Net):
    def forward(self, x, sigma):
        return super().forward(x, sigma).flatten(1)


class Squeezed(Net):
    def forward(self, x, sigma):
        out = super().forward(x, sigma)
        return out[0] if len(out) == 1 else out


class Double(Net):
    def forward(self, x, sigma):
        return super().forward(x, sigma).double()


class Infinite(Net):
    def forward(self, x, sigma):
        return super().forward(x, sigma) + (sigma > 1).float().log()[:, None, None, None]


class AlwaysDropping(Net):
    def middle(self, h):
        return F.dropout(h, 0.3)


class InPlace(Net):
    def forward(self, x, sigma):
        return super().forward(x.mul_(2), sigma)


class Centred(Net):
    def middle(self, h):
        return h - h.mean(0)


class CentredInTraining(Net):
    def middle(self, h):
        return h - h.mean(0) if self.training else h


class BatchNorm(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def middle(self, h):
        return self.norm(h)


class Cut(Net):
    def forward(self, x, sigma):
        return super().forward(x.detach(), sigma)


class PartlyCut(Net):
    def middle(self, h):
        return h * (2 + torch.tanh(h.detach()))


class WithoutGraph(Net):
    @torch.no_grad()
    def forward(self, x, sigma):
        return super().forward(x, sigma)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class OnceDifferentiable(Net):
    def middle(self, h):
        return Once.apply(h)


class FusedAttention(Net):
    def middle(self, h):
        q = h.flatten(2).mT[:, None].contiguous()
        attended = F.scaled_dot_product_attention(q, q, q)
        return h + attended[:, 0].mT.reshape(h.shape)


class FusedAttentionInTraining(FusedAttention):
    def middle(self, h):
        return super().middle(h) if self.training else h


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Failing(Net):
    def middle(self, h):
        return h.view(7, 7)


class Power(Net):
    """|h|^p at h = 0, in training only."""

    power = 0.5

    def middle(self, h):
        return h + (h - h).abs().pow(self.power) if self.training else h


class HigherPower(Power):
    power = 1.5


BAD = {
    Untrained: "found no trainable parameters, expected some",
    Stateful: "found _extra_state, a dict, in the state dict, expected tensors",
    Lazy: "found more.weight without a shape, expected one once the network is constructed",
    Tied: "found inner.weight and again.weight in the same memory, expected each in its own",
    DrawnElsewhere: "found that frequencies differs between two networks of one seed, expected all",
    Pair: "found a tuple for an output, expected a tensor like x",
    Flat: "found an output of torch.float32, shape (3, 64), on cpu, expected one like x",
    Squeezed: "found an output of shape (1, 8, 8) for one sample, expected one like x",
    Double: "found an output of torch.float64, shape (3, 1, 8, 8), on cpu, expected one like x",
    Infinite: "found an output that is not finite, expected finite numbers",
    AlwaysDropping: "found two outputs for one input in evaluation mode, expected the same one",
    InPlace: "found that x is changed in place, expected it to stay as it is",
    Centred: "found that a sample's output changes with its batch, by",
    CentredInTraining: "found that samples of a batch interact in training mode, expected them not",
    BatchNorm: "found that the buffer norm.running_mean changes in training, expected parameters",
    Cut: "found an output without a derivative in x, expected one by autograd",
    PartlyCut: "found a derivative in x that differs from difference quotients by",
    WithoutGraph: "found an output without a derivative in x, expected one by autograd",
    OnceDifferentiable: "found no second derivative (The differentiated Tensor at index 0",
    FusedAttention: "found no second derivative (derivative for aten::_scaled_dot_product_",
    FusedAttentionInTraining: "found no second derivative (derivative for aten::_scaled_dot_prod",
    Unused: "found that nothing depends on the parameter spare.weight, expected the output to",
    Failing: "found RuntimeError: shape '[7, 7]' is invalid for input of size 1152, expected an",
    Power: "found a derivative in inner.weight that is not finite, expected finite numbers",
    HigherPower: "found a second derivative that is not finite, expected finite numbers",
}


@pytest.mark.parametrize("cls", BAD, ids=lambda cls: cls.__name__)
def test_a_network_that_breaks_the_contract_is_refused_in_one_sentence(cls):
    before = torch.random.get_rng_state()
    with pytest.raises(BadInput) as refusal:
        require_contract("mine:Net", built(cls), SHAPE, CPU)
    assert str(refusal.value).startswith(f"mine:Net: {BAD[cls]}")
    assert torch.equal(torch.random.get_rng_state(), before)
