"""A disk that is full, and one that cannot be written: a sentence, and nothing half-written."""

import json
import subprocess

import numpy as np
import pytest
from conftest import in_process

from qcsbm.experiment import specification

CELL = ("digits", "u", 0)


@pytest.fixture(params=["size=16k", "size=1m,ro"])
def disk(request, tmp_path):
    """A file system with hardly any space, or without the right to write."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def command(stage, tiny, inputs, disk):
    """A command of ``stage`` that writes more than there is space for."""
    spec = {
        "prepare": lambda: specification.prepare(tiny, "digits"),
        "train": lambda: specification.train(tiny, *CELL, 40),
        "sample": lambda: specification.sample(tiny, *CELL, "pc"),
        "features": lambda: specification.features(tiny, "efficientnet_lite0", "float32"),
    }[stage]().document()
    if stage == "sample":
        spec["protocol"]["samples"] = 400
        spec["protocol"]["settings"] |= {"batch_size": 400, "steps": 2}
    if stage == "train":
        spec["protocol"]["stop"] = 2
    data = ["--data", inputs / "data"]
    rest = {
        "prepare": [],
        "train": [*data, "--curve", disk / "curve.csv"],
        "sample": [*data, "--checkpoint", inputs / "step60.safetensors", "--shard", "1-of-1"],
        "features": [*data, "--images", inputs / "data/test.npy", "--shard", "1-of-1"],
    }[stage]
    if stage in ("train", "sample"):
        rest += ["--record", disk / "record.json"]
    out = disk / {"prepare": "data", "train": "step40.safetensors"}.get(stage, "part.npz")
    return [stage, "--spec", json.dumps(spec), "--out", out, *rest]


@pytest.mark.parametrize("stage", ["prepare", "train", "sample", "features"])
def test_a_stage_without_space_says_so_and_leaves_nothing(stage, tiny, inputs, disk, capsys):
    images = np.load(inputs / "data/test.npy", mmap_mode="r")
    assert images.nbytes > 16384
    assert in_process(*command(stage, tiny, inputs, disk)) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"qcsbm {stage}: ") and str(disk) in message
    files = {path.name for path in disk.rglob("*") if path.is_file()}
    assert not files - {"curve.csv"}, files
