"""Every measuring stage against plain code, where no mistake can hide.

The seed is not 0, averaged and raw weights are two draws of which a method names one, the score is
far from zero, there are two batches of everything, the second not full, and the classes of samples
and of the reference differ.
"""

import json

import numpy as np
import pandas as pd
import plain
import pytest
import torch
import yaml
from conftest import in_process
from sklearn.datasets import load_digits
from test_shards import measure

from qcsbm.data import splits
from qcsbm.experiment import config, specification
from qcsbm.nets.classifier import Classifier
from qcsbm.quality import classification, feature_file
from qcsbm.runtime import provenance
from qcsbm.runtime.files import sha256
from qcsbm.training import checkpoint

DOCUMENT = """
tier: tiny
seeds: [7]
defaults:
  steps: 60
  sde: {type: ve, sigma_min: 0.05, sigma_max: 1.0}
  network:
    type: ncsnpp
    nf: 4
    ch_mult: [1]
    num_res_blocks: 1
    attn_resolutions: []
    fourier_scale: 1.0
    init_scale: 1.0
  training:
    {batch_size: 24, lr: 1e-2, warmup: 3, beta1: 0.8, eps: 1e-3, grad_clip: 5.0, ema: 0.3}
  samplers:
    pc: {type: pc, steps: 4, snr: 0.2, corrector_steps: 2, batch_size: 3}
    ode: {type: ode, rtol: 0.003, atol: 0.002, batch_size: 3}
    heun: {type: heun, steps: 4, rho: 3.0, batch_size: 3}
    langevin3:
      {type: langevin, noise_levels: 3, steps_per_level: 2, step_size: 0.2, batch_size: 3}
  quality: {samples: 5, extractor: classifier, neighbours: 2}
  likelihood: {samples: 3, rtol: 0.2, atol: 0.1, batch_size: 2}
  asymmetry: {estimator: antisymmetric, probes: 3, noise_levels: 3, samples: 3, batch_size: 2}
  circulation: {triangles: 3}
datasets:
  digits:
    label: Digits
    data: {source: digits}
    classifier: {epochs: 8}
methods:
  c:
    label: C
    parameterisation: energy
    residual: true
    quality: {weights: raw}
    likelihood: {weights: raw}
  u:
    label: U
    parameterisation: score
    training: {dequantise: true, flip: true}
    likelihood: {divergence: exact}
    asymmetry: {weights: raw, estimator: trace, probes: null}
  qc:
    label: QC
    parameterisation: score
    training: {dequantise: true}
    init_from: {method: u, step: 60}
    steps: 62
    regulariser: {weight: 0.3, probes: 2, estimator: trace, batch_size: 5}
  qcplus:
    label: QC⁺
    parameterisation: score
    init_from: {method: u, step: 60}
    steps: 62
    regulariser: {weight: 3.0, estimator: antisymmetric}
    asymmetry: {estimator: exact, probes: null}
  c_vp:
    label: C of the VP SDE
    parameterisation: energy
    sde: &vp {type: vp, beta_min: 0.2, beta_max: 2.0}
    training: {dequantise: true}
  u_vp:
    label: U of the VP SDE
    parameterisation: score
    sde: *vp
    training: {flip: true}
    asymmetry: {estimator: exact, probes: null}
  qc_vp:
    label: QC of the VP SDE
    parameterisation: score
    sde: *vp
    init_from: {method: u_vp, step: 60}
    steps: 62
    regulariser: {weight: 0.3, probes: 2, estimator: trace, batch_size: 5}
    asymmetry: {probes: 1, derivatives: finite_differences, difference_step: 0.5}
tables: {table2: {methods: [c]}}
"""
EXPERIMENT = config.load(yaml.safe_load(DOCUMENT), "tiny.yaml")
SEED = 7
# The stages compute in float32.
ROUNDING = 1e-3


def cell(method):
    return EXPERIMENT.cells["digits", method]


