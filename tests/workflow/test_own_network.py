"""A network of one's own, from a file in the working directory, under every method."""

import copy
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
import yaml
from conftest import in_process, snakemake
from test_workflow import jobs

from qcsbm.experiment import config, specification

MODULE = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, image_size, channels, widths, bias=True):
        super().__init__()
        inner, outer = widths
        self.inner = nn.Conv2d(channels + 1, inner, 3, padding=1, bias=bias)
        self.middle = nn.Conv2d(inner, outer, 1)
        self.outer = nn.Conv2d(outer, channels, 3, padding=1)

    def forward(self, x, sigma):
        level = sigma.log()[:, None, None, None].expand(-1, 1, *x.shape[2:])
        h = torch.tanh(self.inner(torch.cat([x, level], 1)))
        return self.outer(self.middle(h))
"""
DOCUMENT = yaml.safe_load("""
tier: own
seeds: [3]
defaults:
  steps: 6
  sde: {type: ve, sigma_min: 0.05, sigma_max: 1.0}
  network: {type: "mynet:Net", widths: [4, "6"], bias: false}
  training: {batch_size: 8, lr: 1e-2, warmup: 2}
  samplers: {pc: {type: pc, steps: 3, snr: 0.16, batch_size: 4}}
  quality: {samples: 6, extractor: efficientnet_lite0}
  likelihood: {samples: 3, rtol: 0.1, atol: 0.1, batch_size: 2}
  asymmetry: {estimator: exact, noise_levels: 2, samples: 3, batch_size: 2}
datasets:
  digits: {label: Digits, data: {source: digits}}
methods:
  c: {label: C, parameterisation: energy}
  u: {label: U, parameterisation: score, checkpoints: [4]}
  qc:
    label: QC
    parameterisation: score
    init_from: {method: u, step: 4}
    regulariser: {weight: 0.1, estimator: trace}
