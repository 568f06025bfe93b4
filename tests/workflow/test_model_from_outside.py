"""A trained model of one's own as a row, without training.

The functions are posterior means of Gaussians, whose likelihood, samples and asymmetry are known.
The folder of diffusers has a U-Net with random weights, made here.
"""

import copy
import functools
import hashlib
import json
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plain
import pytest
import torch
import yaml
from conftest import ROOT, in_process, snakemake
from test_workflow import jobs
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.adapters import models
from qcsbm.adapters.field import Field
from qcsbm.data.quantisation import dequantise
from qcsbm.experiment import config, outside_models, specification
from qcsbm.report import notes, status
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.provenance import read_record
from qcsbm.runtime.seeding import generator
from qcsbm.schema.base import ConfigError
from qcsbm.schema.outside import Diffusers, Function, model_name
from qcsbm.score.schedules import EDM

MODULE = """\
import torch

# The pixels of an image in [0, 1] are independent normal variables.
deviations = torch.load("deviations.pt", weights_only=True)
means = 0.3 + torch.arange(8.0) / 20


def denoise(x, t):
    variance, noise = deviations**2, t[:, None, None, None] ** 2
    return (variance * x + noise * means) / (variance + noise)


def score(x, t):
    return (means - x) / (deviations**2 + t[:, None, None, None] ** 2)


def epsilon(x, t):
    # Of images in [-1, 1], under the VP SDE with beta from 0.1 to 20.
    integral = t * (0.1 + t * 19.9 / 2)
    mean = torch.exp(-integral / 2)[:, None, None, None]
    noise = 1 - mean**2
    return noise.sqrt() * (x - mean * (2 * means - 1)) / (mean**2 * 4 * deviations**2 + noise)
"""
DOCUMENT = yaml.safe_load("""
tier: outside
seeds: [3]
defaults:
  steps: 6
  sde: {type: ve, sigma_min: 0.02, sigma_max: 3.0}
  network: {type: ncsnpp, nf: 4, ch_mult: [1], num_res_blocks: 1, attn_resolutions: []}
  training: {batch_size: 8, lr: 1e-2, warmup: 2}
  samplers: {ode: {type: ode, rtol: 1e-4, atol: 1e-4, batch_size: 4}}
  quality: {samples: 6, extractor: efficientnet_lite0}
  likelihood: {samples: 3, rtol: 1e-5, atol: 1e-5, batch_size: 2, weights: raw}
  asymmetry: {estimator: exact, noise_levels: 2, samples: 3, batch_size: 2}
datasets:
  digits: {label: Digits, data: {source: digits}}
methods:
  u: {label: U, parameterisation: score}
  mine:
    label: Mine
    model:
      type: "gaussian:denoise"
      kind: denoiser
      schedule: {type: edm, sigma_min: 0.01, sigma_max: 5.0}
      data_range: [0, 1]
      files: [deviations.pt]
      dequantised: true
  ddpm:
    label: Noise
    model:
      type: "gaussian:epsilon"
      kind: epsilon
      schedule: {type: vp, beta_min: 0.1, beta_max: 20.0}
      data_range: [-1, 1]
      files: [deviations.pt]
  vp:
    label: Under VP
    sde: {type: vp, beta_min: 0.1, beta_max: 20.0}
    model:
      type: "gaussian:score"
      kind: score
      schedule: {type: edm, sigma_min: 0.0001, sigma_max: 200.0}
      data_range: [0, 1]
      files: [deviations.pt]
tables: {table2: {methods: [u, mine, ddpm, vp]}, table3: {methods: [u, mine], sampler: ode}}
""")
MEASUREMENTS = {"sample": ("ode",), "likelihood": (), "asymmetry": ()}
OUTSIDE = ("mine", "ddpm", "vp")
FILES = ["gaussian.py", "deviations.pt"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory: empty but for a module, its weights and the experiment file."""
    monkeypatch.chdir(tmp_path)
    Path("gaussian.py").write_text(MODULE)
    write_deviations(0.2)
    Path("outside.yaml").write_text(yaml.safe_dump(DOCUMENT))
    yield tmp_path
    sys.modules.pop("gaussian", None)


def write_deviations(least):
    torch.save(least + torch.arange(64).reshape(1, 8, 8) / 400, "deviations.pt")


def spec(stage, *names):
    return getattr(specification, stage)(config.read("outside.yaml"), "digits", *names).text()


def measure(stage, method, specified=None, files=FILES):
    """The exit status of a measurement as a whole, gathered."""
    specified = specified or spec(stage, method, 3, *MEASUREMENTS[stage])
    Path(method).mkdir(exist_ok=True)
    shard = [f"{method}/shard_{stage}.npz", f"{method}/shard_{stage}.json"]
    words = ["--data", "data", "--checkpoint", *files, "--shard", "1-of-1"]
    status = in_process(stage, "--spec", specified, *words, "--out", shard[0], "--record", shard[1])
    if status:
        return status
    words = ["--shards", shard[0], "--records", shard[1], "--record", f"{method}/{stage}.json"]
    words += ["--levels" if stage == "asymmetry" else "--out", f"{method}/{stage}.out"]
    words += ["--data", "data"] if stage == "sample" else []
    gather = {"sample": "gather_samples"}.get(stage, f"gather_{stage}")
    return in_process(gather, "--spec", specified, *words)


@pytest.fixture
def prepared(here):
    assert in_process("prepare", "--spec", spec("prepare"), "--out", "data") == 0


@pytest.mark.parametrize("method", OUTSIDE)
def test_its_likelihood_samples_and_asymmetry_are_those_of_a_gaussian(method, prepared):
    for stage in MEASUREMENTS:
        assert measure(stage, method) == 0
    settings = config.read("outside.yaml").cells["digits", method].sde
    sde = {"ve": plain.VE, "vp": plain.VP}[settings.type](settings)
    mean, deviation = 0.3 + torch.arange(8).double() / 20, torch.load("deviations.pt").double()
    left, noise = sde.kernel(torch.tensor([plain.EPSILON, 1.0]).double())
    means = left[0] * mean, left[1] * mean
    variances = [(m * deviation) ** 2 + std**2 for m, std in zip(left, noise, strict=True)]
    # The flow keeps every pixel's distance to its mean in proportion to its deviation.
    growth = (variances[1] / variances[0]).sqrt()

    k = torch.from_numpy(np.load("data/test.npy")[:3].copy())
    batches = [dequantise(k[i : i + 2], 17, generator(3, "dequantise", i // 2)) for i in (0, 2)]
    end = means[1] + growth * (torch.cat(batches).double() - means[0])
    prior = torch.distributions.Normal(0.0, torch.tensor(sde.prior).double())
    log_prob = (prior.log_prob(end) + growth.log()).sum((1, 2, 3))
    bits = -log_prob / (64 * math.log(2)) + math.log2(17)
    np.testing.assert_allclose(np.load(f"{method}/likelihood.out"), bits, rtol=1e-4)

    z = torch.cat([torch.randn(4, 1, 8, 8, generator=generator(3, "sample", b)) for b in (0, 1)])
    x = means[0] + (sde.prior * z.double() - means[1]) / growth
    x_0 = (left[0] * deviation**2 * x + noise[0] ** 2 * mean) / variances[0]
    scaled = x_0 * 17 - 0.5 if method == "mine" else x_0 * 16
    images = scaled.round().clamp(0, 16)[:6].numpy()
    difference = np.abs(np.load(f"{method}/sample.out") - images)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02

    record = read_record(Path(f"{method}/asymmetry.json"))
    assert [m["name"] for m in record["metrics"]] == ["asym", "nasym"]
    asym, nasym = (m["value"] for m in record["metrics"])
    assert asym < 1e-6 and nasym < 1e-12


def test_every_record_and_specification_has_the_digest_of_its_files(prepared):
    lines = [f"{hashlib.sha256(Path(file).read_bytes()).hexdigest()}  {file}\n" for file in FILES]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    facts = {"started_from": "outside", "model": "gaussian:denoise", "model_sha256": digest}
    for stage, names in MEASUREMENTS.items():
        told = json.loads(spec(stage, "mine", 3, *names))
        assert told["outside"] == {"model": digest} and told["trained"] == facts
        assert measure(stage, "mine") == 0
        record = read_record(Path(f"mine/{stage}.json"))
        assert record["specification"] == told
        assert facts.items() <= record["protocol"].items()
        # It has one set of weights, whatever the file says of others.
        assert record["protocol"]["weights"] is None
    assert json.loads(spec("quality", "mine", 3, "ode"))["trained"] == facts
    before = [spec(stage, "mine", 3, *names) for stage, names in MEASUREMENTS.items()]
    write_deviations(0.3)
    after = [spec(stage, "mine", 3, *names) for stage, names in MEASUREMENTS.items()]
    assert not set(before) & set(after)


@pytest.mark.parametrize("file", FILES)
def test_jobs_refuse_other_files_than_the_planned_ones(file, prepared, capsys):
    planned = {stage: spec(stage, "mine", 3, *names) for stage, names in MEASUREMENTS.items()}
    Path(file).write_bytes(Path(file).read_bytes() + b"\n")
    for stage, specified in planned.items():
        capsys.readouterr()
        assert measure(stage, "mine", specified) == 2
        said = capsys.readouterr().err
        assert f"qcsbm {stage}: gaussian:denoise: found files with SHA-256" in said
        assert "as when this job was planned" in said


SPECIFICATIONS = {
    ("u", "model.network.nf", -1): "expected: input should be greater than 0",
    ("u", "model.typo", 1): "found an unknown key, expected one of parameterisation, residual,",
    ("u", "trained.train_steps", "x"): "found 'x', expected: input should be a valid integer",
    ("mine", "model.source.files", 3): "found 3, expected: input should be a valid array",
    ("mine", "model.typo", 1): "found an unknown key, expected one of source, sde",
    ("mine", "trained.model", 3): "found 3, expected: input should be a valid string",
}


@pytest.mark.parametrize("method, path, value", SPECIFICATIONS)
def test_a_faulty_specification_is_one_sentence_on_its_kind_of_model(
    method, path, value, prepared, capsys
):
    told = json.loads(spec("likelihood", method, 3))
    *parents, last = path.split(".")
    functools.reduce(dict.__getitem__, parents, told)[last] = value
    capsys.readouterr()
    assert measure("likelihood", method, json.dumps(told)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"specification: {path}: " in said
    assert SPECIFICATIONS[method, path, value] in said


def test_describe_says_what_it_knows(here, capsys):
    where = ["--configfile", "outside.yaml", "--dataset", "digits", "--method", "ddpm"]
    assert in_process("describe", *where) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["type"] == "gaussian:epsilon" and "training" not in facts
    experiment = config.read("outside.yaml")
    source = experiment.cells["digits", "ddpm"].model
    assert facts["model_sha256"] == outside_models.sha256(source)
    # σ of images in [0, 1] is half of that in [−1, 1].
    low, high = facts["model_noise_levels"]
    integral = 1e-5 * (0.1 + 1e-5 * 19.9 / 2)
    assert low == pytest.approx(math.sqrt(math.expm1(integral)) / 2)
    assert high == pytest.approx(math.sqrt(math.expm1(10.05)) / 2)


# Bad input


def refusal(change, method="mine"):
    """What is said of the experiment file once ``change`` was made to the method's row."""
    document = copy.deepcopy(DOCUMENT)
    change(document["methods"][method])
    with pytest.raises(ConfigError) as caught:
        config.load(document, "outside.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("parameterisation", "score"),
        ("residual", True),
        ("regulariser", {"weight": 0.1, "estimator": "trace"}),
        ("init_from", {"method": "u", "step": 6}),
        ("steps", 10),
        ("checkpoints", [4]),
        ("network", {"type": "ncsnpp"}),
        ("training", {"batch_size": 4}),
    ],
)
def test_keys_of_training_are_refused_beside_a_model(key, value, here):
    said = refusal(lambda row: row.update({key: value}))
    assert said == (
        f"outside.yaml: methods.mine.{key}: found {value!r}, expected none beside model, as a "
        "model from outside is not trained here"
    )


