import hashlib
import io
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcsbm.conservativeness.asymmetry
from qcsbm.adapters.published import published_names, read_published
from qcsbm.conservativeness.asymmetry import one_probe_asymmetry
from qcsbm.experiment import paper_rows
from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.runtime.errors import BadInput
from qcsbm.sampling import pc
from qcsbm.sampling.likelihood import hutchinson_divergence
from qcsbm.schema import networks
from qcsbm.schema.samplers import PC
from qcsbm.score.losses import training_loss
from qcsbm.score.models import EnergyScoreModel, ScoreModel
from qcsbm.score.sde import VE, bcast

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ncsnpp.json").read_text())
SHAPE = (3, 3, 8, 8)
SDE = VE()


def is_projection(name: str) -> bool:
    return "NIN" in name and name.endswith(".W")


def published_model(network: NCSNpp) -> dict[str, torch.Tensor]:
    """The network's state dict under the published names and in the published shapes."""
    return {
        name: tensor[..., 0, 0].T if is_projection(name) else tensor
        for name, tensor in (
            (name, network.state_dict()[ours]) for ours, name in published_names(network).items()
        )
    }


def published_file(network: NCSNpp) -> dict:
    """What score_sde would have saved after 5 steps, with averages that differ from the weights."""
    model = published_model(network)
    trained = [name for name in model if name != "all_modules.0.W"]
    return {
        # The learning rate during warm-up comes out of NumPy.
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4 * np.minimum(5 / 5000, 1.0)}]},
        "model": {"module.sigmas": torch.ones(1000)} | {f"module.{n}": t for n, t in model.items()},
        "ema": {
            "decay": 0.999,
            "num_updates": 4,
            "shadow_params": [model[name] + 1 for name in trained],
        },
        "step": 5,
    }


def tiny_network(**settings) -> NCSNpp:
    torch.manual_seed(0)
    keys = {"type": "ncsnpp", "nf": 8, "ch_mult": [1, 2]}
    keys |= {"num_res_blocks": 1, "attn_resolutions": [4]}
    return NCSNpp(8, 1, networks.NCSNpp(**(keys | settings)))


def save(contents: object, path: Path) -> Path:
    torch.save(contents, path / "checkpoint.pth")
    return path / "checkpoint.pth"


