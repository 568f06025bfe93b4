"""C, U and QC learn digits under the VP SDE."""

import numpy as np
import pytest
import torch
from conftest import score_model
from sklearn.datasets import load_digits

from qcsbm.conservativeness.asymmetry import exact_asymmetry
from qcsbm.data.quantisation import dequantise
from qcsbm.runtime.seeding import generator
from qcsbm.sampling.likelihood import nll_bits_per_dim
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.models import build
from qcsbm.score.sde import bcast
from qcsbm.training.loop import train

pytestmark = pytest.mark.slow

NETWORK = dict(nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], dropout=0.0)
SDE = dict(type="vp", beta_min=0.1, beta_max=20.0)
TRAINING = Training(batch_size=16, lr=2e-3, warmup=20, ema=0.95, dequantise=True)
IMAGES = load_digits().images.astype(np.uint8)[:, None]
# The parameterisation, the regulariser, and steps: an energy takes more to learn.
METHODS = {
    "c": ("energy", None, 120),
    "u": ("score", None, 60),
    "qc": ("score", Regulariser(weight=1.0, estimator="antisymmetric"), 60),
}


def nll(model):
    """Bits/dim of eight digits that no model was trained on."""
    x = dequantise(torch.from_numpy(IMAGES[-8:]), 17, generator(1))
    bits, _ = nll_bits_per_dim(model, model.sde, x, 17, generator(2), rtol=1e-2, atol=1e-3)
    return bits


@pytest.fixture(scope="module")
def trained():
    """Models before and after a short training, by method."""
    found = {}
    for method, (parameterisation, regulariser, steps) in METHODS.items():
        before, after = (
            build((1, 8, 8), score_model(parameterisation, False, NETWORK, SDE), seed=3)
            for _ in range(2)
        )
        state = train(after, IMAGES[:1000], 17, TRAINING, regulariser, 3, steps)
        after.load_state_dict(state.ema)
        found[method] = before.eval(), after.eval()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_training_improves_the_likelihood(trained, method):
    before, after = (nll(model) for model in trained[method])
    assert before.isfinite().all() and after.isfinite().all()
    gain = before - after
    # Four standard errors over images, which are the same before and after.
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_regulariser_lowers_the_asymmetry_and_an_energy_has_none(trained):
    sde = trained["u"][1].sde
    x_0 = dequantise(torch.from_numpy(IMAGES[-8:]), 17, generator(1))
    t = torch.full((8,), 0.3)
    mean, std = sde.marginal_prob(x_0, t)
    x = mean + bcast(std, x_0) * torch.randn(x_0.shape, generator=generator(3))
    nasym = {method: exact_asymmetry(models[1], x, t)[1] for method, models in trained.items()}
    # Over eight images, on which the two are paired.
    ratios = nasym["qc"] / nasym["u"]
    assert ratios.mean() + 4 * ratios.std() / 8**0.5 < 1
    assert nasym["c"].max() < 1e-6 * nasym["u"].min()