def test_keys_of_training_are_refused_in_the_row_of_one_dataset(here):
    document = copy.deepcopy(DOCUMENT)
    document["datasets"]["digits"]["methods"] = {"mine": {"steps": 4}}
    with pytest.raises(ConfigError, match="datasets.digits.methods.mine.steps: found 4, expected"):
        config.load(document, "outside.yaml")


FAULTS = {
    "weights": (
        {"quality": {"weights": "raw"}},
        "methods.mine.quality.weights: found 'raw', expected none beside model, as a model from "
        "outside has one set of weights",
    ),
    "no type": ({"model": {"type": None}}, "methods.mine.model.type: found None, expected: dif"),
    "an unknown key": (
        {"model": {"typo": 1}},
        "methods.mine.model.typo: found an unknown key, expected one of type, kind, schedule, "
        "data_range, files, dequantised",
    ),
    "a kind without a score": (
        {"model": {"kind": "force"}},
        "methods.mine.model.kind: found 'force', expected: input should be 'score', 'epsilon'",
    ),
    "a schedule of another name": (
        {"model": {"schedule": {"type": "cosine"}}},
        "methods.mine.model.schedule.type: found 'cosine', expected one of 've', 'vp', 'edm', "
        "'rectified_flow'",
    ),
    "a schedule without noise": (
        {"model": {"schedule": {"sigma_max": 0.001}}},
        "methods.mine.model.schedule.sigma_max (dataset digits): found 0.001, expected more than",
    ),
    "data without a range": (
        {"model": {"data_range": [1, 1]}},
        "methods.mine.model.data_range (dataset digits): found [1.0, 1.0], expected the smallest",
    ),
    "a kind without a schedule": (
        {"model": {"schedule": None}},
        "methods.mine.model (dataset digits): found kind and data_range, expected kind, schedule",
    ),
    "a module that is not there": (
        {"model": {"type": "nowhere:denoise"}},
        "methods.mine.model.type (dataset digits): found 'nowhere:denoise', expected a module in "
        "the working directory, as there is no nowhere.py",
    ),
    "a file that is not there": (
        {"model": {"files": ["nowhere.pt"]}},
        "methods.mine.model.files (dataset digits): found no file nowhere.pt, expected one",
    ),
    "a folder that is not there": (
        {"model": {"type": "diffusers", "path": "nowhere"}},
        "methods.mine.model.path (dataset digits): found no folder nowhere, expected one",
    ),
    "a folder without a model": (
        {"model": {"type": "diffusers", "path": "empty"}},
        "methods.mine.model.path (dataset digits): found neither empty/config.json nor "
        "empty/unet/config.json, expected a folder that save_pretrained of diffusers wrote",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_row_is_one_sentence(fault, here):
    change, sentence = FAULTS[fault]
    Path("empty").mkdir()

    def changed(row):
        for key, value in change.items():
            kept = row.get(key, {})
            new = value.get("type", kept.get("type")) != kept.get("type")
            row[key] = value if new and "path" in value else kept | value
            if key == "model" and "type" not in (value.get("schedule") or {"type": ""}):
                schedule = DOCUMENT["methods"]["mine"]["model"]["schedule"]
                row[key]["schedule"] = schedule | value["schedule"]

    said = refusal(changed)
    assert said.startswith(f"outside.yaml: {sentence}")


def test_no_training_starts_from_a_model_from_outside(here):
    said = refusal(lambda row: row.update(init_from={"method": "mine", "step": 4}), "u")
    assert said == (
        "outside.yaml: methods.u.init_from.method (dataset digits): found 'mine', a model from "
        "outside, expected a method that is trained here"
    )


def test_a_trained_model_has_weights_to_choose_from(here):
    said = refusal(lambda row: row.update(likelihood={"weights": None}), "u")
    assert "likelihood.weights (dataset digits), method u: found None, expected 'ema'" in said


MISTAKES = {
    "another shape": (
        "x[:, :, :1]",
        "found an output of torch.float32, shape (3, 1, 1, 8), on cpu, expected one like x",
    ),
    "not a number": ("x / 0", "found an output that is not finite, expected finite numbers"),
    "chance": ("x + torch.rand(1)", "found two outputs for one input in evaluation mode"),
    "a batch that interacts": ("x - x.mean()", "found that a sample's output changes with its"),
    "no derivative": ("x.detach()", "found a derivative in x that differs from difference quo"),
    "half of the derivative": (
        "(torch.sin(3 * x) + 5 * torch.sin(7 * x).detach()) / 8",
        "found a derivative in x that differs from difference quotients",
    ),
    "an error": ("x @ x[0, 0, 0, :5]", "found RuntimeError: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_function_that_cannot_be_measured_is_refused(mistake, prepared, capsys):
    body, sentence = MISTAKES[mistake]
    Path("gaussian.py").write_text(f"import torch\n\n\ndef denoise(x, t):\n    return {body}\n")
    Path("outside.yaml").write_text(yaml.safe_dump(without("ddpm", "vp")))
    assert measure("likelihood", "mine") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"qcsbm likelihood: gaussian:denoise: {sentence}")


def without(*methods):
    document = copy.deepcopy(DOCUMENT)
    for method in methods:
        del document["methods"][method]
    for table in document["tables"].values():
        table["methods"] = [row for row in table["methods"] if row not in methods]
    return document


FIELD = """\
import qcsbm
from own import functions
from qcsbm.runtime.files import sha256

field = qcsbm.Field(
    functions.denoise,
    "denoiser",
    qcsbm.EDM(0.01, 5.0),
    data_range=(0.0, 1.0),
    files={"deviations.pt": sha256("deviations.pt")},
)
"""


@pytest.fixture
def field(prepared):
    """The same model as a Field, in a package of two modules."""
    Path("own").mkdir()
    Path("own/functions.py").write_text(MODULE)
    Path("own/__init__.py").write_text("")
    Path("own/field.py").write_text(FIELD)
    document = without("ddpm", "vp")
    model = {"type": "own.field:field", "files": ["deviations.pt"], "dequantised": True}
    document["methods"]["other"] = {"label": "Field", "model": model}
    Path("outside.yaml").write_text(yaml.safe_dump(document))
    yield document
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


PACKAGE = ["own/__init__.py", "own/field.py", "own/functions.py", "deviations.pt"]


def test_a_field_says_by_itself_what_it_is(field):
    assert measure("likelihood", "mine") == 0
    assert measure("likelihood", "other", files=PACKAGE) == 0
    bits = [np.load(f"{method}/likelihood.out") for method in ("mine", "other")]
    assert np.array_equal(*bits)


def test_files_that_would_not_count_are_refused(field, capsys):
    field["methods"]["other"]["model"]["files"] = []
    Path("outside.yaml").write_text(yaml.safe_dump(field))
    assert measure("likelihood", "other", files=PACKAGE[:-1]) == 2
    assert capsys.readouterr().err == (
        "qcsbm likelihood: own.field:field: found that it is read from deviations.pt, expected "
        "that among model.files, so that a change of it is noticed\n"
    )


def test_levels_that_the_model_does_not_know_are_refused(prepared, capsys):
    document = copy.deepcopy(DOCUMENT)
    document["defaults"]["sde"]["sigma_max"] = 6.0
    Path("outside.yaml").write_text(yaml.safe_dump(document))
    assert measure("asymmetry", "mine") == 2
    assert capsys.readouterr().err == (
        "qcsbm asymmetry: gaussian:denoise: found noise levels from 0.02 to 6 in the SDE, expected "
        "some between 0.01 and 5, those that the model knows for data in [0, 1]\n"
    )


def test_no_published_checkpoint_is_imported_for_it(here, capsys):
    where = ["--configfile", "outside.yaml", "--dataset", "digits", "--method", "mine"]
    assert in_process("import-checkpoint", "x.pth", "--out", "out", *where) == 2
    assert "method: found 'mine', a model from outside, expected one" in capsys.readouterr().err


# What reads records of trainings


def test_it_has_no_training_no_control_and_no_claim(here):
    experiment = config.read("outside.yaml")
    assert list(experiment.trainings) == [("digits", "u")]
    assert experiment.chain("digits", "mine") == [] == experiment.trained_steps("digits", "mine")
    assert experiment.control("digits", "mine") is None
    claims = specification.claims(experiment)
    assert claims.datasets[0].comparisons == [] and claims.alone == []
    files = specification.of_run(experiment, "digits", "mine", 3)
    measured = {"likelihood.json", "asymmetry.json", "ode/sample.json", "ode/quality.json"}
    assert files.keys() == measured
    assert specification.table(experiment, "table2").paper == {"digits": {}}


def test_the_notes_of_a_table_say_which_model_it_is():
    facts = {"started_from": "outside", "model": "models/mine", "model_sha256": "0123456789abcdef"}
    rows = pd.DataFrame([{"method": "mine", **facts}])
    assert list(notes.training(rows, {"mine": "Mine"}, {})) == [
        "Mine: models/mine from outside, SHA-256 0123456789ab…; how it was trained is not known "
        "here."
    ]


# A folder of diffusers


def write_unet(folder, seed, **options):
    """A U-Net with random weights and its scheduler, as a pipeline."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler(**options))
    pipeline.save_pretrained(folder)


UNET = {
    "label": "U-Net",
    "model": {"type": "diffusers", "path": "models/unet", "dequantised": True},
    "asymmetry": {"noise_levels": 3},
    "likelihood": {"rtol": 0.1, "atol": 0.1},
}


def with_unet(directory):
    """The experiment U beside a U-Net, in ``directory``."""
    document = without("ddpm", "vp")
    document["methods"] = {"u": document["methods"]["u"], "mine": UNET}
    (directory / "outside.yaml").write_text(yaml.safe_dump(document))
    write_unet(directory / "models/unet", 5)


@pytest.mark.parametrize("path", ["models/unet", "models/unet/unet"])
def test_the_files_that_count_are_all_that_are_read(path, tmp_path, monkeypatch):
    """A scheduler that lies beside a U-Net is one of them."""
    monkeypatch.chdir(tmp_path)
    with_unet(tmp_path)
    source = config.read("outside.yaml").cells["digits", "mine"].model
    source = source.model_copy(update={"path": path})
    counted = {path.resolve() for path in outside_models.files(source)}
    read = models.denoiser(source, (1, 8, 8)).field.files
    assert len(read) == 3 and {Path(path).resolve() for path in read} <= counted


def test_images_of_another_size_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with_unet(tmp_path)
    source = config.read("outside.yaml").cells["digits", "mine"].model
    with pytest.raises(BadInput, match="found a model of 1 × 8 × 8 images, expected 3 × 8 × 8"):
        models.denoiser(source, (3, 8, 8))


def test_class_guidance_and_variant_reach_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = {}
    field = Field(torch.add, "x0", EDM(), data_range=(0, 1))
    monkeypatch.setattr(models, "from_diffusers", lambda path, **keys: told.update(keys) or field)
    facts = {"label": 3, "guidance": 1.5, "null_label": 9, "variant": "fp16"}
    source = Diffusers(type="diffusers", path="models/unet", **facts)
    models.denoiser(source, (1, 8, 8))
    assert told == facts and model_name(source) == "models/unet, class 3, guidance 1.5"


class UNetScore(plain.Score):
    """−ε / σ by the library itself, at the step whose share of noise is that of σ."""

    def __init__(self, folder, sde):
        diffusers = pytest.importorskip("diffusers")
        self.sde = sde
        self.unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").double()
        beta = np.linspace(1e-4, 0.02, 1000, dtype=np.float32).astype(float)
        self.kept = np.cumprod(1 - beta)

    def __call__(self, x, t):
        sigma = self.sde.kernel(t)[1]
        # Images are stretched to [−1, 1], and their noise is.
        kept = 1 / (1 + (2 * sigma) ** 2)
        step = np.interp(kept, self.kept[::-1], np.arange(999, -1, -1))
        scale = kept.sqrt()[:, None, None, None]
        with sdpa_kernel(SDPBackend.MATH):
            epsilon = self.unet(scale * (2 * x - 1), torch.as_tensor(step)).sample
        return -epsilon / sigma[:, None, None, None]


RUN = "results/outside/runs/digits/mine/seed3"
TARGETS = [
    *(f"results/outside/{file}" for file in ("table2.md", "table3.md", "metrics.csv")),
    "results/outside/tables/cost.md",
    "results/outside/figures/digits/asymmetry.png",
]
OPTIONS = ["--cores", "2", "--configfile", "outside.yaml"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    with_unet(folder)
    result = snakemake(*TARGETS, *OPTIONS, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.fixture
def unet_run(results, monkeypatch):
    monkeypatch.chdir(results)


@pytest.mark.slow
def test_its_numbers_are_those_of_the_library(unet_run):
    cell = config.read("outside.yaml").cells["digits", "mine"]
    score = UNetScore("models/unet", plain.VE(cell.sde))
    protocols = {key: getattr(cell, key) for key in ("asymmetry", "likelihood", "samplers")}
    told = SimpleNamespace(**protocols, training=SimpleNamespace(dequantise=True))
    test = np.load("results/outside/data/digits/test.npy")

    values = plain.asymmetry(score, test, told, 3)
    levels = pd.read_csv(f"{RUN}/asymmetry.csv")
    np.testing.assert_allclose(levels["asym"], values[:, 0].mean(1), rtol=1e-3)
    np.testing.assert_allclose(levels["nasym"], values[:, 1].mean(1), rtol=1e-3)
    assert (levels["nasym"] > 1e-3).any()
    bits, nfe = plain.likelihood(score, test, told, 3)
    np.testing.assert_allclose(np.load(f"{RUN}/likelihood.npy"), bits, rtol=1e-3)
    assert read_record(Path(f"{RUN}/likelihood.json"))["cost"]["evaluations"] == sum(nfe)


@pytest.mark.slow
def test_everything_that_is_put_together_has_it_beside_a_trained_row(unet_run):
    metrics = pd.read_csv("results/outside/metrics.csv")
    mine, u = (metrics[metrics["method"] == method] for method in ("mine", "u"))
    assert set(mine["metric"]) == set(u["metric"]) and {"nll", "asym", "fd"} <= set(mine["metric"])
    assert set(mine["started_from"]) == {"outside"} and set(mine["model"]) == {"models/unet"}
    source = config.read("outside.yaml").cells["digits", "mine"].model
    assert set(mine["model_sha256"]) == {outside_models.sha256(source)}
    assert mine[["train_steps", "parameterisation", "weights"]].isna().all(axis=None)
    assert u["model"].isna().all() and set(u["started_from"]) == {"random weights"}

    table = Path("results/outside/table2.md").read_text()
    assert "| U-Net " in table and "U-Net: models/unet from outside, SHA-256 " in table
    assert "| U-Net " in Path("results/outside/table3.md").read_text()
    costs = pd.read_csv("results/outside/tables/cost.csv").set_index("method")
    assert np.isnan(costs.loc["mine", "train_hours"]) and costs.loc["u", "train_hours"] > 0
    assert costs.loc["mine", "likelihood_calls"] > 0 and costs.loc["mine", "ode_calls"] > 0

    found = status.jobs(config.read("outside.yaml"), "digits")
    states = {(job.run, job.stage): status.status(job, 0.0).state for job in found}
    assert set(states.values()) == {"done"}
    assert ("digits/u/seed3", "train") in states and ("digits/mine/seed3", "train") not in states


def planned():
    output = snakemake(*TARGETS, "-n", *OPTIONS, cwd=Path.cwd()).stdout
    counts = {} if "Nothing to be done" in output else jobs(output)
    return {rule: n for rule, n in counts.items() if rule != "total"}


def verified(capsys):
    capsys.readouterr()
    code = in_process("verify", "--configfile", "outside.yaml")
    return code, capsys.readouterr().out


@pytest.mark.slow
def test_a_change_of_its_weights_is_noticed_and_measured_again(unet_run, capsys):
    code, said = verified(capsys)
    assert code == 0, said
    os.utime("models/unet/unet/config.json", (1, 1))
    assert planned() == {}
    write_unet(Path("models/unet"), 6)
    measured = ("sample", "gather_samples", "sample_features", "quality", "likelihood")
    measured += ("gather_likelihood", "asymmetry", "gather_asymmetry")
    summaries = {"table": 2, "gather_records": 1, "cost": 1, "figures": 1}
    assert planned() == dict.fromkeys(measured, 1) | summaries
    code, said = verified(capsys)
    assert code == 1
    assert f"{RUN}/likelihood.json: outside.model: found" in said
    assert "trained.model_sha256: found" in said and "runs/digits/u" not in said


# The tutorial

TUTORIAL = (ROOT / "docs/models.md").read_text()
BLOCK = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_tutorial_measures_both_kinds_of_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in BLOCK.findall(TUTORIAL):
        Path(name).write_text(text)
    for script in ("make_model.py", "make_gaussian.py"):
        with torch.random.fork_rng():
            exec(compile(Path(script).read_text(), script, "exec"), {})
    experiment = config.read("mine.yaml")
    told = specification.prepare(experiment, "digits").text()
    assert in_process("prepare", "--spec", told, "--out", "data") == 0
    found = {}
    for method in ("unet", "gaussian"):
        told = specification.asymmetry(experiment, "digits", method, 0).text()
        files = outside_models.files(experiment.cells["digits", method].model)
        assert measure("asymmetry", method, told, files) == 0
        record = read_record(Path(f"{method}/asymmetry.json"))
        found[method] = {m["name"]: m["value"] for m in record["metrics"]}
    assert found["unet"]["nasym"] > 1e-3 and found["gaussian"]["nasym"] < 1e-12

    capsys.readouterr()
    where = ["--configfile", "mine.yaml", "--dataset", "digits", "--method", "unet"]
    assert in_process("describe", *where) == 0
    low, high = json.loads(capsys.readouterr().out)["model_noise_levels"]
    assert f"has {low:.3f} to {high:.1f}" in TUTORIAL
    for key in Diffusers.model_fields.keys() | Function.model_fields.keys():
        assert f"`{key}" in TUTORIAL or f"{key}:" in TUTORIAL
    refused = TUTORIAL.partition("## What such a row does not have")[2].partition("\n\n## ")[0]
    assert all(f"`{key}`" in refused for key in config.TRAINING_KEYS)