def spec(stage, *names):
    return getattr(specification, stage)(EXPERIMENT, *names).text()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of 80 digits to train on, more than three batches, and 12 to measure on."""
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    train, test = (
        splits.Split(images[part], bunch.target[part].astype(np.int64))
        for part in (slice(80), slice(80, 92))
    )
    folder = tmp_path_factory.mktemp("digits")
    splits.write(folder, splits.Splits(train, test, 17))
    return folder


def images(digits, split):
    return np.load(digits / f"{split}.npy")


def weights(method, part):
    """Random weights of the network of ``method``, others for each ``part`` of a checkpoint."""
    return plain.network(cell(method), {"raw": 1, "ema": 2}[part]).state_dict()


def write_checkpoint(path, method, step, seed=1):
    """A checkpoint with those weights and random moments."""
    named = {part: weights(method, part) for part in ("raw", "ema")}
    trained = [name for name, _ in plain.network(cell(method)).named_parameters()]
    draws = torch.Generator().manual_seed(seed)
    moments = [
        {name: 1e-2 * torch.rand(named["raw"][name].shape, generator=draws) for name in trained}
        for _ in range(2)
    ]
    parts = [{f"network.{k}": v for k, v in t.items()} for t in (*named.values(), *moments)]
    checkpoint.save(path, checkpoint.TrainingState(step, *parts))


@pytest.fixture
def measured(digits, tmp_path):
    """Runs a stage, gathers its one shard, and returns score, result, metrics and cost."""

    def run(stage, method, *names):
        (tmp_path / "data").symlink_to(digits)
        write_checkpoint(tmp_path / "step60.safetensors", method, cell(method).steps)
        specified = getattr(specification, stage)(EXPERIMENT, "digits", method, SEED, *names)
        result, record = measure(stage, specified, tmp_path, tmp_path, 1)
        section = {"sample": "quality"}.get(stage, stage)
        part = getattr(cell(method), section).weights
        metrics = {m["name"]: (m["value"], m["stderr"], m["n"]) for m in record["metrics"]}
        return plain.Score(cell(method), weights(method, part)), result, metrics, record["cost"]

    return run


def assert_metric(found, values):
    value, error, n = plain.mean(values)
    assert found == (
        pytest.approx(value, rel=ROUNDING),
        pytest.approx(error, rel=ROUNDING),
        n,
    )


@pytest.mark.parametrize("sampler", ["pc", "ode", "heun", "langevin3"])
@pytest.mark.parametrize("method", ["c", "u", "c_vp", "u_vp"])
def test_samples_are_those_of_the_sampler(method, sampler, measured):
    score, result, metrics, cost = measured("sample", method, sampler)
    expected, nfe = plain.samples(score, cell(method), sampler, SEED)
    assert len(expected) == 6 and len(np.unique(expected)) > 10
    plain.assert_same_images(np.load(result), expected[:5])
    # The sixth was drawn with its batch, and is none of the five.
    assert sampler != "ode" or np.mean(nfe) != np.mean(nfe[:5])
    assert_metric(metrics["nfe"], nfe[:5])
    calls = {"pc": 4 * (1 + 2), "ode": np.mean(nfe) + 1, "heun": 7, "langevin3": 3 * 2 + 1}
    assert cost["network_calls"] == pytest.approx(2 * calls[sampler])


@pytest.mark.parametrize("method", ["c", "u", "u_vp"])
def test_likelihoods_are_those_of_the_flow(method, digits, measured):
    score, result, metrics, cost = measured("likelihood", method)
    bits, nfe = plain.likelihood(score, images(digits, "test"), cell(method), SEED)
    np.testing.assert_allclose(np.load(result), bits, rtol=ROUNDING)
    assert_metric(metrics["nll"], bits)
    assert_metric(metrics["nll_nfe"], nfe)
    assert cost["evaluations"] == sum(nfe)


@pytest.mark.parametrize("method", ["u", "qc", "qcplus", "u_vp", "qc_vp"])
def test_asymmetries_are_those_of_the_jacobian(method, digits, measured):
    score, result, metrics, _ = measured("asymmetry", method)
    values = plain.asymmetry(score, images(digits, "test"), cell(method), SEED)
    levels = pd.read_csv(result)
    first = score.sde.first
    np.testing.assert_allclose(levels["t"], first + (1 - first) * np.arange(3) / 3)
    mean, std = score.sde.kernel(levels["t"])
    np.testing.assert_allclose(levels["sigma"], std / mean)
    for i, name in enumerate(("asym", "nasym")):
        for level, of_level in enumerate(values[:, i]):
            value, error, n = plain.mean(of_level)
            assert levels[name][level] == pytest.approx(value, rel=ROUNDING)
            assert levels[f"{name}_stderr"][level] == pytest.approx(error, rel=ROUNDING)
        assert_metric(metrics[name], values[:, i].mean(0))


@pytest.mark.parametrize("method", ["qc", "u_vp"])
def test_circulations_are_those_of_a_sum_along_the_edges(method, digits, tmp_path):
    write_checkpoint(tmp_path / "step60.safetensors", method, cell(method).steps)
    files = ["--checkpoint", tmp_path / "step60.safetensors", "--data", digits]
    files += ["--levels", tmp_path / "levels.csv", "--record", tmp_path / "record.json"]
    told = spec("circulation", "digits", method, SEED)
    assert in_process("circulation", "--spec", told, *files) == 0
    score = plain.Score(cell(method), weights(method, cell(method).asymmetry.weights))
    values = plain.circulation(score, images(digits, "test"), cell(method), SEED)
    levels = pd.read_csv(tmp_path / "levels.csv")
    expected = np.sqrt((values**2).mean(1))
    # The stage stops at errors of 2 % of a value.
    np.testing.assert_allclose(levels["circulation"], expected, rtol=0.02)
    first = score.sde.first
    np.testing.assert_allclose(levels["t"], first + (1 - first) * np.arange(3) / 3)
    record = json.loads((tmp_path / "record.json").read_text())
    (metric,) = record["metrics"]
    squares = (values**2).mean(0)
    whole = np.sqrt(squares.mean())
    assert (metric["name"], metric["n"], metric["unit"]) == ("circulation", 3, "nats")
    assert metric["value"] == pytest.approx(whole, rel=0.02)
    error = squares.std(ddof=1) / 3**0.5 / (2 * whole)
    assert metric["stderr"] == pytest.approx(error, rel=0.06)
    # At least once at the 17 nodes of every edge.
    assert record["outputs"].keys() == {"levels.csv"} and record["cost"]["evaluations"] >= 459


def test_the_circulation_of_an_energy_is_what_the_quadrature_leaves(digits, tmp_path):
    write_checkpoint(tmp_path / "step60.safetensors", "c", cell("c").steps)
    files = ["--checkpoint", tmp_path / "step60.safetensors", "--data", digits]
    files += ["--levels", tmp_path / "levels.csv", "--record", tmp_path / "record.json"]
    told = spec("circulation", "digits", "c", SEED)
    assert in_process("circulation", "--spec", told, *files) == 0
    levels = pd.read_csv(tmp_path / "levels.csv")
    assert (levels["circulation"] < levels["error"]).all()


def test_features_are_those_of_the_classifier(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("qcsbm.stages.features.BATCH_SIZE", 8)
    torch.manual_seed(1)
    classification.save(tmp_path / "weights", Classifier(1, 10), 0.75)
    arguments = ["--data", digits, "--images", digits / "test.npy", "--shard", "1-of-1"]
    arguments += ["--weights", tmp_path / "weights", "--out", tmp_path / "features.npz"]
    assert (
        in_process("features", "--spec", spec("features", "classifier", "float32"), *arguments) == 0
    )
    found = feature_file.read(tmp_path / "features.npz")
    expected = plain.classify(plain.tensors(tmp_path / "weights"), images(digits, "test"))
    np.testing.assert_allclose(found.features, expected[0], atol=1e-5)
    np.testing.assert_allclose(found.logits, expected[1], atol=1e-5)
    assert found.extractor_sha256 == sha256(tmp_path / "weights")
    assert found.images_sha256 == sha256(digits / "test.npy")


def test_quality_compares_samples_with_the_reference(tmp_path):
    draws = np.random.default_rng(1)
    # In two shards each. Samples are fewer than real images, elsewhere, and closer together.
    files = {name: [tmp_path / f"{name}{i}.npz" for i in (1, 2)] for name in ("fake", "real")}
    features = {"fake": draws.normal(1, 0.8, (30, 4)), "real": draws.normal(0, 1, (50, 4))}
    logits = {"fake": draws.normal(0, 1, (30, 3)), "real": draws.normal(0, 3, (50, 3))}
    for name, paths in files.items():
        arrays = (features[name].astype(np.float32), logits[name].astype(np.float32))
        for path, *halves in zip(paths, *(np.array_split(a, 2) for a in arrays), strict=True):
            feature_file.write(path, feature_file.Features(*halves, "extractor", name))
    arguments = ["--samples", *files["fake"], "--reference", *files["real"]]
    arguments += ["--record", tmp_path / "quality.json"]
    specified = spec("quality", "digits", "c", SEED, "pc")
    assert in_process("quality", "--spec", specified, *arguments) == 0
    record = provenance.read_record(tmp_path / "quality.json")
    found = {m["name"]: (m["value"], m["stderr"], m["n"]) for m in record["metrics"]}

    fake, real = features["fake"], features["real"]
    distance = plain.frechet_distance(fake, real.mean(0), np.cov(real.T))
    assert found["fd"][0] == pytest.approx(distance, rel=1e-5) and found["fd"][2] == 30
    assert found["kd"] == pytest.approx(plain.kernel_distance(fake, real), rel=1e-5)
    assert found["cs"] == pytest.approx(plain.class_score(logits["fake"]), rel=1e-5)
    expected, other = plain.prdc(real, fake, 2), plain.prdc(real, fake, 3)
    for name, (value, error, n) in expected.items():
        assert value != other[name][0]
        error = error or found[name][1]
        assert found[name] == pytest.approx((value, error, n)), name
    assert record["protocol"]["reference_n"] == 50
    assert record["protocol"]["samples_sha256"] == "fake"
    assert record["protocol"]["reference_sha256"] == "real"


def test_classifier_learns_from_the_training_split_and_is_judged_by_the_other(digits, tmp_path):
    out, record = tmp_path / "classifier.safetensors", tmp_path / "classifier.json"
    arguments = ["--data", digits, "--out", out, "--record", record]
    assert in_process("classifier", "--spec", spec("classifier", "digits"), *arguments) == 0
    labels = {name: np.load(digits / f"{name}_labels.npy") for name in ("train", "test")}
    expected = plain.train_classifier(images(digits, "train"), labels["train"], epochs=8)
    for name, tensor in plain.tensors(out).items():
        np.testing.assert_allclose(tensor, expected[name], atol=5e-4)
    right = plain.classify(expected, images(digits, "test"))[1].argmax(1) == labels["test"]
    share = right.mean()
    assert 0 < share < 1
    (metric,) = provenance.read_record(record)["metrics"]
    assert (metric["name"], metric["value"], metric["n"]) == ("accuracy", share, 12)
    assert metric["stderr"] == pytest.approx((share * (1 - share) / 12) ** 0.5)


@pytest.mark.parametrize(
    "method, first",
    [("u", 0), ("c", 0), ("qc", 60), ("qcplus", 60), ("u_vp", 0), ("c_vp", 0), ("qc_vp", 60)],
)
def test_training_makes_the_steps_of_its_recipe(method, first, digits, tmp_path):
    stop = first + 2 if first else 4
    arguments = ["--data", digits]
    start = 0, None
    if first:
        write_checkpoint(tmp_path / "init", method, first)
        arguments += ["--init", tmp_path / "init"]
        parts = ("model", "ema", "exp_avg", "exp_avg_sq")
        start = first, {p: plain.tensors(tmp_path / "init", f"{p}.network.") for p in parts}
    outputs = {name: tmp_path / name for name in ("out", "curve", "record")}
    for name, path in outputs.items():
        arguments += [f"--{name}", path]
    specified = spec("train", "digits", method, SEED, stop)
    assert in_process("train", "--spec", specified, *arguments) == 0
    expected, losses = plain.train(cell(method), images(digits, "train"), SEED, start, stop)
    for part, named in expected.items():
        found = plain.tensors(tmp_path / "out", f"{part}.network.")
        for name, tensor in named.items():
            scale = max(1e-3, float(tensor.abs().max()))
            assert (found[name] - tensor).abs().max() < ROUNDING * scale, (part, name)
    (row,) = pd.read_csv(tmp_path / "curve").itertuples(index=False)
    dsm, qc, norm = np.mean(losses, 0)
    assert row.step == stop
    assert (row.dsm, row.grad_norm) == pytest.approx((dsm, norm), rel=ROUNDING)
    assert row.qc == pytest.approx(qc, rel=ROUNDING) if first else np.isnan(row.qc)
    assert checkpoint.load(tmp_path / "out").step == stop
