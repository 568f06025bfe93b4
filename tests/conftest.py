"""The workflow as tests run it, and its ci tier, which is run once for all of them."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch.autograd.function import once_differentiable

from qcsbm import cli
from qcsbm.data import raw
from qcsbm.experiment import agreement, config, specification
from qcsbm.runtime import device
from qcsbm.schema.networks import Network
from qcsbm.schema.sde import SDE
from qcsbm.schema.sources import Data
from qcsbm.schema.specifications import Model
from qcsbm.score.models import build
from qcsbm.training import checkpoint

# As in every job: results do not depend on the number of cores, and cores are not fought for.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@cache
def forks():
    """The process that forks Snakemake, until this one ends."""
    # Without -P its folder would be one that modules are imported from.
    command = [sys.executable, "-P", ROOT / "tests/forks.py"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process


def snakemake(*arguments, cwd, timeout=1800):
    """What came of ``python -m snakemake`` with ``arguments`` in the folder ``cwd``."""
    words = ["--snakefile", *map(str, (ROOT / "Snakefile", *arguments))]
    process = forks()
    with tempfile.NamedTemporaryFile() as output, tempfile.NamedTemporaryFile() as errors:
        call = {"arguments": words, "folder": str(cwd), "environment": dict(os.environ)}
        call |= {"output": output.name, "errors": errors.name, "seconds": timeout}
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        texts = [Path(file.name).read_text(encoding="utf-8") for file in (output, errors)]
    return subprocess.CompletedProcess(words, status, *texts)


def in_process(*arguments):
    """Exit status of `qcsbm` with ``arguments``, run here with this process's arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "fix_arithmetic", lambda: None)
        try:
            return cli.main([str(word) for word in arguments])
        except SystemExit as end:
            return end.code


def preparing(data):
    """What the stage prepare is told of ``data``, whose files are as they are now."""
    try:
        files = raw.fingerprint(TypeAdapter(Data).validate_python(data))
    except ValidationError:
        files = None
    return json.dumps({"version": 1, "data": data, "raw": files and files.model_dump()})


def score_model(parameterisation, residual, network, sde):
    """What `build` makes a model of: NCSN++ under the VE SDE, unless the keys say otherwise."""
    return Model(
        parameterisation=parameterisation,
        residual=residual,
        network=TypeAdapter(Network).validate_python({"type": "ncsnpp"} | network),
        sde=TypeAdapter(SDE).validate_python({"type": "ve"} | sde),
    )


def told(**facts):
    """What a stage is told, by its ``facts`` as they stand in records."""
    return SimpleNamespace(document=lambda: facts, columns=lambda: facts.get("protocol", {}))


def expecting(records):
    """What a stage is told that may put ``records`` together, see
    `qcsbm.experiment.agreement.require`."""
    found = {"version": 1, "strict": False, "seeds": {}, "records": {}}
    for record in records:
        dataset, method, seed = (record[key] for key in ("dataset", "method", "seed"))
        found["seeds"].setdefault(dataset, []).append(seed)
        digest = agreement.digest(record["specification"])
        found["records"].setdefault(f"{dataset}/{method}", []).append(digest)
    return found


class Once(torch.autograd.Function):
    """The sine, without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def pytest_collection_modifyitems(items):
    """Of several processes of tests one has all that share a fixture: a file, or the ci tier."""
    for item in items:
        group = "ci" if "ci" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=5, help="kills per stage (test_kills.py)")


@pytest.fixture(scope="session")
def ci(tmp_path_factory):
    """The results of the ci tier, run as a DAG from an empty folder."""
    folder = tmp_path_factory.mktemp("ci")
    result = snakemake("all", "--cores", "2", "--configfile", ROOT / "config/ci.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder / "results/ci"


@pytest.fixture(scope="session")
def tiny():
    """An experiment with three batches of everything, the last one not full."""
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    document["defaults"]["samplers"] = {
        "pc": {"type": "pc", "steps": 3, "snr": 0.16, "batch_size": 4}
    }
    document["defaults"]["likelihood"] = {
        "samples": 5,
        "rtol": 0.1,
        "atol": 0.1,
        "batch_size": 2,
    }
    digits = document["datasets"]["digits"]
    digits["quality"] = {"samples": 10, "extractor": "efficientnet_lite0"}
    digits["asymmetry"] = {
        "estimator": "antisymmetric",
        "probes": 2,
        "noise_levels": 3,
        "samples": 3,
        "batch_size": 2,
    }
    return config.load(document, "test")


@pytest.fixture(scope="session")
def inputs(tiny, tmp_path_factory):
    """The prepared digits, and a checkpoint of U with random weights."""
    folder = tmp_path_factory.mktemp("inputs")
    spec = specification.prepare(tiny, "digits")
    assert in_process("prepare", "--spec", spec.text(), "--out", folder / "data") == 0
    spec = specification.train(tiny, "digits", "u", 0, 60)
    model = build((1, 8, 8), spec.model, seed=1)
    weights = model.state_dict()
    ema = {name: tensor.clone() for name, tensor in weights.items()}
    state = checkpoint.TrainingState(60, weights, ema, {}, {}, spec.document())
    checkpoint.save(folder / "step60.safetensors", state)
    return folder