VARIANTS = [
    {},
    {"progressive_input": "input_skip", "progressive": "output_skip"},
    {"progressive_input": "none", "fir": False},
    {"resblock": "ddpm"},
    {"resblock": "ddpm", "progressive": "output_skip"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_weights_and_averages_come_back_under_our_names(settings, tmp_path):
    network = tiny_network(**settings)
    checkpoint = read_published(save(published_file(network), tmp_path), network)
    expected = network.state_dict()
    assert list(checkpoint.model) == list(checkpoint.ema) == list(expected)
    assert checkpoint.step == 5
    trained = {name for name, _ in network.named_parameters()}
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.model[name], tensor)
        assert torch.equal(checkpoint.ema[name], tensor + 1 if name in trained else tensor)


def in_precision(value: object, dtype: torch.dtype) -> object:
    """``value`` with all of its tensors converted."""
    if isinstance(value, dict):
        return {key: in_precision(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [in_precision(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_another_precision_is_converted_and_named(name, tmp_path):
    network = tiny_network()
    contents = published_file(network)
    adam_step(network, contents)
    path = save(in_precision(contents, getattr(torch, name)), tmp_path)
    checkpoint = read_published(path, network)
    assert checkpoint.converted == (name,)
    for ours, tensor in network.state_dict().items():
        expected = tensor.to(getattr(torch, name)).float()
        assert checkpoint.model[ours].dtype == torch.float32
        assert torch.equal(checkpoint.model[ours], expected)
    for part in (checkpoint.ema, checkpoint.exp_avg, checkpoint.exp_avg_sq):
        assert {tensor.dtype for tensor in part.values()} == {torch.float32}


def test_numbers_that_are_infinite_once_converted_are_refused(tmp_path):
    contents = in_precision(published_file(tiny_network()), torch.float64)
    contents["model"]["module.all_modules.4.Conv_0.bias"][3] = 1e39
    with pytest.raises(BadInput, match="finite floating-point numbers: all_modules.4.Conv_0.bias"):
        read_published(save(contents, tmp_path), tiny_network())


@pytest.mark.parametrize("kind", "?bBhHiIlLqQefd")
@pytest.mark.parametrize("new", [True, False])
def test_numpy_scalars_beside_the_weights_are_harmless(kind, new, tmp_path):
    network = tiny_network()
    contents = published_file(network)
    contents["optimizer"]["param_groups"][0]["lr"] = np.dtype(kind).type(1)
    torch.save(contents, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    assert read_published(tmp_path / "x.pth", network).step == 5


def test_names_of_one_process_and_a_file_without_step_are_read_too(tmp_path):
    network = tiny_network()
    contents = published_file(network)
    contents["model"] = {n.removeprefix("module."): t for n, t in contents["model"].items()}
    del contents["step"]
    checkpoint = read_published(save(contents, tmp_path), network)
    assert checkpoint.step == 4
    assert torch.equal(checkpoint.model["stem.weight"], network.stem.weight)


def adam_step(network: NCSNpp, contents: dict) -> dict[str, torch.Tensor]:
    """Put an optimizer in ``contents`` that took one step along the gradients returned."""
    stored = published_model(network)
    parameters = [
        nn.Parameter(tensor.contiguous(), name != "all_modules.0.W")
        for name, tensor in stored.items()
    ]
    optimiser = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.999))
    for k, parameter in enumerate(parameters):
        if parameter.requires_grad:
            parameter.grad = formula(tuple(parameter.shape), k, 1.0).float()
    optimiser.step()
    contents["optimizer"] = optimiser.state_dict()
    return {name: p.grad for name, p in zip(stored, parameters, strict=True) if p.requires_grad}


def test_moments_of_adam_belong_to_the_parameters_whose_gradients_they_average(tmp_path):
    network = tiny_network()
    contents = published_file(network)
    gradients = adam_step(network, contents)
    checkpoint = read_published(save(contents, tmp_path), network)
    names = published_names(network)
    assert {names[our] for our in checkpoint.exp_avg} == gradients.keys()
    for our, first in checkpoint.exp_avg.items():
        g = gradients[names[our]]
        g = g.T[:, :, None, None] if is_projection(names[our]) else g
        torch.testing.assert_close(first, 0.1 * g)
        torch.testing.assert_close(checkpoint.exp_avg_sq[our], 0.001 * g**2)


def test_a_file_without_optimizer_has_no_moments(tmp_path):
    network = tiny_network()
    contents = published_file(network)
    del contents["optimizer"]
    checkpoint = read_published(save(contents, tmp_path), network)
    assert checkpoint.exp_avg == checkpoint.exp_avg_sq == {}


def forget_one(state):
    del state[7]


def forget_a_moment(state):
    del state[7]["exp_avg_sq"]


def count_too_far(state):
    state[10_000] = state[7]


def exchange(state):
    state[1], state[2] = state[2], state[1]


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (forget_one, r"optimizer\.state exp_avg does not fit .*missing: all_modules\.\d+\.\w+"),
        (forget_a_moment, r"optimizer\.state\.7\.exp_avg_sq: found nothing, expected Tensor"),
        (count_too_far, r"optimizer\.state: found parameter 10000, expected numbers below \d+,"),
        (exchange, r"optimizer\.state exp_avg does not fit .*wrong in shape: all_modules\.1\."),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(corrupt, sentence, tmp_path):
    network = tiny_network()
    contents = published_file(network)
    adam_step(network, contents)
    corrupt(contents["optimizer"]["state"])
    with pytest.raises(ValueError, match=sentence):
        read_published(save(contents, tmp_path), network)


def remove(contents):
    del contents["model"]["module.all_modules.4.Conv_0.weight"]


def add(contents):
    contents["model"]["module.all_modules.99.weight"] = torch.zeros(1)


def transpose_shape(contents):
    contents["model"]["module.all_modules.4.Conv_0.weight"] = torch.zeros(8, 8, 1, 1)


def replace_by_a_list(contents):
    contents["model"]["module.all_modules.4.Conv_0.bias"] = [0.0] * 8


def shorten_averages(contents):
    contents["ema"]["shadow_params"].pop()


def exchange_averages(contents):
    averages = contents["ema"]["shadow_params"]
    averages[0], averages[1] = averages[1], averages[0]


def drop(*keys):
    def corrupt(contents):
        for key in keys[:-1]:
            contents = contents[key]
        del contents[keys[-1]]

    corrupt.__name__ = "drop_" + "_".join(keys)
    return corrupt


def put_text_for_step(contents):
    contents["step"] = "five"


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (remove, r"model does not fit the network: missing: all_modules\.4\.Conv_0\.weight$"),
        (add, r"model does not fit the network: unexpected: all_modules\.99\.weight$"),
        (
            transpose_shape,
            r"wrong in shape: all_modules\.4\.Conv_0\.weight \(8, 8, 1, 1\) for \(8, 8, 3, 3\)$",
        ),
        (replace_by_a_list, r"wrong in shape: all_modules\.4\.Conv_0\.bias \(\) for \(8,\)$"),
        (shorten_averages, r"ema\.shadow_params has \d+ tensors, expected \d+$"),
        (exchange_averages, r"ema\.shadow_params does not fit .*all_modules\.1\.weight \(32,\)"),
        (drop("model"), "model: found nothing, expected dict"),
        (drop("ema"), r"ema\.shadow_params: found nothing, expected list"),
        (drop("ema", "shadow_params"), r"ema\.shadow_params: found nothing, expected list"),
        (put_text_for_step, "step: found str, expected int"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(corrupt, sentence, tmp_path):
    network = tiny_network()
    contents = published_file(network)
    corrupt(contents)
    path = save(contents, tmp_path)
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_published(path, network)
    assert str(refusal.value).startswith(f"{path}: ")


def test_a_network_of_another_size_is_refused_with_a_short_sentence(tmp_path):
    path = save(published_file(tiny_network(num_res_blocks=2)), tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: all_modules.* and \d+ more") as refusal:
        read_published(path, tiny_network())
    assert len(str(refusal.value)) < 2000


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_file_with_code_is_refused_and_not_run(tmp_path):
    network, marker = tiny_network(), tmp_path / "marker"
    path = save(published_file(network) | {"extra": Payload(marker)}, tmp_path)
    with pytest.raises(BadInput, match=r"found the Python object [\w.]+, expected tensors"):
        read_published(path, network)
    assert not marker.exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pth: no such file"):
        read_published(path, tiny_network())
    whole = io.BytesIO()
    torch.save(published_file(tiny_network()), whole)
    half = whole.getvalue()[: len(whole.getvalue()) // 2]
    for contents, found in [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a file that begins with b'<!DOCTYPE html><'"),
        (half, "a PyTorch file that is cut short or damaged"),
        (b"PK\x03\x04 cut short", "a PyTorch file that is cut short or damaged"),
        (pickle.dumps({"model": 1}), "a PyTorch file that is cut short or damaged"),
    ]:
        path.write_bytes(contents)
        with pytest.raises(BadInput, match=re.escape(f"checkpoint.pth: found {found}")):
            read_published(path, tiny_network())


@pytest.mark.parametrize("value", [np.zeros(3), np.str_("a"), np.datetime64("2026-01-01")], ids=str)
def test_other_numpy_objects_are_refused_by_name(value, tmp_path):
    path = save(published_file(tiny_network()) | {"extra": value}, tmp_path)
    with pytest.raises(BadInput, match=r"found the Python object numpy\.\S+, expected tensors"):
        read_published(path, tiny_network())


# Parity with the public implementations: see tests/golden/ncsnpp.json for how its numbers were
# made, and for what each of them is.


def formula(shape: tuple, k: int, a: float, b: float = 0.0) -> torch.Tensor:
    i = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    return torch.from_numpy(b + a * np.sin(i**2 + k)).reshape(shape)


def formula_weights(network: NCSNpp) -> dict[str, torch.Tensor]:
    weights = {}
    for k, (name, tensor) in enumerate(published_model(network).items()):
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            fan_in = shape[0] if is_projection(name) else math.prod(shape[1:])
            weights[name] = formula(shape, k, math.sqrt(2 / fan_in))
        elif name.endswith(".W"):
            weights[name] = formula(shape, k, 16.0)
        else:
            weights[name] = formula(shape, k, 0.1, float(name.endswith("weight")))
    return weights


def golden_network(path: Path, dtype: torch.dtype, **settings) -> NCSNpp:
    """The network with the formula's weights, read from a file in the published layout."""
    keys = {"type": "ncsnpp", **GOLDEN["network"], **settings}
    size, channels = keys.pop("image_size"), keys.pop("channels")
    network = NCSNpp(size, channels, networks.NCSNpp(**keys)).to(dtype).eval()
    weights = formula_weights(network)
    contents = published_file(network) | {"model": weights}
    network.load_state_dict(read_published(save(contents, path), network).model)
    return network


class Inputs:
    """The inputs of the golden numbers; times and points follow from them."""

    def __init__(self, dtype: torch.dtype):
        self.data = formula(SHAPE, 1000, 0.5, 0.5).to(dtype)
        self.z = formula(SHAPE, 1001, math.sqrt(2)).to(dtype)
        self.probes = [formula(SHAPE, k, 1.0).sign().to(dtype) for k in (1002, 1003)]
        self.noise = [formula(SHAPE, 1004 + k, math.sqrt(2)).to(dtype) for k in range(9)]
        self.t = torch.tensor([0.2, 0.5, 0.9], dtype=dtype)
        self.step_t = torch.full((3,), 1 + (1e-5 - 1) * 500 / 999, dtype=dtype)
        self.level_t = torch.full((3,), 1e-5 + 0.3 * (1 - 1e-5), dtype=dtype)

    def noised(self, t: torch.Tensor) -> torch.Tensor:
        return self.data + bcast(SDE.sigma(t), self.data) * self.z


def gradient_summary(loss: torch.Tensor, model: ScoreModel) -> torch.Tensor:
    """The norm of the gradient in the parameters, and its product with them."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    gradient, theta = (torch.cat([a.flatten() for a in t]) for t in (gradients, parameters))
    return torch.stack([gradient.norm(), gradient @ theta.detach()])


def losses(model: ScoreModel, inputs: Inputs, probes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Denoising score matching and the regulariser, both with weight σ²."""
    stacked = torch.stack(inputs.probes[:probes])
    loss = training_loss(model, inputs.data, inputs.t, inputs.z, stacked, "trace")
    return loss.dsm.mean(), loss.qc.mean()


def asymmetry(model, inputs, monkeypatch):
    monkeypatch.setattr(qcsbm.conservativeness.asymmetry, "rademacher", lambda *_: inputs.probes[0])
    x = inputs.noised(inputs.level_t)
    return one_probe_asymmetry(model, x, inputs.level_t, torch.Generator())


def energy_score(model, inputs, monkeypatch):
    sigma = SDE.sigma(inputs.t)
    conservative = EnergyScoreModel(model.network, SDE)
    s = conservative(inputs.noised(inputs.t), inputs.t)
    return s / bcast(sigma, s) ** 2


def total_gradient(model, inputs, monkeypatch):
    dsm, qc = losses(model, inputs, 2)
    return gradient_summary(dsm + 1e-4 * qc, model)


def predictor_step(model, inputs, monkeypatch):
    x = inputs.noised(inputs.step_t)
    return pc.predictor_step(model, SDE, x, 500, 1000, inputs.noise[0])


def corrector_step(model, inputs, monkeypatch):
    x = inputs.noised(inputs.step_t)
    return pc.corrector_step(model, SDE, x, 500, 1000, 0.16, inputs.noise[0])


def sample(model, inputs, monkeypatch):
    noise = iter(inputs.noise)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(noise))
    settings = PC(type="pc", steps=4, snr=0.16, batch_size=SHAPE[0])
    x = pc.sample(model, SDE, SHAPE, torch.Generator(), settings).x
    assert next(noise, None) is None
    return x


def half_squared_diffusion(inputs: Inputs) -> torch.Tensor:
    return 0.5 * SDE.diffusion(inputs.t) ** 2


def ode_divergence(model, inputs, monkeypatch):
    x = inputs.noised(inputs.t).requires_grad_()
    divergence = hutchinson_divergence(model(x, inputs.t), x, inputs.probes[0])
    return -half_squared_diffusion(inputs) * divergence


def ode_drift(model, inputs, monkeypatch):
    s = model(inputs.noised(inputs.t), inputs.t)
    return -bcast(half_squared_diffusion(inputs), s) * s


MEASURES = {
    "network": lambda m, i, _: m.network(i.noised(i.t), SDE.sigma(i.t)),
    "score": lambda m, i, _: m(i.noised(i.t), i.t),
    "energy_score": energy_score,
    "dsm_loss": lambda m, i, _: losses(m, i, 1)[0],
    "dsm_gradient": lambda m, i, _: gradient_summary(losses(m, i, 1)[0], m),
    "qc_loss_1": lambda m, i, _: losses(m, i, 1)[1],
    "qc_gradient_1": lambda m, i, _: gradient_summary(losses(m, i, 1)[1], m),
    "qc_loss_2": lambda m, i, _: losses(m, i, 2)[1],
    "qc_gradient_2": lambda m, i, _: gradient_summary(losses(m, i, 2)[1], m),
    "total_gradient": total_gradient,
    "asym": lambda *args: asymmetry(*args)[0],
    "nasym": lambda *args: asymmetry(*args)[1],
    "predictor_next": lambda *args: predictor_step(*args)[0],
    "predictor_mean": lambda *args: predictor_step(*args)[1],
    "corrector_next": lambda *args: corrector_step(*args)[0],
    "corrector_mean": lambda *args: corrector_step(*args)[1],
    "pc_sample": sample,
    "ode_drift": ode_drift,
    "ode_divergence": ode_divergence,
    "prior_logp": lambda m, i, _: SDE.prior_log_prob(i.noised(i.t)),
}


def summary(value: torch.Tensor) -> np.ndarray:
    """One row per sample, its norm and first four entries; scalars and vectors are one row."""
    if value.dim() < 2:
        return value.detach().double().reshape(1, -1).numpy()
    rows = value.detach().double().flatten(1)
    return torch.cat([rows.norm(dim=1, keepdim=True), rows[:, :4]], 1).numpy()


def assert_golden(value: torch.Tensor, golden: dict) -> None:
    """Relative to the largest entry of each row.

    The float64 runs differ by the order of sums, about 1e-14, and in NAsym by the 1e-8 that the
    peer adds to its denominator of about 1e4.
    """
    expected = np.array(golden["float64"])
    deviation = np.abs(summary(value) - expected) / np.abs(expected).max(1, keepdims=True)
    double = value.dtype == torch.float64
    assert deviation.max() < (2e-12 if double else golden["float32_tolerance"])


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden_model(request, tmp_path_factory) -> ScoreModel:
    return ScoreModel(golden_network(tmp_path_factory.mktemp("golden"), request.param), SDE)


@pytest.mark.parametrize("quantity", GOLDEN["quantities"])
def test_numbers_of_the_public_implementations_are_reproduced(quantity, golden_model, monkeypatch):
    inputs = Inputs(next(golden_model.parameters()).dtype)
    value = MEASURES[quantity](golden_model, inputs, monkeypatch)
    assert_golden(value, GOLDEN["quantities"][quantity])


def layout_sha256(network: NCSNpp) -> str:
    model = published_model(network)
    lines = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in model.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def test_names_and_shapes_of_the_network_of_the_paper_are_the_published_ones():
    paper = paper_rows.row("cifar10", "u", None)["network"]
    with torch.device("meta"):
        network = NCSNpp(32, 3, networks.NCSNpp(**paper))
    assert layout_sha256(network) == GOLDEN["layout_sha256"]["value"]


@pytest.mark.parametrize("variant", GOLDEN["variants"], ids=lambda v: str(v["settings"]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_outputs_of_other_published_variants_are_reproduced(variant, dtype, tmp_path):
    network = golden_network(tmp_path, dtype, **variant["settings"])
    assert layout_sha256(network) == variant["layout_sha256"]
    inputs = Inputs(dtype)
    assert_golden(network(inputs.noised(inputs.t), SDE.sigma(inputs.t)), variant)