tables: {table2: {methods: [c, u, qc]}, table3: {methods: [c, u, qc], sampler: pc}}
""")
MEASUREMENTS = {"sample": ("pc",), "likelihood": (), "asymmetry": ()}
RUNS = "results/own/runs/digits"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory: empty but for the network and the experiment file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(MODULE)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(DOCUMENT))
    yield tmp_path
    sys.modules.pop("mynet", None)


def edit():
    """Another network of the same shapes."""
    path = Path("mynet.py")
    path.write_text(path.read_text().replace("torch.tanh", "torch.sin"))


def spec(stage, *names):
    return getattr(specification, stage)(config.read("own.yaml"), "digits", *names).text()


def train(method, step, init=None, specified=None):
    """The exit status of a training towards the checkpoint ``method``/``step``.safetensors."""
    Path(method).mkdir(exist_ok=True)
    words = ["--data", "data", *(["--init", init] if init else [])]
    for option, end in (("out", "safetensors"), ("curve", "csv"), ("record", "json")):
        words += [f"--{option}", f"{method}/{step}.{end}"]
    return in_process("train", "--spec", specified or spec("train", method, 3, step), *words)


def measure(stage, method, specified=None):
    words = ["--data", "data", "--checkpoint", f"{method}/6.safetensors", "--shard", "1-of-1"]
    words += ["--out", f"{method}/{stage}.npz", "--record", f"{method}/{stage}.json"]
    specified = specified or spec(stage, method, 3, *MEASUREMENTS[stage])
    return in_process(stage, "--spec", specified, *words)


@pytest.fixture
def trained(here):
    """The digits, and C, U and QC trained on them."""
    assert in_process("prepare", "--spec", spec("prepare"), "--out", "data") == 0
    assert train("u", 4) == 0
    for method, init in (("c", None), ("u", "u/4.safetensors"), ("qc", "u/4.safetensors")):
        assert train(method, 6, init) == 0


@pytest.mark.parametrize("method, first", [("c", 0), ("u", 4), ("qc", 4)])
def test_it_trains_and_is_measured_as_plain_code_does(method, first, trained):
    cell = config.read("own.yaml").cells["digits", method]
    images, test = (np.load(f"data/{split}.npy") for split in ("train", "test"))
    start = 0, None
    if first:
        parts = ("model", "ema", "exp_avg", "exp_avg_sq")
        start = 4, {p: plain.tensors("u/4.safetensors", f"{p}.network.") for p in parts}
    expected, _ = plain.train(cell, images, 3, start, 6)
    for part, named in expected.items():
        found = plain.tensors(f"{method}/6.safetensors", f"{part}.network.")
        for name, tensor in named.items():
            torch.testing.assert_close(found[name].double(), tensor, rtol=1e-3, atol=1e-5)
    # The arguments of the file have made the network.
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes["inner.weight"] == (4, 2, 3, 3) and "inner.bias" not in shapes
    assert shapes["middle.weight"] == (6, 4, 1, 1)

    for stage in MEASUREMENTS:
        assert measure(stage, method) == 0
    score = plain.Score(cell, plain.tensors(f"{method}/6.safetensors", "ema.network."))
    with np.load(f"{method}/asymmetry.npz") as arrays:
        values = plain.asymmetry(score, test, cell, 3)
        np.testing.assert_allclose(arrays["values"], values, rtol=1e-3, atol=1e-6)
    with np.load(f"{method}/likelihood.npz") as arrays:
        bits, nfe = plain.likelihood(score, test, cell, 3)
        np.testing.assert_allclose(arrays["bits"], bits, rtol=1e-4)
        assert list(arrays["nfe"]) == nfe
    with np.load(f"{method}/sample.npz") as arrays:
        plain.assert_same_images(arrays["images"], plain.samples(score, cell, "pc", 3)[0])


def test_the_specifications_of_all_that_runs_it_hold_the_digest_of_its_code(here):
    digest = hashlib.sha256(MODULE.encode()).hexdigest()
    stages = {"train": (6,), **MEASUREMENTS}
    before = {stage: spec(stage, "u", 3, *names) for stage, names in stages.items()}
    assert all(json.loads(text)["outside"] == {"network": digest} for text in before.values())
    assert json.loads(spec("quality", "u", 3, "pc"))["outside"] == {}
    edit()
    assert all(spec(stage, "u", 3, *names) != before[stage] for stage, names in stages.items())


def test_jobs_refuse_another_network_than_the_planned_one(trained, capsys):
    planned = {stage: spec(stage, "qc", 3, *names) for stage, names in MEASUREMENTS.items()}
    planned["train"] = spec("train", "qc", 3, 6)
    edit()
    capsys.readouterr()
    for stage, specified in planned.items():
        if stage == "train":
            assert train("qc", 6, "u/4.safetensors", specified) == 2
        else:
            assert measure(stage, "qc", specified) == 2
        said = capsys.readouterr().err
        assert f"qcsbm {stage}: mynet:Net: found code with SHA-256" in said
        assert "as when this job was planned" in said


def test_a_checkpoint_of_other_code_is_refused(trained, capsys):
    edit()
    capsys.readouterr()
    sentence = "found a checkpoint that was trained with code of the network with SHA-256"
    for stage in MEASUREMENTS:
        assert measure(stage, "u") == 2
        assert f"u/6.safetensors: {sentence}" in capsys.readouterr().err
    assert train("qc", 6, "u/4.safetensors") == 2
    assert f"u/4.safetensors: {sentence}" in capsys.readouterr().err


def test_a_network_that_breaks_the_contract_is_refused_before_the_first_step(here, capsys):
    Path("mynet.py").write_text(
        MODULE.replace("torch.cat([x, level]", "torch.cat([x - x.mean(), level]")
    )
    assert in_process("prepare", "--spec", spec("prepare"), "--out", "data") == 0
    capsys.readouterr()
    assert train("u", 4) == 2
    assert "qcsbm train: mynet:Net: found that a sample's output changes" in capsys.readouterr().err
    assert not list(Path("u").iterdir())


def test_a_key_that_the_class_does_not_take_is_named(here, capsys):
    document = copy.deepcopy(DOCUMENT)
    document["defaults"]["network"]["width"] = 5
    Path("own.yaml").write_text(yaml.safe_dump(document))
    assert in_process("prepare", "--spec", spec("prepare"), "--out", "data") == 0
    capsys.readouterr()
    assert train("u", 4) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "mynet:Net: found TypeError: " in said and "unexpected keyword argument 'width'" in said
    assert said.endswith("a network for image_size, channels, bias, width, widths")


CELL = ["--configfile", "own.yaml", "--dataset", "digits", "--method", "u"]


def test_describe_counts_its_parameters_and_nothing_that_was_published(here, capsys):
    assert in_process("describe", *CELL) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 4 * 2 * 9 + (6 * 4 + 6) + (6 * 9 + 1)
    assert facts["state_dict_entries"] == 5 and "state_dict_entries_counted" not in facts
    assert facts["network"] == {"type": "mynet:Net", "widths": [4, 6], "bias": False}


def test_no_published_checkpoint_is_imported_for_it(here, capsys):
    assert in_process("import-checkpoint", "x.pth", "--out", "out", *CELL) == 2
    sentence = (
        "method: found 'u' with the network mynet:Net, expected one with ncsnpp, as published"
    )
    assert sentence in capsys.readouterr().err


def test_a_network_that_is_not_there_is_named_before_any_job(here):
    Path("mynet.py").unlink()
    result = snakemake("all", "-n", "--configfile", "own.yaml", cwd=here)
    assert result.returncode == 1
    sentence = "own.yaml: network.type (dataset digits), method c: found 'mynet:Net', expected a "
    assert sentence in result.stdout + result.stderr


@pytest.mark.slow
def test_an_edit_of_it_trains_and_measures_again(here):
    """In a package, and through processes that share out a batch."""
    Path("nets").mkdir()
    Path("nets/base.py").write_text(MODULE)
    Path("nets/mine.py").write_text("from nets.base import Net\n")
    Path("mynet.py").unlink()
    document = copy.deepcopy(DOCUMENT)
    document["defaults"]["network"]["type"] = "nets.mine:Net"
    document["defaults"]["training"]["processes"] = 2
    Path("own.yaml").write_text(yaml.safe_dump(document))
    # QC, for which U is trained too.
    target = f"{RUNS}/qc/seed3/asymmetry.json"
    options = ["--cores", "2", "--configfile", "own.yaml"]
    result = snakemake(target, *options, cwd=here)
    assert result.returncode == 0, result.stderr[-3000:]

    def planned():
        output = snakemake(target, "-n", *options, cwd=here).stdout
        counts = {} if "Nothing to be done" in output else jobs(output)
        return {rule: n for rule, n in counts.items() if rule != "total"}

    os.utime("nets/base.py", (1, 1))
    assert planned() == {}
    Path("nets/base.py").write_text(MODULE.replace("torch.tanh", "torch.sin"))
    os.utime("nets/base.py", (1, 1))
    assert planned() == {"train": 2, "asymmetry": 1, "gather_asymmetry": 1}
